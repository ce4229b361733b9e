"""Each method against a loop that follows the paper's formulas."""

import math

import numpy as np
import pytest
from makers.indexes import unit

from rectrio_lib.search.rerank import distinct, expand_queries, k_reciprocal, mmr


def clustered(rng, groups, size, dim=8, spread=0.3):
    near = np.repeat(unit(rng, groups, dim), size, axis=0) + spread * rng.normal(size=(groups * size, dim))
    return (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)


# --- query expansion


def naive_expansion(query, neighbours, similarities, alpha):
    total = query.astype(float)
    for vector, similarity in zip(neighbours, similarities, strict=True):
        if similarity > 0:
            total = total + similarity**alpha * vector
    return total / math.sqrt(sum(x * x for x in total))


@pytest.mark.parametrize("alpha", [0, 1, 2.5, 3])
def test_a_query_is_expanded_as_in_the_formula_whatever_is_dissimilar_or_missing(alpha):
    rng = np.random.default_rng(0)
    queries, neighbours = unit(rng, 5, 8), unit(rng, 5, 6, 8)
    similarities = np.einsum("qd,qnd->qn", queries, neighbours)
    similarities[2, 4:], similarities[3] = np.nan, np.nan
    assert (similarities < 0).any()
    expanded = expand_queries(queries, neighbours, similarities, alpha)
    expected = [naive_expansion(q, n, s, alpha) for q, n, s in zip(queries, neighbours, similarities, strict=True)]
    np.testing.assert_allclose(expanded, expected, atol=1e-6)
    np.testing.assert_allclose(expanded[3], queries[3], atol=1e-6)
    assert expanded.dtype == np.float32


def test_no_queries_and_no_neighbours_are_expanded_to_themselves():
    queries = unit(np.random.default_rng(1), 3, 8)
    np.testing.assert_allclose(expand_queries(queries, np.empty((3, 0, 8)), np.empty((3, 0))), queries, atol=1e-6)
    assert expand_queries(queries[:0], np.empty((0, 4, 8)), np.empty((0, 4))).shape == (0, 8)


# --- near copies


def naive_distinct(vectors, threshold, k):
    kept = []
    for i, vector in enumerate(vectors):
        if len(kept) < k and all(float(np.dot(vector, vectors[j])) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [-0.5, 0.3, 0.9, 1.1])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_near_copies_of_what_was_kept_are_dropped(threshold, k):
    vectors = clustered(np.random.default_rng(2), 6, 5)
    kept = distinct(vectors, threshold, k)
    assert kept.tolist() == naive_distinct(vectors, threshold, k)
    assert kept.dtype == np.int64


def test_only_kept_vectors_drop_others():
    """A chain, each near the next: the second goes, so the third stays."""
    angles = np.radians([0, 20, 40, 60])
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert distinct(chain, math.cos(math.radians(30)), 4).tolist() == [0, 2]
    assert distinct(chain[:0], 0.9, 4).tolist() == []


# --- maximal marginal relevance


def naive_mmr(relevance, vectors, k, balance):
    chosen = []
    while len(chosen) < min(k, len(vectors)):
        gains = {}
        for i in range(len(vectors)):
            if i not in chosen:
                redundancy = max((float(np.dot(vectors[i], vectors[j])) for j in chosen), default=0.0)
                gains[i] = balance * float(relevance[i]) - (1 - balance) * redundancy
        chosen.append(max(gains, key=gains.get))
    return chosen


@pytest.mark.parametrize("balance", [0, 0.3, 0.5, 0.7, 1])
@pytest.mark.parametrize("k", [1, 7, 30, 99])
def test_mmr_chooses_as_in_the_formula(balance, k):
    rng = np.random.default_rng(3)
    vectors, query = clustered(rng, 6, 5), unit(rng, 1, 8)[0]
    vectors = vectors[np.argsort(-vectors @ query)]
    relevance = vectors @ query
    chosen = mmr(relevance, vectors, k, balance)
    assert chosen.tolist() == naive_mmr(relevance, vectors, k, balance)
    assert chosen.dtype == np.int64


def test_mmr_takes_one_of_each_group_before_a_second_of_any():
    vectors = np.repeat(np.eye(3), 4, axis=0)
    relevance = np.repeat([0.9, 0.8, 0.7], 4)
    assert mmr(relevance, vectors, 4, 0.5).tolist() == [0, 4, 8, 1]
    assert mmr(relevance, vectors, 4, 1).tolist() == [0, 1, 2, 3]
    assert mmr(relevance[:0], vectors[:0], 4, 0.5).tolist() == []


# --- k-reciprocal re-ranking


def naive_k_reciprocal(vectors, k1, k2, balance):
    count = len(vectors)
    d = [[0.0 if i == j else 1 - float(np.dot(vectors[i], vectors[j])) for j in range(count)] for i in range(count)]
    ranked = [[i, *sorted((j for j in range(count) if j != i), key=lambda j: d[i][j])] for i in range(count)]

    def nearest(i, k):
        return set(ranked[i][: k + 1])

    def reciprocal(i, k):
        return {j for j in nearest(i, k) if i in nearest(j, k)}

    def expanded(i):
        members = set(reciprocal(i, k1))
        for j in reciprocal(i, k1):
            half = reciprocal(j, k1 // 2)
            if len(reciprocal(i, k1) & half) >= 2 / 3 * len(half):
                members |= half
        return members

    members = [expanded(i) for i in range(count)]
    described = [[math.exp(-d[i][j]) if j in members[i] else 0.0 for j in range(count)] for i in range(count)]
    smooth = [
        [sum(described[n][j] for n in ranked[i][:k2]) / len(ranked[i][:k2]) for j in range(count)] for i in range(count)
    ]
    distances = []
    for i in range(1, count):
        pairs = list(zip(smooth[0], smooth[i], strict=True))
        jaccard = 1 - sum(map(min, pairs)) / sum(map(max, pairs))
        distances.append((1 - balance) * jaccard + balance * d[0][i])
    return distances


@pytest.mark.parametrize(("k1", "k2", "balance"), [(5, 2, 0.3), (4, 1, 0), (1, 1, 0.5), (9, 6, 0.3), (99, 3, 0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_k_reciprocal_distances_are_those_of_the_formulas(k1, k2, balance, seed):
    vectors = clustered(np.random.default_rng(seed), 5, 5).astype(np.float64)
    expected = naive_k_reciprocal(vectors, k1, k2, balance)
    np.testing.assert_allclose(k_reciprocal(vectors, k1, k2, balance), expected, atol=1e-6)
    assert np.ptp(expected) > 0.1


def test_the_plain_distance_is_left_where_only_it_counts():
    vectors = clustered(np.random.default_rng(4), 4, 4)
    np.testing.assert_allclose(k_reciprocal(vectors, balance=1), 1 - vectors[1:] @ vectors[0], atol=1e-6)


def test_a_shared_neighbourhood_beats_a_small_distance():
    """Strangers close to each other stand nearer to the query than most of its own group, spread along a line."""
    angles = np.radians([0, -8, -16, -24, 10, 11, 12, 13])  # the query, its group, the strangers
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert np.argsort(-vectors[1:] @ vectors[0])[:5].tolist() == [0, 3, 4, 5, 6]
    assert np.argsort(k_reciprocal(vectors, k1=3, k2=1, balance=0.1))[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_candidates_are_measured(count):
    vectors = unit(np.random.default_rng(5), 1 + count, 8)
    expected = naive_k_reciprocal(vectors, 20, 6, 0.3)
    np.testing.assert_allclose(k_reciprocal(vectors), expected, atol=1e-6)


def test_exact_copies_of_the_query_come_first():
    vectors = clustered(np.random.default_rng(6), 4, 5)
    vectors[[3, 17]] = vectors[0]
    assert set(np.argsort(k_reciprocal(vectors, 4, 2))[:2].tolist()) == {2, 16}
