"""Conditions on metadata, such as "label == 'cat' and width > 200": read by their grammar, never run as code."""

from __future__ import annotations

import ast
import operator
from functools import reduce
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from rectrio_lib.core.errors import ArgumentError

ARITHMETIC = {  # no power: 9**9**9**9 never ends
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod},
}
COMPARISONS = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt},
    **{ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
}
HINT = "compare columns with values, joined by and, or, not: \"label in ['cat', 'dog'] and width > 2 * height\""
Value = pd.Series | str | int | float


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
        return _holds(ast.parse(where.strip(), mode="eval").body, rows).to_numpy(bool, na_value=False)
    except ArgumentError:
        raise
    except (TypeError, ArithmeticError) as error:
        raise ArgumentError(f"where={where[:200]!r} compares what cannot be compared: {error}") from error
    except RecursionError as error:
        raise ArgumentError(f"where is nested too deeply ({len(where):,} characters).") from error
    except (SyntaxError, ValueError, MemoryError) as error:  # MemoryError: many brackets
        raise ArgumentError(f"where={where[:200]!r} cannot be read; {HINT}") from error


def _holds(node: ast.expr, rows: pd.DataFrame) -> pd.Series:
    match node:
        case ast.BoolOp(joined, parts):
            join = operator.and_ if isinstance(joined, ast.And) else operator.or_
            return reduce(join, [_holds(part, rows) for part in parts])
        case ast.UnaryOp(ast.Not(), part):
            return ~_holds(part, rows)
        case ast.Compare(first, comparisons, others):
            triples = zip(comparisons, [first, *others], others, strict=False)
            return reduce(operator.and_, [_compared(*triple, rows) for triple in triples])
        case ast.Name() if types.is_bool_dtype(series := _value(node, rows)):
            return series
    raise _meaningless(node)


def _compared(comparison: ast.cmpop, left: ast.expr, right: ast.expr, rows: pd.DataFrame) -> pd.Series:
    value = _value(left, rows)
    if type(comparison) in COMPARISONS:
        other, equality = _value(right, rows), isinstance(comparison, ast.Eq | ast.NotEq)
        match value, other:
            case pd.Series(), pd.Series():
                if types.is_numeric_dtype(value) != types.is_numeric_dtype(other):
                    raise TypeError(f"{value.name!r} and {other.name!r} are of different types")
            case pd.Series(), _:
                other = _fitting(value, other, equality)
            case _, pd.Series():
                value = _fitting(other, value, equality)
            case _:
                raise _meaningless(left)
        return COMPARISONS[type(comparison)](value, other)
    if not isinstance(value, pd.Series) or not isinstance(comparison, ast.In | ast.NotIn):
        raise _meaningless(left)
    if not isinstance(right, ast.List | ast.Tuple | ast.Set):
        raise _meaningless(right)
    constants = [_value(constant, rows) for constant in right.elts]
    if any(isinstance(constant, pd.Series) for constant in constants):
        raise _meaningless(right)
    held = value.isin([_fitting(value, constant) for constant in constants])
    return held if isinstance(comparison, ast.In) else ~held


def _value(node: ast.expr, rows: pd.DataFrame) -> Value:
    """Return a constant, a column, categories and values of several types as what they stand for, or a result."""
    match node:
        case ast.Constant(str() | int() | float() as value):
            return value
        case ast.UnaryOp(ast.USub(), part):
            return 0 - _number(part, rows)
        case ast.BinOp(left, operation, right) if type(operation) in ARITHMETIC:
            return ARITHMETIC[type(operation)](_number(left, rows), _number(right, rows))
        case ast.Name(name):
            if name not in rows:
                known = ", ".join(map(str, rows.columns))
                raise ArgumentError(f"where: there is no column {name!r}; the columns are {known}.")
            column = rows[name].infer_objects()
            if isinstance(column.dtype, pd.CategoricalDtype):
                return column.astype(column.cat.categories.dtype)
            mixed = column.dtype == object and types.infer_dtype(column) not in ("string", "empty")
            return column.map(str, na_action="ignore") if mixed else column
    raise _meaningless(node)


def _number(node: ast.expr, rows: pd.DataFrame) -> Value:
    value = _value(node, rows)
    if isinstance(value, str):  # repeated a billion times it would fill the memory
        raise _meaningless(node)
    if isinstance(value, pd.Series) and not types.is_numeric_dtype(value):
        raise ArgumentError(f"where: {value.name!r} is not a column of numbers; {HINT}")
    return value


def _meaningless(node: ast.expr) -> ArgumentError:
    return ArgumentError(f"where: {ast.unparse(node)!r} means nothing here; {HINT}")


def _fitting(series: pd.Series, constant: str | int | float, equality: bool = True) -> Any:
    """Return a constant as the type of a column wants it: text as a number or a date, a number as text.

    Raises:
        TypeError: if it cannot be that.
    """
    if not isinstance(constant, str):
        if types.is_numeric_dtype(series):
            return constant
        if not equality:
            raise TypeError(f"{series.name!r} holds no numbers, {constant} is one")
        return str(constant)
    try:
        if types.is_datetime64_any_dtype(series):
            return pd.Timestamp(constant)
        if not types.is_numeric_dtype(series):
            return constant
        number = float(constant)
        if types.is_bool_dtype(series) or not isfinite(number):
            raise ValueError
        return int(number) if number.is_integer() else number
    except ValueError:
        raise TypeError(f"{series.name!r} does not hold text such as {constant!r}") from None
