"""How far an index must look to find enough: exact neighbours, recall against them, and what a query costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pandas as pd

from rectrio_lib.kinds import TOP_K, effort_name, efforts

if TYPE_CHECKING:
    from rectrio_lib.indexing import Index

BLOCK_ROWS = 65_536


class RecallOutOfReach(ValueError):  # noqa: N818 - the name says what is wrong
    """A kind of index does not find as many true neighbours as were asked for, however far it looks."""


def blocks(vectors: np.ndarray, among: np.ndarray | None = None, rows: int | None = None) -> Iterator[np.ndarray]:
    """Yield vectors (N, dim), or those at some positions, in float32 blocks of so many rows, or BLOCK_ROWS."""
    rows = rows or BLOCK_ROWS
    for start in range(0, len(vectors) if among is None else len(among), rows):
        part = slice(start, start + rows)
        yield np.ascontiguousarray(vectors[part] if among is None else vectors[among[part]], np.float32)


def exact_search(queries: np.ndarray, parts: Iterable[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare queries float32 (Q, dim) with every vector of some blocks, which together hold k or more.

    Returns:
        Inner products float32 (Q, k), best first, and positions counted through the blocks, int64 (Q, k).
    """
    best, start = faiss.ResultHeap(len(queries), k, keep_max=True), 0
    for part in parts:
        scores, positions = faiss.knn(queries, part, min(k, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, positions + start)
        start += len(part)
    best.finalize()
    return best.D, best.I


class Exam:
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


def held_out(count: int) -> np.ndarray:
    """Choose positions to keep out of an index and tune on: a tenth, 2,000 at most, none of fewer than 500."""
    size = min(2_000, count // 10) if count >= 500 else 0
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


def find_effort(index: Index, exam: Exam, recall: float) -> float:
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

    first, *_, top = efforts(index.kind, len(exam.among))
    low = high = first
    while not enough(high):
        if high >= top:
            raise RecallOutOfReach(
                f"{index.kind} finds {measured[high]:.4f} of the true neighbours at most, too little to be sure of "
                f"recall={recall}: ask for less, or choose another kind."
            )
        low, high = high, min(2 * high, top)
    while high - low > 1 + high // 16:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    index.effort = high
    return measured[high]


def curve(
    index: Index, queries: np.ndarray, vectors: np.ndarray, tried: Sequence[int] | None = None, timed: int = 200
) -> pd.DataFrame:
    """Measure what an index finds, and what a query costs, at several efforts.

    Args:
        index: no row of it removed.
        queries: unit vectors (Q, dim) that are not in the index.
        vectors: what the index was built from, exact, in the order of its rows (N, dim).
        tried: efforts (efSearch or nprobe) to measure; None takes the index's own, and doubles others until all true
            neighbours are found.
        timed: so many queries are asked one at a time, with one OpenMP thread, to time them.

    Returns:
        One row an effort: `kind`, `setting`, `effort`, `tuned` (whether it is the index's own), `recall_at_10`, `ms`
        (median of a query), `p95_ms`, `bytes_per_vector`; `plots.recall_against_latency` draws it.

    Raises:
        ValueError: if the vectors are not those of the index's rows, or a row was removed.
    """
    if not len(vectors) == len(index) == len(index.removed):
        raise ValueError(
            f"{len(vectors):,} vectors for an index of {len(index):,} pictures and {len(index.removed):,} rows: the "
            "curve needs a vector a row, and none removed."
        )
    exam, tuned, points = Exam(queries, vectors), index.effort, []
    chosen = {*efforts(index.kind, len(index)), *([tuned] if effort_name(index.kind) else [])}
    try:
        for effort in tried or sorted(chosen):
            index.effort = effort
            own = effort == tuned or not effort_name(index.kind)
            points.append({**_point(index, exam, timed), "tuned": own})
            if tried is None and effort >= tuned and points[-1]["recall_at_10"] > 0.9995:
                break
    finally:
        index.effort = tuned
    return pd.DataFrame(points)


def _point(index: Index, exam: Exam, timed: int) -> dict:
    name = effort_name(index.kind)
    seconds = [_seconds(lambda q=query: index.search(q[None], exam.k)) for query in exam.queries[:timed]]
    return {
        "kind": index.kind,
        "setting": f"{name} {index.effort}" if name else "exact",
        "effort": index.effort,
        "recall_at_10": float(exam.take(index).mean()),
        "ms": 1000 * float(np.median(seconds)),
        "p95_ms": 1000 * float(np.quantile(seconds, 0.95)),
        "bytes_per_vector": index.bytes_per_vector,
    }


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
