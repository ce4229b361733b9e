"""How an answer is put together: which rows count, in which order, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.index import Index
from rectrio_lib.search import rerank
from rectrio_lib.search.options import Options
from rectrio_lib.search.results import Results


def answer(
    index: Index,
    vectors: np.ndarray,
    k: int,
    ids: list[str],
    encoder_hash: str | None,
    options: Options,
    barred: np.ndarray,
) -> Results:
    """Answer queries as the options ask.

    Args:
        index: where to search.
        vectors: unit vectors (Q, dim).
        k: answers a query.
        ids: names of the queries (Q,).
        encoder_hash: fingerprint of the encoder that made the vectors; None trusts the caller.
        options: which answers count, and in which order.
        barred: positions that are no answer to the query, int64 (Q, B).

    Raises:
        ValueError: if k < 1, another encoder made the index, or the vectors or an option do not fit.
    """
    if k < 1:
        raise ArgumentError(f"k={k}: ask for at least one answer.")
    mask = options.mask(index)
    size = len(index) if mask is None else int(np.count_nonzero(mask & ~index.removed))
    gallery = _Searched(index, encoder_hash, mask, options.minimum, size)
    if options.combine:
        vectors, ids, barred = _mean(vectors), [" + ".join(ids)], barred.reshape(1, -1)
    if options.expand and size:
        scores, near = gallery.nearest(vectors, options.expand, barred)
        neighbours = index.vectors_at(near.clip(min=0))  # (Q, expand, dim); a score of NaN weighs nothing
        vectors = rerank.expand_queries(vectors, neighbours, scores, options.alpha)
    if options.reciprocal is options.distinct is options.mmr is None:
        return Results(ids, *gallery.nearest(vectors, k, barred), index.rows)
    return Results(ids, *_chosen(gallery, vectors, k, barred, options), index.rows)


@dataclass(frozen=True)
class _Searched:
    """The part of an index in which answers may lie: `size` pictures, those of which `mask` holds (None: of all)."""

    index: Index
    encoder_hash: str | None
    mask: np.ndarray | None
    minimum: float | None
    size: int

    def nearest(self, vectors: np.ndarray, k: int, barred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and positions (Q, k) without the positions in barred (Q, B), filled up with NaN and -1."""
        asked = min(k + barred.shape[1], self.size)
        if asked:
            scores, positions = self.index.search(vectors, asked, self.encoder_hash, self.mask)
        else:
            scores, positions = np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        if asked == k and self.minimum is None and not barred.size:
            return scores, positions
        kept = ~(positions[:, :, None] == barred[:, None, :]).any(2)
        if self.minimum is not None:
            kept &= scores >= self.minimum
        places = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        filled = [np.where(kept, scores, np.nan), np.where(kept, positions, -1)]
        missing = ((0, 0), (0, k - places.shape[1]))
        scores, positions = (np.take_along_axis(values, places, 1) for values in filled)
        return np.pad(scores, missing, constant_values=np.nan), np.pad(positions, missing, constant_values=-1)


def _mean(vectors: np.ndarray) -> np.ndarray:
    total = np.asarray(vectors, np.float32).sum(0, keepdims=True)
    length = np.linalg.norm(total)
    if length < 1e-3 * max(1, len(vectors)):
        raise ArgumentError(
            f"combine: the mean of {len(vectors)} queries has no direction; ask with others, or with one."
        )
    return total / length


def _chosen(
    gallery: _Searched, vectors: np.ndarray, k: int, barred: np.ndarray, options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """Choose k from a pool of the nearest; where too few are left of it, from one twice as large, and so on."""
    scores = np.full((len(vectors), k), np.nan, np.float32)
    positions = np.full((len(vectors), k), -1)
    size, left = max(k, options.pool), np.arange(len(vectors))
    while len(left):
        short = []
        for query, near, found in zip(left, *gallery.nearest(vectors[left], size, barred[left]), strict=True):
            near, found = near[found >= 0], found[found >= 0]
            order = _order(vectors[query], gallery.index.vectors_at(found), near, k, options)
            if len(order) < k and len(found) == size:
                short.append(query)
            scores[query, : len(order)], positions[query, : len(order)] = near[order], found[order]
        size, left = 2 * size, np.array(short, np.int64)
    return scores, positions


def _order(query: np.ndarray, vectors: np.ndarray, scores: np.ndarray, k: int, options: Options) -> np.ndarray:
    """Return the places of at most k candidates in the order asked for."""
    order = np.arange(len(scores))
    if options.reciprocal is not None:
        among = np.concatenate([query[None], vectors])
        distances = rerank.k_reciprocal(among, options.reciprocal, min(6, options.reciprocal))
        order = distances.argsort(kind="stable")
    if options.distinct is not None:
        order = order[rerank.distinct(vectors[order], options.distinct, k if options.mmr is None else len(order))]
    if options.mmr is not None:
        order = order[rerank.mmr(scores[order], vectors[order], k, options.mmr)]
    return order[:k]
