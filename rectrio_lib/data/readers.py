"""Picture files into arrays, and back: idx, Kaggle's CSV, class folders.

Every reader returns three things: pixels uint8 (N, C, H, W); a frame with one row a picture, with `label` and,
where the source has one, `split`; and a ledger of the pictures left out (picture, reason).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rectrio_lib.core.errors import DataError
from rectrio_lib.data.image_files import SPLIT_FOLDERS, decode, image_files_below, make_ledger

Read = tuple[np.ndarray, pd.DataFrame, pd.DataFrame]
IDX_FILES = {"train": "train", "test": "t10k"}
CSV_FILES = {"train": "fashion-mnist_train.csv", "test": "fashion-mnist_test.csv"}


def read_idx(folder: Path, classes: Sequence[str], md5: Mapping[str, str] | None = None) -> Read:
    """Read the four idx files of an MNIST-like set.

    Args:
        folder: holds {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz.
        classes: class names in the order of the label numbers.
        md5: expected md5 by file name; None skips the check.

    Raises:
        BadData: if a file is missing, truncated or has another checksum, or labels and pictures differ in number.

    Source: format description at http://yann.lecun.com/exdb/mnist/.
    """
    parts, frames = [], []
    for split, prefix in IDX_FILES.items():
        images = _idx_array(folder / f"{prefix}-images-idx3-ubyte.gz", 3, md5)
        labels = _idx_array(folder / f"{prefix}-labels-idx1-ubyte.gz", 1, md5)
        if len(images) != len(labels):
            raise DataError(f"{folder}: {len(images):,} {split} pictures but {len(labels):,} labels.")
        parts.append(images[:, None])
        frames.append(pd.DataFrame({"label": _class_names(labels, classes, folder), "split": split}))
    return np.concatenate(parts), pd.concat(frames, ignore_index=True), make_ledger([])


def _idx_array(path: Path, dimensions: int, md5: Mapping[str, str] | None) -> np.ndarray:
    if not path.exists():
        raise DataError(f"{path} is missing: the folder should hold {path.name} and its three companions.")
    raw = path.read_bytes()
    try:
        content = gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is truncated or no gzip file ({len(raw):,} bytes): {error}") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise DataError(
            f"{path} is no idx file of {dimensions} dimensions and unsigned bytes ({len(content):,} bytes)."
        )
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} is truncated: {len(content):,} bytes where its header promises {header + math.prod(shape):,}."
        )
    if md5 and hashlib.md5(raw).hexdigest() != md5[path.name]:
        raise DataError(
            f"{path} has another checksum than the published {md5[path.name]}: delete it and fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_csv(folder: Path, classes: Sequence[str], counts: Mapping[str, int] | None = None) -> Read:
    """Read Kaggle's pair of CSV files (header label,pixel1..pixelN, one square grey picture a line).

    Args:
        folder: holds fashion-mnist_train.csv and fashion-mnist_test.csv.
        classes: class names in the order of the label numbers.
        counts: pictures expected in each file; None accepts any number.

    Raises:
        BadData: if a file is missing, has other columns, a broken line, or another number of pictures.

    Source: https://www.kaggle.com/datasets/zalando-research/fashionmnist
    """
    parts, frames = [], []
    for split, name in CSV_FILES.items():
        table = _csv_table(folder / name)
        if counts and len(table) != counts[split]:
            raise DataError(f"{folder / name} is truncated: {len(table):,} pictures, expected {counts[split]:,}.")
        side = math.isqrt(table.shape[1] - 1)
        parts.append(table[:, 1:].reshape(-1, 1, side, side))
        frames.append(pd.DataFrame({"label": _class_names(table[:, 0], classes, folder / name), "split": split}))
    return np.concatenate(parts), pd.concat(frames, ignore_index=True), make_ledger([])


def _csv_table(path: Path) -> np.ndarray:
    """Read one CSV file as uint8 (N, 1 + pixels)."""
    if not path.exists():
        raise DataError(f"{path} is missing: expected {' and '.join(CSV_FILES.values())} in that folder.")
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    pixels = table.shape[1] - 1
    expected = ["label", *(f"pixel{i}" for i in range(1, pixels + 1))]
    if list(table.columns) != expected or not pixels or math.isqrt(pixels) ** 2 != pixels:
        raise DataError(f"{path}: the header should be label,pixel1..pixel784, and starts {list(table.columns)[:3]}.")
    whole = table.apply(pd.to_numeric, errors="coerce").to_numpy()
    bad = np.flatnonzero(~((whole >= 0) & (whole <= 255) & (whole % 1 == 0)).all(1))
    if len(bad):
        raise DataError(f"{path}: line {bad[0] + 2} is cut off or holds something else than whole numbers 0..255.")
    return whole.astype(np.uint8)


def _class_names(numbers: np.ndarray, classes: Sequence[str], where: Path) -> np.ndarray:
    if len(numbers) and numbers.max() >= len(classes):
        raise DataError(f"{where}: label {numbers.max()}, but there are only {len(classes)} classes.")
    return np.array(classes, dtype=object)[numbers]


def read_folder(folder: Path, size: int = 28, channels: int = 1, names: Mapping[str, str] | None = None) -> Read:
    """Read pictures sorted into class folders: FOLDER/<class>/… or FOLDER/{train,val,test}/<class>/….

    Pictures are turned upright (EXIF), laid on white where transparent, and fitted to a square by a centre crop.
    All of them are in memory once, as the array that is returned.

    Args:
        folder: the top folder.
        size: side of the square pictures in pixels.
        channels: 1 for grey, 3 for colour.
        names: class name by folder name; a folder that is not in it is called as it is.

    Returns:
        pixels, frame and ledger; the frame also has `path` relative to `folder`, and `width` and `height` of the file.
        The ledger also names class folders without any picture.

    Raises:
        BadData: if the folder is missing, or no class folder holds a readable picture.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. It should hold one sub-folder of pictures for each class.")
    rows, empty = _pictures_in(folder, names or {})
    pixels, frame, ledger = read_files(folder, rows, size, channels)
    if not len(pixels):
        raise DataError(f"{folder} holds no readable picture in class folders ({len(rows)} unreadable).")
    ledger = pd.concat([ledger, make_ledger(empty)]).sort_values("picture", ignore_index=True)
    return pixels, frame.dropna(axis=1, how="all"), ledger


def read_files(folder: Path, rows: list[dict], size: int, channels: int) -> Read:
    """Read picture files into one array.

    Args:
        folder: what the paths are relative to.
        rows: what is known of each file, `path` at least.
        size: side of the square pictures in pixels.
        channels: 1 for grey, 3 for colour.

    Returns:
        pixels, frame and ledger: what was known of the readable files, with their `width` and `height`.
    """
    pixels = np.empty((len(rows), channels, size, size), np.uint8)

    def read(position: int) -> tuple[int, int] | str:
        decoded = decode(folder / rows[position]["path"], size, channels)
        if isinstance(decoded, str):
            return decoded
        pixels[position], shape = decoded
        return shape

    with ThreadPoolExecutor() as pool:
        shapes = list(pool.map(read, range(len(rows))))
    good = [i for i, shape in enumerate(shapes) if not isinstance(shape, str)]
    for to, i in enumerate(good):  # close the gaps in place: pixels[good] would be a second array of all
        pixels[to] = pixels[i]
    frame = pd.DataFrame([{**rows[i], "width": shapes[i][0], "height": shapes[i][1]} for i in good])
    bad = [(row["path"], reason) for row, reason in zip(rows, shapes, strict=True) if isinstance(reason, str)]
    return pixels[: len(good)], frame, make_ledger(bad)


def _pictures_in(folder: Path, names: Mapping[str, str]) -> tuple[list[dict], list[tuple[str, str]]]:
    """List the picture files with label and split, and the class folders that hold none with the reason."""
    tops = [(None, folder)]
    if any(p.is_dir() for p in (folder / "train").glob("*")):  # else "train" is a class: the railway's
        tops = [(name, folder / name) for name in SPLIT_FOLDERS if (folder / name).is_dir()]
    rows, empty = [], []
    for split, top in tops:
        for home in sorted(p for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")):
            paths = [] if top.resolve().is_relative_to(home.resolve()) else image_files_below(home)
            label = names.get(home.name, home.name)
            rows += [{"path": p.relative_to(folder).as_posix(), "label": label, "split": split} for p in paths]
            if not paths:
                empty.append((home.relative_to(folder).as_posix(), "class folder without any picture"))
    return rows, empty


def export_png(pixels: np.ndarray, manifest: pd.DataFrame, classes: Sequence[str], folder: Path) -> int:
    """Write pictures as FOLDER/{train,test}/<class number>/<row>.png, as many tutorials expect them.

    Validation pictures go to train/, where they came from: `read_folder` and the seeded split find them again.

    Args:
        pixels: uint8 (N, C, H, W), C 1 or 3.
        manifest: with `row`, `label` and `split`.
        classes: class names in the order of their numbers.
        folder: made if need be.

    Returns:
        How many files were written.
    """
    number = {name: i for i, name in enumerate(classes)}
    for row, label, split in manifest[["row", "label", "split"]].itertuples(index=False):
        home = folder / ("test" if split == "test" else "train") / str(number[label])
        home.mkdir(parents=True, exist_ok=True)
        picture = pixels[row]
        Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)).save(home / f"{row:05d}.png")
    return len(manifest)
