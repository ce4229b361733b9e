"""Tables that grow: what is new lies in small files, <name>-00000.parquet, until one whole file takes their place."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.files import save_table


def add(path: Path, number: int, rows: pd.DataFrame) -> None:
    """Write new rows of the table `path` as its small file of that number."""
    save_table(path.with_stem(f"{path.stem}-{number:05d}"), rows)


def parts_of(path: Path) -> dict[int, Path]:
    """Return the small files of a table by number, ascending."""
    found = {part.stem.removeprefix(f"{path.stem}-"): part for part in path.parent.glob(f"{path.stem}-*{path.suffix}")}
    return {int(number): found[number] for number in sorted(filter(str.isdecimal, found), key=int)}


def read(path: Path, again: str, columns: list[str] | None = None, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read a whole or a small file; DataError if it is damaged: its images are to be embedded or read `again`.

    A table that it is `like`, in all values and types, is returned itself: so there is no second one in memory.
    """
    try:
        if like is not None and parquet.read_schema(path).names == [*like.columns]:
            one_by_one = (pd.read_parquet(path, columns=[column]) for column in like)
            if all(it.dtypes.equals(like[it.columns].dtypes) and it.equals(like[it.columns]) for it in one_by_one):
                return like
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged: delete it, and its images are {again} again ({error}).") from error


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return one table of several; empty ones, whose columns may have no type, do not count unless all are."""
    filled = [table for table in tables if len(table)] or tables[:1]
    return filled[0] if len(filled) == 1 else pd.concat(filled, ignore_index=True)


def join(path: Path, table: pd.DataFrame) -> None:
    """Write the whole file, and remove the small ones."""
    save_table(path, table)
    for part in parts_of(path).values():
        part.unlink()
