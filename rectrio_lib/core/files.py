"""Files and folders that are complete or absent: written under a temporary name, kept by the disk, then renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pandas as pd

from rectrio_lib.core.errors import DataError, RectrioError, StorageError

STALE_SECONDS = 86_400  # a temporary file that nobody wrote to for so long belongs to a killed process
WHOLE_BYTES, END_BYTES = 64 << 20, 1 << 20  # of a larger file only size, head and tail enter its checksum
ROWS_AT_ONCE = 1 << 17  # of a table, encoded in memory
MANY = 100  # files of a folder; beyond it one `os.sync` is faster than an fsync of each
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what some network disks say of a folder
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says of a disk without room
REFUSED = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)  # and of one that takes nothing


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise StorageError where the block fails to write `path`: disk full, not writable, out of quota.

    FAISS and safetensors report a full disk in errors of their own: they are known by the system's words in them.
    """
    try:
        yield
    except Exception as error:
        of_disk = isinstance(error, OSError) or any(os.strerror(number) in str(error) for number in FULL)
        if isinstance(error, RectrioError) or not of_disk:
            raise
        kept = "What was there before is kept: make room or make it writable, and call again."
        raise StorageError(f"{path} cannot be written ({error}). {kept}") from error


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed when the block ends without an error; see `storage_errors`."""
    partial = _temporary(path, "part")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def is_folder(path: str | Path) -> bool:
    """Tell whether there is a folder; a path that no system could have, as of a damaged card, is none."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def expanded(path: str | Path) -> Path:
    """Return a path with ~ expanded; as in a shell it stays where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `Path.expanduser` raises a RuntimeError instead


def file_at(path: str | Path) -> Path | None:
    """Return the file that a path names, see `expanded`; None if there is none, or no system could have it."""
    return file if os.path.isfile(file := expanded(path)) else None  # noqa: PTH113 - as the names above


def write_json(path: Path, content: Any) -> None:
    """Write JSON, complete or not at all; see `renamed`."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with renamed(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, complete or not at all; see `renamed`."""
    with renamed(path) as partial:
        table.to_parquet(partial, index=False, row_group_size=ROWS_AT_ONCE)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of `folder` when the block ends without an error, else goes.

    Whatever happens, the old one or the new one is there, complete; see `storage_errors`.
    """
    fresh, old = _temporary(folder, "new"), _set_aside(folder)
    with storage_errors(folder):
        try:
            restore_folder(folder)
            shutil.rmtree(old, ignore_errors=True)
            fresh.mkdir(parents=True)
            yield fresh
            _sync_all(fresh)
            if folder.exists():
                folder.replace(old)
            fresh.replace(folder)
            _sync(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def scratch_folder(beside: Path) -> Path:
    """Make an empty folder of a new name beside a path; one that a killed process left goes after a day."""
    folder = _temporary(beside, "new")
    with storage_errors(folder):
        folder.mkdir(parents=True)
    return folder


def restore_folder(folder: Path) -> None:
    """Put back the old folder if `replaced_folder` was killed between its two renames."""
    old = _set_aside(folder)
    if old.exists() and not folder.exists():
        with storage_errors(folder):
            old.replace(folder)


def _sync(path: Path) -> None:
    """Return once a file's content, or the names in a folder, would survive a power cut; Windows does so for files."""
    windows, names = os.name == "nt", path.is_dir()
    if windows and names:
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not names or error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    """Do so for a folder and all that is in it."""
    paths = [*folder.rglob("*"), folder]
    if len(paths) > MANY and hasattr(os, "sync"):
        return os.sync()
    for path in paths:
        _sync(path)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _temporary(path: Path, suffix: str) -> Path:
    """Return a name that no other process uses, and remove those that killed processes left."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.{suffix}"):
        try:
            if left.lstat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError:  # another process was faster
            continue
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.{suffix}")


def checksum(path: Path, file: BinaryIO | None = None, whole: int = WHOLE_BYTES) -> str:
    """Return a BLAKE2 checksum of a file: of its size and content, above `whole` bytes only of its size and ends."""
    with nullcontext(file) if file else path.open("rb") as opened:
        size = opened.seek(0, 2)
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        for start in (0,) if size <= whole else (0, size - END_BYTES):
            opened.seek(start)
            digest.update(opened.read(size if size <= whole else END_BYTES))
        opened.seek(0)
    return digest.hexdigest()


def check_sum(path: Path, checksums: dict[str, str], file: BinaryIO | None = None, whole: int = WHOLE_BYTES) -> None:
    """Raise DataError unless a file has the checksum in its card, if there is one: cards of older versions had none."""
    try:
        if path.name in checksums and checksums[path.name] != checksum(path, file, whole):
            raise DataError(f"{path} is not the file that card.json was written for, it was changed: make it again.")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): make it again.") from error
