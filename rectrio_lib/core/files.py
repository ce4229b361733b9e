"""Files and folders that are complete or absent: write under a temporary name, then rename."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    import pandas as pd

from rectrio_lib.core.errors import StorageError

ABANDONED = 24 * 3600  # seconds after which the partial file of a killed process is removed


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder so that a killed run leaves the old one whole.

    Yields an empty folder beside `folder`; when the block ends without an error it takes the place of `folder`.
    """
    restore_folder(folder)
    fresh, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put back the old folder if `replaced_folder` was killed between its two renames."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    with renamed(path) as partial:
        table.to_parquet(partial, index=False)


@contextmanager
def renamed(path: Path, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary name, and rename it when the block ends without an error; else remove it.

    Args:
        path: the file to write.
        unique: whether several processes may write it at once: each then has a temporary name of its own.

    Raises:
        StorageError: if the file cannot be written; what was there stays.
    """
    partial = path.with_suffix(f".{uuid4().hex[:8]}.part" if unique else ".part")
    for left in path.parent.glob(f"{path.stem}.*.part") if unique else ():
        with suppress(OSError):  # another process may have removed it
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error}). What was written before is kept: make room, or make it writable, "
            "and call again."
        ) from error
    finally:
        with suppress(OSError):  # Windows does not remove a file that is open
            partial.unlink(missing_ok=True)
