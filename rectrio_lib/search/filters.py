"""Conditions on metadata, such as "label == 'cat' and width > 200": read into a small tree, never run as code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable
from functools import reduce
from math import isfinite
from typing import Any, NamedTuple

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


class Column(NamedTuple):
    """A column of the metadata; as a condition, one of True and False."""

    name: str


class Operation(NamedTuple):
    """An operator between two values: arithmetic or a comparison; or between two conditions: "and" or "or"."""

    operator: str
    left: Tree
    right: Tree


class Among(NamedTuple):
    """Whether a value is one of several constants."""

    value: Tree
    constants: tuple[Constant, ...]


class Not(NamedTuple):
    """The opposite of a condition."""

    condition: Tree


Tree = Column | Operation | Among | Not | Constant


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


def parse(where: str) -> Tree:
    """Read a condition into a tree that any database's reader can translate; `mask` reads it for pandas.

    Raises:
        ArgumentError: if it is not a condition as `matching` describes it.
    """
    try:
        return _condition(ast.parse(where.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, ArithmeticError) as error:  # MemoryError: many brackets
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"where={where[:200]!r} cannot be read; {HINT}") from error


def _condition(node: ast.expr) -> Tree:
    match node:
        case ast.BoolOp(joined, parts):
            return _chain("and" if isinstance(joined, ast.And) else "or", map(_condition, parts))
        case ast.UnaryOp(ast.Not(), part):
            return Not(_condition(part))
        case ast.Compare(first, operators, others):
            pairs = zip(operators, [first, *others], others, strict=False)
            return _chain("and", [_comparison(*pair) for pair in pairs])
        case ast.Name(name):
            return Column(name)
    raise _meaningless(node)


def _chain(name: str, parts: Iterable[Tree]) -> Tree:
    return reduce(lambda left, right: Operation(name, left, right), parts)


def _comparison(comparison: ast.cmpop, left: ast.expr, right: ast.expr) -> Tree:
    value = _value(left)
    if type(comparison) in COMPARISONS:
        name, other = COMPARISONS[type(comparison)], _value(right)
        if isinstance(value, Constant):
            name, value, other = MIRRORED[name], other, value
        if isinstance(value, Constant):
            raise _meaningless(left)
        return Operation(name, value, other)
    if not isinstance(comparison, ast.In | ast.NotIn) or isinstance(value, Constant):
        raise _meaningless(left)
    if not isinstance(right, ast.List | ast.Tuple | ast.Set):
        raise _meaningless(right)
    held = Among(value, tuple(map(_constant, right.elts)))
    return held if isinstance(comparison, ast.In) else Not(held)


def _value(node: ast.expr) -> Tree:
    """Read a column, a constant, or arithmetic on these."""
    match node:
        case ast.Name(name):
            return Column(name)
        case ast.UnaryOp(ast.USub(), part):
            return _joined("-", 0, _value(part), node)
        case ast.BinOp(left, operation, right) if type(operation) in ARITHMETIC:
            return _joined(ARITHMETIC[type(operation)], _value(left), _value(right), node)
    return _constant(node)


def _joined(name: str, left: Tree, right: Tree, node: ast.expr) -> Tree:
    if isinstance(left, str) or isinstance(right, str):  # repeated a billion times it would fill the memory
        raise _meaningless(node)
    if isinstance(left, Constant) and isinstance(right, Constant):
        return OPERATORS[name](left, right)
    return Operation(name, left, right)


def _constant(node: ast.expr) -> Constant:
    match node:
        case ast.Constant(str() | int() | float() as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
    raise _meaningless(node)


def _meaningless(node: ast.expr) -> ArgumentError:
    return ArgumentError(f"where: {ast.unparse(node)!r} means nothing here; {HINT}")


def mask(tree: Tree, rows: pd.DataFrame) -> np.ndarray:
    """Return which rows meet a condition that `parse` has read, bool (N,)."""
    return _holds(tree, rows).to_numpy(bool, na_value=False)


def _holds(tree: Tree, rows: pd.DataFrame) -> pd.Series:
    match tree:
        case Operation("and" | "or" as name, left, right):
            return OPERATORS[name](_holds(left, rows), _holds(right, rows))
        case Operation(name, left, right):
            series, other = _evaluated(left, rows), _evaluated(right, rows)
            if not isinstance(other, pd.Series):
                other = _fitting(series, other, name)
            elif types.is_numeric_dtype(series) != types.is_numeric_dtype(other):
                raise TypeError(f"{series.name!r} and {other.name!r} are of different types")
            return OPERATORS[name](series, other)
        case Not(part):
            return ~_holds(part, rows)
        case Among(value, constants):
            series = _evaluated(value, rows)
            return series.isin([_fitting(series, constant) for constant in constants])
    series = _evaluated(tree, rows)
    if not types.is_bool_dtype(series):
        raise ArgumentError(f"where: {series.name!r} alone means nothing here; {HINT}")
    return series


def _evaluated(tree: Tree, rows: pd.DataFrame) -> Any:
    """Return a column, categories and values of several types as what they stand for; or a result, or a constant."""
    match tree:
        case Column(name):
            if name not in rows:
                known = ", ".join(map(str, rows.columns))
                raise ArgumentError(f"where: there is no column {name!r}; the columns are {known}.")
            column = rows[name].infer_objects()
            if isinstance(column.dtype, pd.CategoricalDtype):
                return column.astype(column.cat.categories.dtype)
            mixed = column.dtype == object and types.infer_dtype(column) not in ("string", "empty")
            return column.map(str, na_action="ignore") if mixed else column
        case Operation(name, left, right):
            parts = [_evaluated(part, rows) for part in (left, right)]
            for part in parts:
                if isinstance(part, pd.Series) and not types.is_numeric_dtype(part):
                    raise ArgumentError(f"where: {part.name!r} is not a column of numbers; {HINT}")
            return OPERATORS[name](*parts)
    return tree


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
