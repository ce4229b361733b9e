"""What `bench_search` compares: clustered vectors, and indexes of several libraries behind one handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import faiss
import numpy as np

from rectrio_lib import kinds, tuning
from rectrio_lib.indexing import Index
from rectrio_lib.kinds import TOP_K

LINKS = 32  # of a vector in every graph, and twice as many at the bottom
CLUSTER_ROWS, SPREAD = 1_000, 0.7


@dataclass
class Contender:
    """An index under test.

    Attributes:
        search: queries float32 (Q, dim) to positions (Q, TOP_K).
        set_effort: sets how far the next searches look.
        parameter: what the effort is called; empty if search is exact.
        efforts: from least to most, each at most twice the one before.
        size: returns the bytes it takes on disk.
        name: of the library, and what it built.
        seconds: that building took.
    """

    search: Callable[[np.ndarray], np.ndarray]
    set_effort: Callable[[int], None]
    parameter: str
    efforts: Sequence[int]
    size: Callable[[], int] = lambda: 0
    name: str = ""
    seconds: float = 0.0


# --- vectors


def count_clusters(count: int) -> int:
    """Return of how many clusters so many vectors are drawn: about a thousand vectors each."""
    return max(10, count // CLUSTER_ROWS)


def make_world(count: int, dim: int, asked: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw vectors, queries, and other queries from the same clusters; no query is among the vectors.

    Args:
        count: vectors to search among.
        dim: length of all.
        asked: queries, and other queries.

    Returns:
        Unit vectors float32 (count, dim), (asked, dim), (asked, dim).
    """
    centres = np.random.default_rng(0).standard_normal((count_clusters(count), dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return draw(count, centres, seed=1), draw(asked, centres, seed=2), draw(asked, centres, seed=3)


def draw(count: int, centres: np.ndarray, seed: int) -> np.ndarray:
    """Draw unit vectors from clusters.

    Each is a centre, all being equally likely, plus Gaussian noise about SPREAD long, scaled to unit length. The
    variance of the noise falls as 1/j from the first number to the last, as it does along the principal axes of what
    networks compute: so few directions matter that the nearest ten are nearer than the rest of their cluster.

    Args:
        count: how many.
        centres: float32 (C, dim) of unit length.
        seed: another one draws other vectors from the same clusters.

    Returns:
        float32 (count, dim).
    """
    rng, dim = np.random.default_rng(seed), centres.shape[1]
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    scale *= SPREAD / np.linalg.norm(scale)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, tuning.BLOCK_ROWS):  # in place: a million vectors need no second copy
        part = vectors[start : start + tuning.BLOCK_ROWS]
        rng.standard_normal(dtype=np.float32, out=part)
        part *= scale
        part += centres[rng.integers(len(centres), size=len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


# --- indexes


def of_library(index: Index) -> Contender:
    """Put this library's index under test."""
    return Contender(
        lambda queries: index.search(queries, TOP_K)[1],
        partial(setattr, index, "effort"),
        kinds.effort_name(index.kind),
        kinds.efforts(index.kind, len(index)),
        lambda: faiss.serialize_index(index._vectors.faiss).nbytes,
    )


def inside(index: Index) -> Contender:
    """Put the FAISS call under test that `Index.search` makes at its present effort."""
    inner, told = index._vectors.faiss, kinds.search_parameters(index.kind, index.effort, TOP_K)
    ask = getattr(inner, "search_numpy", inner.search)  # faiss.contrib.torch_utils swaps `search` for another one
    return Contender(lambda queries: ask(queries, TOP_K, params=told)[1], lambda effort: None, "", [index.effort])


def _faiss(description: str, vectors: np.ndarray) -> Contender:
    index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = kinds.EF_CONSTRUCTION
    index.add(vectors)
    return Contender(
        lambda queries: index.search(queries, TOP_K)[1],
        partial(setattr, index.hnsw, "efSearch"),
        "efSearch",
        kinds.efforts("hnsw", len(vectors)),
        lambda: faiss.serialize_index(index).nbytes,
    )


def _usearch(vectors: np.ndarray) -> Contender:
    from usearch.index import Index as Graph

    graph = {"connectivity": LINKS, "expansion_add": kinds.EF_CONSTRUCTION}
    index = Graph(ndim=vectors.shape[1], metric="ip", dtype="f16", **graph)  # f32 was slower in every run
    index.add(np.arange(len(vectors), dtype=np.uint64), vectors)
    return Contender(
        lambda queries: index.search(queries, TOP_K, threads=int(len(queries) == 1)).keys,  # 0 means all threads
        partial(setattr, index, "expansion_search"),
        "expansion_search",
        kinds.efforts("hnsw", len(vectors)),
        lambda: index.serialized_length,
    )


def _hnswlib(vectors: np.ndarray) -> Contender:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=LINKS, ef_construction=kinds.EF_CONSTRUCTION)
    index.add_items(vectors)
    return Contender(
        lambda queries: index.knn_query(queries, k=TOP_K)[0],  # by itself it takes one thread for one query
        index.set_ef,
        "ef",
        kinds.efforts("hnsw", len(vectors)),
        index.index_file_size,
    )


PEERS: dict[str, tuple[str, Callable[[np.ndarray], Contender]]] = {  # name: (package, what builds it)
    "faiss HNSW32": ("faiss", partial(_faiss, f"HNSW{LINKS}")),
    "faiss HNSW32,SQfp16": ("faiss", partial(_faiss, f"HNSW{LINKS},SQfp16")),
    "usearch f16": ("usearch", _usearch),
    "hnswlib": ("hnswlib", _hnswlib),
}


def not_installed() -> list[str]:
    """Name the packages of peers that are not here."""
    return sorted({package for package, _ in PEERS.values() if find_spec(package) is None})
