"""How an answer is put together: which rows count, in which order, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import pandas as pd

from rectrio_lib import reranking
from rectrio_lib.filtering import matching
from rectrio_lib.indexing import Index


@dataclass(frozen=True)
class Results:
    """Answers to Q queries, best first. Where fewer than k were found, the places that are left stand at the end.

    Attributes:
        query_ids: what was asked: an image_id, a file, or the query's number (Q,).
        scores: cosine similarities to the query, or with `expand` to the expanded one, float32 (Q, k); NaN where there
            is no answer. They fall along a row, unless `mmr` or `reciprocal` chose another order.
        positions: rows of the answers in `rows`, int64 (Q, k); -1 where there is no answer.
        rows: metadata of the searched gallery, one row a picture.
    """

    query_ids: Sequence[str]
    scores: np.ndarray
    positions: np.ndarray
    rows: pd.DataFrame

    def __len__(self) -> int:
        return len(self.query_ids)

    def column(self, name: str) -> np.ndarray:
        """Return one column of the answers' metadata, such as "label", (Q, k): NaN where there is no answer."""
        values = self.rows[name].to_numpy()
        return pd.api.extensions.take(values, self.positions.ravel(), allow_fill=True).reshape(self.positions.shape)

    def frame(self) -> pd.DataFrame:
        """Return one row an answer: query, rank (from 1), score, and the answer's metadata."""
        query, place = np.nonzero(self.positions >= 0)
        answers = self.rows.iloc[self.positions[query, place]].reset_index(drop=True)
        answers.insert(0, "query", np.asarray(self.query_ids, dtype=object)[query])
        answers.insert(1, "rank", place + 1)
        answers.insert(2, "score", self.scores[query, place])
        return answers


@dataclass(frozen=True)
class Options:
    """Which answers count, and in which order; each of these is a keyword of the search functions.

    Attributes:
        combine: ask one question instead of Q: the mean of the queries.
        where: only rows that meet this condition, see `filtering.matching`; or a mask, bool (N,), over the rows.
        minimum: only answers of at least this score.
        expand: move the query towards its `expand` best answers and search again, see `reranking.expand_queries`.
        alpha: how much more the nearest of these weigh.
        reciprocal: order by shared neighbours, with this k1, see `reranking.k_reciprocal`; about as many pictures as
            belong together. With a pool of the whole index it is the paper's method, with a smaller one its estimate.
        distinct: only answers whose cosine similarity to each one before is at most this, such as 0.98; others fill up.
        mmr: weigh relevance (1) against variety (0), see `reranking.mmr`.
        pool: how many of the best `reciprocal` and `mmr` choose from, at least k.

    Raises:
        ValueError: if a number is out of its range, or `reciprocal` and `mmr` contradict each other.
    """

    combine: bool = False
    where: str | np.ndarray | None = None
    minimum: float | None = None
    expand: int = 0
    alpha: float = 3.0
    reciprocal: int | None = None
    distinct: float | None = None
    mmr: float | None = None
    pool: int = 100

    def __post_init__(self) -> None:
        ranges = {"expand": (0, inf), "alpha": (0, inf), "reciprocal": (1, inf), "mmr": (0, 1), "pool": (1, inf)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value}: expected {low} {'or more' if high == inf else f'to {high}'}.")
        if self.reciprocal is not None and self.mmr is not None:
            raise ValueError("reciprocal and mmr each choose an order of their own: ask for one of them.")

    def mask(self, index: Index) -> np.ndarray | None:
        """Return which rows may be answers, bool (N,); None if all.

        Raises:
            ValueError: if the condition or the mask does not fit the rows.
        """
        if self.where is None:
            return None
        if isinstance(self.where, str):
            return matching(index.rows, self.where)
        if self.where.shape != index.removed.shape or self.where.dtype != bool:
            told = f"{self.where.dtype} {self.where.shape}"
            raise ValueError(f"where is an array {told}; expected bool {index.removed.shape}, one for each row.")
        return self.where


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
        raise ValueError(f"k={k}: ask for at least one answer.")
    allowed = options.mask(index)
    size = len(index) if allowed is None else int(np.count_nonzero(allowed & ~index.removed))
    gallery = _Gallery(index, encoder_hash, allowed, options.minimum, size)
    if options.combine:
        vectors, ids, barred = _mean(vectors), [" + ".join(ids)], barred.reshape(1, -1)
    if options.expand and size:
        scores, near = gallery.nearest(vectors, options.expand, barred)
        neighbours = index.vectors_at(near.clip(min=0))  # (Q, expand, dim); a score of NaN weighs nothing
        vectors = reranking.expand_queries(vectors, neighbours, scores, options.alpha)
    if options.reciprocal is options.distinct is options.mmr is None:
        return Results(ids, *gallery.nearest(vectors, k, barred), index.rows)
    return Results(ids, *_chosen(gallery, vectors, k, barred, options), index.rows)


@dataclass(frozen=True)
class _Gallery:
    """The part of an index in which answers may lie: `size` pictures, those of which `allowed` holds (None: of all)."""

    index: Index
    encoder_hash: str | None
    allowed: np.ndarray | None
    minimum: float | None
    size: int

    def nearest(self, vectors: np.ndarray, k: int, barred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and positions (Q, k) without the positions in barred (Q, B), filled up with NaN and -1."""
        asked = min(k + barred.shape[1], self.size)
        if asked:
            scores, positions = self.index.search(vectors, asked, self.encoder_hash, self.allowed)
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
        raise ValueError(f"combine: the mean of {len(vectors)} queries has no direction; ask with others, or with one.")
    return total / length


def _chosen(
    gallery: _Gallery, vectors: np.ndarray, k: int, barred: np.ndarray, options: Options
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
        distances = reranking.k_reciprocal(among, options.reciprocal, min(6, options.reciprocal))
        order = distances.argsort(kind="stable")
    if options.distinct is not None:
        order = order[reranking.distinct(vectors[order], options.distinct, k if options.mmr is None else len(order))]
    if options.mmr is not None:
        order = order[reranking.mmr(scores[order], vectors[order], k, options.mmr)]
    return order[:k]
