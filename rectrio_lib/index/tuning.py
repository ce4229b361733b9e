"""How far an index must look to find enough: exact neighbours, recall against them, and what a query costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rectrio_lib.index.factory import TOP_K, search_params

if TYPE_CHECKING:
    from rectrio_lib.index.index import Index
from rectrio_lib.core.errors import RecallOutOfReachError
from rectrio_lib.core.knn import blocks, exact_search


class GroundTruth:
    """Queries whose true neighbours are known.

    An answer is right when it is as similar as the tenth true neighbour: equal vectors may stand in for each other.

    Args:
        queries: float32 (Q, dim), not among the vectors.
        vectors: float16 or float32 (N, dim).
        among: positions of the vectors that may be answers, in the order of the index; None for all.
    """

    def __init__(self, queries: np.ndarray, vectors: np.ndarray, among: np.ndarray | None = None):
        self.queries, self.vectors = np.ascontiguousarray(queries, np.float32), vectors
        self.among = np.arange(len(vectors)) if among is None else among
        self.k = min(TOP_K, len(self.among))
        self.last = exact_search(self.queries, blocks(vectors, among), self.k)[0][:, -1:]  # (Q, 1)

    def shares(self, found: np.ndarray) -> np.ndarray:
        """Return the share of right answers of each query (Q,), from positions (Q, k) that an index found."""
        answers = self.vectors[self.among[found]].astype(np.float32)
        scores = np.einsum("qkd,qd->qk", answers, self.queries)
        return (scores >= self.last - 2e-6).mean(1)  # float32 rounds sums taken in another order

    def take(self, index: Index) -> np.ndarray:
        """Ask an index all queries, and return the share of right answers of each (Q,)."""
        return self.shares(index.search(self.queries, self.k)[1])


def holdout(count: int) -> np.ndarray:
    """Choose positions to keep out of an index and tune on: a tenth, 2,000 at most, none of fewer than 500."""
    size = min(2_000, count // 10) if count >= 500 else 0
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


def tune(index: Index, exam: GroundTruth, recall: float) -> float:
    """Set an index's effort to the least that is sure to reach a recall, and return the recall measured with it.

    Sure means by three standard errors: the queries are a sample, others find a little less or more.

    Raises:
        RecallOutOfReach: if the kind does not reach it at any effort.
    """
    measured = {}

    def enough(effort: int) -> bool:
        index.effort = effort
        shares = exam.take(index)
        measured[effort] = float(shares.mean())
        return shares.mean() - 3 * shares.std() / len(shares) ** 0.5 >= recall

    first, *_, top = search_params(index.kind, len(exam.among))
    low = high = first
    while not enough(high):
        if high >= top:
            raise RecallOutOfReachError(
                f"{index.kind} finds {measured[high]:.4f} of the true neighbours at most, too little to be sure of "
                f"recall={recall}: ask for less, or choose another kind."
            )
        low, high = high, min(2 * high, top)
    while high - low > 1 + high // 16:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    index.effort = high
    return measured[high]
