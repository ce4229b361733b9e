"""Images inside of archives: what their paths look like, and what the archives tell of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

SUFFIXES = (".tar", ".parquet")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PACKED_REASON = "a compressed archive cannot be read in part: store it as .tar"
TAR = re.compile(r"(.+\.tar):(\d+)\+(\d+)/")  # the archive, where the image starts in it, its bytes
PARQUET = re.compile(r"(.+\.parquet)/(\d+)$")  # the archive, the row
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
MOST_ARCHIVES = 100_000


class Contents(NamedTuple):
    """What lies in an archive."""

    images: list[tuple[str, str]]  # path and, if it cannot be read, the reason
    table: pd.DataFrame  # what is known of them, by `path`
    lasting: bool = True  # not if it is to be looked into again, changed or not


def is_archive(name: str) -> bool:
    """Tell whether a name is that of an archive, or a pattern of such names; metadata.parquet is a table."""
    return name.endswith(SUFFIXES + PACKED) and not name.endswith("metadata.parquet")


def is_pattern(name: str) -> bool:
    """Tell whether a name stands for one archive or several."""
    return is_archive(name) or bool(set(name) & set("*{"))


def refusal(name: str) -> str:
    """Return why an archive cannot be read, by its name; empty if it can."""
    return PACKED_REASON if name.endswith(PACKED) else "" if name.endswith(SUFFIXES) else "neither .tar nor .parquet"


def archive_of(paths: pd.Series) -> pd.Series:
    """Return the archive in which each path lies, or the path itself."""
    return paths.str.replace(r"(\.tar):\d+\+\d+/.*$|(\.parquet)/\d+$", r"\1\2", regex=True)


def is_unchanged(known: pd.DataFrame | None, listed: tuple) -> bool:
    """Tell whether what is known of an archive and the images in it, FILE_COLUMNS, is of the archive as it is listed.

    A row without size and time is an image to be read again; that of the archive itself, one to be looked into again.
    """
    if known is None or listed[2] < 0:
        return False
    read = known[known["mtime_ns"].ge(0)]
    same = read["size"].eq(listed[1]) & read["mtime_ns"].eq(listed[2])
    return len(read) > 0 and same.all() and not (known["path"].eq(listed[0]) & known["mtime_ns"].lt(0)).any()


def expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with {000..009} or {a,b} stands for."""
    found = RANGE.search(pattern)
    if not found:
        yield pattern
        return
    first, last, several = found.groups()
    numbers = range(int(first), int(last) + 1)[:MOST_ARCHIVES] if first else ()
    for part in several.split(",") if several else [f"{number:0{len(first)}}" for number in numbers]:
        yield from expanded(pattern[: found.start()] + part + pattern[found.end() :])


def storable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of metadata with one type per column: label and split as text, lists and the like left out."""
    for column in list(table):
        values, kind = table[column], pd.api.types.infer_dtype(table[column], skipna=True)
        if values.map(lambda value: isinstance(value, list | dict | bytes)).any():
            table = table.drop(columns=column)
        elif kind == "mixed-integer-float":
            table[column] = pd.to_numeric(values)
        elif kind.startswith("mixed") or (column in ("label", "split") and kind != "string"):
            table[column] = values.where(values.isna(), values.astype(str))
    return table
