"""Tune the search parameter of an index: exact neighbours, and recall against them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rectrio_lib.core.errors import RecallOutOfReachError
from rectrio_lib.core.knn import blocks, equals, equals_of, exact_search, let_go
from rectrio_lib.index.base import VectorIndex
from rectrio_lib.index.factory import TOP_K, search_params

if TYPE_CHECKING:
    from rectrio_lib.index.index import Index

MANY, FEWER_QUERIES = 1_000_000, 1_000  # of so many vectors, this many are enough to tune on
AT_ONCE = 100  # queries whose results are read: each result that lies on disk brings 4 kB to 2 MB of pages with it


def tune(index: Index, truth: GroundTruth, recall: float) -> float:
    """Set an index's search parameter to the least that is sure to reach a recall; return the recall measured with it.

    Sure means by three standard errors: the queries are a sample, others find a little less or more.

    Raises:
        RecallOutOfReachError: if the kind does not reach it at any setting.
    """
    measured = {}

    def enough(search_param: int) -> bool:
        index.search_param = search_param
        found = truth.recall(index)
        measured[search_param] = float(found.mean())
        return found.mean() - 3 * found.std() / len(found) ** 0.5 >= recall

    low, *_, top = search_params(index.kind, len(truth.subset))
    high = low
    while not enough(high):
        if high >= top:
            raise RecallOutOfReachError(
                f"{index.kind} cannot reach recall={recall} at any search setting; it finds {measured[high]:.4f} of "
                "the true neighbours at most: ask for less, or choose another kind."
            )
        low, high = high, min(2 * high, top)
    while high - low > 1 + high // 16:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    index.search_param = high
    return measured[high]


def holdout(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose positions of (N, dim) to tune on: a tenth, 2,000 at most, none of fewer than 500.

    Each distinct vector is drawn with the same probability: copies of one image do not stand for all queries. What is
    tuned on is kept out of the index with all its equals, as a new query has none there.

    Returns:
        Positions of the queries, and of what is to be kept out; both ascending.
    """
    if len(vectors) < 500:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if len(vectors) > MANY:
        return _holdout_of_many(vectors)
    distinct, first = equals(vectors)
    size = min(2_000, len(vectors) // 10, (len(distinct) + 1) // 2)
    drawn = np.random.default_rng(0).choice(distinct, size, replace=False)
    counts = np.bincount(first)[drawn]
    few = counts <= len(vectors) // 100
    few[few] = counts[few].cumsum() <= len(vectors) // 5
    if not few.any():  # hardly anything but copies
        return np.sort(drawn), np.sort(drawn)
    return np.sort(drawn[few]), np.flatnonzero(np.isin(first, drawn[few]))


def _holdout_of_many(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `holdout`, without a number in memory for each vector: any row is drawn with the same probability."""
    drawn = np.sort(np.random.default_rng(0).choice(len(vectors), FEWER_QUERIES, replace=False))
    held = equals_of(vectors, drawn)
    if len(held) > len(vectors) // 5:  # hardly anything but copies
        return drawn, drawn
    return drawn, held


class GroundTruth:
    """Queries whose true neighbours are known.

    A result is right when it is as similar as the tenth true neighbour: equal vectors may stand in for each other.

    Args:
        queries: float32 (Q, dim), not among the vectors.
        vectors: float16 or float32 (N, dim).
        subset: positions of the vectors that may be results, in the order of the index; or a mask, bool (N,), of those
            that may be among all that the index holds; None for all.

    Attributes:
        kth_score: similarity of the last true neighbour, float32 (Q, 1).
    """

    def __init__(self, queries: np.ndarray, vectors: np.ndarray, subset: np.ndarray | None = None):
        self.queries, self.vectors = np.ascontiguousarray(queries, np.float32), vectors
        self.subset = np.arange(len(vectors)) if subset is None else subset
        self.k = min(TOP_K, np.count_nonzero(subset) if self.subset.dtype == bool else len(self.subset))
        self.kth_score = exact_search(self.queries, blocks(vectors, subset), self.k)[0][:, -1:]

    def recall(self, index: VectorIndex) -> np.ndarray:
        """Search an index, and return the recall of each query (Q,)."""
        return self.recall_per_query(index.search(self.queries, self.k)[1])

    def recall_per_query(self, positions: np.ndarray) -> np.ndarray:
        """Return the share of right results of each query (Q,), from positions (Q, k) that an index found."""
        places = positions if self.subset.dtype == bool else self.subset[positions]
        scores = np.empty(places.shape, np.float32)
        for start in range(0, len(places), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            hits = self.vectors[places[part]].astype(np.float32)
            let_go(self.vectors)
            np.einsum("qkd,qd->qk", hits, self.queries[part], out=scores[part])
        return (scores >= self.kth_score - 2e-6).mean(1)  # float32 rounds sums taken in another order
