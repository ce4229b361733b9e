"""Which rows of a table meet a condition, such as "label == 'cat' and width > 200"; see `grammar`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from pandas.api import types

from rectrio_lib.index.where.grammar import (
    OF_NUMBERS,
    WHOLE,
    Arithmetic,
    Column,
    Compare,
    Condition,
    Contains,
    Joined,
    Not,
    OneOf,
    Operand,
    read,
)

COMPARISONS = {"==": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
INFERRED = {"boolean": "bool", "datetime64": "date", "datetime": "date", "date": "date", "empty": "text"}
INFERRED |= dict.fromkeys(("integer", "floating", "mixed-integer-float", "decimal"), "number")


def matching(rows: pd.DataFrame, where: str) -> np.ndarray:
    """Return which rows meet a condition, bool (N,); see `grammar.read`, as for the errors."""
    return holds(read(where, Kinds(rows)), rows)


def holds(condition: Condition, rows: pd.DataFrame) -> np.ndarray:
    """Return which rows meet a condition that was read, bool (N,)."""
    return _Masks(rows).holds(condition)


class Kinds(Mapping):
    """Kind of each column of a table, found out when it is asked for."""

    def __init__(self, rows: pd.DataFrame):
        self.rows = rows

    def __getitem__(self, name: str) -> str:
        return kind_of(self.rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows.columns)

    def __len__(self) -> int:
        return self.rows.shape[1]


def kind_of(column: pd.Series) -> str:
    """Return what a column holds, see `grammar.Column`; categories and objects count as what they stand for."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return kind_of(dtype.categories.to_series())
    if types.is_bool_dtype(dtype):
        return "bool"
    if types.is_numeric_dtype(dtype):
        return "number"
    if types.is_datetime64_any_dtype(dtype):
        return "date"
    if not types.is_object_dtype(dtype):
        return "text"
    inferred = types.infer_dtype(column, skipna=True)
    if inferred == "mixed" and all(map(is_list, column[present(column)])):
        return "list"
    return INFERRED.get(inferred, "text")


def is_list(value: object) -> bool:
    """Tell whether a value of a table counts as a list."""
    return isinstance(value, list | tuple | set | frozenset | np.ndarray)


def numbers(column: pd.Series) -> np.ndarray:
    """Return a column of numbers as float64 (N,): NaN where a value is missing or not finite."""
    values = column.to_numpy(np.float64, na_value=np.nan)
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, np.nan)


def dates(column: pd.Series) -> np.ndarray:
    """Return a column of dates in UTC, datetime64[us] (N,): NaT where a value is missing."""
    return pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[us]")


def texts(column: pd.Series) -> pd.Series:
    """Return a column of anything as text; missing values stay missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    text = column.dtype == "str" or column.dtype == "string" or types.infer_dtype(column) in ("string", "empty")
    return column if text else column.map(str, na_action="ignore")


def elements(value: object) -> list[str]:
    """Return the elements of a list as text, without missing ones."""
    return [str(element) for element in value if not pd.isna(element)] if is_list(value) else []


def present(column: pd.Series) -> np.ndarray:
    """Tell which values of a column are not missing, bool (N,)."""
    return np.array([is_list(value) or not pd.isna(value) for value in column], bool)


class _Masks:
    def __init__(self, rows: pd.DataFrame):
        self.rows = rows

    def holds(self, condition: Condition) -> np.ndarray:
        match condition:
            case Joined(parts, any_of):
                join = np.logical_or if any_of else np.logical_and
                return join.reduce([self.holds(part) for part in parts])
            case Not(part):
                return ~self.holds(part)
            case Compare(operation, left, right):
                held = COMPARISONS[operation](self.value(left), self.value(right))
            case OneOf(value, constants):
                held = pd.Series(self.value(value)).isin([self.constant(constant) for constant in constants])
            case Contains(Column(name, "list"), part):
                return np.array([part in elements(value) for value in self.rows[name]], bool)
            case Contains(column, part):
                held = self.value(column).str.contains(part, regex=False)
        return held if isinstance(held, np.ndarray) else held.to_numpy(bool, na_value=False)

    def value(self, operand: Operand) -> np.ndarray | pd.Series | str | float | np.datetime64:
        match operand:
            case Column(name, "number" | "bool"):
                return numbers(self.column(name))
            case Column(name, "date"):
                return dates(self.rows[name])
            case Column(name):
                return texts(self.rows[name]).reset_index(drop=True)
            case Arithmetic(operation, left, right):
                return _result(operation, self.value(left), self.value(right))
        return self.constant(operand)

    def column(self, name: str) -> pd.Series:
        column = self.rows[name]
        return column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column

    @staticmethod
    def constant(constant: object) -> object:
        return constant if isinstance(constant, str | float) else np.datetime64(constant, "us")


def _result(operation: str, left: np.ndarray | float, right: np.ndarray | float) -> np.ndarray:
    with np.errstate(all="ignore"):
        value = OF_NUMBERS["/" if operation in WHOLE else operation](left, right)
        if operation in WHOLE:
            value = np.floor(value)
        if operation == "%":
            value = left - right * value
    return np.where(np.isfinite(value), value, np.nan)
