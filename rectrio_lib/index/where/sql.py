"""Conditions read for a database, as SQLAlchemy expressions: PostgreSQL (jsonb) and SQLite (JSON)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Boolean, ColumnElement, Float, Text, and_, case, func, literal, not_, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.functions import FunctionElement

from rectrio_lib.index.where.constants import Constant
from rectrio_lib.index.where.grammar import (
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

COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
SIMPLE = {"+": operator.add, "-": operator.sub, "*": operator.mul}
Values = Callable[[Column], ColumnElement]


def expression(where: str, kinds: Mapping[str, str], values: Values) -> ColumnElement[bool]:
    """Return a condition as a SQL expression that is true or false, never null.

    Args:
        where: the condition, see `grammar.read`, as for `kinds` and the errors.
        kinds: kind of each column.
        values: gives the SQL value of a column, null where it is missing: text, a float (also for bool, 0 or 1), a date
            as text, see `date_text`, a list as JSON. See `json_values`.
    """
    return _Expressions(values).holds(read(where, kinds))


def date_text(moment: datetime) -> str:
    """Return how a date is written in JSON, in UTC: such texts sort as the dates do."""
    return moment.isoformat(timespec="microseconds")


def json_values(data: ColumnElement) -> Values:
    """Return what `expression` needs to find columns in one JSON column that holds an object."""

    def value(column: Column) -> ColumnElement:
        found = data[column.name]
        match column.kind:
            case "number":
                return found.as_float()
            case "bool":
                return case((found.as_string().is_(None), None), (found.as_boolean(), 1.0), else_=0.0)
            case "list":
                return found
        return found.as_string()

    return value


class _InOrder(FunctionElement):
    """A text that is ordered by its code points, whatever the database's language."""

    inherit_cache, type = True, Text()


class _Part(FunctionElement):
    """Whether a text contains another."""

    inherit_cache, type = True, Boolean()


class _Element(FunctionElement):
    """Whether a list in JSON contains a text."""

    inherit_cache, type = True, Boolean()


@compiles(_InOrder)
def _in_order(element, compiler, **options) -> str:
    collation = ' COLLATE "C"' if compiler.dialect.name == "postgresql" else ""
    return f"({compiler.process(element.clauses, **options)}){collation}"


@compiles(_Part)
def _part(element, compiler, **options) -> str:
    name = "strpos" if compiler.dialect.name == "postgresql" else "instr"
    return f"({name}({compiler.process(element.clauses, **options)}) > 0)"


@compiles(_Element)
def _element(element, compiler, **options) -> str:
    data, part = (compiler.process(clause, **options) for clause in element.clauses)
    if compiler.dialect.name == "postgresql":
        return f"jsonb_exists({data}, {part})"
    return f"EXISTS (SELECT 1 FROM json_each({data}) WHERE json_each.value = {part})"


class _Expressions:
    def __init__(self, values: Values):
        self.values = values

    def holds(self, condition: Condition) -> ColumnElement[bool]:
        match condition:
            case Joined(parts, any_of):
                return (or_ if any_of else and_)(*map(self.holds, parts))
            case Not(part):
                return not_(self.holds(part))
            case Compare("==", left, right):
                sides = self.value(left), self.value(right)
                return _known(sides, sides[0] == sides[1])
            case Compare(operation, left, right):
                sides = self.value(left), self.value(right)
                in_order = map(_InOrder, sides) if left.kind in ("text", "date") else sides
                return _known(sides, COMPARISONS[operation](*in_order))
            case OneOf(value, constants):
                sides = [self.value(value)]
                return _known(sides, sides[0].in_([self.value(constant) for constant in constants]))
            case Contains(column, part):
                sides = self.values(column), literal(part)
                return _known(sides, (_Element if column.kind == "list" else _Part)(*sides))

    def value(self, operand: Operand) -> ColumnElement:
        match operand:
            case Column():
                return self.values(operand)
            case Arithmetic(operation, left, right):
                return _result(operation, self.value(left), self.value(right))
        return _constant(operand)


def _constant(constant: Constant) -> ColumnElement:
    if isinstance(constant, datetime):
        return literal(date_text(constant))
    return literal(constant, Float) if isinstance(constant, float) else literal(constant)


def _known(sides: Sequence[ColumnElement], held: ColumnElement[bool]) -> ColumnElement[bool]:
    """Turn null, where a side is missing, into false."""
    return and_(*(side.is_not(None) for side in sides if not isinstance(side, BindParameter)), held)


def _result(operation: str, left: ColumnElement, right: ColumnElement) -> ColumnElement:
    if operation in SIMPLE:
        return SIMPLE[operation](left, right)
    quotient = left / func.nullif(right, 0.0, type_=Float)
    if operation == "/":
        return quotient
    whole = case((func.abs(quotient) < 1e16, func.floor(quotient, type_=Float)), else_=quotient)
    return whole if operation == "//" else left - right * whole
