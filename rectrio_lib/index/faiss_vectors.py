"""Vectors in FAISS by position: added, read back, searched, mapped from disk."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from rectrio_lib.core import knn
from rectrio_lib.index import factory

# A subset this small is searched exactly: a graph search would hardly meet it. Where nearly all count, it does.
EXACT_ROWS, EXACT_SHARE, NEARLY_ALL = 20_000, 0.05, 0.8
# FAISS begins a graph with its highest levels, among the vectors it is given at once. In blocks of 65,536 the graph of
# a million had to be searched a fifth farther for the same recall.
GRAPH_BYTES = 2**32
CACHED_PARTS = 32  # conditions and masks whose rows are remembered until the index changes


class Subset:
    """The positions that may be results, made from a mask, bool (N,)."""

    def __init__(self, mask: np.ndarray):
        self.mask, self.count = mask, int(np.count_nonzero(mask))
        self._reordered: tuple[Any, faiss.IDSelectorBitmap | None] = None, None
        self._parts: dict[str | bytes, Subset] = {}

    def part(self, key: str | bytes, mask: Callable[[], np.ndarray]) -> Subset:
        """Return those of these positions that a mask, bool (N,), holds; what a key stands for is found out once."""
        part = self._parts.get(key)
        if part is None:
            if len(self._parts) >= CACHED_PARTS:
                self._parts.clear()
            part = self._parts[key] = Subset(self.mask & mask())
        return part

    @cached_property
    def selector(self) -> faiss.IDSelectorBitmap | None:
        """The mask as FAISS takes it; None if all positions may be results."""
        return None if self.count == len(self.mask) else _bitmap(self.mask)

    def selector_in(self, order: np.ndarray) -> faiss.IDSelectorBitmap | None:
        """As `selector`, where position order[i] lies at place i; the last order is remembered."""
        if self.count == len(self.mask):
            return None
        if self._reordered[0] is not order:
            self._reordered = order, _bitmap(self.mask[order])
        return self._reordered[1]


class FaissVectors:
    """N vectors of length `dim` in a FAISS index of one of factory.KINDS."""

    limit: int | None = None  # bytes of memory within which mapped pages are kept
    home: Path | None = None  # of files that belong to no saved index; None: outputs/indexes/ of the default workspace

    def __init__(self, kind: str, dim: int):
        self.kind, self.dim = kind, dim
        self.faiss, self.mapped = factory.new_faiss(kind, dim, 0), False
        self._places = None  # of positions in a graph, once they are needed
        self._below = None, None, None  # see `_in_order`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mapped": False, "_below": (None, None, None)}  # FAISS pickles the vectors themselves

    def open(self, folder: Path) -> None:
        """Map vectors.faiss of a folder into memory; RuntimeError or MemoryError if it cannot be read."""
        self.faiss, self.mapped = faiss.read_index(str(folder / "vectors.faiss"), faiss.IO_FLAG_MMAP_IFC), True

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write the files of the vectors into a folder; return their names."""
        self.own()  # Windows replaces no file that is mapped
        try:
            faiss.write_index(self.faiss, str(folder / "vectors.faiss"))
        except RuntimeError as error:  # FAISS's own, for a full disk
            raise OSError(str(error).strip().rpartition("\n")[2]) from error
        return ("vectors.faiss",)

    def is_few(self, subset: Subset) -> bool:
        """Whether a subset had better be searched exactly."""
        total = len(subset.mask)
        return subset.count <= max(EXACT_ROWS, EXACT_SHARE * total) and subset.count < NEARLY_ALL * total

    def search(self, queries: np.ndarray, k: int, search_param: int, subset: Subset) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest of a subset that holds k or more, for queries float32 (Q, dim).

        Returns:
            Inner products float32 (Q, k), best first, and positions int64 (Q, k).
        """
        threads, single = faiss.omp_get_max_threads(), len(queries) == 1
        if single and threads > 1:
            faiss.omp_set_num_threads(1)  # measured: a second thread makes a single query 2 to 30 times slower
        try:
            if self.is_few(subset):
                return self.exact(queries, k, subset)
            scores, positions = self.approximate(queries, k, search_param, subset)
            if single and positions[0, -1] >= 0:
                return scores, positions
            lost = positions[:, -1] < 0  # the graph search ended before it met k vectors: search these exactly
            if lost.any():
                scores[lost], positions[lost] = self.exact(queries[lost], k, subset)
            return scores, positions
        finally:
            if single and threads > 1:
                faiss.omp_set_num_threads(threads)

    def approximate(
        self, queries: np.ndarray, k: int, search_param: int, subset: Subset
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search as the kind does it; positions are -1 where it met fewer than k."""
        share = subset.count / len(subset.mask)
        parameters = factory.search_parameters(self.kind, search_param, k, share, subset.selector)
        return search_faiss(self.faiss, queries, k, parameters)

    def exact(self, queries: np.ndarray, k: int, subset: Subset) -> tuple[np.ndarray, np.ndarray]:
        """Compare queries (Q, dim) with every vector of a subset, inside FAISS and as the kind rounds them."""
        if self.kind == "hnsw":  # its vectors lie in an order of their own
            order, below = self._in_order()
            parameters = faiss.SearchParameters(sel=subset.selector_in(order))
            scores, places = search_faiss(below, queries, k, parameters)
            return scores, order[places]
        if self.kind in ("ivf", "ivf-sq8"):
            parameters = faiss.SearchParametersIVF(sel=subset.selector, nprobe=self.faiss.nlist)
            return search_faiss(self.faiss, queries, k, parameters)
        flat = self.faiss if self.kind == "flat" else faiss.downcast_index(self.faiss.refine_index)
        return search_faiss(flat, queries, k, faiss.SearchParameters(sel=subset.selector))

    def _in_order(self) -> tuple[np.ndarray, faiss.Index]:
        """Return the positions of a graph's vectors in the order in which they lie in memory, and these vectors."""
        owner, order, below = self._below
        if owner is not self.faiss or len(order) != self.faiss.ntotal:  # else they would point to freed memory
            order = faiss.rev_swig_ptr(self.faiss.id_map.data(), self.faiss.ntotal)
            below = faiss.downcast_index(faiss.downcast_index(self.faiss.index).storage)
            self._below = self.faiss, order, below
        return order, below

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return vectors float32 (M, dim) at positions (M,), rounded as the kind rounds them.

        Raises:
            IndexError: if a position is not in 0..N-1.
        """
        if not len(positions):
            return np.empty((0, self.dim), np.float32)
        low, high = positions.min(), positions.max()
        if not 0 <= low <= high < self.faiss.ntotal:
            raise IndexError(f"Positions {low} to {high}, but there are {self.faiss.ntotal} rows.")
        if self.kind != "hnsw":
            return self.faiss.reconstruct_batch(np.ascontiguousarray(positions, np.int64))
        if self._places is None:
            self._places = np.argsort(faiss.rev_swig_ptr(self.faiss.id_map.data(), self.faiss.ntotal))
        return faiss.downcast_index(self.faiss.index).reconstruct_batch(self._places[positions])

    def learn(self, vectors: np.ndarray, subset: np.ndarray | None = None) -> None:
        """Learn cells and codes, once, from vectors or those at some positions."""
        if not self.faiss.is_trained:
            self.faiss = factory.learned_faiss(self.kind, vectors, subset)

    def add(self, vectors: np.ndarray, subset: np.ndarray | None = None) -> None:
        """Append vectors float16 or float32 (M, dim), or those at some of their positions."""
        self.own()
        if self.kind == "hnsw":
            count = len(vectors) if subset is None else len(subset)
            return self._add_to_graph(vectors, subset, self.faiss.ntotal + np.arange(count))
        for block in knn.blocks(vectors, subset):
            self.faiss.add(block)

    def _graph_rows(self, count: int) -> int:
        """Return how many vectors enter a graph of `count` at once: with their copy in order, what the limit leaves."""
        most = GRAPH_BYTES // (4 * self.dim)
        if self.limit is None:
            return most
        left = self.limit - factory.memory(self.kind, self.dim, count)
        return min(most, max(knn.BLOCK_ROWS, left // (8 * self.dim)))

    def _add_to_graph(self, vectors: np.ndarray, subset: np.ndarray | None, positions: np.ndarray) -> None:
        start, self._places = 0, None
        for block in knn.blocks(vectors, subset, self._graph_rows(self.faiss.ntotal + len(positions))):
            order = factory.locality_order(block)
            self.faiss.add_with_ids(block[order], positions[start:][order])
            start += len(block)

    def add_between(self, vectors: np.ndarray, missing: np.ndarray) -> None:
        """Add the vectors at the positions `missing`, so that all of `vectors` lie in order; the rest is in already."""
        if self.kind == "hnsw":
            places = faiss.rev_swig_ptr(self.faiss.id_map.data(), self.faiss.ntotal)
            places[:] = np.delete(np.arange(len(vectors)), missing)[places]
            self._add_to_graph(vectors, missing, missing)
        else:  # cells fill quickly, and FAISS cannot reorder them afterwards
            self.faiss.reset()
            self.add(vectors)

    def keep(self, positions: np.ndarray) -> None:
        """Drop all vectors but some; learned cells and codes stay."""
        self.own()
        old = copy(self)
        self.faiss, self._places = faiss.clone_index(self.faiss), None
        self.faiss.reset()
        rows = self._graph_rows(len(positions)) if self.kind == "hnsw" else knn.BLOCK_ROWS
        for start in range(0, len(positions), rows):
            self.add(old.at(positions[start : start + rows]))

    def own(self) -> None:
        """Copy mapped vectors into memory: FAISS ends the process when told to change them."""
        if self.mapped:
            self.faiss, self.mapped = faiss.deserialize_index(faiss.serialize_index(self.faiss)), False


def _bitmap(mask: np.ndarray) -> faiss.IDSelectorBitmap:
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def search_faiss(
    index: faiss.Index, vectors: np.ndarray, k: int, parameters: faiss.SearchParameters
) -> tuple[np.ndarray, np.ndarray]:
    """Search a FAISS index for vectors float32 (Q, dim), contiguous, with parameters.

    Its own `search` would check them again, which takes a thirtieth of a query. faiss.contrib.torch_utils, which other
    libraries import, swaps that for one that takes no parameters.
    """
    scores, positions = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
    to = faiss.swig_ptr(scores), faiss.swig_ptr(positions)
    index.search_c(len(vectors), faiss.swig_ptr(vectors), k, *to, parameters)
    return scores, positions
