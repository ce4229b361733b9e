"""Kinds of FAISS indexes: what each is made of, what it costs, and what it is told at a search."""

from __future__ import annotations

import math
from functools import lru_cache

import faiss
import numpy as np

from rectrio_lib.core.errors import ArgumentError

# FAISS's own descriptions; those of IVF kinds are completed with numbers that follow from count and length. "np": no
# polysemous codes, which take ten times as long to learn and which this search has no use for. "IDMap": a graph lies in
# memory in an order of its own, see `neighbourly`.
KINDS = {
    "flat": "Flat",
    "hnsw": "IDMap,HNSW32,SQfp16",
    "ivf": "IVF{cells},Flat",
    "ivf-pq": "IVF{cells},PQ{parts}np,Refine(SQfp16)",
    "ivf-sq8": "IVF{cells},SQ8",
}
FLAT_ROWS = 20_000  # up to here comparing with everyone takes a millisecond or two, and cannot miss
FEWEST_LEARNED = 256  # the entries of a product quantiser's codebook: with fewer vectors FAISS learns none
EF_CONSTRUCTION = 80
SEARCH_PARAM = 128  # where nothing was tuned
LEARNED_ROWS = 16_384  # a sample of so many, or of 64 a cell, teaches as much as all
LANDMARK_ROWS, MOST_LANDMARKS = 400, 1024
TOP_K = 10  # recall is measured among so many neighbours


def candidates(kind: str, dim: int, count: int, memory_limit: int | None = None) -> list[str]:
    """Name the kinds worth building, best first.

    "auto" prefers flat up to 20,000 vectors, then hnsw (fastest), ivf-pq (half of that memory, re-ranked by float16
    vectors) and ivf-sq8 (a byte a number), as far as they fit into the memory.

    Args:
        kind: one of KINDS, or "auto".
        dim: length of the vectors.
        count: how many there are.
        memory_limit: bytes the index may take; None sets no limit.

    Raises:
        ValueError: if the kind is unknown, or nothing fits into the memory.
    """
    if kind not in (*KINDS, "auto"):
        raise ArgumentError(f"kind={kind!r} is unknown: choose auto or one of {', '.join(KINDS)}.")
    names = [kind] if kind != "auto" else ["hnsw", "ivf-pq", "ivf-sq8"]
    if kind == "auto" and count <= FLAT_ROWS:
        names = ["flat", *(names if count >= FEWEST_LEARNED else ["hnsw"])]
    needs = {name: memory(name, dim, count) for name in names}
    fitting = [name for name in names if memory_limit is None or needs[name] <= memory_limit]
    if not fitting:
        least = min(needs, key=needs.get)
        raise ArgumentError(
            f"{count:,} vectors of length {dim} take {needs[least]:,} bytes as {least}, but memory_limit is "
            f"{memory_limit:,}: allow more, or index fewer or shorter vectors."
        )
    return fitting


def memory(kind: str, dim: int, count: int) -> int:
    """Return the bytes that an index of so many vectors takes, in memory and on disk."""
    ids, links = 16, 4 * 64 + 16  # an id and its way back; 64 links at the bottom, few above, and where they begin
    a_vector = {
        "flat": 4 * dim,
        "hnsw": 2 * dim + links + ids // 2,
        "ivf": 4 * dim + ids,
        "ivf-pq": 2 * dim + _parts(dim) + ids // 2,
        "ivf-sq8": dim + ids,
    }[kind]
    centroids = 4 * dim * _cells(count) if kind.startswith("ivf") else 0
    codebook = 4 * dim * 256 if kind == "ivf-pq" else 0
    return count * a_vector + centroids + codebook


def search_param_name(kind: str) -> str:
    """Return FAISS's name of the parameter that trades time for recall; "" where search is exact."""
    return {"flat": "", "hnsw": "efSearch"}.get(kind, "nprobe")


def new_faiss(kind: str, dim: int, count: int) -> faiss.Index:
    """Make an empty FAISS index fit for so many vectors; IVF kinds must learn from them first."""
    index = faiss.index_factory(
        dim, KINDS[kind].format(cells=_cells(count), parts=_parts(dim)), faiss.METRIC_INNER_PRODUCT
    )
    if kind == "hnsw":
        faiss.downcast_index(index.index).hnsw.efConstruction = EF_CONSTRUCTION
    return index


def locality_order(vectors: np.ndarray) -> np.ndarray:
    """Order vectors float32 (N, dim) so that near ones lie near each other in memory; returns positions (N,).

    A walk then finds more of what it needs in the processor's caches. Measured among 400,000 vectors: a fifth less time
    a query and a quarter less to build the graph.
    """
    count = min(MOST_LANDMARKS, len(vectors) // LANDMARK_ROWS)
    if count < 2:
        return np.arange(len(vectors))
    landmarks = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), count, replace=False))]
    starts = range(0, len(vectors), LEARNED_ROWS)
    parts = [faiss.knn(vectors[i : i + LEARNED_ROWS], landmarks, 1, metric=faiss.METRIC_INNER_PRODUCT) for i in starts]
    return np.argsort(np.concatenate([nearest[:, 0] for _, nearest in parts]), kind="stable")


def learned_faiss(kind: str, vectors: np.ndarray, among: np.ndarray | None = None) -> faiss.Index:
    """Make an empty FAISS index whose cells and codes were learned from a sample of the vectors.

    Args:
        kind: one of KINDS.
        vectors: float16 or float32 (N, dim).
        among: positions to learn from; None for all.

    Raises:
        ValueError: if there are too few vectors to learn from.
    """
    among = np.arange(len(vectors)) if among is None else among
    index = new_faiss(kind, vectors.shape[1], len(among))
    if index.is_trained:
        return index
    if len(among) < FEWEST_LEARNED:
        raise ArgumentError(
            f"{kind} learns from {FEWEST_LEARNED} vectors or more, here are {len(among)}: choose flat or hnsw."
        )
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    size = min(len(among), max(64 * inner.nlist, LEARNED_ROWS))
    sample = np.sort(np.random.default_rng(0).choice(among, size, replace=False))
    for learner in (inner, *([inner.pq] if kind == "ivf-pq" else [])):
        learner.cp.min_points_per_centroid = 1  # few vectors make poor codes, which tuning sees: no warning is needed
    if kind == "ivf-sq8":
        inner.sq.rangestat_arg = 0.5  # numbers beyond the range of the sample, widened by half on either side, are cut
    index.train(np.ascontiguousarray(vectors[sample], np.float32))
    if kind != "ivf-pq":  # there the float16 vectors lie in order; here it must be known which cell holds a vector
        inner.make_direct_map()
    return index


def search_parameters(
    kind: str, effort: int, k: int, share: float = 1.0, selector: faiss.IDSelector | None = None
) -> faiss.SearchParameters:
    """Return what FAISS is told at a search.

    Args:
        kind: one of KINDS.
        effort: efSearch or nprobe, as tuned for ten neighbours; more neighbours widen the search by themselves.
        k: neighbours a query.
        share: part of the vectors that may be answers, in (0, 1]: the fewer, the farther it looks.
        selector: which these are; None for all.
    """
    effort = math.ceil(effort / share)
    return _parameters(kind, effort, k) if selector is None else _parameters.__wrapped__(kind, effort, k, sel=selector)


@lru_cache(maxsize=64)  # to make them takes as long as a fiftieth of a search
def _parameters(kind: str, effort: int, k: int, **chosen: faiss.IDSelector) -> faiss.SearchParameters:
    if kind == "flat":
        return faiss.SearchParameters(**chosen)
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(effort + k - TOP_K, k), **chosen)
    cells = faiss.SearchParametersIVF(nprobe=effort, **chosen)
    if kind != "ivf-pq":
        return cells
    return faiss.IndexRefineSearchParameters(k_factor=1 + TOP_K * effort / k, base_index_params=cells)


def first_search_param(kind: str) -> int:
    """Return the least effort of a kind: a walk keeps as many vectors in mind as it shall find."""
    return TOP_K if kind == "hnsw" else 1


def search_params(kind: str, count: int) -> list[int]:
    """Return efforts from least to most, each twice the one before; a single one where search is exact."""
    top = {"flat": 1, "hnsw": 4096}.get(kind, _cells(count))
    doubled = [first_search_param(kind) * 2**i for i in range(12)]
    return [*(effort for effort in doubled if effort < top), top]


def _cells(count: int) -> int:
    return max(1, min(int(4 * count**0.5), count // 39))  # FAISS wants 39 vectors a cell to learn from


def _parts(dim: int) -> int:
    """Return into how many pieces a vector is cut, each coded in a byte: about four numbers a piece."""
    return next(parts for parts in range(max(1, dim // 4), 0, -1) if dim % parts == 0)
