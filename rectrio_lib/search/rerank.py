"""Re-ranking on plain arrays: query expansion, near-duplicates, MMR, k-reciprocal."""

from __future__ import annotations

import numpy as np


def expand_queries(
    queries: np.ndarray, neighbours: np.ndarray, similarities: np.ndarray, alpha: float = 3.0
) -> np.ndarray:
    """Move each query towards its results (alpha query expansion): the sum of it and similarity**alpha * neighbour.

    Args:
        queries: unit vectors (Q, dim).
        neighbours: unit vectors (Q, n, dim).
        similarities: cosine of each neighbour to its query (Q, n); one that is NaN or not above 0 weighs nothing.
        alpha: 0 weighs all neighbours alike; the larger, the more the nearest count.

    Returns:
        Unit vectors float32 (Q, dim).

    Source: Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019.
    """
    alike = similarities > 0
    weights = np.where(alike, similarities, 1) ** alpha * alike
    sums = queries + np.einsum("qn,qnd->qd", weights, neighbours)
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def distinct(vectors: np.ndarray, threshold: float, k: int) -> np.ndarray:
    """Keep the first k candidates that are not near-duplicates of a better one.

    Args:
        vectors: unit vectors (n, dim), best first.
        threshold: a candidate whose cosine similarity to a kept one exceeds this is a near-duplicate.
        k: number to keep.

    Returns:
        Places of the kept ones, ascending, int64 (at most k,).
    """
    kept, left = [], np.ones(len(vectors), bool)
    while len(kept) < k and left.any():
        best = int(left.argmax())
        kept.append(best)
        left &= vectors @ vectors[best] <= threshold
        left[best] = False
    return np.array(kept, np.int64)


def mmr(relevance: np.ndarray, vectors: np.ndarray, k: int, balance: float) -> np.ndarray:
    """Choose candidates that are relevant and different from each other (maximal marginal relevance).

    The next one chosen has the largest balance * relevance - (1 - balance) * (largest cosine to one chosen before).

    Args:
        relevance: similarity of each candidate to the query (n,).
        vectors: unit vectors (n, dim).
        k: number to choose.
        balance: the paper's lambda: 1 looks only at relevance, 0 only at difference.

    Returns:
        Places of the chosen ones in the order of choice, int64 (min(k, n),).

    Source: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
    """
    chosen = np.empty(min(k, len(vectors)), np.int64)
    closest = np.full(len(vectors), -1.0)
    for step in range(len(chosen)):
        gain = balance * relevance - (1 - balance) * closest
        gain[chosen[:step]] = -np.inf
        chosen[step] = gain.argmax()
        closest = np.maximum(closest, vectors @ vectors[chosen[step]])
    return chosen


def varied(
    order: np.ndarray, relevance: np.ndarray, vectors: np.ndarray, k: int, limit: float | None, balance: float | None
) -> np.ndarray:
    """Return at most k places of an order, best first, by `distinct` with a limit and `mmr`; None leaves either out."""
    if limit is not None:
        order = order[distinct(vectors[order], limit, k if balance is None else len(order))]
    if balance is not None:
        order = order[mmr(relevance[order], vectors[order], k, balance)]
    return order[:k]


def k_reciprocal(vectors: np.ndarray, k1: int = 20, k2: int = 6, balance: float = 0.3) -> np.ndarray:
    """Measure candidates by the neighbours they share with the query, where being a neighbour is mutual.

    With d = 1 - cosine, each vector is described by exp(-d) to the members of its k1-reciprocal neighbourhood, which
    first takes in the k1/2-reciprocal ones of its members that overlap with it by two thirds; descriptions are averaged
    over the k2 nearest, and compared by their Jaccard distance. As in the authors' program, a vector is its own nearest
    neighbour, one of the k2 and beside the k1. Neighbours are looked for among the given vectors only.

    Args:
        vectors: unit vectors (1 + n, dim), the query's first.
        k1: size of a neighbourhood; about as many images as belong together.
        k2: neighbours that a description is averaged over, at least 1.
        balance: the paper's lambda: 0 takes the Jaccard distance alone, 1 only d.

    Returns:
        Distances of the n candidates to the query, smaller is more alike (n,).

    Source: Zhong, Zheng, Cao and Li, "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017.
    """
    distances = 1 - vectors @ vectors.T
    np.fill_diagonal(distances, -np.inf)  # before any exact copy
    order = distances.argsort(axis=1, kind="stable")
    np.fill_diagonal(distances, 0)
    mutual, half = _mutual(order, k1), _mutual(order, k1 // 2)
    overlapping = mutual * (3 * (mutual @ half.T) >= 2 * half.sum(1))  # (1 + n, 1 + n): row takes in column's half
    members = (mutual + overlapping @ half) > 0
    described = np.where(members, np.exp(-distances), 0)[order[:, :k2]].mean(1)
    query, others = described[0], described[1:]
    jaccard = 1 - np.minimum(query, others).sum(1) / np.maximum(query, others).sum(1)
    return (1 - balance) * jaccard + balance * distances[0, 1:]


def _mutual(order: np.ndarray, k: int) -> np.ndarray:
    """Tell which vectors have each other among themselves and their k nearest: 0 or 1, float32 for quick products."""
    near = np.zeros(order.shape, bool)
    np.put_along_axis(near, order[:, : k + 1], True, axis=1)
    return (near & near.T).astype(np.float32)
