"""Files and folders that are complete or absent: write under a temporary name, then rename."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from rectrio_lib.core.errors import StorageError


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
def renamed(path: Path) -> Iterator[Path]:
    """Yield a temporary name, and rename it when the block ends without an error.

    Raises:
        OSError: if the file cannot be written; what was there stays.
    """
    partial = path.with_suffix(".part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error}). What was embedded before is kept: make room, or make it writable, "
            "and call again."
        ) from error
