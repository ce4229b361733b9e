"""Words in the metadata mixed with images that look alike."""

from __future__ import annotations

import numpy as np

from rectrio_lib.app.schemas import SearchRequest
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index import live
from rectrio_lib.index.live import Snapshot
from rectrio_lib.search import rerank
from rectrio_lib.search.ranking.words import WordCounts, bm25, fuse, words_of

MOST = 1000  # best matches by words


def mix(
    snapshot: Snapshot, request: SearchRequest, query: np.ndarray | None, near: np.ndarray, own: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Answer a query with words: those that hold them, joined with the nearest by their ranks.

    Args:
        snapshot: what to search.
        request: its words, condition, minimum, distinct and mmr.
        query: unit vector (dim,); None if there are words alone.
        near: positions of the nearest, best first.
        own: positions of the query's own images, which are no results.

    Returns:
        Cosine similarities to the query, NaN without one, and positions, best first.

    Raises:
        ArgumentError: if there is no word in `words`, or the condition does not fit.
    """
    if not words_of(request.words):
        raise ArgumentError(f"words: there is no word in {request.words!r:.100}.")
    relevance = bm25(_counted(snapshot), request.words)
    relevance[~snapshot.allowed(request.where)] = 0
    relevance[own] = 0
    holding = np.flatnonzero(relevance)
    holding = holding[np.argsort(-relevance[holding], kind="stable")][:MOST]
    sums, positions = fuse(near, holding)
    if query is None:
        return np.full(len(positions), np.nan), positions
    vectors = snapshot.vectors_at(positions)
    scores = vectors @ query
    order = np.arange(len(positions))
    if request.minimum is not None:
        order = order[scores >= request.minimum]
    most = len(order) if request.mmr is None else request.offset + request.k + 1
    order = rerank.varied(order, sums / sums.max(initial=1e-9), vectors, most, request.distinct, request.mmr)
    return scores[order], positions[order]


def _counted(snapshot: Snapshot) -> list[WordCounts]:
    """Return the words of the rows, part by part; counted once, until a row of the part changes."""
    derived, rows, parts = snapshot.derived, snapshot.main_rows, []
    for number, start in enumerate(range(0, max(1, len(rows)), live.DERIVED_ROWS)):
        if ("words", number) not in derived:
            derived["words", number] = WordCounts(rows.iloc[start : start + live.DERIVED_ROWS])
        parts.append(derived["words", number])
    if not len(snapshot.tail):
        return parts
    count, counted = derived.get(("words", -1), (0, None))
    if count != len(snapshot.tail):
        counted = WordCounts(snapshot.rows.iloc[len(rows) :])
        derived["words", -1] = len(snapshot.tail), counted
    return [*parts, counted]
