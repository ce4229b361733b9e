"""Vectors in FAISS by position: put in, given back, searched, mapped from disk."""

from __future__ import annotations

from copy import copy
from functools import cached_property

import faiss
import numpy as np

from rectrio_lib.core import knn
from rectrio_lib.index import factory

# So few allowed vectors are compared one by one: a walk would hardly meet them. Where nearly all are allowed it does.
EXACT_ROWS, EXACT_SHARE, NEARLY_ALL = 20_000, 0.05, 0.8
# FAISS begins a graph with its highest levels, among the vectors it is given at once. In blocks of 65,536 the graph of
# a million had to be searched a fifth farther for the same recall.
GRAPH_BYTES = 2**32


class Subset:
    """Which positions may be answers.

    Args:
        mask: bool (N,).
    """

    def __init__(self, mask: np.ndarray):
        self.mask, self.count = mask, int(np.count_nonzero(mask))

    @cached_property
    def selector(self) -> faiss.IDSelectorBitmap | None:
        """What FAISS asks for each vector it meets; None if all may be answers."""
        if self.count == len(self.mask):
            return None
        return faiss.IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))

    @property
    def few(self) -> bool:
        """Whether they are better compared one by one."""
        total = len(self.mask)
        return self.count <= max(EXACT_ROWS, EXACT_SHARE * total) and self.count < NEARLY_ALL * total


class FaissVectors:
    """N vectors in a FAISS index of some kind.

    Args:
        kind: one of kinds.KINDS.
        dim: length of the vectors.
    """

    def __init__(self, kind: str, dim: int):
        self.kind, self.dim = kind, dim
        self.faiss, self.mapped = factory.new_faiss(kind, dim, 0), False
        self._places = None  # of positions in a graph, once they are needed

    def learn(self, vectors: np.ndarray, among: np.ndarray | None = None) -> None:
        """Learn cells and codes, once, from vectors or some of them."""
        if not self.faiss.is_trained:
            self.faiss = factory.learned_faiss(self.kind, vectors, among)

    def add(self, vectors: np.ndarray, among: np.ndarray | None = None) -> None:
        """Append vectors float16 or float32 (M, dim), or those at some of their positions."""
        self.own()
        if self.kind == "hnsw":
            start = self.faiss.ntotal
            count = len(vectors) if among is None else len(among)
            return self._add_to_graph(vectors, among, np.arange(start, start + count))
        for block in knn.blocks(vectors, among):
            self.faiss.add(block)

    def _add_to_graph(self, vectors: np.ndarray, among: np.ndarray | None, positions: np.ndarray) -> None:
        start, self._places = 0, None
        for block in knn.blocks(vectors, among, GRAPH_BYTES // (4 * self.dim)):
            order = factory.locality_order(block)
            self.faiss.add_with_ids(block[order], positions[start:][order])
            start += len(block)

    def add_between(self, vectors: np.ndarray, among: np.ndarray) -> None:
        """Add the one part of `vectors` that is missing, so that all lie in their order; the others are in already."""
        if self.kind == "hnsw":
            places = faiss.rev_swig_ptr(self.faiss.id_map.data(), self.faiss.ntotal)
            places[:] = np.delete(np.arange(len(vectors)), among)[places]
            self._add_to_graph(vectors, among, among)
        else:  # cells are filled in no time, and FAISS can put no order into them afterwards
            self.faiss.reset()
            self.add(vectors)

    def keep(self, positions: np.ndarray) -> None:
        """Drop all vectors but some; what was learned stays."""
        self.own()
        old = copy(self)
        self.faiss, self._places = faiss.clone_index(self.faiss), None
        self.faiss.reset()
        rows = GRAPH_BYTES // (4 * self.dim) if self.kind == "hnsw" else knn.BLOCK_ROWS
        for start in range(0, len(positions), rows):
            self.add(old.at(positions[start : start + rows]))

    def own(self) -> None:
        """Copy mapped vectors into memory: FAISS ends the process when told to change them."""
        if self.mapped:
            self.faiss, self.mapped = faiss.deserialize_index(faiss.serialize_index(self.faiss)), False

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return vectors float32 (M, dim) at positions (M,), rounded as the kind rounds them.

        Raises:
            IndexError: if a position is not in 0..N-1.
        """
        if not len(positions):
            return np.empty((0, self.dim), np.float32)
        if not 0 <= positions.min() <= positions.max() < self.faiss.ntotal:
            raise IndexError(
                f"Positions {positions.min()} to {positions.max()}, but there are {self.faiss.ntotal} rows."
            )
        if self.kind != "hnsw":
            return self.faiss.reconstruct_batch(np.ascontiguousarray(positions, np.int64))
        if self._places is None:
            self._places = np.argsort(faiss.rev_swig_ptr(self.faiss.id_map.data(), self.faiss.ntotal))
        return faiss.downcast_index(self.faiss.index).reconstruct_batch(self._places[positions])

    def search(self, queries: np.ndarray, k: int, effort: int, among: Subset) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest of at least k possible answers, as far as the effort goes, but always k.

        Args:
            queries: float32 (Q, dim).
            k: neighbours a query.
            effort: efSearch or nprobe; it grows by itself where fewer vectors may be answers.
            among: which may be.

        Returns:
            Inner products float32 (Q, k), best first, and positions int64 (Q, k).
        """
        threads = faiss.omp_get_max_threads()
        if len(queries) == 1:
            faiss.omp_set_num_threads(1)  # measured: a second thread makes a single query 2 to 30 times slower
        try:
            if among.few:
                return self.exact(queries, k, among)
            share = among.count / len(among.mask)
            parameters = factory.search_parameters(self.kind, effort, k, share, among.selector)
            scores, positions = _search(self.faiss, queries, k, parameters)
            lost = positions[:, -1] < 0  # a walk that ended before it had met k vectors: ask for these exactly
            if lost.any():
                scores[lost], positions[lost] = self.exact(queries[lost], k, among)
            return scores, positions
        finally:
            faiss.omp_set_num_threads(threads)

    def exact(self, queries: np.ndarray, k: int, among: Subset) -> tuple[np.ndarray, np.ndarray]:
        """Compare queries (Q, dim) with every vector that may be an answer, as the kind rounds it."""
        positions = np.flatnonzero(among.mask)
        parts = (self.at(positions[i : i + knn.BLOCK_ROWS]) for i in range(0, len(positions), knn.BLOCK_ROWS))
        scores, found = knn.exact_search(queries, parts, k)
        return scores, positions[found]


def _search(
    index: faiss.Index, vectors: np.ndarray, k: int, parameters: faiss.SearchParameters
) -> tuple[np.ndarray, np.ndarray]:
    # faiss.contrib.torch_utils, which other libraries import, swaps `search` for one that takes no parameters.
    return getattr(index, "search_numpy", index.search)(vectors, k, params=parameters)
