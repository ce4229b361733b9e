import faiss
import numpy as np
import pytest
from makers.indexes import DIM, built, named, unit

from rectrio_lib.core import knn
from rectrio_lib.index import factory, faiss_vectors
from rectrio_lib.index import index as index_module
from rectrio_lib.index.faiss_vectors import FaissVectors, Subset
from rectrio_lib.index.index import Index


def test_a_graph_answers_in_full_even_where_its_walk_ends_early():
    """Many copies of two opposite vectors make a graph of two islands."""
    vectors = np.repeat(np.eye(2, DIM, dtype=np.float32), 400, axis=0)
    index = Index.build("hnsw", vectors, named(0, 800), "abc", search_param=64)
    index.remove([f"p{i}" for i in range(100)])
    parameters = factory.search_parameters("hnsw", 64, 600, 7 / 8, index._kept.selector)
    _, positions = faiss_vectors.search_faiss(index._vectors.faiss, vectors[:1], 600, parameters)
    assert (positions < 0).any(), "the walk did not end early: this test shows nothing"
    scores, positions = index.search(vectors[[0, 799]], 600)
    for row in positions:
        assert len(set(row.tolist())) == 600 and row.min() >= 100
    expected = [[1.0] * 300 + [0.0] * 300, [1.0] * 400 + [0.0] * 200]
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(
    ("mask", "total", "few"),
    [
        *((20_000, 100_000, True), (20_001, 100_000, False)),
        *((50_000, 1_000_000, True), (50_001, 1_000_000, False)),
        *((79, 100, True), (80, 100, False)),
    ],
)
def test_few_of_many_are_compared_one_by_one(mask, total, few):
    among = Subset(np.arange(total) < mask)
    assert (among.count, FaissVectors("hnsw", 4).is_few(among)) == (mask, few)


def test_a_few_removed_vectors_do_not_make_a_walk_compare_everyone(monkeypatch):
    index, vectors = built("hnsw", 300)
    index.remove([f"p{i}" for i in range(60)])
    monkeypatch.setattr(faiss_vectors.FaissVectors, "exact", die)
    assert (index.search(vectors, 5)[1] >= 60).all()


def test_who_may_answer_is_written_down_for_faiss_once():
    index, vectors = built()
    assert index._kept.selector is None
    index.remove(["p1"])
    assert index._kept.selector is index._kept.selector is not None
    assert (index.search(vectors, 39)[1] != 1).all()


def die(*arguments, **options):
    raise OSError("killed")


@pytest.fixture
def two_threads():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before)


class Watched:
    """An index that notes how many threads a search may use, and may fail."""

    def __init__(self, inner, fail=False):
        self.inner, self.fail, self.seen = inner, fail, []

    def search_c(self, *arguments):
        self.seen.append(faiss.omp_get_max_threads())
        return die() if self.fail else self.inner.search_c(*arguments)


@pytest.mark.parametrize(("queries", "threads"), [(1, 1), (2, 2)])
def test_a_single_query_takes_one_thread_and_gives_the_others_back(two_threads, queries, threads):
    index, vectors = built()
    index._vectors.faiss = Watched(index._vectors.faiss)
    index.search(vectors[:queries], 3)
    assert index._vectors.faiss.seen == [threads]
    assert faiss.omp_get_max_threads() == 2


def test_threads_are_given_back_after_a_failed_search(two_threads):
    index, vectors = built()
    index._vectors.faiss = Watched(index._vectors.faiss, fail=True)
    with pytest.raises(OSError, match="killed"):
        index.search(vectors[:1], 3)
    assert index._vectors.faiss.seen == [1]
    assert faiss.omp_get_max_threads() == 2


def test_a_graph_lies_in_an_order_of_its_own_which_nobody_sees():
    index, vectors = built("hnsw", 900)
    assert not np.array_equal(faiss.vector_to_array(index._vectors.faiss.id_map), np.arange(900))
    for gone in ([], [f"p{i}" for i in range(5)], [f"p{i}" for i in range(5, 400)]):  # the last ones: built anew
        index.remove(gone)
        places = index.rows["image_id"].str[1:].astype(int).to_numpy()
        left = np.flatnonzero(~index.removed)
        np.testing.assert_allclose(index.vectors_at(left), vectors[places[left]], atol=1e-3)
        assert index.search(vectors[places[left]], 1)[1][:, 0].tolist() == left.tolist()
    mask = np.arange(len(index.rows)) % 3 > 0
    assert set(index.search(vectors[:50], 10, where=mask)[1].ravel()) <= set(np.flatnonzero(mask))


def test_neighbourly_puts_near_vectors_beside_each_other_and_leaves_none_out():
    centres = unit(np.random.default_rng(0), 4, 16)
    vectors = np.repeat(centres[None], 2000, 0).reshape(-1, 16)  # one of each in turn
    order = factory.locality_order(vectors)
    assert sorted(order) == list(range(8000))
    assert (np.diff(order % 4) != 0).sum() < 4
    assert factory.locality_order(vectors[:799]).tolist() == list(range(799))


def test_what_a_condition_or_a_mask_chose_is_found_out_once_until_the_index_changes(monkeypatch):
    calls = []
    real = index_module.matching
    monkeypatch.setattr(index_module, "matching", lambda *given: (calls.append(given[1]), real(*given))[1])
    index, vectors = built("hnsw", 300)
    mask = np.arange(300) < 9
    for _ in range(3):
        assert index.count("number < 9") == index.count(mask) == 9
        assert sorted(index.search(vectors[:1], 9, where="number < 9")[1][0]) == list(range(9))
        assert sorted(index.search(vectors[:1], 9, where=mask)[1][0]) == list(range(9))
    assert calls == ["number < 9"]
    mask[:5] = False  # the caller's own array
    assert index.count(mask) == 4
    index.remove(["p8"])
    index.add(vectors[:1], named(300, 1).assign(number=-1))
    assert (index.count("number < 9"), calls) == (9, ["number < 9"] * 2)
    assert sorted(index.search(vectors[:1], 9, where="number < 9")[1][0]) == [*range(8), 300]


def test_a_graph_takes_in_no_more_at_once_than_the_memory_limit_leaves(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK_ROWS", 50)
    sizes, order = [], factory.locality_order
    monkeypatch.setattr(factory, "locality_order", lambda block: sizes.append(len(block)) or order(block))
    for limit, expected in ((None, [300]), (factory.memory("hnsw", DIM, 300) + 100 * 8 * DIM, [100] * 3)):
        index, vectors = built("hnsw", 300, memory_limit=limit)
        assert sizes == expected
        np.testing.assert_allclose(index.vectors_at(np.arange(300)), vectors, atol=1e-3)
        del sizes[:]
        index._vectors.keep(np.arange(300))
        assert sizes == expected
        del sizes[:]
