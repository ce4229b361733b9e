"""Exact nearest neighbours, in blocks."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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
    heap, start = faiss.ResultHeap(len(queries), k, keep_max=True), 0
    for part in parts:
        scores, positions = faiss.knn(queries, part, min(k, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, positions + start)
        start += len(part)
    heap.finalize()
    return heap.D, heap.I


def best(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k highest of scores (Q, M), best first, and their positions (Q, k); equal ones keep their order."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)


def blocks(vectors: np.ndarray, subset: np.ndarray | None = None, rows: int | None = None) -> Iterator[np.ndarray]:
    """Yield vectors (N, dim), or those of a mask or at positions, in float32 blocks of `rows` (default BLOCK_ROWS)."""
    rows = rows or BLOCK_ROWS
    for start in range(0, len(vectors) if subset is None else len(subset), rows):
        part = slice(start, start + rows)
        if subset is None:
            block = vectors[part]
        else:
            block = vectors[part][subset[part]] if subset.dtype == bool else vectors[subset[part]]
        yield np.ascontiguousarray(block, np.float32)
        let_go(vectors)


class Mapped:
    """Vectors as an array float32 (N, dim) of which `read` gives those at some places, a slice or positions."""

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, count: int, dim: int, read: Callable[[slice | np.ndarray], np.ndarray]):
        self.shape, self._read = (count, dim), read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        return self._read(places)


def let_go(vectors: np.ndarray, start: int = 0, size: int | None = None) -> None:
    """Let go of the pages of a file that is mapped for reading, or of `size` bytes of them from `start`, a whole page.

    Until then they count as memory of this process.
    """
    if getattr(vectors, "mode", "") == "r" and hasattr(mmap, "MADV_DONTNEED"):
        vectors._mmap.madvise(mmap.MADV_DONTNEED, start, size or len(vectors._mmap))


def resident() -> float:
    """Return the bytes of memory that this process takes, mapped pages that it looked at among them; inf if unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:  # not Linux
        return math.inf


def hashed(part: np.ndarray) -> np.ndarray:
    """Return one number, uint64, for each vector of float32 (M, dim): the same for equal ones."""
    factors = np.random.default_rng(0).integers(0, 2**64, part.shape[1], np.uint64)
    return part.view(np.uint32).astype(np.uint64) @ factors


def equals(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first position of each distinct vector of (N, dim), ascending, and that of the equal of each (N,)."""
    parts = [hashed(part) for part in blocks(vectors)]
    _, first, number = np.unique(np.concatenate(parts), return_index=True, return_inverse=True)
    return np.sort(first), first[number]


def equals_of(vectors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the positions, ascending, of all vectors of (N, dim) that equal one of the `chosen` positions."""
    known = np.unique(hashed(np.ascontiguousarray(vectors[chosen], np.float32)))
    found, start = [], 0
    for part in blocks(vectors):
        numbers = hashed(part)
        places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        found.append(start + np.flatnonzero(known[places] == numbers))
        start += len(part)
    return np.concatenate(found)
