"""Exact nearest neighbours, in blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import faiss
import numpy as np

BLOCK_ROWS = 65_536

if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's OpenMP threads and would wait for them
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))


def exact_search(queries: np.ndarray, parts: Iterable[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare queries float32 (Q, dim) with every vector of blocks float32 (M, dim), which together hold k or more.

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


def blocks(vectors: np.ndarray, subset: np.ndarray | None = None, rows: int | None = None) -> Iterator[np.ndarray]:
    """Yield vectors (N, dim), or those at the positions `subset`, in float32 blocks of `rows` (default BLOCK_ROWS)."""
    rows = rows or BLOCK_ROWS
    for start in range(0, len(vectors) if subset is None else len(subset), rows):
        part = slice(start, start + rows)
        yield np.ascontiguousarray(vectors[part] if subset is None else vectors[subset[part]], np.float32)


def equals(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first position of each distinct vector of (N, dim), ascending, and that of the equal of each (N,)."""
    factors = np.random.default_rng(0).integers(0, 2**64, vectors.shape[1], np.uint64)
    parts = [part.view(np.uint32).astype(np.uint64) @ factors for part in blocks(vectors)]
    _, first, number = np.unique(np.concatenate(parts), return_index=True, return_inverse=True)
    return np.sort(first), first[number]
