"""Tables beside images: metadata.csv and metadata.parquet, or a manifest."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa

from rectrio_lib.core.errors import DataError
from rectrio_lib.data.places.naming import unicode

LOG = logging.getLogger(__name__)
KEYS, TABLES = ("file_name", "path"), ("metadata.csv", "metadata.parquet")
MANIFEST = "manifest"  # what messages call the table that a caller gives
OWN_COLUMNS = ["image_id", "path", "row", "width", "height", "shard", "deleted"]  # never taken from a table


def names_beside(paths: Iterable[str]) -> list[str]:
    """Return where tables may lie: in the top folder and in those below it on the way to one of the paths."""
    homes = {path.rpartition("/")[0] for path in paths} | {"."}
    homes = sorted({parent.as_posix() for path in homes for parent in Path(path, "x").parents})
    return [f"{home}/{name}".removeprefix("./") for home in homes for name in TABLES]


def read_csv(file: Path | BinaryIO, where: str | Path, **options: Any) -> pd.DataFrame:
    """Read a CSV file, less nameless columns; lines may end with a comma. If it is none, DataError names `where`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(file, index_col=False, **options)  # else further values make the first ones an index
        return table.loc[:, ~table.columns.str.fullmatch(r"Unnamed: \d+")]  # so pandas calls them
    except pd.errors.ParserWarning as error:
        raise DataError(f"{where}: lines hold more values than the header; a text with commas needs quotes.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be read as CSV: {error}") from error


def read_table(file: Path | BinaryIO, where: str | Path, prefix: str) -> pd.DataFrame:
    """Read a table whose file names start at `prefix`, or raise DataError that names `where` it lies."""
    if str(where).endswith(".csv"):
        table = read_csv(file, where, dtype=dict.fromkeys([*KEYS, "label", "split"], str), low_memory=False)
    else:
        try:
            table = pd.read_parquet(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{where} cannot be read as Parquet: {error}") from error
    key = next((key for key in KEYS if key in table), KEYS[0])
    table = checked(table, where, key)
    return table.assign(path=prefix + table["path"])


def checked(table: pd.DataFrame, where: str | Path, key: str) -> pd.DataFrame:
    """Return a table with unique paths and columns that can be stored, or raise DataError that names the column."""
    table = table.rename(columns=str)  # as Parquet has them
    if (twice := table.columns[table.columns.duplicated()]).size:
        raise DataError(f"{where}: there are two columns {twice[0]!r}.")
    if key not in table:
        columns = ", ".join(map(repr, table.columns[:5])) or "none"
        raise DataError(f"{where} has no column {' or '.join(KEYS)} that names the image files, only {columns}.")
    slashes = lambda name: name.replace("\\", "/").removeprefix("./") if isinstance(name, str) else None  # noqa: E731
    table[key] = table[key].map(slashes)
    if table[key].isna().any() or table[key].duplicated().any():
        raise DataError(f"{where}: column {key!r} should name each image file once, as text.")
    if key != "path":
        table = table.drop(columns="path", errors="ignore").rename(columns={key: "path"})
    for column in table:
        if pd.api.types.infer_dtype(table[column], skipna=True).startswith("mixed"):
            raise DataError(f"{where}: column {column!r} holds lists or values of several types, expected one type.")
    ignored = [column for column in table if column in OWN_COLUMNS and column != "path"]
    if ignored and where != MANIFEST:
        LOG.warning("%s: %s ignored, RecTrio uses these names itself.", where, ", ".join(ignored))
    return table.drop(columns=ignored)


def storable(table: pd.DataFrame, gone: np.ndarray | None = None) -> pd.DataFrame:
    """Return a table with one type per column, label and split as text; columns of lists and the like are left out.

    Values of several types become text; those of rows that are `gone`, bool (N,), make no text of the others' numbers.
    """
    for column in list(table):
        values = table[column]
        if gone is not None and not _is_of_one_type(values) and _is_of_one_type(values.mask(gone)):
            table[column] = values = values.mask(gone)
        if values.dtype == object and values.map(lambda value: isinstance(value, list | dict | bytes)).any():
            table = table.drop(columns=column)
        elif column in ("label", "split") or not _is_of_one_type(values):
            values = values.astype(object)  # a category takes no other text
            table[column] = values.where(values.isna(), values.map(lambda value: unicode(str(value)))).infer_objects()
        elif values.dtype == object:
            table[column] = values.infer_objects()
    return table


def _is_of_one_type(values: pd.Series) -> bool:
    try:
        pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return False
    return pd.api.types.infer_dtype(values, skipna=True) != "mixed"  # Arrow takes 3.0 and True, in this order
