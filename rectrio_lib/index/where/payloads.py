"""Conditions read for Qdrant, as filters of its payloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import numpy as np

from rectrio_lib.core.errors import needing
from rectrio_lib.index import conditions
from rectrio_lib.index.where.constants import Constant
from rectrio_lib.index.where.grammar import Column, Compare, Condition, Contains, Joined, Not, OneOf, read

with needing("Qdrant", "qdrant"):
    from qdrant_client import models

BOUNDS = {"==": ("gte", "lte"), "<": ("lt",), "<=": ("lte",), ">": ("gt",), ">=": ("gte",)}
ROW = "row"  # the part of a payload that holds the metadata


def as_filter(
    where: str, kinds: Mapping[str, str], holds: Callable[[Condition], np.ndarray]
) -> models.Filter | models.FieldCondition | models.HasIdCondition:
    """Return a condition, see `grammar.read`, as a filter of payloads.

    `holds` tells which rows meet a condition, bool (N,); it is asked about what Qdrant cannot express: arithmetic,
    columns compared with each other, the order of texts, parts of texts.
    """
    return _Filters(holds).filter(read(where, kinds))


def among(mask: np.ndarray) -> models.HasIdCondition:
    """Return the condition that a mask, bool (N,), holds the position of a point."""
    return models.HasIdCondition(has_id=np.flatnonzero(mask).tolist())


class _Filters:
    def __init__(self, holds: Callable[[Condition], np.ndarray]):
        self.holds = holds

    def filter(self, condition: Condition) -> models.Filter | models.FieldCondition | models.HasIdCondition:
        match condition:
            case Joined(parts, True):
                return models.Filter(should=list(map(self.filter, parts)))
            case Joined(parts):
                return models.Filter(must=list(map(self.filter, parts)))
            case Not(part):
                return models.Filter(must_not=[self.filter(part)])
            case Compare(operation, Column(name, kind), str() | float() | datetime() as constant) if name.isascii():
                if kind in ("number", "date"):
                    return _in_range(name, operation, constant)
                if kind == "bool":
                    values = [v for v in (False, True) if conditions.COMPARISONS[operation](float(v), constant)]
                    return _one_of(name, values)
                if operation == "==":
                    return _one_of(name, [constant])
            case OneOf(Column(name, "text"), constants) if name.isascii():
                return _one_of(name, list(constants))
            case OneOf(Column(name, "number" | "date"), constants) if name.isascii() and constants:
                return models.Filter(should=[_in_range(name, "==", constant) for constant in constants])
            case Contains(Column(name, "list"), part) if name.isascii():
                return _one_of(name, [part])
        return among(self.holds(condition))


def _in_range(name: str, operation: str, constant: Constant) -> models.FieldCondition:
    dated = isinstance(constant, datetime)
    bound = constant.replace(tzinfo=UTC) if dated else constant
    kind = models.DatetimeRange if dated else models.Range
    return models.FieldCondition(key=f"{ROW}.{name}", range=kind(**dict.fromkeys(BOUNDS[operation], bound)))


def _one_of(name: str, values: list[str | bool]) -> models.Filter:
    """Return the filter of points whose value, or an element of it, is one of some."""
    if not values:
        return models.Filter(must=[models.HasIdCondition(has_id=[])])
    one = [models.FieldCondition(key=f"{ROW}.{name}", match=models.MatchValue(value=value)) for value in values]
    return models.Filter(should=one)
