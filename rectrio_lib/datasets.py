"""An image data set: a manifest with one row a picture, and the pixels that its rows point into."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib import readers, resources, shapes

SPLITS = ("train", "val", "test")
SOURCES = ("auto", "idx", "csv", "folder", "stand-in")
MADE_BY = "01_prepare_data"
FASHION_FOLDERS = (
    "fashion_mnist",
    "FashionMNIST/raw",
)  # ours, and where torchvision's own data set class puts it


@dataclass(frozen=True)
class ImageDataset:
    """Pictures and what is known of them.

    Attributes:
        name: such as "fashion-mnist".
        manifest: one row a picture: image_id (from the content), row (into `pixels`), label, split, group, width,
            height, and whatever else the reader knows.
        pixels: uint8 (N, C, H, W).
        classes: class names in the order of their numbers.
        source: one sentence on where the pictures came from.
        stand_in: whether the pictures are generated because the real ones were not to be had.
    """

    name: str
    manifest: pd.DataFrame
    pixels: np.ndarray
    classes: tuple[str, ...]
    source: str
    stand_in: bool = False

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def targets(self) -> np.ndarray:
        """Class numbers int64 (len,), in manifest order."""
        return pd.Index(self.classes).get_indexer(self.manifest["label"]).astype(np.int64)

    @property
    def images(self) -> np.ndarray:
        """Pictures uint8 (len, C, H, W), in manifest order."""
        return self.pixels[self.manifest["row"].to_numpy()]

    @property
    def hash(self) -> str:
        """Fingerprint of pictures, labels and splits, whatever their order."""
        lines = sorted(map("|".join, self.manifest[["image_id", "label", "split"]].itertuples(index=False)))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def where(self, *splits: str) -> ImageDataset:
        """Return the pictures of the given splits."""
        chosen = self.manifest["split"].isin(splits)
        return replace(self, manifest=self.manifest[chosen].reset_index(drop=True))


def prepare(
    name: str = "fashion-mnist",
    source: str = "auto",
    folder: str = "",
    size: int = 28,
    channels: int = 1,
    val_fraction: float = 1 / 12,
    test_fraction: float = 1 / 6,
    seed: int = 0,
) -> tuple[ImageDataset, pd.DataFrame]:
    """Read, clean and split a data set.

    Args:
        name: "fashion-mnist", whose files are checked against what is published; or any name for pictures of your own.
        source: "idx", "csv", "folder" or "stand-in"; "auto" takes what `RECTRIO_DATA` holds, then the official
            download, then the stand-in, which announces itself.
        folder: the folder to read; empty means where `name` lives below `RECTRIO_DATA`.
        size: side in pixels, for picture folders and the stand-in.
        channels: 1 (grey) or 3 (colour), for picture folders and the stand-in.
        val_fraction: share of the train pictures that becomes the validation split.
        test_fraction: share of all pictures that becomes the test split, where the source has none of its own.
        seed: seed of the split (and of the stand-in).

    Returns:
        The data set, and the ledger of pictures left out (picture, reason).

    Raises:
        readers.BadData: if a file is missing or damaged, or a class has fewer than two pictures.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r} is unknown: choose one of {', '.join(SOURCES)}.")
    home = _home(name, folder)
    if source == "auto":
        source = _find(name, home)
    fashion = name == "fashion-mnist"
    classes = readers.FASHION_CLASSES if fashion else None
    numbered = classes or [str(number) for number in range(256)]
    if source == "idx":
        read = readers.read_idx(home, numbered, readers.official_md5() if fashion else None)
    elif source == "csv":
        read = readers.read_csv(home, numbered, readers.FASHION_COUNTS if fashion else None)
    elif source == "folder":
        read = readers.read_folder(home, size, channels, classes)
    else:
        read, classes = _stand_in(size, channels, seed), tuple(shapes.SHAPES)
    pixels, frame, ledger = read
    manifest, copies = remove_copies(make_manifest(pixels, frame))
    check_classes(manifest)
    manifest = split_by_group(manifest, {"test": test_fraction, "val": val_fraction}, seed)
    found = sorted(manifest["label"].unique())
    told = {"stand-in": "STAND-IN: generated drawings of shapes, not the real pictures"}
    dataset = ImageDataset(
        name=name,
        manifest=manifest,
        pixels=pixels,
        classes=tuple(classes if classes and set(found) <= set(classes) else found),
        source=told.get(source, f"{source} files"),
        stand_in=source == "stand-in",
    )
    return dataset, pd.concat([ledger, copies], ignore_index=True)


def _home(name: str, folder: str) -> Path:
    if folder:
        return resources.project_root() / Path(folder).expanduser()
    places = FASHION_FOLDERS if name == "fashion-mnist" else (name,)
    found = [resources.data_root() / place for place in places if (resources.data_root() / place).is_dir()]
    return (found or [resources.data_root() / places[0]])[0]


def _find(name: str, home: Path) -> str:
    """Say which source "auto" means, downloading Fashion-MNIST if it is neither here nor forbidden."""
    if home.is_dir() and any(home.glob("*-ubyte.gz")):
        return "idx"
    if any((home / csv).exists() for csv in readers.CSV_FILES.values()):
        return "csv"
    if home.is_dir() and any(p.is_dir() for p in home.iterdir()):
        return "folder"
    if name != "fashion-mnist":
        raise readers.BadData(f"{home} holds no pictures in class folders: point `folder` at yours.")
    reason = "downloads are switched off (RECTRIO_OFFLINE=1)"
    if not resources.offline():
        try:
            resources.download_fashion_mnist(home)
            return "idx"
        except (OSError, RuntimeError) as error:
            reason = f"the download failed ({error})"
    print(f"STAND-IN: {home} holds no Fashion-MNIST and {reason}: using generated shapes. No figure below is real.")
    return "stand-in"


def _stand_in(size: int, channels: int, seed: int) -> readers.Read:
    pixels, frame = shapes.draw_shapes(300, views=4, size=size, channels=channels, seed=seed)
    return pixels, frame.rename(columns={"object": "group"}), pd.DataFrame(columns=["picture", "reason"])


def make_manifest(pixels: np.ndarray, frame: pd.DataFrame) -> pd.DataFrame:
    """Add image_id, row, group, width and height to what a reader found.

    Args:
        pixels: uint8 (N, C, H, W).
        frame: N rows with `label`; `split`, `group`, `width` and `height` are kept where present.

    Returns:
        The manifest. image_id is a 64-bit BLAKE2 hash of shape and content, so equal pictures have equal ids.
    """
    shape = str(pixels.shape[1:]).encode()
    ids = [hashlib.blake2b(shape + p.tobytes(), digest_size=8).hexdigest() for p in pixels]
    manifest = frame.assign(image_id=ids, row=np.arange(len(pixels)))
    defaults = {
        "split": None,
        "group": manifest["image_id"],
        "height": pixels.shape[2],
        "width": pixels.shape[3],
    }
    manifest = manifest.assign(**{k: v for k, v in defaults.items() if k not in manifest})
    first = ["image_id", "row", "label", "split", "group", "width", "height"]
    return manifest[[*first, *manifest.columns.difference(first, sort=False)]]


def remove_copies(manifest: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one of pictures that are equal to the byte, the test picture where there is one.

    Returns:
        The manifest without copies, and a ledger of what was left out.
    """
    order = manifest.assign(_late=manifest["split"].ne("test")).sort_values(["_late", "label", "row"]).index
    copy = manifest.loc[order].duplicated("image_id").reindex(manifest.index)
    kept = manifest[~copy].reset_index(drop=True)
    twin = kept.set_index("image_id")["label"]
    ledger = pd.DataFrame(
        {
            "picture": manifest.loc[copy].get("path", manifest.loc[copy, "row"]).astype(str),
            "reason": [f"copy of a picture labelled {twin[i]}" for i in manifest.loc[copy, "image_id"]],
        }
    )
    return kept, ledger


def check_classes(manifest: pd.DataFrame) -> None:
    """Refuse what triplets cannot be made of.

    Raises:
        readers.BadData: if there are fewer than two classes, or a class has fewer than two pictures.
    """
    counts = manifest["label"].value_counts()
    if len(counts) < 2:
        raise readers.BadData(f"Only one class, {list(counts.index)}: a triplet needs a negative from another.")
    if counts.min() < 2:
        lonely = ", ".join(sorted(counts.index[counts < 2])[:5])
        raise readers.BadData(
            f"Class {lonely} has a single picture: a triplet needs an anchor and a positive. Add pictures or remove it."
        )


def split_by_group(manifest: pd.DataFrame, fractions: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Split every class by whole groups; what the source calls test stays test.

    A group's place follows from a hash of seed and group name alone: the split does not depend on the order of rows.
    A split that the source brings is kept; one that it lacks is drawn from the rest.

    Args:
        manifest: with `label`, `group` and `split` ("train", "val", "test" or empty).
        fractions: share of each class to draw for "test" and "val".
        seed: another seed, another split.

    Returns:
        The manifest with `split` filled, no group on two sides.
    """
    given = manifest["split"].fillna("")
    wanted = {split: fraction for split, fraction in fractions.items() if not given.eq(split).any()}
    fixed = given.where(given.isin(["val", "test"])).groupby(manifest["group"]).min()  # "test" before "val"
    groups = manifest.groupby("group").agg(label=("label", "min"), size=("label", "size")).join(fixed.rename("split"))
    groups["key"] = [hashlib.blake2b(f"{seed}|{g}".encode(), digest_size=8).hexdigest() for g in groups.index]
    for _, members in groups[groups["split"].isna()].sort_values("key").groupby("label"):
        left, total = list(members.index[:-1]), members["size"].sum()  # the last group always stays in train
        for split, fraction in wanted.items():
            taken = 0
            while left and taken + groups.at[left[0], "size"] / 2 <= fraction * total:
                taken += groups.at[left[0], "size"]
                groups.at[left.pop(0), "split"] = split
    return manifest.assign(split=manifest["group"].map(groups["split"].fillna("train")))


def save_dataset(dataset: ImageDataset, ledger: pd.DataFrame | None = None) -> Path:
    """Write manifest.parquet, pixels.npy, card.json and ledger.csv to outputs/datasets/<name>/."""
    folder = resources.outputs_root() / "datasets" / dataset.name
    with resources.replaced_folder(folder) as fresh:
        dataset.manifest.to_parquet(fresh / "manifest.parquet")
        np.save(fresh / "pixels.npy", dataset.pixels)
        card = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source}
        resources.write_json(fresh / "card.json", {**card, "stand_in": dataset.stand_in, "hash": dataset.hash})
        if ledger is not None:
            ledger.to_csv(fresh / "ledger.csv", index=False)
    return folder


def load_dataset(name: str) -> ImageDataset:
    """Open what chapter 01 saved; pixels stay on disk until they are used.

    Raises:
        resources.MissingArtefact: if chapter 01 has not made it.
    """
    folder = resources.artefact(f"datasets/{name}", made_by=MADE_BY)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return ImageDataset(
        name=card["name"],
        manifest=pd.read_parquet(folder / "manifest.parquet"),
        pixels=np.load(folder / "pixels.npy", mmap_mode="r"),
        classes=tuple(card["classes"]),
        source=card["source"],
        stand_in=card["stand_in"],
    )
