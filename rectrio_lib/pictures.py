"""Picture files of a folder: found, recognised without reading them, read and decoded ahead of who needs them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from rectrio_lib.readers import PICTURE_SUFFIXES, SPLIT_FOLDERS, BadData, decode

FILE_COLUMNS = ["path", "size", "mtime_ns", "image_id", "reason"]
NEVER = -1  # the size and time of a file that could not be read: no file has them, so it is tried again
HASH_BYTES = 1 << 20
MOST_WORKERS = 32


class PictureFile(NamedTuple):
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


def find_pictures(folder: Path) -> pd.DataFrame:
    """List what is called a picture below a folder, without reading it.

    Links to files are followed, links to folders are not, and hidden folders are passed over.

    Returns:
        One row a file, sorted by path: FILE_COLUMNS, `image_id` empty, `reason` empty unless it cannot be read.

    Raises:
        BadData: if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise BadData(f"{folder} is no folder. It should hold pictures, in class folders or not.")
    suffixes, rows, homes, seen = tuple(PICTURE_SUFFIXES), [], [""], set()
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
        raise BadData(f"{folder} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
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


def recognise(found: pd.DataFrame, files: pd.DataFrame, embedded: Iterable[str]) -> pd.DataFrame:
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
) -> Iterator[PictureFile]:
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
                    waiting.append(pool.submit(read_picture, folder, path, size, channels, known))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:  # whoever stops half way does not wait for the rest
            for future in waiting:
                future.cancel()


def _cores() -> int:
    """Count the processor cores that this process may use: in a container fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_picture(folder: Path, path: str, size: int, channels: int, known: Collection[str] = ()) -> PictureFile:
    """Read one file: its hash, and its pixels unless the content is known."""
    try:
        with (folder / path).open("rb") as file:
            before = os.fstat(file.fileno())
            image_id = _hash(file)
            told = PictureFile(path, before.st_size, before.st_mtime_ns, image_id)
            if image_id in known:
                return told
            file.seek(0)
            decoded = decode(file, size, channels, draft=True)
            after = os.fstat(file.fileno())
    except OSError as error:
        return PictureFile(path, NEVER, NEVER, "", _reason(error))
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return PictureFile(path, NEVER, NEVER, "", "changed while it was read")
    if isinstance(decoded, str):
        return told._replace(reason=decoded.replace(repr(file), repr(path)))
    return told._replace(pixels=decoded[0], shape=decoded[1])


def _hash(file: BinaryIO) -> str:
    digest = hashlib.blake2b(digest_size=8)
    while block := file.read(HASH_BYTES):
        digest.update(block)
    return digest.hexdigest()
