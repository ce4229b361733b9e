"""Which results count, and in which order; byte-identical copies of an image count by their own path and label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.data.layout import describe
from rectrio_lib.index.base import VectorIndex, Where
from rectrio_lib.index.conditions import matching

COPIED = ["path", "label", "split"]  # in which a copy differs from its image
WHOLE = {"expand": 0, "reciprocal": 1, "pool": 1}  # numbers, and the least of each
RANGES = {"alpha": (0, inf), "mmr": (0, 1)}
RANGES |= dict.fromkeys(("sure", "minimum_probability"), (0, 1)) | dict.fromkeys(("minimum", "distinct"), (-inf, inf))

if TYPE_CHECKING:
    from rectrio_lib.search.ranking.calibration import Calibration


def whole(name: str, value: int, least: int = 1) -> int:
    """Return a whole number of Python's or NumPy's as Python's; ArgumentError if it is none, or below the least."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name}={value!r}: expected a whole number, {least} or more.")
    return int(value)


def real(name: str, value: float, low: float = -inf, high: float = inf) -> float:
    """Return a number of Python's or NumPy's as Python's; ArgumentError if it is none, NaN, or not in its range."""
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:
        expected = "a number" if low == -inf else f"{low} {'or more' if high == inf else f'to {high}'}"
        raise ArgumentError(f"{name}={value!r}: expected {expected}.")
    return float(value)


def listed(name: str, images: Any) -> list:
    """Return one or several files, arrays or image_ids as a list; ArgumentError if it is something else."""
    alone = isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 3)
    if not alone and (not isinstance(images, Iterable) or isinstance(images, bytes) or getattr(images, "ndim", 1) < 1):
        kind = type(images).__name__
        raise ArgumentError(f"{name} is {kind}: expected files, arrays, image_ids, or a list of them.")
    return [images] if alone else list(images)


@dataclass(frozen=True)
class Options:
    """Which results count, and in which order; each of these is a keyword of every search.

    Attributes:
        combine: search once for the mean of all queries, instead of once for each.
        where: only rows that meet this condition, see `conditions.matching`; or a mask, bool (N,), over the rows.
        minimum: only results of at least this score.
        sure: only so many of the best results that at least this share of them is right, such as 0.9; see
            `Collection.calibrate`, as for the next.
        minimum_probability: only results that are right with at least this probability.
        expand: number of best results that the query is moved towards, see `rerank.expand_queries`.
        alpha: how much more the nearest of these weigh.
        reciprocal: k-reciprocal re-ranking with this k1, see `rerank.k_reciprocal`, estimated within the pool.
        distinct: drop results whose cosine similarity to a better one exceeds this, such as 0.98; others move up.
        mmr: weigh relevance (1) against variety (0), see `rerank.mmr`.
        pool: number of best candidates that `reciprocal` and `mmr` choose from, at least k.

    Raises:
        ArgumentError: if a number is none or out of its range, or `reciprocal` and `mmr` contradict each other.
    """

    combine: bool = False
    where: Where = None
    minimum: float | None = None
    sure: float | None = None
    minimum_probability: float | None = None
    expand: int = 0
    alpha: float = 3.0
    reciprocal: int | None = None
    distinct: float | None = None
    mmr: float | None = None
    pool: int = 100

    def __post_init__(self) -> None:
        for name in (*WHOLE, *RANGES):
            value = getattr(self, name)
            if value is not None or getattr(Options, name) is not None:  # which are the defaults
                checked = whole(name, value, WHOLE[name]) if name in WHOLE else real(name, value, *RANGES[name])
                object.__setattr__(self, name, checked)
        if not isinstance(self.combine, bool | np.bool_):
            raise ArgumentError(f"combine={self.combine!r}: expected True or False.")
        if self.reciprocal is not None and self.mmr is not None:
            raise ArgumentError("reciprocal and mmr exclude each other: each orders the results in its own way.")

    def calibrated(self, calibration: Calibration | None) -> Options:
        """Return the same with `minimum` for `sure` and `minimum_probability`; ArgumentError without a calibration."""
        if self.sure is self.minimum_probability is None:
            return self
        if calibration is None:
            raise ArgumentError(
                "This collection is not calibrated: run `rectrio calibrate NAME`, or call `Collection.calibrate()`."
            )
        least = calibration.minimum(self.sure, self.minimum_probability)
        least = least if self.minimum is None else max(least, self.minimum)
        return replace(self, minimum=least, sure=None, minimum_probability=None)


def copies_of(index: VectorIndex, files: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the copies, with the `position` of their image.

    A label or split that did not come from the folders of the image holds for its copies, too.

    Args:
        index: of a folder of images.
        files: of its store, with `path` and `image_id`; empty if it is not one of a folder.
    """
    rows = index.rows
    if files.empty or not {*COPIED} <= {*rows.columns}:
        return rows.iloc[:0].assign(position=0)
    there = np.flatnonzero(~index.removed)
    rows = rows.iloc[there]
    place = pd.Index(rows["image_id"]).get_indexer(files["image_id"])
    other = (place >= 0) & ~files["path"].isin(rows["path"]).to_numpy()
    copies = rows.iloc[place[other]].assign(position=there[place[other]]).reset_index(drop=True)
    if len(copies):
        told = describe(files["path"].tolist()).set_index(files["path"])
        paths = files["path"][other].tolist()
        for column in ("label", "split"):
            from_folder = copies[column].to_numpy() == told[column].reindex(copies["path"]).to_numpy()
            copies[column] = np.where(from_folder, told.loc[paths, column], copies[column])
        copies["path"] = paths
    return copies


def among(index: VectorIndex, copies: pd.DataFrame, options: Options) -> tuple[Options, pd.DataFrame]:
    """Let an image count if one of its copies meets the condition; return the options, and the rows to show.

    Where only a copy meets it, its row is shown. `where` is a condition here, not a mask.
    """
    if not len(copies):
        return options, index.rows
    mask, rows = matching(index.rows, options.where), index.rows
    met = copies[matching(copies.drop(columns="position"), options.where)].drop_duplicates("position")
    met = met[~mask[met["position"]]]
    if len(met):
        rows = rows.copy()
        rows.iloc[met["position"], rows.columns.get_indexer(COPIED)] = met[COPIED].to_numpy()
        mask = mask.copy()
        mask[met["position"]] = True
    return replace(options, where=mask), rows
