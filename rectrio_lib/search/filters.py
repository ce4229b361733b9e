"""Conditions on metadata, such as "label == 'cat' and width > 200". What a user wrote is read, never run as code."""

from __future__ import annotations

import ast
import operator
from functools import reduce

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError

ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}  # no power: 9**9**9**9 never ends
COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
HINT = "compare columns with values, joined by and, or, not: \"label in ['cat', 'dog'] and width > 2 * height\""
Value = pd.Series | str | int | float


def matching(rows: pd.DataFrame, where: str) -> np.ndarray:
    """Tell which rows meet a condition.

    It may hold columns, text, numbers, True, False, comparisons (chained ones too), `in` and `not in` with a list, and,
    or, not, + - * / // % of numbers, and brackets: no calls, no attributes, nothing that could run code. All operators
    mean what they mean in pandas; where a value is missing, only != and `not in` hold.

    Args:
        rows: metadata (N rows).
        where: the condition.

    Returns:
        bool (N,).

    Raises:
        ValueError: if it holds anything else, names no column of `rows`, or compares text with numbers.
    """
    try:
        return _condition(_parse(where), rows).to_numpy(bool, na_value=False)
    except (TypeError, ArithmeticError) as error:
        raise ArgumentError(f"where={where[:200]!r} compares what does not compare: {error}") from error
    except RecursionError as error:
        raise ArgumentError(f"where is nested too deeply to be read ({len(where):,} characters).") from error


def _parse(where: str) -> ast.expr:
    try:
        return ast.parse(where.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError) as error:  # a null byte; brackets beyond the parser's stack
        raise ArgumentError(f"where={where[:200]!r} cannot be read; {HINT}") from error


def _condition(node: ast.expr, rows: pd.DataFrame) -> pd.Series:
    """Evaluate what is true or false of each row."""
    match node:
        case ast.BoolOp(joined, parts):
            join = operator.and_ if isinstance(joined, ast.And) else operator.or_
            return reduce(join, [_condition(part, rows) for part in parts])
        case ast.UnaryOp(ast.Not(), part):
            return ~_condition(part, rows)
        case ast.Compare(first, operators, others):
            pairs = zip(operators, [first, *others], others, strict=False)
            found = reduce(operator.and_, [_compared(*pair, rows) for pair in pairs])
        case _:
            found = _value(node, rows)
    if not isinstance(found, pd.Series) or not pd.api.types.is_bool_dtype(found):
        raise _refused(node)
    return found


def _compared(comparison: ast.cmpop, left: ast.expr, right: ast.expr, rows: pd.DataFrame) -> pd.Series | bool:
    value = _value(left, rows)
    if type(comparison) in COMPARISONS:
        return COMPARISONS[type(comparison)](value, _value(right, rows))
    if not isinstance(comparison, ast.In | ast.NotIn) or not isinstance(value, pd.Series):
        raise _refused(left)
    if not isinstance(right, ast.List | ast.Tuple | ast.Set):
        raise _refused(right)
    held = value.isin([_constant(option) for option in right.elts])
    return held if isinstance(comparison, ast.In) else ~held


def _value(node: ast.expr, rows: pd.DataFrame) -> Value:
    """Evaluate a column, a constant, or arithmetic on these."""
    match node:
        case ast.Name(name) if name in rows:
            return rows[name]
        case ast.Name(name):
            raise ArgumentError(
                f"where: there is no column {name!r}; the columns are {', '.join(map(str, rows.columns))}."
            )
        case ast.UnaryOp(ast.USub(), part):
            return -_number(part, rows)
        case ast.BinOp(left, operation, right) if type(operation) in ARITHMETIC:
            return ARITHMETIC[type(operation)](_number(left, rows), _number(right, rows))
    return _constant(node)


def _number(node: ast.expr, rows: pd.DataFrame) -> Value:
    """Evaluate as `_value`, but refuse text: repeated a billion times, or formatted, it would fill the memory."""
    value = _value(node, rows)
    if isinstance(value, str) or (isinstance(value, pd.Series) and not pd.api.types.is_numeric_dtype(value)):
        raise _refused(node)
    return value


def _constant(node: ast.expr) -> str | int | float:
    match node:
        case ast.Constant(str() | int() | float() as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
    raise _refused(node)


def _refused(node: ast.expr) -> ValueError:
    return ValueError(f"where: {ast.unparse(node)!r} means nothing here; {HINT}")
