"""From a snapshot of the index and a query vector to a page of results; and what the columns hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from rectrio_lib.app import hybrid
from rectrio_lib.app.images import colours
from rectrio_lib.app.schemas import Facet, Facets, Result, SearchRequest, Value
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.live import Snapshot
from rectrio_lib.search.options import Options
from rectrio_lib.search.pipeline import nearest

SORTED = 1000  # best matches that are sorted by a column
MOST_VALUES = 50  # of a facet
HIDDEN = ("image_id", "path", "uploaded")  # columns that nobody filters by from a list


def search(
    snapshot: Snapshot, request: SearchRequest, query: np.ndarray | None, own: list[int]
) -> tuple[list[Result], int, bool]:
    """Answer a query.

    Args:
        snapshot: what to search.
        request: which results count, and in which order.
        query: unit vector (dim,); None lists images, by `words` if there are any, else the newest first.
        own: positions of the query's own images, which are no results.

    Returns:
        The results of the page, the number of images that meet the condition, and whether there is a next page.

    Raises:
        ArgumentError: if the condition or the column to sort by does not fit.
    """
    total, first, last = snapshot.count(request.where), request.offset, request.offset + request.k
    asked = query is not None or request.words is not None
    by_score = request.sort == "score" and asked
    if query is None:
        positions = np.flatnonzero(snapshot.allowed(request.where))
        scores = np.full(len(positions), np.nan)
    else:
        mixed = request.words is not None
        wanted = last + 1 if by_score and not mixed else SORTED
        pool = wanted if request.mmr is None else SORTED  # the same on every page, so that none repeats another
        order = {} if mixed else {"minimum": request.minimum, "distinct": request.distinct, "mmr": request.mmr}
        options = Options(where=request.where, pool=pool, **order)
        found = nearest(snapshot, query[None], wanted, options, np.array([own], np.int64))
        scores, positions = (values[0][found[1][0] >= 0] for values in found)
    if request.words is not None:
        near = positions if query is not None else positions[:0]
        scores, positions = hybrid.mix(snapshot, request, query, near, own)
    if not by_score:
        column = "created" if request.sort == "score" else request.sort
        order = _sorted(snapshot, positions, column, request.descending)
        scores, positions = scores[order], positions[order]
    return results_of(snapshot, scores[first:last], positions[first:last], first), total, len(positions) > last


def _sorted(snapshot: Snapshot, positions: np.ndarray, column: str, descending: bool) -> np.ndarray:
    """Return the order of positions by a column; where values are equal or missing the order stays, missing last."""
    if column not in snapshot.rows:
        known = ", ".join(snapshot.rows.columns)
        raise ArgumentError(f"sort: there is no column {column!r}; the columns are score, {known}.")
    values = snapshot.rows[column].iloc[positions]
    if values.map(type).eq(list).any():
        raise ArgumentError(f"sort: {column!r} holds lists, which have no order.")
    if values.dtype == object:
        values = values.map(str, na_action="ignore").str.casefold()
    codes, _ = pd.factorize(values, sort=True)  # -1 where missing
    missing = codes < 0
    return np.lexsort((-codes if descending else codes, missing))


def image_fields(record: dict[str, Any]) -> dict[str, Any]:
    """Return an image as the API shows it."""
    name = record["image_id"]
    metadata = {key: value for key, value in record.items() if value not in (None, "") and key != "image_id"}
    return {"id": name, "metadata": metadata, "thumbnail": f"thumbnails/{name}", "view": f"images/{name}/view"}


def results_of(snapshot: Snapshot, scores: np.ndarray, positions: np.ndarray, before: int = 0) -> list[Result]:
    """Return images found, of which `before` are ranked before these, as the API shows them; a score may be NaN."""
    described = zip(snapshot.records(positions.tolist()), scores.tolist(), strict=True)
    return [
        Result.model_construct(**image_fields(record), rank=rank, score=None if np.isnan(score) else score)
        for rank, (record, score) in enumerate(described, before + 1)
    ]


def facets(snapshot: Snapshot, where: str | None) -> Facets:
    """Count the values of every column that can be filtered by, among the images that meet a condition."""
    allowed = snapshot.allowed(where)
    rows = snapshot.rows[allowed]
    found = [_facet(name, rows[name]) for name in rows.columns if name not in HIDDEN]
    return Facets(total=len(rows), columns=[facet for facet in found if facet is not None])


def _facet(name: str, values: pd.Series) -> Facet | None:
    """Describe a column; None if it is empty, or every image has a value of its own."""
    there, dated = values.dropna(), types.is_datetime64_any_dtype(values)
    if dated or (types.is_numeric_dtype(values) and not types.is_bool_dtype(values)):
        if not len(there):
            return None
        low, high = (end if dated else float(end) for end in (there.min(), there.max()))
        kind = "date" if dated else "number"
        return Facet(name=name, kind=kind, count=len(there), distinct=there.nunique(), minimum=low, maximum=high)
    kind = "bool" if types.is_bool_dtype(values) else "category"
    if there.map(type).eq(list).any():
        kind, there = "tags", there.explode().dropna()
    if kind == "category" and len(there) and set(there.unique()) <= set(colours.NAMES):
        kind = "colour"
    counts = there.value_counts()
    if not len(counts) or (kind == "category" and len(counts) > MOST_VALUES and len(counts) > len(there) / 2):
        return None
    most = [Value(value=value, count=count) for value, count in counts.head(MOST_VALUES).items()]
    return Facet(name=name, kind=kind, count=int(values.notna().sum()), distinct=len(counts), values=most)
