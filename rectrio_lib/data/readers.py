"""Image files into arrays, and back: idx, Kaggle's CSV, class folders.

Every reader returns three things: pixels uint8 (N, C, H, W); a frame with one row an image, with `label` and,
where the source has one, `split`; and a ledger of the images left out (picture, reason).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.files import replaced_folder
from rectrio_lib.data.image_files import list_images, make_ledger, read_image
from rectrio_lib.data.layout import describe
from rectrio_lib.data.places import naming, tables

Read = tuple[np.ndarray, pd.DataFrame, pd.DataFrame]
IDX_FILES = {"train": "train", "test": "t10k"}
CSV_FILES = {"train": "fashion-mnist_train.csv", "test": "fashion-mnist_test.csv"}


def read_idx(folder: Path, classes: Sequence[str], md5: Mapping[str, str] | None = None) -> Read:
    """Read the idx files of an MNIST-like set, {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, or the same unpacked.

    The packed files are compared with their `md5` by name, if it is given.

    Raises:
        DataError: if a file is missing, truncated or has another checksum, or labels and images differ in number.

    Source: format description at http://yann.lecun.com/exdb/mnist/.
    """
    parts, frames = [], []
    for split, prefix in IDX_FILES.items():
        images = _idx_array(folder / f"{prefix}-images-idx3-ubyte.gz", 3, md5)
        labels = _idx_array(folder / f"{prefix}-labels-idx1-ubyte.gz", 1, md5)
        if len(images) != len(labels):
            raise DataError(f"{folder}: {len(images):,} {split} images but {len(labels):,} labels.")
        parts.append(images[:, None])
        frames.append(pd.DataFrame({"label": _class_names(labels, classes, folder), "split": split}))
    return np.concatenate(parts), pd.concat(frames, ignore_index=True), make_ledger([])


def _idx_array(path: Path, dimensions: int, md5: Mapping[str, str] | None) -> np.ndarray:
    unpacked = [path.with_suffix(""), path.with_name(path.stem.replace("-idx", ".idx"))]
    path = next((place for place in (path, *unpacked) if place.exists()), path)
    if not path.exists():
        raise DataError(f"{path} is missing: the folder should hold {path.name} and its three companions.")
    raw = path.read_bytes()
    try:
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is truncated or not a gzip file ({len(raw):,} bytes): {error}") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise DataError(f"{path} is no idx file of {dimensions} dimensions of unsigned bytes ({len(content):,} bytes).")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    promised = header + math.prod(shape)
    if len(content) != promised:
        raise DataError(f"{path} is truncated: {len(content):,} bytes where its header promises {promised:,}.")
    if md5 and path.suffix == ".gz" and hashlib.md5(raw).hexdigest() != md5[path.name]:
        raise DataError(f"{path} has not the published checksum {md5[path.name]}: delete it and fetch it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_csv(folder: Path, classes: Sequence[str], counts: Mapping[str, int] | None = None) -> Read:
    """Read Kaggle's pair of CSV_FILES (header label,pixel1..pixelN, one square grey image a line).

    Each is to hold as many images as `counts` says, if it is given.

    Raises:
        DataError: if a file is missing, has other columns, a broken line, or another number of images.

    Source: https://www.kaggle.com/datasets/zalando-research/fashionmnist
    """
    parts, frames = [], []
    for split, name in CSV_FILES.items():
        table = _csv_table(folder / name)
        if counts and len(table) != counts[split]:
            raise DataError(f"{folder / name} is truncated: {len(table):,} images, expected {counts[split]:,}.")
        side = math.isqrt(table.shape[1] - 1)
        parts.append(table[:, 1:].reshape(-1, 1, side, side))
        frames.append(pd.DataFrame({"label": _class_names(table[:, 0], classes, folder / name), "split": split}))
    return np.concatenate(parts), pd.concat(frames, ignore_index=True), make_ledger([])


def _csv_table(path: Path) -> np.ndarray:
    """Read one CSV file as uint8 (N, 1 + pixels)."""
    if not path.exists():
        raise DataError(f"{path} is missing: expected {' and '.join(CSV_FILES.values())} in that folder.")
    table = tables.read_csv(path, path)
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


def read_folder(
    folder: Path,
    size: int = 28,
    channels: int = 1,
    names: Mapping[str, str] | None = None,
    exclude: Iterable[Path] = (),
) -> Read:
    """Read images sorted into class folders, see `layout.describe`; all of them are in memory once.

    A class is called as `names` says by the name of its folder, or as the folder. Some folders may be passed over.

    Returns:
        As `read_files`; the ledger also names images in no class folder, and folders without any image.

    Raises:
        DataError: if the folder is missing, or no class folder holds a readable image.
    """
    files = list_images(folder, exclude)
    readable = files["reason"].eq("")
    described = describe(files.loc[readable, "path"]).assign(path=files.loc[readable, "path"].to_numpy())
    rows = [
        {"path": path, "label": (names or {}).get(label, label), "split": split or None}
        for label, split, path in described[described["label"].ne("")].itertuples(index=False)
    ]
    left_out = [(path, "in no class folder") for path in described.loc[described["label"].eq(""), "path"]]
    left_out += list(files.loc[~readable, ["path", "reason"]].itertuples(index=False, name=None))
    left_out += _empty_folders(folder, files["path"].tolist(), described["split"].any(), exclude)
    pixels, frame, ledger = read_files(folder, rows, size, channels)
    if not len(pixels):
        raise DataError(f"{folder} holds no readable image in class folders ({len(rows):,} unreadable).")
    ledger = pd.concat([ledger, make_ledger(left_out)]).sort_values("picture", ignore_index=True)
    return pixels, frame.dropna(axis=1, how="all"), ledger


def _empty_folders(folder: Path, paths: list[str], divided: bool, exclude: Iterable[Path]) -> list[tuple[str, str]]:
    """Name the folders in the place of classes that hold no image."""
    filled = {path.rpartition("/")[0] + "/" for path in paths}
    tops, hidden = [folder, *(p for p in folder.iterdir() if divided and p.is_dir())], {p.resolve() for p in exclude}
    homes = [home for top in tops for home in top.iterdir() if home.is_dir() and home.resolve() not in hidden]
    names = sorted(home.relative_to(folder).as_posix() for home in homes)
    shown = [name for name in names if not any(map(naming.is_service, name.split("/")))]
    without = [name for name in shown if not any(home.startswith(f"{name}/") for home in filled)]
    return [(naming.unicode(name), "folder without any image") for name in without]


def read_files(folder: Path, rows: list[dict], size: int, channels: int) -> Read:
    """Read image files into one array; `rows` tell what is known of each, `path` at least, and make the frame.

    Added are `width`, `height`, `image_id` and `sketch` (bytes), see `read_image`.
    """
    pixels = np.empty((len(rows), channels, size, size), np.uint8)

    def read(position: int) -> dict | str:
        file = read_image(folder, rows[position]["path"], size, channels, with_sketch=True)
        if file.pixels is None:
            return file.reason
        pixels[position], (width, height) = file.pixels, file.shape
        return {"image_id": file.image_id, "width": width, "height": height, "sketch": file.sketch.tobytes()}

    with ThreadPoolExecutor() as pool:
        facts = list(pool.map(read, range(len(rows))))
    good = [i for i, fact in enumerate(facts) if not isinstance(fact, str)]
    for to, i in enumerate(good):  # close the gaps in place: pixels[good] would be a second array of all
        pixels[to] = pixels[i]
    bad = [(row["path"], reason) for row, reason in zip(rows, facts, strict=True) if isinstance(reason, str)]
    return pixels[: len(good)], pd.DataFrame([rows[i] | facts[i] for i in good]), make_ledger(bad)


def export_png(pixels: np.ndarray, manifest: pd.DataFrame, classes: Sequence[str], folder: Path) -> int:
    """Write images as FOLDER/{train,test}/<class number>/<row>.png, as many tutorials expect them.

    Validation images go to train/; FOLDER/split.csv is a `split_file` that tells them. An earlier export is replaced.

    Args:
        pixels: uint8 (N, C, H, W), C 1 or 3.
        manifest: with `row`, `label` and `split`.
        classes: class names in the order of their numbers.
        folder: made if need be.

    Returns:
        How many images were written.

    Raises:
        DataError: if the folder holds anything but an earlier export.
    """
    written = re.compile(r"(train|test)/\d+/\d+\.png|split\.csv")
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    if foreign := next((path for path in there if not written.fullmatch(path)), ""):
        raise DataError(f"{folder} holds {foreign}, which no export wrote: choose a new folder.")
    number, table = {name: i for i, name in enumerate(classes)}, []
    with replaced_folder(folder) as fresh:
        for row, label, split in manifest[["row", "label", "split"]].itertuples(index=False):
            path = f"{'test' if split == 'test' else 'train'}/{number[label]}/{row:05d}.png"
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            image = pixels[row]
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(fresh / path)
            table.append((path, split))
        pd.DataFrame(table, columns=["path", "split"]).to_csv(fresh / "split.csv", index=False)
    return len(manifest)
