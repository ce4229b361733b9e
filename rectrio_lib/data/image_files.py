"""Picture files of a folder: found, recognised without reading them, read and decoded ahead of who needs them."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd
from PIL import ExifTags, Image, ImageOps

from rectrio_lib.core.errors import DataError

SPLIT_FOLDERS = ("train", "val", "test")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def image_files_below(home: Path) -> list[Path]:
    """List what is called a picture below a folder, broken links included; links to folders are not followed."""
    files = (p for p in home.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(p for p in files if p.is_file() or p.is_symlink())


def decode(
    file: Path | BinaryIO, size: int, channels: int, draft: bool = False
) -> tuple[np.ndarray, tuple[int, int]] | str:
    """Read a picture file as uint8 (C, size, size), with its upright (width, height); or say why it cannot be read.

    Args:
        file: its path, or the file opened for reading.
        size: side of the square in pixels.
        channels: 1 for grey, 3 for colour.
        draft: decode a JPEG of four times that side or more at a half, a quarter or an eighth of its size, which is
            faster; what is left is twice the square or more.
    """
    try:
        with Image.open(file) as opened:
            whole = opened.size
            if draft:
                opened.draft(None, (2 * size, 2 * size))
            drafted = opened.size != whole
            turned = drafted and opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I;16"):  # convert() would clip 16 bits to white
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            shape = picture.size
            if shape != (size, size):
                picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
            if drafted:
                shape = whole[::-1] if turned else whole
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        return f"{type(error).__name__}: {error}"
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1), shape


def make_ledger(left_out: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Return the table of pictures left out, (picture, reason) each, by picture."""
    return pd.DataFrame(sorted(left_out), columns=["picture", "reason"])


FILE_COLUMNS = ["path", "size", "mtime_ns", "image_id", "reason"]
NEVER = -1  # the size and time of a file that could not be read: no file has them, so it is tried again
HASH_BYTES = 1 << 20
MOST_WORKERS = 32


class ImageFile(NamedTuple):
    """A file that was read.

    Attributes:
        path: relative to the folder, with slashes.
        size: bytes; NEVER if it could not be read.
        mtime_ns: when it was changed last, in nanoseconds; NEVER if it could not be read.
        image_id: 64-bit BLAKE2 hash of its bytes; empty if it could not be read.
        reason: what is wrong with it, or empty.
        pixels: uint8 (C, size, size), or None if something is wrong with it or its content was known.
        shape: upright width and height of the picture.
    """

    path: str
    size: int
    mtime_ns: int
    image_id: str
    reason: str = ""
    pixels: np.ndarray | None = None
    shape: tuple[int, int] = (0, 0)


def list_images(folder: Path) -> pd.DataFrame:
    """List what is called a picture below a folder, without reading it.

    Links to files are followed, links to folders are not, and hidden folders are passed over.

    Returns:
        One row a file, sorted by path: FILE_COLUMNS, `image_id` empty, `reason` empty unless it cannot be read.

    Raises:
        BadData: if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. It should hold pictures, in class folders or not.")
    suffixes, rows, homes, seen = tuple(IMAGE_SUFFIXES), [], [""], set()
    while homes:
        home = homes.pop()
        real = os.path.realpath(folder / home)  # a junction of Windows is no link, yet may lead back up
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder / home) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        homes += [] if entry.name.startswith(".") else [f"{home}{entry.name}/"]
                    elif entry.name.lower().endswith(suffixes):
                        rows += _entry(entry, home + entry.name)
        except OSError as error:
            rows.append((_unicode(home.rstrip("/") or "."), NEVER, NEVER, "", _reason(error)))
    if not rows:
        raise DataError(f"{folder} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return pd.DataFrame(rows, columns=FILE_COLUMNS).sort_values("path", ignore_index=True)


def _entry(entry: os.DirEntry, path: str) -> list[tuple]:
    """Describe one file, as a list of one row; of none for a link to a folder."""
    told = _unicode(path)
    try:
        state = entry.stat()
    except OSError as error:
        return [(told, NEVER, NEVER, "", _reason(error))]
    if stat.S_ISDIR(state.st_mode):
        return []
    reason = "" if stat.S_ISREG(state.st_mode) else "no regular file"  # to read from a pipe would never end
    return [(told, state.st_size, state.st_mtime_ns, "", reason if told == path else "its name is not Unicode")]


def _unicode(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _reason(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"  # without the path: the ledger names it


def match_known(found: pd.DataFrame, files: pd.DataFrame, embedded: Iterable[str]) -> pd.DataFrame:
    """Enter what is known of files that have not changed since: same path, size and time.

    Args:
        found: as `find_pictures` returns them.
        files: FILE_COLUMNS of an earlier call.
        embedded: image ids that need no reading; a file whose id is not among them is new again.

    Returns:
        `found`; `image_id` and `reason` are both empty where the file is to be read.
    """
    holds = files["image_id"].isin(set(embedded)) | files["reason"].ne("")
    keys = FILE_COLUMNS[:3]
    both = found.merge(files[holds & files["mtime_ns"].ne(NEVER)], how="left", on=keys, suffixes=("", "_then"))
    reason = both["reason"].where(both["reason"].ne(""), both["reason_then"].fillna(""))
    return found.assign(image_id=both["image_id_then"].fillna("").to_numpy(), reason=reason.to_numpy())


def describe(paths: Collection[str]) -> pd.DataFrame:
    """Tell label and split from the folders that a picture lies in, as `readers.read_folder` does.

    Args:
        paths: N paths relative to the top folder, with slashes: <class>/…, {train,val,test}/<class>/…, or the file.

    Returns:
        N rows with `label` and `split`, empty where there is no such folder.
    """
    divided = any(path.startswith("train/") and path.count("/") > 1 for path in paths)
    rows = []
    for path in paths:
        first, _, rest = path.partition("/")
        split = first if divided and rest and first in SPLIT_FOLDERS else ""
        home, slash, _ = (rest if split else path).partition("/")
        rows.append((home if slash else "", split))
    return pd.DataFrame(rows, columns=["label", "split"])


def read_ahead(
    folder: Path, paths: Iterable[str], size: int, channels: int, known: Collection[str], ahead: int
) -> Iterator[ImageFile]:
    """Read and decode files in threads, and yield them in their order.

    Args:
        folder: what the paths are relative to.
        paths: the files.
        size: side of the decoded pictures in pixels.
        channels: 1 for grey, 3 for colour.
        known: image ids that need no decoding; it may grow meanwhile.
        ahead: how many pictures may be decoded before they are asked for: what bounds the memory.
    """
    left, waiting = iter(paths), deque()
    with ThreadPoolExecutor(min(_cores(), MOST_WORKERS)) as pool:
        try:
            while True:
                while len(waiting) < ahead and (path := next(left, None)) is not None:
                    waiting.append(pool.submit(read_image, folder, path, size, channels, known))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:  # whoever stops half way does not wait for the rest
            for future in waiting:
                future.cancel()


def _cores() -> int:
    """Count the processor cores that this process may use: in a container fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_image(folder: Path, path: str, size: int, channels: int, known: Collection[str] = ()) -> ImageFile:
    """Read one file: its hash, and its pixels unless the content is known."""
    try:
        with (folder / path).open("rb") as file:
            before = os.fstat(file.fileno())
            image_id = _content_hash(file)
            told = ImageFile(path, before.st_size, before.st_mtime_ns, image_id)
            if image_id in known:
                return told
            file.seek(0)
            decoded = decode(file, size, channels, draft=True)
            after = os.fstat(file.fileno())
    except OSError as error:
        return ImageFile(path, NEVER, NEVER, "", _reason(error))
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return ImageFile(path, NEVER, NEVER, "", "changed while it was read")
    if isinstance(decoded, str):
        return told._replace(reason=decoded.replace(repr(file), repr(path)))
    return told._replace(pixels=decoded[0], shape=decoded[1])


def _content_hash(file: BinaryIO) -> str:
    digest = hashlib.blake2b(digest_size=8)
    while block := file.read(HASH_BYTES):
        digest.update(block)
    return digest.hexdigest()
