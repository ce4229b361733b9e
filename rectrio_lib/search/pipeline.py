"""From query vectors to results: which rows count, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.base import VectorIndex, Where
from rectrio_lib.search import rerank
from rectrio_lib.search.options import Options, whole
from rectrio_lib.search.results import Results

NO_DIRECTION = 1e-3  # length of a mean of unit vectors below which it points nowhere


def answer(
    index: VectorIndex, vectors: np.ndarray, k: int, ids: list[str], options: Options, exclude: np.ndarray
) -> Results:
    """Answer queries as the options say.

    Args:
        index: where to search.
        vectors: unit vectors (Q, dim).
        k: results per query.
        ids: names of the queries (Q,).
        options: which results count, and in which order.
        exclude: positions that are not results of the query, int64 (Q, E).
    """
    options.calibrated(None)  # which refuses what needs a calibration: it should be a minimum by now
    if options.combine:
        mean = weighted_mean(vectors, np.ones(len(vectors), np.float32))
        vectors, ids, exclude = mean[None], [" + ".join(ids)], exclude.reshape(1, -1)
    return Results(ids, *nearest(index, vectors, k, options, exclude), index.rows)


def nearest(
    index: VectorIndex, vectors: np.ndarray, k: int, options: Options, exclude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and positions (Q, k) as the options say, best first; NaN and -1 where there are fewer."""
    k = whole("k", k)
    part = _Part(index, options.where, options.minimum, index.count(options.where))
    if options.expand and part.size:
        scores, near = part.nearest(vectors, min(options.expand, part.size), exclude)
        neighbours = index.vectors_at(near.clip(min=0))  # (Q, expand, dim); a score of NaN weighs nothing
        vectors = rerank.expand_queries(vectors, neighbours, scores, options.alpha)
    if options.reciprocal is options.distinct is options.mmr is None:
        return part.nearest(vectors, k, exclude)
    return _chosen(part, vectors, k, exclude, options)


@dataclass(frozen=True)
class _Part:
    """The part of an index in which results may lie: the `size` images that meet `where`."""

    index: VectorIndex
    where: Where
    minimum: float | None
    size: int

    def nearest(self, vectors: np.ndarray, k: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and positions (Q, k) without the positions in exclude (Q, E), filled up with NaN and -1."""
        wanted = min(k + exclude.shape[1], self.size)
        scores, positions = np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        if wanted:
            scores, positions = self.index.search(vectors, wanted, where=self.where)
        if wanted == k and self.minimum is None and not exclude.size:
            return scores, positions
        good = ~(positions[:, :, None] == exclude[:, None, :]).any(2)
        if self.minimum is not None:
            good &= scores >= self.minimum
        places = np.argsort(~good, axis=1, kind="stable")[:, :k]
        filled = [np.where(good, scores, np.nan), np.where(good, positions, -1)]
        missing = ((0, 0), (0, k - places.shape[1]))
        scores, positions = (np.take_along_axis(values, places, 1) for values in filled)
        return np.pad(scores, missing, constant_values=np.nan), np.pad(positions, missing, constant_values=-1)


def weighted_mean(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Join the parts of one query, (P, dim), to one unit vector (dim,); negative weights turn away.

    Raises:
        ArgumentError: if no weight is positive, one is not finite, or the parts cancel each other.
    """
    if not np.isfinite(weights).all() or not (weights > 0).any():
        given = ", ".join(f"{weight:g}" for weight in weights) or "none"
        raise ArgumentError(f"Weights should be finite and one of them positive, not {given}.")
    total = weights / abs(weights).sum() @ vectors
    length = np.linalg.norm(total)
    if length < NO_DIRECTION:
        raise ArgumentError("The parts of this query cancel each other: change one of them, or its weight.")
    return total / length


def _chosen(
    part: _Part, vectors: np.ndarray, k: int, exclude: np.ndarray, options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """Choose k from a pool of the nearest; where too few are left of it, from one twice as large, and so on."""
    scores = np.full((len(vectors), k), np.nan, np.float32)
    positions = np.full((len(vectors), k), -1)
    size, left = max(k, min(options.pool, part.size + 1)), np.arange(len(vectors))  # one more: then these are all
    while len(left):
        short = []
        for query, near, found in zip(left, *part.nearest(vectors[left], size, exclude[left]), strict=True):
            near, found = near[found >= 0], found[found >= 0]
            order = _order(vectors[query], part.index.vectors_at(found), near, k, options)
            if len(order) < k and len(found) == size:
                short.append(query)
            scores[query, : len(order)], positions[query, : len(order)] = near[order], found[order]
        size, left = 2 * size, np.array(short, np.int64)
    return scores, positions


def _order(query: np.ndarray, vectors: np.ndarray, scores: np.ndarray, k: int, options: Options) -> np.ndarray:
    """Return the places of at most k candidates, best first."""
    order = np.arange(len(scores))
    if options.reciprocal is not None:
        among = np.concatenate([query[None], vectors])
        distances = rerank.k_reciprocal(among, options.reciprocal, min(6, options.reciprocal))
        order = distances.argsort(kind="stable")
    return rerank.varied(order, scores, vectors, k, options.distinct, options.mmr)
