"""Exact nearest neighbours, in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import faiss
import numpy as np

if TYPE_CHECKING:
    pass


BLOCK_ROWS = 65_536


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
