"""FAISS index types: factory string, memory cost, search parameters."""

from __future__ import annotations

import logging
import math
import re
from decimal import Decimal
from functools import lru_cache
from numbers import Integral, Real

import faiss
import numpy as np

from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import shortened

LOG = logging.getLogger(__name__)

# "np": without polysemous codes, which take ten times as long to learn and are of no use here. "IDMap": a graph lies in
# memory in an order of its own, see `locality_order`.
KINDS = {
    "flat": "Flat",  # compares with every vector
    "hnsw": "IDMap,HNSW32,SQfp16",  # walks a graph of 32 links per vector
    "ivf": "IVF{cells},Flat",  # looks into the nearest of many cells
    "ivf-pq": "IVF{cells},PQ{parts}np,Refine(SQfp16)",  # a byte for four numbers, re-ranked by float16 vectors
    "ivf-sq8": "IVF{cells},SQ8",  # a byte per number
    "ivf-pq-disk": "IVF{cells}_HNSW32,PQ{parts}np",  # codes and the float16 vectors on disk, see `large`
}
ON_DISK = "ivf-pq-disk"
LISTED_BYTES = 1 << 28  # of codes and vectors that are gathered in memory before they are written
FLAT_ROWS = 20_000  # up to here exact search takes a millisecond or two
FEWEST_LEARNED = 256  # entries of a product quantiser's codebook: FAISS needs as many vectors
SPREAD = 5  # standard deviations on either side that a byte resolves: an outlier would make all others coarse
EF_CONSTRUCTION = 80
SEARCH_PARAM = 128  # where none was tuned
LEARNED_ROWS = 16_384  # a sample of this size, or of 64 per cell, is as good as all
LANDMARK_ROWS, LANDMARK_CELLS, MOST_LANDMARKS = 400, 8, 1024
TOP_K = 10  # neighbours that recall is measured among


def candidates(kind: str, dim: int, count: int, memory_limit: int | str | None = None, tell: bool = False) -> list[str]:
    """Return the kinds worth building, best first.

    "auto" prefers flat up to 20,000 vectors, then hnsw, ivf-pq and ivf-sq8, as far as they fit into the memory, then
    ivf-pq-disk.

    Args:
        kind: one of KINDS, or "auto".
        dim: length of the vectors.
        count: how many there are.
        memory_limit: see `Index.build`.
        tell: log what fits, as whoever builds does.

    Raises:
        ArgumentError: if the kind is unknown, or nothing fits into the memory.
    """
    limit = byte_count(memory_limit)
    if kind not in (*KINDS, "auto"):
        raise ArgumentError(f"kind={kind!r} is unknown: choose auto or one of {', '.join(KINDS)}.")
    names = [kind] if kind != "auto" else ["hnsw", "ivf-pq", "ivf-sq8"]
    if kind == "auto" and limit is not None and count >= FEWEST_LEARNED:
        names.append(ON_DISK)
    if kind == "auto" and count <= FLAT_ROWS:
        names = ["flat", *(names if count >= FEWEST_LEARNED else ["hnsw"])]
    needs = {name: needed(name, dim, count) for name in names}
    fitting = [name for name in names if limit is None or needs[name] <= limit]
    if not fitting:
        least = min(needs, key=needs.get)
        taken = f"{count:,} vectors of length {dim} take {needs[least]:,} bytes as {least}"
        other = "" if kind == "auto" else "choose another kind, "  # which may be one that was asked for before
        raise ArgumentError(f"{taken}, but memory_limit is {limit:,}: allow more, {other}or index fewer.")
    if tell and kind == "auto" and limit is not None:
        left_out = [f"{name} {needs[name] / 1e9:.3g} GB" for name in names if name not in fitting]
        without = f"; too large: {', '.join(left_out)}" if left_out else ""
        told = f"{fitting[0]} takes {needs[fitting[0]] / 1e9:.3g} of {limit / 1e9:.3g} GB{without}"
        LOG.info("%s vectors of length %s: %s.", f"{count:,}", dim, told)
    return fitting


def recall_of(recall: float) -> float:
    """Return a recall that can be asked for; ArgumentError if it is no number above 0 and at most 1."""
    if not isinstance(recall, Real) or isinstance(recall, bool) or not 0 < recall <= 1:
        raise ArgumentError(f"recall={recall!r} should be a number above 0 and at most 1.")
    return float(recall)


def byte_count(memory_limit: int | str | None) -> int | None:
    """Return a number of bytes, given as such or as "500MB" or "2GB", in powers of 1000; None for None or "none"."""
    if memory_limit is None or memory_limit == "none":
        return None
    if isinstance(memory_limit, Integral) and not isinstance(memory_limit, bool):
        memory_limit = str(memory_limit)
    read = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?\s*", str(memory_limit), re.IGNORECASE)
    count = int(Decimal(read[1]) * 1000 ** ("KMGT".index(read[2].upper()) + 1 if read[2] else 0)) if read else 0
    if not isinstance(memory_limit, str) or not 0 < count < 2**63:
        shown = shortened(repr(memory_limit))
        raise ArgumentError(f"memory_limit={shown}: expected a number of bytes, or a size such as '2GB'.")
    return count


def needed(kind: str, dim: int, count: int) -> int:
    """Return the bytes of memory that it takes to build and search an index, without the table of rows.

    Files on disk that the system maps are not counted: it takes their pages back when it needs them.
    """
    if kind != ON_DISK:
        return memory(kind, dim, count)
    learned = 4 * dim * (_cells(count) + min(count, _sample_size(count)) + 256)
    block = min(count, 65_536) * (6 * dim + _parts(dim)) + min(LISTED_BYTES, count * _listed_bytes(dim))
    return learned + block + 12 * count  # masks, and which vectors are equal or where they lie


def listed_rows(dim: int) -> int:
    """Return how many vectors and codes are gathered in memory before they are written."""
    return LISTED_BYTES // _listed_bytes(dim)


def memory(kind: str, dim: int, count: int) -> int:
    """Return the bytes that an index of `count` vectors takes, in memory and on disk."""
    ids, links = 16, 4 * 64 + 16  # an id and its way back; 64 links at the bottom, few above, and where they begin
    a_vector = {
        "flat": 4 * dim,
        "hnsw": 2 * dim + links + ids // 2,
        "ivf": 4 * dim + ids,
        "ivf-pq": 2 * dim + _parts(dim) + ids // 2,
        "ivf-sq8": dim + ids,
        ON_DISK: 2 * dim + _parts(dim) + ids,
    }[kind]
    centroids = 4 * dim * _cells(count) if kind.startswith("ivf") else 0
    centroids += 300 * _cells(count) if kind == ON_DISK else 0  # of their graph
    codebook = 4 * dim * 256 if kind in ("ivf-pq", ON_DISK) else 0
    return count * a_vector + centroids + codebook


def search_param_name(kind: str) -> str:
    """Return FAISS's name of the parameter that trades time for recall; "" where search is exact."""
    return {"flat": "", "hnsw": "efSearch"}.get(kind, "nprobe")


def new_faiss(kind: str, dim: int, count: int) -> faiss.Index:
    """Make an empty FAISS index for `count` vectors; IVF kinds must learn from them first."""
    recipe = KINDS[kind].format(cells=_cells(count), parts=_parts(dim))
    index = faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        faiss.downcast_index(index.index).hnsw.efConstruction = EF_CONSTRUCTION
    return index


def locality_order(vectors: np.ndarray, each: int = LANDMARK_ROWS) -> np.ndarray:
    """Order vectors float32 (N, dim), a landmark for `each` so many, so that near ones lie near each other in memory.

    Returns:
        Positions (N,).

    Measured among 400,000 vectors: a fifth less time per query, as caches hold more of what a graph search needs.
    """
    count = min(MOST_LANDMARKS, len(vectors) // each)
    if count < 2:
        return np.arange(len(vectors))
    landmarks = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), count, replace=False))]
    starts = range(0, len(vectors), LEARNED_ROWS)
    parts = [faiss.knn(vectors[i : i + LEARNED_ROWS], landmarks, 1, metric=faiss.METRIC_INNER_PRODUCT) for i in starts]
    return np.argsort(np.concatenate([nearest[:, 0] for _, nearest in parts]), kind="stable")


def learned_faiss(kind: str, vectors: np.ndarray, subset: np.ndarray | None = None) -> faiss.Index:
    """Make an empty FAISS index whose cells and codes were learned from a sample of the vectors (N, dim), or a subset.

    Raises:
        ArgumentError: if there are too few vectors to learn from.
    """
    subset = np.arange(len(vectors)) if subset is None else subset
    index = new_faiss(kind, vectors.shape[1], len(subset))
    if index.is_trained:
        return index
    if len(subset) < FEWEST_LEARNED:
        few = f"{FEWEST_LEARNED} vectors or more, here are {len(subset)}"
        raise ArgumentError(f"{kind} learns from {few}: choose flat or hnsw.")
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    size, sample = min(len(subset), _sample_size(len(subset))), np.random.default_rng(0)
    sample = np.sort(sample.choice(subset, size, replace=False) if size < len(subset) else subset)
    learned_from = np.empty((size, vectors.shape[1]), np.float32)
    for start, part in enumerate(knn.blocks(vectors, sample)):
        learned_from[start * knn.BLOCK_ROWS :][: len(part)] = part
    for learner in (inner, *([inner.pq] if hasattr(inner, "pq") else [])):
        learner.cp.min_points_per_centroid = 1  # no warning of poor codes: tuning notices them
    if kind == "ivf-sq8":
        inner.sq.rangestat, inner.sq.rangestat_arg = faiss.ScalarQuantizer.RS_meanstd, SPREAD
    index.train(learned_from)
    if kind == ON_DISK:  # a query looks into cells that are near each other: so they are in the files too
        cells = faiss.downcast_index(inner.quantizer)
        centroids = cells.reconstruct_n(0, cells.ntotal)
        cells.reset()
        cells.add(centroids[locality_order(centroids, LANDMARK_CELLS)])
    if kind not in ("ivf-pq", ON_DISK):  # these have float16 vectors in order; else a vector's cell must be known
        inner.make_direct_map()
    return index


def search_parameters(
    kind: str, search_param: int, k: int, share: float = 1.0, selector: faiss.IDSelector | None = None
) -> faiss.SearchParameters:
    """Return the parameters of a FAISS search for k neighbours among a `share` in (0, 1] of the vectors.

    `search_param`, tuned for ten neighbours among all, is raised for more neighbours and for a smaller share.
    """
    search_param = math.ceil(search_param / share)
    if selector is None:
        return _parameters(kind, search_param, k)
    return _parameters.__wrapped__(kind, search_param, k, sel=selector)


@lru_cache(maxsize=64)  # making them takes a fiftieth of a search
def _parameters(kind: str, search_param: int, k: int, **chosen: faiss.IDSelector) -> faiss.SearchParameters:
    if kind == "flat":
        return faiss.SearchParameters(**chosen)
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(search_param + k - TOP_K, k), **chosen)
    cells = faiss.SearchParametersIVF(nprobe=search_param, **chosen)
    if kind not in ("ivf-pq", ON_DISK):
        return cells
    return faiss.IndexRefineSearchParameters(k_factor=1 + TOP_K * search_param / k, base_index_params=cells)


def search_params(kind: str, count: int) -> list[int]:
    """Return search parameters from least to most, each twice the one before; a single one where search is exact."""
    top = {"flat": 1, "hnsw": 4096}.get(kind, _cells(count))
    least = TOP_K if kind == "hnsw" else 1  # efSearch must be at least the number of results
    doubled = [least * 2**i for i in range(12)]
    return [*(param for param in doubled if param < top), top]


def _cells(count: int) -> int:
    return max(1, min(int(4 * count**0.5), count // 39))  # FAISS wants 39 vectors per cell to learn from


def _sample_size(count: int) -> int:
    return max(64 * _cells(count), LEARNED_ROWS)


def _listed_bytes(dim: int) -> int:
    return 2 * dim + _parts(dim) + 8


def _parts(dim: int) -> int:
    return next(parts for parts in range(max(1, dim // 4), 0, -1) if dim % parts == 0)
