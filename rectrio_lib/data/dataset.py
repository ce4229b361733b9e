"""An image data set: a manifest with one row an image, and the pixels that its rows point into."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rectrio_lib.core import errors, files
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.lookup import TEXT
from rectrio_lib.core.workspace import Workspace, read_card
from rectrio_lib.data import catalog, products, splits
from rectrio_lib.data.duplicates import group_near_copies, remove_copies
from rectrio_lib.data.image_files import row_hash
from rectrio_lib.data.layout import understood

LOG = logging.getLogger(__name__)
MOST_NEAR_COPY_BITS = 16
HASHED_LINES = 1 << 16  # at once
CARD_TYPES = {"name": str, "classes": list, "source": str, "stand_in": bool}


@dataclass(frozen=True)
class ImageDataset:
    """Images and what is known of them."""

    name: str  # such as "fashion-mnist"
    manifest: pd.DataFrame  # a row an image: image_id, row (into `pixels`), label, split, group, width, height, …
    pixels: np.ndarray  # uint8 (N, C, H, W)
    classes: tuple[str, ...]  # names in the order of their numbers
    source: str  # one sentence on where the images came from
    generated_images: bool = False  # whether they are drawn because the real ones were not available
    notes: tuple[str, ...] = ()  # sentences on how a folder was understood, and on likely copies

    def __repr__(self) -> str:
        return f"{self.name}: {len(self):,} images, {len(self.classes)} classes; {self.source}"

    @property
    def stand_in(self) -> bool:
        """The same as `generated_images`, as notebooks call it."""
        return self.generated_images

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def targets(self) -> np.ndarray:
        """Class numbers int64 (len,), in manifest order."""
        return pd.Index(self.classes).get_indexer(self.manifest["label"]).astype(np.int64)

    @property
    def images(self) -> np.ndarray:
        """Images uint8 (len, C, H, W), in manifest order."""
        return self.pixels[self.manifest["row"].to_numpy()]

    @property
    def hash(self) -> str:
        """Fingerprint of images, labels and splits, see `content_hash`."""
        return content_hash(self.manifest)

    def where(self, *splits: str) -> ImageDataset:
        """Return the images of the given splits."""
        chosen = self.manifest["split"].isin(splits)
        return replace(self, manifest=self.manifest[chosen].reset_index(drop=True))


def content_hash(rows: pd.DataFrame) -> str:
    """Return a fingerprint of images, labels and splits of a manifest, whatever their order."""
    texts = [pa.array(rows[column].astype(str), TEXT) for column in ("image_id", "label", "split")]
    lines, digest = pc.binary_join_element_wise(*texts, pa.scalar("|", TEXT)), hashlib.sha256()
    order = pc.sort_indices(lines)
    for start in range(0, len(lines), HASHED_LINES):
        block = lines.take(order[start : start + HASHED_LINES]).to_pylist()
        digest.update(("\n" * bool(start) + "\n".join(block)).encode())
    return digest.hexdigest()[:16]


def prepare(
    name: str = "fashion-mnist",
    source: str = "auto",
    folder: str = "",
    size: int = 28,
    channels: int = 1,
    val_fraction: float = 1 / 12,
    test_fraction: float = 1 / 6,
    seed: int = 0,
    test_pattern: str = "",
    split_file: str = "",
    near_copies: float = 8,
    pattern: str = "",
    workspace: Workspace | None = None,
) -> tuple[ImageDataset, pd.DataFrame]:
    """Read, clean and split a data set.

    Args:
        name: "fashion-mnist", "animals10", "products" (<product>_<view>.jpg), or any name for images of your own.
        source: "idx", "csv", "folder" or "stand-in"; "auto": what is there, else the download, else the stand-in.
        folder: the folder to read; empty means where `name` lives below `RECTRIO_DATA`.
        size: side in pixels, for image folders and the stand-in.
        channels: 1 (grey) or 3 (colour), for image folders and the stand-in.
        val_fraction: share of the train images (with `pattern`, of products) that becomes the validation split.
        test_fraction: share that becomes the test split, where the source has none of its own.
        seed: seed of the split (and of the stand-in).
        test_pattern: regular expression; in an image folder the files in whose name it is found are the test split.
        split_file: CSV file with the columns path and split, for an image folder, see `splits.split_by_file`.
        near_copies: how different likely copies, which lie in one split, may be, see `duplicates.near_copies`; 0: off.
        pattern: regular expression with the named groups product and view for paths without suffix, such as
            "(?P<product>[^/]+)/(?P<view>[^/]+)": products become the labels. Empty: class folders, or `name`'s own.
        workspace: where data and outputs live.

    Returns:
        The data set, and the ledger of images left out (picture, reason).

    Raises:
        ArgumentError: if an argument is out of range, or `pattern` lacks its groups.
        DataError: if a file is missing or damaged, a class or split is too small, or a pattern or table does not fit.
    """
    workspace = workspace or Workspace()
    if source not in catalog.SOURCES:
        raise ArgumentError(f"source={source!r} is unknown: choose one of {', '.join(catalog.SOURCES)}.")
    if not 0 <= near_copies <= MOST_NEAR_COPY_BITS:
        raise ArgumentError(f"near_copies={near_copies}: give 0 (off) to {MOST_NEAR_COPY_BITS}; 8 is a good choice.")
    pattern = pattern or catalog.pattern_of(name)
    if pattern:
        products.check_pattern(pattern)
    home = catalog.home_of(name, folder, workspace)
    if source == "auto":
        source = catalog.find_source(name, home, pattern)
    pixels, frame, ledger = catalog.read_source(name, source, home, size, channels, seed, pattern, [workspace.outputs])
    if source != "stand-in" and (test_pattern or split_file):
        if test_pattern and split_file:
            raise errors.DataError("test_pattern and split_file are both given: choose one way to split.")
        if source != "folder":
            raise errors.DataError(f"test_pattern and split_file go by file names, which {source} files do not have.")
        if test_pattern:
            frame = splits.split_by_pattern(frame, test_pattern)
        else:
            frame = splits.split_by_file(frame, workspace.resolve(split_file), ledger["picture"])
    fractions, bits = {"test": test_fraction, "val": val_fraction}, near_copies if source == "folder" else 0
    manifest, copies, notes = _clean(make_manifest(pixels, frame), bits, bool(pattern))
    manifest = (splits.split_by_product if pattern else splits.split_by_group)(manifest, fractions, seed)
    splits.check_splits(manifest, fractions)
    if source == "folder" and not pattern:
        notes = [f"{home.name}: {understood(frame['path'])}.", *notes]
    for note in notes:
        LOG.info("%s", note)
    drawn = source == "stand-in"
    classes = catalog.class_order(name, source, set(manifest["label"]))
    origin = "STAND-IN: generated drawings of shapes, not the real images" if drawn else f"{source} files"
    dataset = ImageDataset(name, manifest, pixels, classes, origin, drawn, tuple(notes))
    return dataset, pd.concat([ledger, copies], ignore_index=True)


def _clean(manifest: pd.DataFrame, bits: float, by_product: bool) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Keep one of equal images, and give likely copies one group; return ledger and notes, too."""
    if by_product:
        manifest, copies = products.clean_products(manifest, bits)
        return manifest.drop(columns="sketch", errors="ignore"), copies, products.remarks(manifest)
    manifest, copies = remove_copies(manifest)
    splits.check_classes(manifest)
    note = ""
    if bits:
        given = manifest["split"].notna().any()
        manifest, note = group_near_copies(manifest.assign(given_split=manifest["split"].fillna("")), bits)
        manifest = manifest if given else manifest.drop(columns="given_split")
    return manifest.drop(columns="sketch", errors="ignore"), copies, [note] if note else []


def make_manifest(pixels: np.ndarray, frame: pd.DataFrame) -> pd.DataFrame:
    """Add image_id, row, group, width and height to what a reader found.

    Args:
        pixels: uint8 (N, C, H, W).
        frame: N rows with `label`; `image_id`, `split`, `group`, `width` and `height` are kept where present.

    Returns:
        The manifest. A missing image_id is `image_files.row_hash` of the pixels, so equal images have equal ids.
    """
    ids = frame["image_id"] if "image_id" in frame else [row_hash(image) for image in pixels]
    manifest = frame.assign(image_id=ids, row=np.arange(len(pixels)))
    defaults = {"split": None, "group": manifest["image_id"], "height": pixels.shape[2], "width": pixels.shape[3]}
    manifest = manifest.assign(**{k: v for k, v in defaults.items() if k not in manifest})
    first = ["image_id", "row", "label", "split", "group", "width", "height"]
    return manifest[[*first, *manifest.columns.difference(first, sort=False)]]


def save_dataset(dataset: ImageDataset, ledger: pd.DataFrame | None = None, workspace: Workspace | None = None) -> Path:
    """Write manifest.parquet, pixels.npy, card.json and ledger.csv to outputs/datasets/<name>/."""
    folder = (workspace or Workspace()).path("datasets", dataset.name)
    with files.replaced_folder(folder) as fresh:
        dataset.manifest.to_parquet(fresh / "manifest.parquet")
        np.save(fresh / "pixels.npy", dataset.pixels)
        card = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source, "notes": dataset.notes}
        card |= {"stand_in": dataset.generated_images, "generated_images": dataset.generated_images}
        files.write_json(fresh / "card.json", card | {"hash": dataset.hash})
        if ledger is not None:
            ledger.to_csv(fresh / "ledger.csv", index=False)
    return folder


def load_dataset(name: str, workspace: Workspace | None = None) -> ImageDataset:
    """Open what `save_dataset` wrote; pixels stay on disk until they are used.

    Raises:
        MissingArtefactError: if it was never saved.
        DataError: if a file of it is damaged, or they do not fit each other.
    """
    folder = (workspace or Workspace()).require("datasets", name, "rectrio run --only 01")
    card = read_card(folder / "card.json", CARD_TYPES)
    if not all(isinstance(one, str) for one in card["classes"]):
        raise errors.DataError(f"{folder / 'card.json'} is damaged (classes): save it again.")
    try:
        manifest = pd.read_parquet(folder / "manifest.parquet")
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise errors.DataError(f"The data set {name} in {folder} is damaged ({error}): save it again.") from error
    lacking = {"image_id", "row", "label", "split", "group"} - set(manifest.columns)
    if lacking or pixels.ndim != 4 or not manifest["row"].between(0, len(pixels) - 1).all():
        raise errors.DataError(f"{folder}: manifest.parquet and pixels.npy {pixels.shape} do not fit: save it again.")
    drawn, notes = bool(card.get("generated_images", card["stand_in"])), tuple(card.get("notes", ()))
    return ImageDataset(card["name"], manifest, pixels, tuple(card["classes"]), card["source"], drawn, notes)
