"""Conditions on metadata, such as "label == 'cat' and width > 200": read into a small tree, never run as code."""

from __future__ import annotations

import ast
import operator
from dataclasses import dataclass
from functools import reduce
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from rectrio_lib.core.errors import ArgumentError

ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%"}
# no power: 9**9**9**9 never ends
COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
OPERATORS = {
    **{"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv},
    **{"%": operator.mod, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le},
    **{">": operator.gt, ">=": operator.ge, "and": operator.and_, "or": operator.or_},
}
HINT = "compare columns with values, joined by and, or, not: \"label in ['cat', 'dog'] and width > 2 * height\""
Constant = str | int | float


@dataclass(frozen=True)
class Column:
    """A column of the metadata."""

    name: str


@dataclass(frozen=True)
class Arithmetic:
    """left operator right, of numbers."""

    operator: str
    left: Value
    right: Value


@dataclass(frozen=True)
class Comparison:
    """left operator right."""

    operator: str
    left: Value
    right: Value


@dataclass(frozen=True)
class Membership:
    """Whether a value is one of several constants."""

    left: Value
    constants: tuple[Constant, ...]


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    part: Condition


@dataclass(frozen=True)
class Joined:
    """Conditions joined by "and" or "or"."""

    operator: str
    parts: tuple[Condition, ...]


Value = Column | Arithmetic | Constant
Condition = Column | Comparison | Membership | Not | Joined  # a column of True and False is a condition


def matching(rows: pd.DataFrame, where: str) -> np.ndarray:
    """Return which rows meet a condition.

    It may hold columns, text, numbers, True, False, comparisons (chained ones too), `in` and `not in` with a list, and,
    or, not, + - * / // % of numbers, and brackets: no calls, no attributes, nothing that could run code. Where a value
    is missing, only != and `not in` hold. A column of text is compared with a number by how the number is written
    (class folders 1, 2, 3: `label == 1`), a column of numbers with a text that holds one (`width == '160'`).

    Args:
        rows: metadata (N rows).
        where: the condition.

    Returns:
        bool (N,).

    Raises:
        ArgumentError: if it holds anything else, names a column that is not there, or compares text with numbers.
    """
    try:
        return mask(parse(where), rows)
    except (TypeError, ArithmeticError) as error:
        raise ArgumentError(f"where={where[:200]!r} compares what cannot be compared: {error}") from error
    except RecursionError as error:
        raise ArgumentError(f"where is nested too deeply ({len(where):,} characters).") from error


def parse(where: str) -> Condition:
    """Read a condition into a tree that any database's reader can translate; `mask` reads it for pandas.

    Raises:
        ArgumentError: if it is not a condition as `matching` describes it.
    """
    try:
        return _condition(ast.parse(where.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, ArithmeticError) as error:  # a null byte; brackets beyond the parser's stack
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"where={where[:200]!r} cannot be read; {HINT}") from error


def _condition(node: ast.expr) -> Condition:
    match node:
        case ast.BoolOp(joined, parts):
            return Joined("and" if isinstance(joined, ast.And) else "or", tuple(map(_condition, parts)))
        case ast.UnaryOp(ast.Not(), part):
            return Not(_condition(part))
        case ast.Compare(first, operators, others):
            pairs = zip(operators, [first, *others], others, strict=False)
            parts = tuple(_comparison(*pair) for pair in pairs)
            return parts[0] if len(parts) == 1 else Joined("and", parts)
        case ast.Name(name):
            return Column(name)
    raise _meaningless(node)


def _comparison(comparison: ast.cmpop, left: ast.expr, right: ast.expr) -> Condition:
    value = _value(left)
    if type(comparison) in COMPARISONS:
        name, other = COMPARISONS[type(comparison)], _value(right)
        if isinstance(value, Constant):
            name, value, other = MIRRORED[name], other, value
        if isinstance(value, Constant):
            raise _meaningless(left)
        return Comparison(name, value, other)
    if not isinstance(comparison, ast.In | ast.NotIn) or isinstance(value, Constant):
        raise _meaningless(left)
    if not isinstance(right, ast.List | ast.Tuple | ast.Set):
        raise _meaningless(right)
    held = Membership(value, tuple(map(_constant, right.elts)))
    return held if isinstance(comparison, ast.In) else Not(held)


def _value(node: ast.expr) -> Value:
    """Read a column, a constant, or arithmetic on these."""
    match node:
        case ast.Name(name):
            return Column(name)
        case ast.UnaryOp(ast.USub(), part):
            return _joined("-", 0, _value(part), node)
        case ast.BinOp(left, operation, right) if type(operation) in ARITHMETIC:
            return _joined(ARITHMETIC[type(operation)], _value(left), _value(right), node)
    return _constant(node)


def _joined(name: str, left: Value, right: Value, node: ast.expr) -> Value:
    if isinstance(left, str) or isinstance(right, str):  # repeated a billion times it would fill the memory
        raise _meaningless(node)
    if isinstance(left, Constant) and isinstance(right, Constant):
        return OPERATORS[name](left, right)
    return Arithmetic(name, left, right)


def _constant(node: ast.expr) -> Constant:
    match node:
        case ast.Constant(str() | int() | float() as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
    raise _meaningless(node)


def _meaningless(node: ast.expr) -> ArgumentError:
    return ArgumentError(f"where: {ast.unparse(node)!r} means nothing here; {HINT}")


def mask(tree: Condition, rows: pd.DataFrame) -> np.ndarray:
    """Return which rows meet a condition that `parse` has read, bool (N,)."""
    return _holds(tree, rows).to_numpy(bool, na_value=False)


def _holds(tree: Condition, rows: pd.DataFrame) -> pd.Series:
    match tree:
        case Joined(name, parts):
            return reduce(OPERATORS[name], (_holds(part, rows) for part in parts))
        case Not(part):
            return ~_holds(part, rows)
        case Comparison(name, left, right):
            series = _series(left, rows)
            other = _fitting(series, right, name) if isinstance(right, Constant) else _series(right, rows)
            if isinstance(other, pd.Series) and types.is_numeric_dtype(series) != types.is_numeric_dtype(other):
                raise TypeError(f"{series.name!r} and {other.name!r} are of different types")
            return OPERATORS[name](series, other)
        case Membership(left, constants):
            series = _series(left, rows)
            return series.isin([_fitting(series, constant) for constant in constants])
        case Column(name):
            series = _series(tree, rows)
            if types.is_bool_dtype(series):
                return series
            raise ArgumentError(f"where: {name!r} alone means nothing here; {HINT}")
    raise AssertionError(tree)


def _series(value: Value, rows: pd.DataFrame) -> Any:
    """Return a column, categories as what they stand for, values of several types as text; or the result of arithmetic; a constant as it is."""
    match value:
        case Column(name):
            if name not in rows:
                known = ", ".join(map(str, rows.columns))
                raise ArgumentError(f"where: there is no column {name!r}; the columns are {known}.")
            column = rows[name].infer_objects()
            if isinstance(column.dtype, pd.CategoricalDtype):
                return column.astype(column.cat.categories.dtype)
            mixed = column.dtype == object and types.infer_dtype(column) not in ("string", "empty")
            return column.map(str, na_action="ignore") if mixed else column
        case Arithmetic(name, left, right):
            parts = [_series(part, rows) for part in (left, right)]
            for part in parts:
                if isinstance(part, pd.Series) and not types.is_numeric_dtype(part):
                    raise ArgumentError(f"where: {part.name!r} is not a column of numbers; {HINT}")
            return OPERATORS[name](*parts)
    return value


def _fitting(series: pd.Series, constant: Constant, comparison: str = "==") -> Any:
    """Return a constant as the type of a column wants it: text as a number or a date, a number as text.

    Raises:
        TypeError: if it cannot be that.
    """
    if isinstance(constant, str):
        try:
            if types.is_datetime64_any_dtype(series):
                return pd.Timestamp(constant)
            if types.is_numeric_dtype(series):
                number = float(constant)
                if types.is_bool_dtype(series) or not isfinite(number):
                    raise ValueError
                return int(number) if number.is_integer() else number
        except ValueError:
            raise TypeError(f"{series.name!r} does not hold text such as {constant!r}") from None
    elif not types.is_numeric_dtype(series):
        if comparison not in ("==", "!="):
            raise TypeError(f"{series.name!r} holds no numbers, {constant} is one")
        return str(constant)
    return constant
