"""Data sets by name: where their images are looked for, how they are fetched, and what stands in for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rectrio_lib.core import errors
from rectrio_lib.core.download import download_animals10, download_fashion_mnist
from rectrio_lib.core.workspace import Workspace, offline
from rectrio_lib.data import image_files, products, readers, synthetic

LOG = logging.getLogger(__name__)
FASHION_CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_COUNTS = {"train": 60_000, "test": 10_000}
ANIMALS_FOLDERS = {
    "cane": "dog", "cavallo": "horse", "elefante": "elephant", "farfalla": "butterfly", "gallina": "chicken",
    "gatto": "cat", "mucca": "cow", "pecora": "sheep", "ragno": "spider", "scoiattolo": "squirrel",
}  # fmt: skip


SOURCES = ("auto", "idx", "csv", "folder", "stand-in")
FASHION_FOLDERS = ("fashion_mnist", "FashionMNIST/raw")  # ours, and where torchvision's own class puts it


def official_md5() -> dict[str, str]:
    """Return the published md5 of the four Fashion-MNIST files, as torchvision lists them."""
    from torchvision.datasets import FashionMNIST

    return dict(FashionMNIST.resources)


@dataclass(frozen=True)
class Published:
    """A data set known by its name, most with an official download."""

    title: str  # its own name
    folders: tuple[str, ...]  # where it may live below `RECTRIO_DATA`; the download goes to the first
    download: Callable[[Path], None] | None = None  # fetches it into a folder
    downloaded: str = "folder"  # the source, "idx" or "folder", that the download brings
    names: Mapping[str, str] = field(default_factory=dict)  # class names by folder name
    drawn: int = 300  # objects a class in its stand-in
    pattern: str = ""  # of product and view in its file names, see `products`; empty for class folders


NUMBERED = {str(number): name for number, name in enumerate(FASHION_CLASSES)}
ANIMALS_HOMES = ("animals10/raw-img", "animals10")
PUBLISHED = {
    "fashion-mnist": Published(
        "Fashion-MNIST", FASHION_FOLDERS, lambda to: download_fashion_mnist(to), "idx", NUMBERED
    ),
    "animals10": Published(
        "Animals-10", ANIMALS_HOMES, lambda to: download_animals10(to), names=ANIMALS_FOLDERS, drawn=60
    ),
    "products": Published("product photographs", ("products",), drawn=20, pattern=products.PATTERN),
}


def home_of(name: str, folder: str, workspace: Workspace) -> Path:
    """Return `folder`, counted from the checkout, or else where the images called `name` live or should go."""
    if "://" in folder:
        raise errors.DataError(f"{folder}: a data set needs a folder of this machine: copy the images to one.")
    if folder:
        return workspace.resolve(folder)
    places = PUBLISHED[name].folders if name in PUBLISHED else (name,)
    homes = [workspace.data / place for place in places]
    return next((home for home in homes if _source_in(home)), homes[0])


def pattern_of(name: str) -> str:
    """Return the pattern of file names that goes with a data set; empty if it has none of its own."""
    return PUBLISHED[name].pattern if name in PUBLISHED else ""


def _source_in(home: Path, loose: bool = False) -> str:
    """Say what a folder holds: "idx", "csv" or "folder" (`loose` images will do); "" if it is none of these."""
    if any(home.glob("*-ubyte.gz")) or any(home.glob("*idx?-ubyte")):
        return "idx"
    if any((home / csv).exists() for csv in readers.CSV_FILES.values()):
        return "csv"
    found = image_files.walk_images(home) if home.is_dir() else ()
    return "folder" if any(loose or "/" in path for path, *_ in found) else ""


def find_source(name: str, home: Path, pattern: str = "") -> str:
    """Say which source "auto" means, downloading a published set if it is neither here nor forbidden.

    Raises:
        DataError: if there is nothing to read, and no download of that name.
    """
    found = _source_in(home, loose=bool(pattern))
    if found:
        return found
    if name not in PUBLISHED:
        where = "" if pattern else " in class folders"
        raise errors.DataError(f"{home} holds no images{where}: point `folder` at yours.")
    published = PUBLISHED[name]
    reason = "downloads are switched off (RECTRIO_OFFLINE=1)"
    if published.download is None:
        reason = "there is no download of them"
    elif not offline():
        try:
            published.download(home)
            return published.downloaded
        except errors.StorageError:  # drawings would hide that nothing can be kept
            raise
        except (OSError, RuntimeError) as error:
            reason = f"the download failed ({error})"
    told = "STAND-IN: %s holds no %s and %s: using generated shapes. No figure below is real."
    LOG.warning(told, home, published.title, reason)
    return "stand-in"


def read_source(
    name: str, source: str, home: Path, size: int, channels: int, seed: int, pattern: str = "", exclude: Iterable = ()
) -> readers.Read:
    """Read images of one source, or draw its stand-in, whose views of one object share a `group`.

    Raises:
        DataError: if a file is missing or damaged, or a pattern of file names is given and there are none.
    """
    if pattern and source in ("idx", "csv"):
        raise errors.DataError(f"pattern={pattern!r} goes by file names, which {source} files do not have.")
    fashion = name == "fashion-mnist"
    classes = FASHION_CLASSES if fashion else [str(number) for number in range(256)]
    if source == "idx":
        return readers.read_idx(home, classes, official_md5() if fashion else None)
    if source == "csv":
        return readers.read_csv(home, classes, FASHION_COUNTS if fashion else None)
    published = PUBLISHED.get(name, Published(name, ()))
    if source == "folder" and pattern:
        return products.read_products(home, pattern, size, channels, exclude)
    if source == "folder":
        return readers.read_folder(home, size, channels, published.names, exclude)
    pixels, frame = synthetic.draw_shapes(published.drawn, views=4, size=size, channels=channels, seed=seed)
    frame = frame.rename(columns={"object": "group"})
    if pattern:  # shapes as products
        frame = frame.assign(shape=frame["label"], label=frame["group"], view=frame["view"].astype(str))
    return pixels, frame, image_files.make_ledger([])


def class_order(name: str, source: str, found: set[str]) -> tuple[str, ...]:
    """Return class names in the order of their numbers: as published, as drawn, or by alphabet."""
    order = tuple(synthetic.SHAPES) if source == "stand-in" else FASHION_CLASSES if name == "fashion-mnist" else ()
    return order if order and found <= set(order) else tuple(sorted(found))
