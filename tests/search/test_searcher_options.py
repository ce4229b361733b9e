"""Which answers count, and in which order: everything against brute force over all vectors."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.indexes import unit

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index import index as index_module
from rectrio_lib.index.index import Index
from rectrio_lib.search import rerank
from rectrio_lib.search.options import Options
from rectrio_lib.search.searcher import Searcher, search_vectors

DIM, COUNT = 6, 120
WHOLE, REAL = ("k", "expand", "reciprocal", "pool"), ("alpha", "mmr", "distinct", "minimum")
KINDS = ["flat", "hnsw"]


def table(count):
    labels = np.array(["cat", "dog", "bird"])[np.arange(count) % 3]
    return pd.DataFrame({"image_id": [f"p{i}" for i in range(count)], "label": labels, "width": np.arange(count)})


VECTORS = unit(np.random.default_rng(0), COUNT, DIM)
VECTORS[60:] = VECTORS[:60] + 0.02 * unit(np.random.default_rng(1), 60, DIM)  # each has a near copy
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = unit(np.random.default_rng(2), 7, DIM)
REMOVED = [3, 50, 77]


def make(kind="flat", count=COUNT):
    index = Index.build(kind, VECTORS[:count], table(count), "abc")
    index.remove([f"p{i}" for i in REMOVED if i < count])
    return index


INDEXES = {kind: make(kind) for kind in KINDS}
FLAT = INDEXES["flat"]
HELD = {kind: index.vectors_at(np.arange(COUNT)) for kind, index in INDEXES.items()}  # rounded by some kinds
THERE = ~np.isin(np.arange(COUNT), REMOVED)


def brute(query, allowed=THERE, minimum=-2.0, barred=(), kind="flat"):
    """All that may answer, best first: scores and positions."""
    scores = HELD[kind] @ query
    order = [i for i in np.argsort(-scores, kind="stable") if allowed[i] and scores[i] >= minimum and i not in barred]
    return scores[order], order


def answers(results):
    """Positions of each query without the empty places, which must stand at the end."""
    there = results.positions >= 0
    assert (np.diff(there.astype(int), axis=1) <= 0).all()
    assert (np.isnan(results.scores) == ~there).all()
    assert results.scores.dtype == np.float32 and results.positions.dtype == np.int64
    return [row[held].tolist() for row, held in zip(results.positions, there, strict=True)]


def check(results, expected, k):
    """Compare with one (scores, positions) a query."""
    assert results.positions.shape == (len(expected), k)
    assert answers(results) == [list(positions)[:k] for _, positions in expected]
    for row, (scores, _) in zip(results.scores, expected, strict=True):
        np.testing.assert_allclose(row[: len(scores)], scores[:k], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 0.02, 0.1, 0.5, 1]), st.sampled_from([1, 5, 117, 200]))
def test_any_mask_finds_what_brute_force_finds(kind, seed, share, k):
    rng = np.random.default_rng(seed)
    mask, queries = rng.random(COUNT) < share, unit(rng, 2, DIM)
    check(
        search_vectors(INDEXES[kind], queries, k, where=mask), [brute(q, THERE & mask, kind=kind) for q in queries], k
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("label == 'cat' and width > 60", lambda rows: (rows["label"] == "cat") & (rows["width"] > 60)),
        ("label in ['dog', 'bird'] or width < 9", lambda rows: (rows["label"] != "cat") | (rows["width"] < 9)),
        ("width == 3", lambda rows: rows["width"] == 3),  # removed
        ("label == 'cow'", lambda rows: rows["label"] == "cow"),
    ],
)
def test_a_condition_finds_k_if_there_are_k(kind, where, holds):
    allowed = THERE & holds(table(COUNT)).to_numpy()
    found = search_vectors(INDEXES[kind], QUERIES, 12, where=where)
    check(found, [brute(q, allowed, kind=kind) for q in QUERIES], 12)
    assert len(found.frame()) == len(QUERIES) * min(12, allowed.sum())


def test_a_condition_is_evaluated_once_a_call_and_the_index_is_asked_once(monkeypatch):
    calls = []
    for owner, name in ((index_module, "matching"), (Index, "search")):
        real = getattr(owner, name)
        watched = lambda *args, real=real, name=name, **more: (calls.append(name), real(*args, **more))[1]  # noqa: E731
        monkeypatch.setattr(owner, name, watched)
    search_vectors(FLAT, QUERIES, 5, where="width > 10", minimum=0.1)
    assert calls == ["matching", "search"]


def test_a_plain_search_hands_on_what_the_index_answers(monkeypatch):
    scores, positions = FLAT.search(QUERIES, 5)
    monkeypatch.setattr(Index, "search", lambda *args, **options: (scores, positions))
    found = search_vectors(FLAT, QUERIES, 5)
    assert found.scores is scores and found.positions is positions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("minimum", [-1, 0.2, 0.7, 0.999, 2])
def test_a_minimum_leaves_out_what_is_below(kind, minimum):
    found = search_vectors(INDEXES[kind], QUERIES, 9, minimum=minimum)
    check(found, [brute(q, minimum=minimum, kind=kind) for q in QUERIES], 9)


# --- pictures of the index


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_the_index_is_no_answer_to_itself_but_its_copy_is(kind):
    asked = [5, 100, 5]
    found = Searcher(INDEXES[kind]).search([f"p{i}" for i in asked], k=4)
    check(found, [brute(HELD[kind][i], barred=[i], kind=kind) for i in asked], 4)
    assert found.positions[:, 0].tolist() == [65, 40, 65]
    assert found.query_ids == ["p5", "p100", "p5"]


def test_a_picture_is_left_out_with_every_option_and_even_where_all_are_asked_for():
    for options in ({"where": "width < 10"}, {"distinct": 0.9}, {"mmr": 0.5}, {"reciprocal": 5}, {"expand": 3}, {}):
        found = Searcher(FLAT).search(["p5", "p99"], k=COUNT, **options)
        assert not (found.column("image_id") == np.array([["p5"], ["p99"]])).any()
    assert [len(row) for row in answers(found)] == [116, 116]
    assert len(answers(Searcher(FLAT).search(["p5", "p99"], k=COUNT, where="width < 10"))[0]) == 8


@pytest.mark.parametrize("ids", [["p5", "nobody"], ["p3"]])
def test_an_unknown_or_removed_picture_is_named(ids):
    with pytest.raises(ValueError, match=ids[-1]):
        Searcher(FLAT).search(ids)


# --- several at once


def test_combined_queries_ask_for_their_mean():
    mean = QUERIES.mean(0) / np.linalg.norm(QUERIES.mean(0))
    found = search_vectors(FLAT, QUERIES, 6, ["a", *"bcdefg"], combine=True)
    check(found, [brute(mean)], 6)
    assert found.query_ids == ["a + b + c + d + e + f + g"]


def test_combined_pictures_leave_all_of_themselves_out():
    mean = VECTORS[[5, 65, 7]].mean(0)
    mean /= np.linalg.norm(mean)
    found = Searcher(FLAT).search(["p5", "p65", "p7"], k=6, combine=True)
    check(found, [brute(mean, barred=[5, 65, 7])], 6)


@pytest.mark.parametrize("queries", [np.stack([QUERIES[0], -QUERIES[0]]), QUERIES[:0]])
def test_queries_without_a_common_direction_are_refused(queries):
    with pytest.raises(ArgumentError):
        search_vectors(FLAT, queries, combine=True)


# --- expansion, near copies, variety, reciprocity


def test_expanded_queries_are_moved_towards_their_answers():
    near = [brute(q, THERE & (table(COUNT)["label"] == "cat").to_numpy()) for q in QUERIES]
    neighbours = np.stack([VECTORS[order[:4]] for _, order in near])
    moved = rerank.expand_queries(QUERIES, neighbours, np.stack([s[:4] for s, _ in near]), 2)
    found = search_vectors(FLAT, QUERIES, 8, where="label == 'cat'", expand=4, alpha=2)
    check(found, [brute(q, THERE & (table(COUNT)["label"] == "cat").to_numpy()) for q in moved], 8)
    assert answers(found) != answers(search_vectors(FLAT, QUERIES, 8, where="label == 'cat'"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", [1, 15, 100])
@pytest.mark.parametrize(("k", "threshold"), [(10, 0.99), (30, 0.9), (60, 0.99), (117, 0.99), (10, 1.5)])
def test_near_copies_make_room_for_as_many_others_as_there_are(kind, pool, k, threshold):
    found = search_vectors(INDEXES[kind], QUERIES, k, distinct=threshold, pool=pool)
    expected = []
    for query in QUERIES:
        scores, order = brute(query, kind=kind)
        kept = rerank.distinct(HELD[kind][order], threshold, k)
        expected.append((scores[kept], np.array(order)[kept].tolist()))
    check(found, expected, k)
    assert threshold > 1 or {len(order) < k for _, order in expected} == {k > 60}


@pytest.mark.parametrize("pool", [10, 40])
def test_variety_is_chosen_from_the_pool(pool):
    found = search_vectors(FLAT, QUERIES, 5, mmr=0.4, pool=pool, minimum=0.0)
    for query, places, scores in zip(QUERIES, answers(found), found.scores, strict=True):
        relevance, order = (part[:pool] for part in brute(query, minimum=0.0))
        assert places == np.array(order)[rerank.mmr(relevance, VECTORS[order], 5, 0.4)].tolist()
        np.testing.assert_allclose(scores, VECTORS[places] @ query, atol=1e-5)
    assert (np.diff(found.scores, axis=1) > 0).any()


def test_variety_is_chosen_from_all_of_the_pool_that_is_no_near_copy():
    found = search_vectors(FLAT, QUERIES, 5, mmr=0.4, distinct=0.99, pool=40)
    for query, places in zip(QUERIES, answers(found), strict=True):
        relevance, order = (np.array(part[:40]) for part in brute(query))
        kept = rerank.distinct(VECTORS[order], 0.99, 40)
        assert places == order[kept][rerank.mmr(relevance[kept], VECTORS[order[kept]], 5, 0.4)].tolist()


@pytest.mark.parametrize("pool", [20, COUNT])
def test_shared_neighbours_order_the_pool_and_scores_stay_cosines(pool):
    found = search_vectors(FLAT, QUERIES, 8, reciprocal=8, pool=pool)
    for query, places, scores in zip(QUERIES, answers(found), found.scores, strict=True):
        order = np.array(brute(query)[1][:pool])
        distances = rerank.k_reciprocal(np.vstack([query, VECTORS[order]]), 8, 6)
        assert places == order[np.argsort(distances, kind="stable")][:8].tolist()
        np.testing.assert_allclose(scores, VECTORS[places] @ query, atol=1e-5)
    assert answers(found) != answers(search_vectors(FLAT, QUERIES, 8))


# --- few or none

EVERY = [{}, {"distinct": 0.9}, {"mmr": 0.5}, {"reciprocal": 5}, {"expand": 3}, {"minimum": -1.0}]
EVERY += [{"where": "image_id != ''"}]


@pytest.mark.parametrize("options", EVERY)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_index_of_few_pictures_answers_with_these(options, count):
    index = make(count=count) if count else Index("flat", DIM, "abc")
    found = search_vectors(index, QUERIES[:3], 3, **options)
    assert [sorted(row) for row in answers(found)] == [list(range(count))] * 3
    assert found.positions.shape == (3, 3)
    assert len(found.frame()) == 3 * count


@pytest.mark.parametrize("options", [*EVERY, {"where": "width < 0"}])
def test_no_queries_get_no_answers(options):
    found = search_vectors(FLAT, QUERIES[:0], 4, **options)
    assert found.positions.shape == found.scores.shape == (0, 4)
    assert len(found) == len(found.frame()) == 0
    assert Searcher(FLAT).search([], k=4, **options).positions.shape == (0, 4)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 0}, "k=0"),
        ({"k": -3, "where": "width < 0"}, "k=-3"),
        ({"expand": -1}, "expand=-1"),
        ({"alpha": -0.5}, "alpha=-0.5"),
        ({"reciprocal": 0}, "reciprocal=0"),
        ({"mmr": 1.5}, "mmr=1.5"),
        ({"mmr": float("nan")}, "mmr=nan"),
        ({"mmr": "0.5"}, "mmr='0.5'"),
        ({"minimum": "high"}, "minimum='high'"),
        ({"pool": 0}, "pool=0"),
        *(({name: value}, f"{name}={value!r}") for name in WHOLE for value in (2.5, True, math.nan, math.inf, "3")),
        *(({name: value}, f"{name}={value!r}") for name in REAL for value in (True, math.nan, "0.5", 1j)),
        *(({name: None}, f"{name}=None") for name in ("k", "expand", "pool", "alpha", "combine")),
        ({"combine": "no"}, "combine='no'"),
        ({"mmr": np.float32(1.5)}, "mmr=.*1.5"),
        ({"distinct": [0.5]}, r"distinct=\[0.5\]"),
        ({"mmr": 0.5, "reciprocal": 5}, "reciprocal and mmr"),
        ({"where": np.ones(COUNT - 1, bool)}, r"bool of shape \(119,\)"),
        ({"where": np.arange(COUNT)}, r"int64 of shape \(120,\)"),
        ({"where": ["cat"]}, r"\(1,\)"),
        ({"where": "colour == 1"}, "no column 'colour'"),
        ({"where": ""}, "where=''"),
    ],
)
def test_options_out_of_range_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        search_vectors(FLAT, QUERIES, **options)


@pytest.mark.parametrize("value", [0, 2.5, True, math.nan, "3", None])
@pytest.mark.parametrize("name", ["k", "per_group", "pool"])
def test_numbers_of_a_recommendation_are_refused_likewise(name, value):
    with pytest.raises(ArgumentError, match=f"{name}={value!r}"):
        Searcher(FLAT).recommend(["p1"], **{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_may_be_numpys(kind):
    for options in ({"k": 110, "pool": 120}, {"k": 9, "expand": 5, "alpha": 2}, {"k": 9, "reciprocal": 5, "pool": 200}):
        small = {name: np.uint8(value) for name, value in options.items()}
        found, expected = (search_vectors(INDEXES[kind], QUERIES, mmr=None, **given) for given in (small, options))
        np.testing.assert_array_equal(found.positions, expected.positions)
    assert Searcher(FLAT).recommend(["p1"], k=np.uint8(90)).positions.shape == (1, 90)
    assert Options(mmr=np.float32(0.5)) == Options(mmr=0.5) and type(Options(pool=np.int64(7)).pool) is int


def test_a_pool_and_an_expansion_beyond_the_index_take_no_more_than_it_holds():
    for name, enough in (("pool", {"distinct": 0.5}), ("expand", {})):
        found, expected = (search_vectors(FLAT, QUERIES, 5, **enough, **{name: size}) for size in (10**12, COUNT))
        np.testing.assert_array_equal(found.positions, expected.positions)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'minimun'"):
        search_vectors(FLAT, QUERIES, minimun=0.5)
