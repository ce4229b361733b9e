"""Image files of a folder: found, recognised without reading them, read and decoded ahead of who needs them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.files import is_folder
from rectrio_lib.core.lookup import positions
from rectrio_lib.data.decoding import UnreadableError, decode, open_regular, reads_heif, reason_of, sketch
from rectrio_lib.data.layout import describe as describe  # read from here by who lists
from rectrio_lib.data.places import naming

if TYPE_CHECKING:
    from rectrio_lib.data.places.place import Place

FILE_COLUMNS = ["path", "size", "mtime_ns", "image_id", "reason"]
NEVER = -1  # stands for size and time of an unreadable file; matches nothing, so that the file is tried again
UNLISTED = (NEVER, NEVER)
MOST_WORKERS = 32


class ImageFile(NamedTuple):
    """A file that was read; with size and time NEVER, and no image_id, if it is to be tried again."""

    path: str  # relative to the folder, with slashes
    size: int
    mtime_ns: int
    image_id: str
    reason: str = ""  # what is wrong with it
    pixels: np.ndarray | None = None  # uint8 (C, size, size); None if something is wrong or its content was known
    shape: tuple[int, int] = (0, 0)  # upright width and height of the image
    sketch: np.ndarray | None = None  # see `decoding.sketch`, where asked for


def make_ledger(left_out: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Return the table of images left out, (picture, reason) each, by picture."""
    return pd.DataFrame(sorted(left_out), columns=["picture", "reason"])


def list_images(folder: Path, exclude: Iterable[Path] = ()) -> pd.DataFrame:
    """List the image files below a folder, without decoding them.

    A file counts by its suffix, or by its first bytes if the suffix says nothing. Formats that cannot be read are
    listed with the reason. Hidden and service folders, and those to `exclude`, such as the outputs of a workspace, are
    passed over; links to folders are followed, each folder once.

    Returns:
        One row a file, sorted by path: FILE_COLUMNS, `image_id` empty, `reason` empty unless it cannot be read.

    Raises:
        DataError: if there is no such folder, it cannot be read, or no image is in it.
    """
    if not is_folder(folder):
        raise DataError(f"{folder} is not a folder. It should hold images, in class folders or not.")
    rows = list(walk_images(folder, exclude))
    if not rows:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(naming.IMAGE_SUFFIXES))}).")
    return pd.DataFrame(rows, columns=FILE_COLUMNS).sort_values("path", ignore_index=True)


def walk_images(folder: Path, exclude: Iterable[Path] = ()) -> Iterator[tuple]:
    """Yield the rows of `list_images` as they are found: real folders first, then linked ones."""
    root = os.path.realpath(folder)
    seen = {os.path.realpath(place) for place in exclude} - {root}
    homes, links = [""], []
    while homes or links:
        home = homes.pop() if homes else links.pop()
        real = os.path.realpath(folder / home)
        if real in seen:
            continue
        seen.add(real)
        if root != real and Path(root).is_relative_to(real):
            yield _unread(home.rstrip("/"), "a link to a folder that contains this one")
            continue
        try:
            with os.scandir(folder / home) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not home:
                raise DataError(f"{folder} cannot be read ({reason_of(error)}): make it readable.") from error
            yield _unread(home.rstrip("/"), reason_of(error))
            continue
        for entry in found:
            if not _is_folder(entry):
                yield from _file_row(entry, home + entry.name)
            elif not naming.is_service(entry.name):
                (links if entry.is_symlink() else homes).append(f"{home}{entry.name}/")
        links.sort(reverse=True)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unread(path: str, reason: str) -> tuple:
    return (naming.unicode(path), NEVER, NEVER, "", reason)


def _file_row(entry: os.DirEntry, path: str) -> list[tuple]:
    """Describe one file, as a list of one row; of none if it is not an image."""
    if reason := naming.refusal(entry.name, reads_heif()):
        return [_unread(path, reason)]
    if not naming.may_be_image(entry.name) and not (naming.is_silent(entry.name) and _begins_as_image(entry.path)):
        return []
    try:
        state = entry.stat()
    except OSError as error:
        return [_unread(path, reason_of(error))]
    if naming.unicode(path) != path:
        return [_unread(path, "its name is not Unicode")]
    reason = "" if stat.S_ISREG(state.st_mode) else "not a regular file"  # to read from a pipe would never end
    return [(path, state.st_size, state.st_mtime_ns, "", reason)]


def _begins_as_image(path: str) -> bool:
    try:
        with open_regular(Path(path)) as file:
            return naming.begins_as_image(file.read(naming.HEAD), reads_heif())
    except (OSError, UnreadableError):
        return False


def match_known(found: pd.DataFrame, files: pd.DataFrame, embedded: Iterable[str]) -> pd.DataFrame:
    """Enter what is known of files that have not changed since: same path, size and time; others are to be read.

    Args:
        found: as `list_images` returns them.
        files: FILE_COLUMNS of an earlier call.
        embedded: image ids that need no reading; a file whose id is not among them is to be read again.
    """
    holds = (positions(files["image_id"], embedded) >= 0) | files["reason"].ne("")
    keys = FILE_COLUMNS[:3]
    both = found.merge(files[holds & files["mtime_ns"].ne(NEVER)], how="left", on=keys, suffixes=("", "_then"))
    reason = both["reason"].where(both["reason"].ne(""), both["reason_then"].fillna(""))
    return found.assign(image_id=both["image_id_then"].fillna("").to_numpy(), reason=reason.to_numpy())


def read_ahead(
    folder: Path | Place,
    paths: Iterable[str],
    size: int,
    channels: int,
    known: Container[str],
    ahead: int,
    listed: Iterable[tuple[int, int]] = repeat(UNLISTED),
) -> Iterator[ImageFile]:
    """Read and decode files in threads, and yield them in their order; see `read_image`.

    The ids `known` may grow meanwhile. `ahead` images may be decoded before they are asked for: what bounds the memory.
    `listed` is size and mtime_ns of each file as `Place.list` returned them.
    """
    left, waiting = zip(paths, listed, strict=False), deque()
    near = isinstance(folder, Path) or folder.near
    with ThreadPoolExecutor(min(cores(), MOST_WORKERS) if near else MOST_WORKERS) as pool:
        try:
            while True:
                while len(waiting) < ahead and (file := next(left, None)) is not None:
                    waiting.append(pool.submit(read_image, folder, file[0], size, channels, known, False, file[1]))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:  # whoever stops half way does not wait for the rest
            for future in waiting:
                future.cancel()


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_image(
    folder: Path | Place,
    path: str,
    size: int,
    channels: int,
    known: Container[str] = (),
    with_sketch: bool = False,
    listed: tuple[int, int] = UNLISTED,
) -> ImageFile:
    """Read one file: its hash, and its pixels (and sketch) unless the content is known.

    A file of this machine tells its size and time itself; of another one they are what was `listed`.
    """
    sketches, unread = [], partial(ImageFile, path, NEVER, NEVER, "")
    inspect = (lambda image: sketches.append(sketch(image))) if with_sketch else None
    try:
        with open_regular(folder / path) if isinstance(folder, Path) else folder.open(path) as file:
            before = _stamp(file, listed)
            image_id = content_hash(file)
            read = ImageFile(path, *before, image_id)
            if image_id in known:
                return read
            file.seek(0)
            decoded = decode(file, size, channels, inspect=inspect)
            after = _stamp(file, listed)
    except (OSError, UnreadableError, ValueError) as error:
        return unread(reason_of(error))
    if before != after:
        return unread("changed while it was read")
    if isinstance(decoded, str):  # who raises the limit wants it tried again
        return unread(decoded) if "RECTRIO_MAX_PIXELS" in decoded else read._replace(reason=decoded)
    return read._replace(pixels=decoded[0], shape=decoded[1], sketch=sketches[0] if sketches else None)


def _stamp(file: BinaryIO, listed: tuple[int, int]) -> tuple[int, int]:
    if isinstance(file, BytesIO):
        return listed
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns


def content_hash(file: BinaryIO) -> str:
    """Return the image_id of a file: 64 bits of BLAKE2b over its bytes."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def content_id(data: bytes) -> str:
    """Return the image_id of a file that was read into memory."""
    return content_hash(BytesIO(data))


def row_hash(pixels: np.ndarray) -> str:
    """Return the image_id of an image that is no file: 64 bits of BLAKE2b over its shape (C, H, W) and pixels."""
    return hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()
