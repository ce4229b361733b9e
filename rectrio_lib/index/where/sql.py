"""Conditions read for PostgreSQL, as SQLAlchemy expressions over one column of jsonb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Boolean, ColumnElement, Float, and_, case, collate, func, literal, not_, or_
from sqlalchemy.sql.elements import BindParameter

from rectrio_lib.index.conditions import COMPARISONS
from rectrio_lib.index.where import grammar
from rectrio_lib.index.where.constants import Constant
from rectrio_lib.index.where.grammar import Arithmetic, Compare, Condition, Contains, Joined, Not, OneOf, Operand


def expression(where: str, kinds: Mapping[str, str], data: ColumnElement) -> ColumnElement[bool]:
    """Return a condition, see `grammar.read`, as a SQL expression that is true or false, never null.

    `data` is jsonb that holds the columns of a row, as `servers.rows.records` writes them.
    """
    return _Expressions(data).holds(grammar.read(where, kinds))


class _Expressions:
    def __init__(self, data: ColumnElement):
        self.data = data

    def holds(self, condition: Condition) -> ColumnElement[bool]:
        match condition:
            case Joined(parts, any_of):
                return (or_ if any_of else and_)(*map(self.holds, parts))
            case Not(part):
                return not_(self.holds(part))
            case Compare(operation, left, right):
                sides = self.value(left), self.value(right)
                ordered = operation != "==" and left.kind in ("text", "date")
                compared = (
                    [collate(side, "C") for side in sides] if ordered else sides
                )  # whatever the database's language
                return _known(sides, COMPARISONS[operation](*compared))
            case OneOf(value, constants):
                sides = [self.value(value)]
                return _known(sides, sides[0].in_([self.value(constant) for constant in constants]))
            case Contains(column, part):
                value = self.value(column)
                found = func.jsonb_exists(value, part, type_=Boolean)
                return _known([value], found if column.kind == "list" else func.strpos(value, part) > 0)

    def value(self, operand: Operand) -> ColumnElement:
        match operand:
            case grammar.Column(name, kind):
                return self.column(self.data[name], kind)
            case Arithmetic(operation, left, right):
                return _result(operation, self.value(left), self.value(right))
        return _constant(operand)

    @staticmethod
    def column(found: ColumnElement, kind: str) -> ColumnElement:
        """Return the SQL value of a column, null where it is missing; a bool as 0 or 1, a list as jsonb."""
        match kind:
            case "number":
                return found.as_float()
            case "bool":
                return case((found.as_string().is_(None), None), (found.as_boolean(), 1.0), else_=0.0)
            case "list":
                return found
        return found.as_string()


def _constant(constant: Constant) -> ColumnElement:
    if isinstance(constant, datetime):
        return literal(constant.isoformat(timespec="microseconds"))  # as written in JSON: sorts as dates do
    return literal(constant, Float) if isinstance(constant, float) else literal(constant)


def _known(sides: Sequence[ColumnElement], held: ColumnElement[bool]) -> ColumnElement[bool]:
    """Turn null, where a side is missing, into false."""
    return and_(*(side.is_not(None) for side in sides if not isinstance(side, BindParameter)), held)


def _result(operation: str, left: ColumnElement, right: ColumnElement) -> ColumnElement:
    if operation in ("+", "-", "*"):
        return grammar.OF_NUMBERS[operation](left, right)
    quotient = left / func.nullif(right, 0.0, type_=Float)
    if operation == "/":
        return quotient
    whole = case((func.abs(quotient) < 1e16, func.floor(quotient, type_=Float)), else_=quotient)
    return whole if operation == "//" else left - right * whole
