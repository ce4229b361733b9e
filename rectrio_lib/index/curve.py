"""Recall and latency of an index at several search settings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.factory import search_param_name, search_params
from rectrio_lib.index.tuning import GroundTruth

if TYPE_CHECKING:
    from rectrio_lib.index.index import Index

WARMING = 50  # queries before the clock starts, for each setting


def curve(
    index: Index, queries: np.ndarray, vectors: np.ndarray, tried: Sequence[int] | None = None, timed: int = 200
) -> pd.DataFrame:
    """Measure recall and latency of an index at several search settings; `charts.recall_against_latency` draws them.

    Args:
        index: without removed rows.
        queries: unit vectors (Q, dim) that are not in the index.
        vectors: what the index was built from, exact, in the order of its rows (N, dim).
        tried: search parameters to measure; None: its own, and doubled ones until all true neighbours are found.
        timed: number of queries that are timed, one at a time with one OpenMP thread.

    Returns:
        One row per setting: `kind`, `setting`, `search_param`, `tuned` (whether it is the index's own),
        `recall_at_10`, `ms` (median of a query), `p95_ms`, `bytes_per_vector`.

    Raises:
        ArgumentError: if the vectors are not those of the index's rows, or a row was removed.
    """
    if not len(vectors) == len(index) == len(index.removed):
        counts = f"{len(vectors):,} vectors for an index of {len(index):,} images and {len(index.removed):,} rows"
        raise ArgumentError(f"{counts}: the curve needs one vector per row, and no removed rows.")
    truth, tuned, points = GroundTruth(queries, vectors), index.search_param, []
    name = search_param_name(index.kind)
    chosen = {*search_params(index.kind, len(index)), *([tuned] if name else [])}
    try:
        for param in tried or sorted(chosen):
            index.search_param, seconds = param, []
            for query in truth.queries[:WARMING]:  # untimed: what no query has touched yet is slow to reach
                index.search(query[None], truth.k)
            for query in truth.queries[:timed]:
                started = time.perf_counter()
                index.search(query[None], truth.k)
                seconds.append(time.perf_counter() - started)
            point = {"kind": index.kind, "setting": f"{name} {param}" if name else "exact", "search_param": param}
            point |= {"recall_at_10": float(truth.recall(index).mean()), "ms": 1000 * float(np.median(seconds))}
            point |= {"p95_ms": 1000 * float(np.quantile(seconds, 0.95)), "bytes_per_vector": index.bytes_per_vector}
            points.append(point | {"tuned": param == tuned or not name})
            if tried is None and param >= tuned and points[-1]["recall_at_10"] > 0.9995:
                break
    finally:
        index.search_param = tuned
    return pd.DataFrame(points)
