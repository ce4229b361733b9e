import re

import numpy as np
import pytest
from makers.indexes import DIM, built, clustered, named, nearest, unit

from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.embeddings.store import EmbeddingStore
from rectrio_lib.index.factory import KINDS
from rectrio_lib.index.index import Index

SMALL = {kind: 300 if kind.startswith("ivf") else 40 for kind in KINDS}  # the cells of IVF are learned


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq", "ivf-sq8"])
def test_a_larger_search_parameter_finds_more(kind):
    queries, shares = unit(np.random.default_rng(2), 200), []
    for search_param in (2, 60):
        index, vectors = built(kind, 3000, search_param=search_param)
        truth, found = nearest(vectors, queries, 10)[0], index.search(queries, 10)[1]
        shares.append(np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]))
    assert shares[0] < shares[1] <= 10


@pytest.mark.parametrize(("kind", "rounded"), [("flat", 1e-6), ("hnsw", 1e-3), ("ivf", 1e-6), ("ivf-pq", 1e-3)])
def test_scores_are_cosine_similarities_best_first(kind, rounded):
    index, vectors = built(kind, 300)
    scores, positions = index.search(vectors[:5], 40)
    assert scores.dtype == np.float32 and positions.dtype == np.int64
    np.testing.assert_allclose(scores, np.take_along_axis(vectors[:5] @ vectors.T, positions, 1), atol=rounded)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert positions[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_from_nothing_to_one_short_of_k(kind):
    if kind.startswith("ivf"):
        with pytest.raises(ArgumentError, match=rf"{kind} .* 256"):
            built(kind, 9)
    else:
        for count in (0, 1, 2, 9):
            index, vectors = built(kind, count)
            assert len(index) == count
            with pytest.raises(ArgumentError, match=rf"k=10, .* {count} rows"):
                index.search(unit(np.random.default_rng(1), 1), 10)
            if count:
                assert sorted(index.search(vectors[:1], count)[1][0]) == list(range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_given_back_in_any_shape_and_the_order_asked_for(kind):
    index, vectors = built(kind, SMALL[kind])
    positions = np.array([[7, 0], [39, 7]])
    found = index.vectors_at(positions)
    assert found.dtype == np.float32 and found.shape == (2, 2, DIM)
    np.testing.assert_allclose(found, vectors[positions], atol=0.02 if kind == "ivf-sq8" else 1e-3)
    assert index.vectors_at(np.empty(0, np.int64)).shape == (0, DIM)
    for outside in ([-1], [0, SMALL[kind]]):
        with pytest.raises(IndexError, match=rf"there are {SMALL[kind]} rows"):
            index.vectors_at(np.array(outside))


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq", "ivf-sq8"])
def test_rows_keep_their_order_though_some_vectors_were_held_out(kind):
    vectors = clustered(np.random.default_rng(0), 1200)
    index = Index.build(kind, vectors, named(5, 1200), "abc")
    assert index.recall is not None and index.rows.equals(named(5, 1200))
    np.testing.assert_allclose(index.vectors_at(np.arange(1200)), vectors, atol=0.03)
    hits = index.search(vectors, 1)[1][:, 0] == np.arange(1200)
    assert hits.mean() > 0.95


def test_half_precision_and_mapped_vectors_are_taken_as_they_are(tmp_path):
    vectors = clustered(np.random.default_rng(0), 700).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    for given in (vectors, np.load(tmp_path / "vectors.npy", mmap_mode="r")):
        index = Index.build("hnsw", given, named(0, 700), "abc")
        np.testing.assert_array_equal(index.vectors_at(np.arange(700)), vectors.astype(np.float32))


def test_vectors_are_added_block_by_block(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK_ROWS", 64)
    for kind in KINDS:
        index, vectors = built(kind, 700)
        index.remove([f"p{i}" for i in range(0, 700, 4)])
        kept = np.arange(700) % 4 > 0
        np.testing.assert_allclose(index.vectors_at(np.arange(525)), vectors[kept], atol=0.03)


def test_a_store_is_indexed_whole_or_by_split(tmp_path):
    vectors = unit(np.random.default_rng(0), 30)
    np.save(tmp_path / "vectors-00000.npy", vectors)
    rows = named(0, 30).assign(split=["train", "val", "test"] * 10, shard=0)
    store = EmbeddingStore(tmp_path, rows, {"encoder_hash": "abc", "dim": DIM})
    whole = Index.build("auto", store.vectors(), store.select(), "abc")
    part = Index.build("hnsw", store.vectors("train", "val"), store.select("train", "val"), "abc", 0.9)
    assert (whole.kind, len(whole), whole.encoder_hash, whole.recall) == ("flat", 30, "abc", 1.0)
    assert (part.kind, len(part)) == ("hnsw", 20)
    assert part.rows["image_id"].tolist() == [f"p{i}" for i in range(30) if i % 3 < 2]
    np.testing.assert_allclose(part.vectors_at(np.arange(20)), vectors[np.arange(30) % 3 < 2], atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "count", "line"),
    [
        ("flat", 40, "flat, 40 images, exact, 24 bytes per vector"),
        ("hnsw", 40, "hnsw, 40 images, recall not measured at efSearch 33, 292 bytes per vector"),
    ],
)
def test_an_index_says_in_one_line_what_it_is(kind, count, line):
    index, _ = built(kind, count, search_param=33)
    assert index.info() == repr(index) == line
    index.recall = 0.9512
    assert kind == "flat" or "recall 0.951 at efSearch 33" in index.info()


@pytest.mark.parametrize("kind", KINDS)
def test_any_float_type_and_memory_order_is_taken(kind):
    index, vectors = built(kind, SMALL[kind])
    expected = index.search(vectors[:6], 3)[1]
    for queries in (vectors[:6].astype(np.float64), np.asfortranarray(vectors[:6]), vectors[:12:2]):
        np.testing.assert_array_equal(index.search(queries, 3)[1][0], expected[0])
    again = Index.build(
        kind, np.asfortranarray(vectors.astype(np.float64)), named(0, len(vectors)), "abc", search_param=99
    )
    np.testing.assert_array_equal(again.search(vectors[:6], 3)[1], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_removed_vectors_are_dropped_for_good_beyond_a_fifth(kind):
    count, fifth = SMALL[kind], SMALL[kind] // 5
    index, _ = built(kind, count)
    index.remove([f"p{i}" for i in range(fifth)])
    assert (len(index), len(index.rows)) == (count - fifth, count)
    index.remove([f"p{fifth}"])
    assert len(index) == len(index.rows) == index._vectors.faiss.ntotal == count - fifth - 1


def test_what_was_removed_cannot_be_removed_again():
    index, _ = built()
    index.remove(["p1", "p2"])
    with pytest.raises(ArgumentError, match="'p2'"):
        index.remove(["p3", "p2"])
    assert len(index) == 38


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_may_be_emptied_saved_and_filled_again(kind):
    index, vectors = built(kind, SMALL[kind])
    index.remove(index.rows["image_id"].tolist())
    index.save("toy")
    index = Index.load("toy")
    assert len(index) == 0
    index.add(vectors[:5], named(0, 5))
    assert index.search(vectors[:5], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]


# --- what is refused


def test_an_unknown_kind_is_refused_with_the_known_ones_named():
    with pytest.raises(ArgumentError, match="'tree'"):
        Index("tree", DIM, "abc")


@pytest.mark.parametrize("k", ["3", 2.5, None, True])
def test_a_number_of_neighbours_that_is_none_is_refused(k):
    index, vectors = built()
    with pytest.raises(ArgumentError, match=re.escape(f"k={k!r}")):
        index.search(vectors[:1], k)


def test_what_is_no_array_of_numbers_is_taken_as_one_or_refused():
    index, vectors = built()
    assert index.search(vectors[:2].tolist(), 1)[1].tolist() == [[0], [1]]
    for wrong in ("shoe", [["a"] * DIM], None):
        with pytest.raises(ArgumentError, match=str(DIM)):
            index.search(wrong, 1)


@pytest.mark.parametrize("change", [np.nan, np.inf, -np.inf, 0.0, 0.98, 559], ids=str)
def test_vectors_that_are_not_finite_or_not_of_unit_length_are_refused(change):
    index, vectors = built()
    vectors[3] *= change
    for action in (lambda: index.search(vectors, 1), lambda: index.add(vectors, named(999, len(vectors)))):
        with pytest.raises(ArgumentError, match="Vector 3"):
            action()


@pytest.mark.parametrize("recall", [0, -0.5, 1.01, 95])
def test_a_recall_that_is_no_share_is_refused(recall):
    with pytest.raises(ArgumentError, match=f"recall={recall}"):
        built(recall=recall)


def test_one_vector_is_not_enough_for_an_index():
    with pytest.raises(ArgumentError, match=r"\(6,\)"):
        Index.build("flat", np.zeros(DIM, np.float32), named(0, 1), "abc")
