"""What an index finds, and what a query costs, at several search settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.factory import search_param_name, search_params

if TYPE_CHECKING:
    from rectrio_lib.index.index import Index
from rectrio_lib.index.tuning import GroundTruth


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
        (median of a query), `p95_ms`, `bytes_per_vector`; `charts.recall_against_latency` draws it.

    Raises:
        ValueError: if the vectors are not those of the index's rows, or a row was removed.
    """
    if not len(vectors) == len(index) == len(index.removed):
        raise ArgumentError(
            f"{len(vectors):,} vectors for an index of {len(index):,} pictures and {len(index.removed):,} rows: the "
            "curve needs a vector a row, and none removed."
        )
    exam, tuned, points = GroundTruth(queries, vectors), index.effort, []
    chosen = {*search_params(index.kind, len(index)), *([tuned] if search_param_name(index.kind) else [])}
    try:
        for effort in tried or sorted(chosen):
            index.effort = effort
            own = effort == tuned or not search_param_name(index.kind)
            points.append({**_point(index, exam, timed), "tuned": own})
            if tried is None and effort >= tuned and points[-1]["recall_at_10"] > 0.9995:
                break
    finally:
        index.effort = tuned
    return pd.DataFrame(points)


def _point(index: Index, exam: GroundTruth, timed: int) -> dict:
    name = search_param_name(index.kind)
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
