"""Conditions on metadata, such as "label == 'cat' and width > 200": read by their grammar, never run as code.

`read` makes a tree of a condition, with every value in the type of its column. It has three readers: `conditions` for
tables in memory, `where.sql` and `where.payloads` for servers. In all of them a comparison with a missing value
does not hold, and `not` turns around what holds: where a value is missing, only `!=` and `not in` hold.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.where import constants
from rectrio_lib.index.where.constants import Constant

MOST_CHARACTERS, MOST_PARTS = 2000, 200
HINT = "compare columns with values, joined by and, or, not: \"label in ['cat', 'dog'] and width > 2 * height\""
OPERATORS = {
    **{ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="},
    **{ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%"},  # no power
}
OF_NUMBERS = {
    **{"+": operator.add, "-": operator.sub, "*": operator.mul},
    **{"/": operator.truediv, "//": operator.floordiv, "%": operator.mod},
}
WHOLE = ("//", "%")
TURNED = {"==": "==", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class Column:
    """A column; `kind` is text, number, bool (counts as 0 or 1), date or list."""

    name: str
    kind: str


@dataclass(frozen=True)
class Arithmetic:
    """A number made of two others by + - * / // or %; missing if one of them is, or if it is no finite number."""

    operation: str
    left: Operand
    right: Operand
    kind: str = "number"


Operand = Column | Arithmetic | Constant


@dataclass(frozen=True)
class Compare:
    """Holds where `left operation right` does, one of == < <= > >=; only `right` may be a constant."""

    operation: str
    left: Column | Arithmetic
    right: Operand


@dataclass(frozen=True)
class OneOf:
    """Holds where a value is one of some constants."""

    value: Column | Arithmetic
    constants: tuple[Constant, ...]


@dataclass(frozen=True)
class Contains:
    """Holds where a text contains another, or a list has an element that is written so."""

    column: Column
    part: str


@dataclass(frozen=True)
class Not:
    """Holds where its part does not."""

    part: Condition


@dataclass(frozen=True)
class Joined:
    """Holds where all of its parts do, or where `any_of` them does."""

    parts: tuple[Condition, ...]
    any_of: bool = False


Condition = Compare | OneOf | Contains | Not | Joined


def read(where: str, kinds: Mapping[str, str]) -> Condition:
    """Read a condition.

    It may hold columns, text, numbers, True, False, comparisons (chained ones too), `in` and `not in` with a list, and,
    or, not, + - * / // % of numbers, and brackets: no calls, no attributes, nothing that could run code.
    `'red' in tags` asks for an element of a list, `'shoe' in path` for a part of a text. A column of text is compared
    with a number by how the number is written (class folders 1, 2, 3: `label == 1`), a column of numbers with a text
    that holds one (`width == '160'`), a date with a text (`created > '2024-05-01'`, in UTC). Numbers are compared as
    float64.

    Args:
        where: the condition.
        kinds: kind of each column, see `Column`.

    Raises:
        ArgumentError: if it holds anything else, names a column that is not there, compares text with numbers, or is
            longer than 2,000 characters or 200 parts.
    """
    if len(where) > MOST_CHARACTERS:
        raise ArgumentError(f"where has {len(where):,} characters; at most {MOST_CHARACTERS:,} are read.")
    try:
        tree = ast.parse(where.strip(), mode="eval").body
        parts = sum(isinstance(node, ast.expr) for node in ast.walk(tree))
        if parts > MOST_PARTS:
            raise ArgumentError(f"where has {parts} parts; at most {MOST_PARTS} are read.")
        return _Reader(kinds).condition(tree)
    except ArgumentError:
        raise
    except (TypeError, ArithmeticError) as error:
        raise ArgumentError(f"where={where[:200]!r} compares what cannot be compared: {error}") from error
    except RecursionError as error:
        raise ArgumentError(f"where is nested too deeply ({len(where):,} characters).") from error
    except (SyntaxError, ValueError, MemoryError) as error:  # MemoryError: many brackets
        raise ArgumentError(f"where={where[:200]!r} cannot be read; {HINT}") from error


class _Reader:
    def __init__(self, kinds: Mapping[str, str]):
        self.kinds = kinds

    def condition(self, node: ast.expr) -> Condition:
        match node:
            case ast.BoolOp(joined, parts):
                return Joined(tuple(map(self.condition, parts)), isinstance(joined, ast.Or))
            case ast.UnaryOp(ast.Not(), part):
                return Not(self.condition(part))
            case ast.Compare(first, comparisons, others):
                triples = zip(comparisons, [first, *others], others, strict=False)
                compared = tuple(self.comparison(*triple) for triple in triples)
                return compared[0] if len(compared) == 1 else Joined(compared)
            case ast.Name():
                column = self.value(node)
                if column.kind == "bool":
                    return Compare("==", column, 1.0)
        raise _meaningless(node)

    def comparison(self, comparison: ast.cmpop, left: ast.expr, right: ast.expr) -> Condition:
        if isinstance(comparison, ast.In | ast.NotIn):
            held = self.membership(left, right)
            return Not(held) if isinstance(comparison, ast.NotIn) else held
        if type(comparison) not in OPERATORS:
            raise _meaningless(left)
        operation, value, other = OPERATORS[type(comparison)], self.value(left), self.value(right)
        unlike = operation == "!="
        operation = "==" if unlike else operation
        if not isinstance(value, Column | Arithmetic):
            if not isinstance(other, Column | Arithmetic):
                raise _meaningless(left)
            value, other, operation = other, value, TURNED[operation]
        if isinstance(other, Column | Arithmetic):
            if "list" in (value.kind, other.kind) or _plain(value.kind) != _plain(other.kind):
                raise TypeError(f"{ast.unparse(left)!r} and {ast.unparse(right)!r} are of different types")
        else:
            other = self.fitting(value, other, operation == "==")
        held = Compare(operation, value, other)
        return Not(held) if unlike else held

    def membership(self, left: ast.expr, right: ast.expr) -> Condition:
        value = self.value(left)
        if isinstance(right, ast.Name) and not isinstance(value, Column | Arithmetic):
            column = self.value(right)
            if column.kind not in ("text", "list"):
                raise TypeError(f"{column.name!r} holds neither text nor lists")
            return Contains(column, constants.written(value))
        if not isinstance(value, Column | Arithmetic):
            raise _meaningless(left)
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise _meaningless(right)
        values = [self.value(constant) for constant in right.elts]
        if any(isinstance(constant, Column | Arithmetic) for constant in values):
            raise _meaningless(right)
        return OneOf(value, tuple(self.fitting(value, constant) for constant in values))

    @staticmethod
    def fitting(value: Column | Arithmetic, constant: str | int | float, equality: bool = True) -> Constant:
        return constants.fitting(getattr(value, "name", "the result"), value.kind, constant, equality)

    def value(self, node: ast.expr) -> Column | Arithmetic | str | int | float:
        """Return a constant as it is written, a column, or a result."""
        match node:
            case ast.Constant(str() | int() | float() as value):
                return value
            case ast.UnaryOp(ast.USub(), part):
                return self.result("-", 0, self.number(part))
            case ast.BinOp(left, operation, right) if type(operation) in OPERATORS:
                return self.result(OPERATORS[type(operation)], self.number(left), self.number(right))
            case ast.Name(name):
                if name not in self.kinds:
                    known = ", ".join(map(str, self.kinds))
                    raise ArgumentError(f"where: there is no column {name!r}; the columns are {known}.")
                return Column(name, self.kinds[name])
        raise _meaningless(node)

    def number(self, node: ast.expr) -> Column | Arithmetic | int | float:
        value = self.value(node)
        if isinstance(value, str):
            raise _meaningless(node)
        if isinstance(value, Column) and value.kind != "number":
            raise ArgumentError(f"where: {value.name!r} is not a column of numbers; {HINT}")
        return value

    def result(self, operation: str, left: Operand, right: Operand) -> Arithmetic | int | float:
        sides = [side if isinstance(side, Column | Arithmetic) else constants.finite(side) for side in (left, right)]
        if not any(isinstance(side, Column | Arithmetic) for side in sides):
            return OF_NUMBERS[operation](left, right)
        if operation in WHOLE and any(map(_holds_whole, sides)):  # SQL writes each side twice
            raise ArgumentError("where: // and % of what holds // or % already are not read.")
        return Arithmetic(operation, *sides)


def _holds_whole(value: Operand) -> bool:
    return isinstance(value, Arithmetic) and (
        value.operation in WHOLE or _holds_whole(value.left) or _holds_whole(value.right)
    )


def _meaningless(node: ast.expr) -> ArgumentError:
    return ArgumentError(f"where: {ast.unparse(node)!r} means nothing here; {HINT}")


def _plain(kind: str) -> str:
    return "number" if kind == "bool" else kind
