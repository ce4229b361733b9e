"""Vectors to be added, checked, and rows of metadata as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index import conditions
from rectrio_lib.index.base import check_rows, check_vectors

EMPTY = "empty"  # kind of a column whose values are all missing so far
Columns = dict[str, list[str]]  # kind, see `grammar.Column`, and dtype of each column of metadata
Record = dict[str, Any]


def check_new(vectors: np.ndarray, rows: pd.DataFrame, dim: int | None = None) -> None:
    """Refuse vectors (N, dim), or rows, that cannot be added to any index: ArgumentError."""
    check_vectors(vectors, dim or vectors.shape[-1])
    check_rows(rows, len(vectors))


def columns_of(rows: pd.DataFrame, known: Columns) -> Columns:
    """Return known columns and those of new rows.

    Raises:
        ArgumentError: if a known column would hold values of another kind.
    """
    columns = dict(known)
    for name, values in rows.items():
        kind, dtype, missing = conditions.kind_of(values), str(values.dtype), bool(values.isna().all())
        old_kind, old_dtype = known.get(name, ("", ""))
        if name not in known or old_kind == EMPTY:
            columns[str(name)] = [EMPTY if missing and dtype == "object" else kind, dtype]
        elif not missing and kind != old_kind:
            raise ArgumentError(f"The column {name!r} holds {old_kind}, but {kind} is to be added.")
        elif dtype != old_dtype:
            columns[name] = [old_kind, "object"]
    return columns


def kinds(columns: Columns) -> Mapping[str, str]:
    """Return the kind of each column as conditions take it."""
    return {name: "text" if kind == EMPTY else kind for name, (kind, _) in columns.items()}


def records(rows: pd.DataFrame) -> list[Record]:
    """Return rows as JSON objects; what is missing is left out.

    Raises:
        ArgumentError: if a text is no Unicode text, as a database takes it.
    """
    written = {str(name): _values(rows[name], conditions.kind_of(rows[name])) for name in rows.columns}
    return [
        {name: value for name, value in zip(written, values, strict=True) if value is not None}
        for values in zip(*written.values(), strict=True)
    ]


def table(found: Sequence[Record], columns: Columns) -> pd.DataFrame:
    """Return the rows that `records` wrote, in the types they had as far as they still fit."""
    made = {name: pd.Series([record.get(name) for record in found], dtype=object) for name in columns}
    return pd.DataFrame({name: _typed(values, *columns[name]) for name, values in made.items()}, columns=list(columns))


def extended(
    earlier: pd.DataFrame, fresh: Sequence[Record], columns: Columns, removed: Sequence[int]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return a table with new rows at its end, and which of all rows are removed, bool (N,), read-only."""
    parts = [part for part in (earlier, table(fresh, columns)) if len(part)] or [earlier]
    rows = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    gone = np.isin(np.arange(len(rows)), removed)
    gone.flags.writeable = False
    return rows, gone


def _values(column: pd.Series, kind: str) -> list[Any]:
    there = conditions.present(column)
    match kind:
        case "number":
            there &= np.isfinite(conditions.numbers(column))
            values = [_number(value) if held else None for value, held in zip(column, there, strict=True)]
        case "bool":
            values = (conditions.numbers(column) == 1).tolist()
        case "date":
            values = [str(moment) for moment in conditions.dates(column)]  # as where.sql writes a date
        case "list":
            values = [[_text(element) for element in conditions.elements(value)] for value in column]
        case _:
            values = [
                _text(value) if held else None for value, held in zip(conditions.texts(column), there, strict=True)
            ]
    return [value if held else None for value, held in zip(values, there, strict=True)]


def _number(value: Any) -> int | float:
    whole = isinstance(value, int | np.integer) or (float(value).is_integer() and abs(value) < 2**53)
    return int(value) if whole else float(value)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "\0"
    if "\0" in text:
        raise ArgumentError("A database takes no text with a NUL or half a character: rename these files.")
    return text


def _typed(values: pd.Series, kind: str, dtype: str) -> pd.Series:
    if kind == "date":
        values = pd.to_datetime(values, format="ISO8601", utc="UTC" in dtype or "+" in dtype)
    try:
        return values.astype(dtype)
    except (TypeError, ValueError):
        return values.infer_objects()
