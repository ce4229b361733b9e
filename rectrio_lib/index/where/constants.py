"""The constants of a condition, in the types of the columns they are compared with; see `grammar`."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite

import pandas as pd

from rectrio_lib.core.errors import ArgumentError

Constant = str | float | datetime  # a date is in UTC, without a time zone


def fitting(name: str, kind: str, constant: str | int | float, equality: bool = True) -> Constant:
    """Return a constant as a value of some name and kind, see `grammar.Column`, is compared with it.

    Raises:
        TypeError: if it cannot be that.
    """
    if kind == "list":
        raise TypeError(f"{name!r} holds lists: ask whether a value is in it, \"'red' in {name}\"")
    if kind == "text":
        if not equality and not isinstance(constant, str):
            raise TypeError(f"{name!r} holds no numbers, {constant} is one")
        return written(constant)
    if not isinstance(constant, str):
        if kind == "date":
            raise TypeError(f"{name!r} holds dates, {constant} is a number")
        return finite(constant)
    try:
        if kind == "date":
            return moment(constant)
        if kind == "bool":
            raise ValueError
        return finite(float(constant))
    except (ValueError, OverflowError):
        raise TypeError(f"{name!r} does not hold text such as {constant!r}") from None


def finite(constant: int | float) -> float:
    """Return a number as float64; OverflowError if it is beyond that."""
    number = float(constant)
    if not isfinite(number):
        raise OverflowError(f"{constant} is no finite number")
    return number


def written(constant: str | int | float) -> str:
    """Return a constant as text; ArgumentError if no database can hold it."""
    text = str(constant)
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ArgumentError("where holds a text that is no Unicode text.")
    return text


def moment(text: str) -> datetime:
    """Return a date in UTC, without a time zone and in microseconds; ValueError if the text is none."""
    read = pd.Timestamp(text)
    if read is pd.NaT:
        raise ValueError(f"{text!r} is no date")
    return (read if read.tzinfo is None else read.tz_convert(UTC).tz_localize(None)).to_pydatetime(warn=False)
