"""An image data set: a manifest with one row a picture, and the pixels that its rows point into."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.core import errors, files
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import catalog, products
from rectrio_lib.data.duplicates import group_near_copies, remove_copies
from rectrio_lib.data.splits import check_classes, split_by_file, split_by_group, split_by_pattern, split_by_product

MOST_NEAR_COPY_BITS = 16  # of 64; unrelated photographs differ in about 32


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
        """Fingerprint of images, labels and splits, see `content_hash`."""
        return content_hash(self.manifest)

    def where(self, *splits: str) -> ImageDataset:
        """Return the pictures of the given splits."""
        chosen = self.manifest["split"].isin(splits)
        return replace(self, manifest=self.manifest[chosen].reset_index(drop=True))


def content_hash(rows: pd.DataFrame) -> str:
    """Return a fingerprint of images, labels and splits of a manifest, whatever their order."""
    lines = sorted(map("|".join, rows[["image_id", "label", "split"]].astype(str).itertuples(index=False)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


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
    near_copies: int = 8,
    pattern: str = "",
) -> tuple[ImageDataset, pd.DataFrame]:
    """Read, clean and split a data set.

    Args:
        name: "fashion-mnist", whose files are checked against what is published; "animals10", whose Italian folders
            are shown in English; "products", whose file names are <product>_<view>.jpg; or any name for pictures of
            your own.
        source: "idx", "csv", "folder" or "stand-in"; "auto" takes what `RECTRIO_DATA` holds, then the official
            download, then the stand-in, which announces itself.
        folder: the folder to read; empty means where `name` lives below `RECTRIO_DATA`.
        size: side in pixels, for picture folders and the stand-in.
        channels: 1 (grey) or 3 (colour), for picture folders and the stand-in.
        val_fraction: share of the train pictures that becomes the validation split.
        test_fraction: share of all pictures that becomes the test split, where the source has none of its own.
        seed: seed of the split (and of the stand-in).
        test_pattern: regular expression; in a picture folder the files in whose name it is found are the test split.
        split_file: CSV file with the columns path and split, for a picture folder. What it does not name is for
            training; a split that it does not mention is drawn from that.
        near_copies: in how many bits of their 64-bit perceptual hash two pictures of a folder may differ and still
            count as one photograph, which lies in one split, test before val before train; 0 compares none, and
            pictures below 32 pixels a side are never compared.
        pattern: regular expression with the named groups product and view for the paths of product pictures, without
            suffix, such as "(?P<product>[^/]+)/(?P<view>[^/]+)" for one folder each. Products become the labels, the
            fractions are shares of products, each of which lies in one split as a whole, and a single view is allowed.
            Empty means class folders, or what goes with `name`.

    Returns:
        The data set, and the ledger of pictures left out (picture, reason).

    Raises:
        ValueError: if an argument is out of range, or `pattern` lacks its groups.
        readers.BadData: if a file is missing or damaged, a class has fewer than two pictures, or `test_pattern`,
            `split_file` or `pattern` does not fit the pictures.
    """
    if source not in catalog.SOURCES:
        raise ArgumentError(f"source={source!r} is unknown: choose one of {', '.join(catalog.SOURCES)}.")
    if not 0 <= near_copies <= MOST_NEAR_COPY_BITS:
        raise ArgumentError(
            f"near_copies={near_copies}: give 0 (off) to {MOST_NEAR_COPY_BITS} bits; 8 is a good choice."
        )
    pattern = pattern or catalog.pattern_of(name)
    if pattern:
        products.check_pattern(pattern)
    home = catalog.home_of(name, folder)
    if source == "auto":
        source = catalog.find_source(name, home, pattern)
    pixels, frame, ledger = catalog.read_source(name, source, home, size, channels, seed, pattern)
    frame = _given_split(frame, source, test_pattern, split_file, ledger)
    clean, split = (products.clean_products, split_by_product) if pattern else (_clean, split_by_group)
    manifest, copies = clean(pixels, make_manifest(pixels, frame), near_copies if source == "folder" else 0)
    manifest = split(manifest, {"test": test_fraction, "val": val_fraction}, seed)
    told = {"stand-in": "STAND-IN: generated drawings of shapes, not the real pictures"}
    dataset = ImageDataset(
        name=name,
        manifest=manifest,
        pixels=pixels,
        classes=catalog.class_order(name, source, set(manifest["label"])),
        source=told.get(source, f"{source} files"),
        stand_in=source == "stand-in",
    )
    return dataset, pd.concat([ledger, copies], ignore_index=True)


def _clean(pixels: np.ndarray, manifest: pd.DataFrame, bits: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one of equal pictures, and give near copies one group; return the ledger, too."""
    manifest, copies = remove_copies(manifest)
    check_classes(manifest)
    return (group_near_copies(pixels, manifest, bits) if bits else manifest), copies


def _given_split(
    frame: pd.DataFrame, source: str, test_pattern: str, split_file: str, ledger: pd.DataFrame
) -> pd.DataFrame:
    """Take the split from file names or a table, where asked to; a stand-in has neither."""
    if source == "stand-in" or not (test_pattern or split_file):
        return frame
    if test_pattern and split_file:
        raise errors.DataError("test_pattern and split_file are both given: choose one way to split.")
    if source != "folder":
        raise errors.DataError(f"test_pattern and split_file go by file names, which {source} files do not have.")
    if test_pattern:
        return split_by_pattern(frame, test_pattern)
    return split_by_file(frame, Workspace().resolve(split_file), ledger["picture"])


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


def save_dataset(dataset: ImageDataset, ledger: pd.DataFrame | None = None) -> Path:
    """Write manifest.parquet, pixels.npy, card.json and ledger.csv to outputs/datasets/<name>/."""
    folder = Workspace().outputs / "datasets" / dataset.name
    with files.replaced_folder(folder) as fresh:
        dataset.manifest.to_parquet(fresh / "manifest.parquet")
        np.save(fresh / "pixels.npy", dataset.pixels)
        card = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source}
        files.write_json(fresh / "card.json", {**card, "stand_in": dataset.stand_in, "hash": dataset.hash})
        if ledger is not None:
            ledger.to_csv(fresh / "ledger.csv", index=False)
    return folder


def load_dataset(name: str) -> ImageDataset:
    """Open what chapter 01 saved; pixels stay on disk until they are used.

    Raises:
        if chapter 01 has not made it.
    """
    folder = Workspace().require("datasets", name, "rectrio run --only 01")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return ImageDataset(
        name=card["name"],
        manifest=pd.read_parquet(folder / "manifest.parquet"),
        pixels=np.load(folder / "pixels.npy", mmap_mode="r"),
        classes=tuple(card["classes"]),
        source=card["source"],
        stand_in=card["stand_in"],
    )
