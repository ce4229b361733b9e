"""Files and folders that are complete or absent: write under a temporary name, then rename."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rectrio_lib.core.errors import DataError, RectrioError, StorageError

if TYPE_CHECKING:
    import pandas as pd

WHOLE_BYTES, END_BYTES = 64 << 20, 1 << 20  # of a larger file only size, head and tail enter its checksum


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, complete or not at all."""
    with renamed(path) as partial:
        table.to_parquet(partial, index=False)


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Yield a temporary name, and rename it when the block ends without an error.

    Raises:
        StorageError: if the file cannot be written; what was there stays.
    """
    partial = path.with_suffix(".part")
    try:
        with _storage_errors(path):
            yield partial
            partial.replace(path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder so that the old one stays complete until the new one is.

    Yields an empty folder beside `folder`; when the block ends without an error it takes the place of `folder`, else it
    is deleted.

    Raises:
        StorageError: if it cannot be written; what was there stays.
    """
    fresh, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("new", "old"))
    try:
        with _storage_errors(folder):
            restore_folder(folder)
            for leftover in (fresh, old):
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir(parents=True)
            yield fresh
            if folder.exists():
                folder.replace(old)
            fresh.replace(folder)
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put back the old folder if `replaced_folder` was killed between its two renames."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except RectrioError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error}). What was there before is kept: make room, or make it writable, and "
            "call again."
        ) from error


def checksum(path: Path, file: BinaryIO | None = None, whole: int = WHOLE_BYTES) -> str:
    """Return a BLAKE2 checksum of a file: of its size and content, above `whole` bytes only of its size and ends."""
    with nullcontext(file) if file else path.open("rb") as opened:
        size = opened.seek(0, 2)
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        for start in [0] if size <= whole else [0, size - END_BYTES]:
            opened.seek(start)
            digest.update(opened.read(size if size <= whole else END_BYTES))
        opened.seek(0)
    return digest.hexdigest()


def check_sum(path: Path, checksums: dict[str, str], file: BinaryIO | None = None, whole: int = WHOLE_BYTES) -> None:
    """Compare a file with the checksum in its card; without one, as in cards of older versions, anything passes.

    Raises:
        DataError: if the file is missing or not the one that the card was written for.
    """
    try:
        same = path.name not in checksums or checksum(path, file, whole) == checksums[path.name]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): make it again.") from error
    if not same:
        raise DataError(f"{path} is not the file that card.json was written for, it was changed: make it again.")
