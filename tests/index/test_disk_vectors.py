"""Indexes beyond memory: built block by block, kept on disk."""

import logging

import faiss
import numpy as np
import pytest
from makers.indexes import clustered, named, nearest

from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.index import factory, tuning
from rectrio_lib.index.faiss_vectors import search_faiss
from rectrio_lib.index.index import Index
from rectrio_lib.index.large import disk_vectors

COUNT, DIM = 3000, 32


@pytest.fixture
def vectors():
    return clustered(np.random.default_rng(0), COUNT, DIM)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, several files of codes that are joined, several parts of queries."""
    monkeypatch.setattr(knn, "BLOCK_ROWS", 400)
    monkeypatch.setattr(factory, "LISTED_BYTES", 700 * 16)
    monkeypatch.setattr(disk_vectors, "KEPT_BYTES", 1 << 20)


def disk(vectors, **options):
    return Index.build(factory.ON_DISK, vectors, named(0, len(vectors)), "abc", **options)


def test_blocks_make_the_index_that_one_block_makes(vectors, monkeypatch):
    queries = clustered(np.random.default_rng(1), 50, DIM)
    whole = disk(vectors, search_param=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "BLOCK_ROWS", 400)
        patch.setattr(factory, "LISTED_BYTES", 700 * 16)
        blocks = disk(vectors, search_param=3)
    for found, expected in zip(blocks.search(queries, 10), whole.search(queries, 10), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_asked_recall_is_kept_on_queries_not_tuned_on(vectors, small_blocks):
    queries = clustered(np.random.default_rng(1), 500, DIM)
    index = disk(vectors, recall=0.9)
    _, expected = nearest(vectors, queries, 10)
    scores, _ = index.search(queries, 10)
    assert index.recall >= 0.9 and (scores >= expected[:, -1:] - 2e-3).mean() >= 0.88
    assert index.search_param < factory.search_params(factory.ON_DISK, COUNT)[-1]


def test_what_is_tuned_on_is_in_the_index_afterwards_and_not_before(vectors, monkeypatch):
    seen = []

    def tune(index, truth, recall):
        seen.append((len(index), truth.recall(index).shape))
        return 1.0

    monkeypatch.setattr(tuning, "tune", tune)
    index = disk(vectors)
    assert seen == [(COUNT - 300, (300,))] and len(index) == COUNT
    assert index.search(vectors[::50], 1)[1][:, 0].tolist() == list(range(0, COUNT, 50))


def test_of_many_vectors_the_held_out_go_with_all_their_equals(vectors, monkeypatch):
    monkeypatch.setattr(tuning, "MANY", 2000)
    monkeypatch.setattr(tuning, "FEWER_QUERIES", 100)
    twice = np.concatenate([vectors, vectors[:1500]])
    queries, held = tuning.holdout(twice)
    assert len(queries) == 100
    same = (twice[:, None, :4] == twice[None, queries, :4]).all(2).any(1)
    assert held.tolist() == np.flatnonzero(same).tolist() and len(held) > 110


def test_what_is_added_waits_in_memory_and_is_saved_with_the_rest(vectors, small_blocks):
    index, fresh = disk(vectors, search_param=8), clustered(np.random.default_rng(2), 900, DIM)
    index.add(fresh, named(COUNT, 900))
    assert len(index._vectors._exact) == COUNT and index.search(fresh[:9], 1)[1][:, 0].tolist() == [*range(3000, 3009)]
    index.remove([f"p{i}" for i in range(100)])
    index.save("toy")
    loaded = Index.load("toy")
    assert (len(loaded), loaded._vectors.faiss.ntotal, loaded.kind) == (3800, 3800, factory.ON_DISK)
    np.testing.assert_allclose(loaded.vectors_at(np.array([0, 3799])), [vectors[100], fresh[-1]], atol=1e-3)
    assert loaded.search(fresh[:9], 1)[1][:, 0].tolist() == [*range(2900, 2909)]


def test_no_query_finds_nothing_and_vectors_that_all_wait_in_memory_are_found(vectors):
    index = disk(vectors, search_param=8)
    assert [part.shape for part in index.search(vectors[:0], 5)] == [(0, 5), (0, 5)]
    index._vectors.keep(np.arange(0))
    index._vectors._tail = vectors[:50].astype(np.float16)
    index._mark(np.zeros(50, bool))
    scores, positions = index._vectors.approximate(vectors[:3], 60, 8, index._kept)
    assert positions[:, 0].tolist() == [0, 1, 2] and (positions[:, 50:] == -1).all() and scores.shape == (3, 60)


def test_another_index_in_its_place_does_not_change_an_open_one(vectors):
    disk(vectors, search_param=8).save("toy")
    opened = Index.load("toy")
    disk(-vectors[:2000], search_param=8).save("toy")
    assert opened.save("copy") and Index.load("copy").search(vectors[:5], 1)[1][:, 0].tolist() == list(range(5))


@pytest.mark.parametrize("name", disk_vectors.NAMES)
def test_a_cut_or_missing_file_is_named(vectors, name):
    path = disk(vectors, search_param=8).save("toy") / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=name):
        Index.load("toy")
    path.write_bytes(content[:-99])
    with pytest.raises(DataError, match=name):
        Index.load("toy")


def test_auto_goes_to_disk_where_memory_ends_and_says_why(caplog):
    with caplog.at_level(logging.INFO):
        assert factory.candidates("auto", 128, 10**7, "2GB") == ["ivf-sq8", "ivf-pq-disk"]
        assert factory.candidates("auto", 128, 10**7, 10**9) == ["ivf-pq-disk"]
        assert factory.candidates("auto", 128, 10**7, "6 GB")[0] == "hnsw"
    assert "ivf-pq-disk takes 0." in caplog.text and "hnsw 5." in caplog.text
    assert "ivf-pq-disk" not in factory.candidates("auto", 128, 10**7)


def test_a_limit_too_small_says_how_much_is_needed():
    needed = factory.needed("ivf-pq-disk", 128, 10**7)
    with pytest.raises(ArgumentError, match=f"{needed:,} bytes as ivf-pq-disk"):
        factory.candidates("auto", 128, 10**7, "100MB")
    assert factory.candidates("auto", 128, 10**7, needed)


@pytest.mark.parametrize(("told", "expected"), [("2GB", 2 * 10**9), ("1.5 MB", 1_500_000), (7, 7), ("10kB", 10_000)])
def test_a_size_is_read(told, expected):
    assert factory.byte_count(told) == expected


@pytest.mark.parametrize("told", ["", "much", "-1GB", 0, -5, "0GB", 1.5, "2XB"])
def test_what_is_no_size_is_refused(told):
    with pytest.raises(ArgumentError, match="memory_limit"):
        factory.byte_count(told)


@pytest.mark.parametrize(("share", "cells"), [(1, 3), (0.9, 3), (0.8, 3), (0.5, 6)])
def test_a_setting_is_used_as_it_was_tuned_with_some_vectors_held_out(vectors, monkeypatch, share, cells):
    index, asked, make = disk(vectors, search_param=3), [], faiss.SearchParametersIVF
    monkeypatch.setattr(disk_vectors, "EXACT_ROWS", 0)
    monkeypatch.setattr(faiss, "SearchParametersIVF", lambda **given: asked.append(given["nprobe"]) or make(**given))
    index.search(vectors[:1], 5, where=np.arange(COUNT) < share * COUNT)
    assert asked == [cells]


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("allowed", [1, 2])
def test_candidates_are_ranked_by_their_vectors_as_numpy_ranks_them(vectors, monkeypatch, k, allowed):
    monkeypatch.setattr(disk_vectors, "EXACT_ROWS", 0)
    index, queries = disk(vectors, search_param=4), clustered(np.random.default_rng(3), 30, DIM)
    held, cells = index._vectors, 4 * allowed  # half of the vectors are looked for in twice the cells
    mask = np.arange(COUNT) % allowed == 0
    selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    parameters = faiss.SearchParametersIVF(nprobe=cells, sel=selector)
    _, candidates = search_faiss(held.faiss, queries, k + 10 * cells, parameters)
    exact = np.asarray(held._exact, np.float32)
    scores, positions = index.search(queries, k, where=mask if allowed > 1 else None)
    for query, chosen, found, cosines in zip(queries, candidates, positions, scores, strict=True):
        chosen = chosen[chosen >= 0]
        products = exact[chosen] @ query
        best = np.argsort(-products, kind="stable")[:k]
        np.testing.assert_array_equal(found, chosen[best])
        np.testing.assert_allclose(cosines, products[best], atol=1e-6)
