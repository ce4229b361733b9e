"""Indexes beyond memory: built block by block, kept on disk."""

import json
import logging
import mmap
from pathlib import Path

import faiss
import numpy as np
import pytest
from makers.indexes import clustered, named, nearest

from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.index import factory, opening, tuning
from rectrio_lib.index.faiss_vectors import search_faiss
from rectrio_lib.index.index import Index
from rectrio_lib.index.large import disk_vectors, writing

COUNT, DIM = 3000, 32


@pytest.fixture
def vectors():
    return clustered(np.random.default_rng(0), COUNT, DIM)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, several files of codes that are joined, several parts of queries."""
    monkeypatch.setattr(knn, "BLOCK_ROWS", 400)
    monkeypatch.setattr(factory, "LISTED_BYTES", 700 * 80)
    monkeypatch.setattr(disk_vectors, "LOOK_ROWS", 256)


def disk(vectors, **options):
    return Index.build(factory.ON_DISK, vectors, named(0, len(vectors)), "abc", **options)


def test_blocks_make_the_index_that_one_block_makes(vectors, monkeypatch):
    queries = clustered(np.random.default_rng(1), 50, DIM)
    whole = disk(vectors, search_param=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "BLOCK_ROWS", 400)
        patch.setattr(factory, "LISTED_BYTES", 700 * 80)
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


def test_the_vectors_of_a_cell_lie_together_in_the_file(vectors, small_blocks):
    held = disk(vectors, search_param=8)._vectors
    lists = faiss.downcast_InvertedLists(held.faiss.invlists)
    places = [faiss.rev_swig_ptr(lists.get_ids(cell), lists.list_size(cell)).tolist() for cell in range(lists.nlist)]
    assert [place for cell in places for place in cell] == list(range(COUNT))
    np.testing.assert_array_equal(held._exact, vectors[held._position_at[:-1]].astype(np.float16))
    np.testing.assert_array_equal(held._place_of[held._position_at[:-1]], np.arange(COUNT))
    nearest_cell = held.faiss.quantizer.search(vectors[held._position_at[:-1]], 1)[1][:, 0]
    assert (np.diff(nearest_cell) >= 0).all()


def test_near_cells_lie_near_each_other(vectors):
    held = disk(vectors, search_param=8)._vectors
    centroids = held.faiss.quantizer.reconstruct_n(0, held.faiss.nlist)
    products = centroids @ centroids.T
    assert np.diagonal(products, 1).mean() > 2 * products.mean()


def test_files_of_earlier_versions_are_in_the_order_of_the_rows_and_are_read(vectors):
    index, queries = disk(vectors, search_param=3), clustered(np.random.default_rng(1), 50, DIM)
    masks = None, np.arange(COUNT) % 2 == 0
    expected = [index.search(queries, 10, where=where) for where in masks]
    folder, order = index.save("toy"), index._vectors._position_at[:-1]
    held = faiss.read_index(str(folder / "vectors.faiss"))
    lists = faiss.downcast_InvertedLists(held.invlists)
    for cell in range(held.nlist):
        ids = faiss.rev_swig_ptr(lists.get_ids(cell), lists.list_size(cell))
        ids[:] = order[ids]
    faiss.write_index(held, str(folder / "vectors.faiss"))
    np.save(folder / "vectors.npy", vectors.astype(np.float16))
    (folder / "vectors.places.npy").unlink()
    card = json.loads((folder / "card.json").read_text())
    del card["checksums"], card["memory_limit"]
    (folder / "card.json").write_text(json.dumps(card))
    earlier = Index.load("toy")
    for where, (scores, positions) in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(earlier.search(queries, 10, where=where)[0], scores)
        np.testing.assert_array_equal(earlier.search(queries, 10, where=where)[1], positions)
    assert Index.load(earlier.save("again")).search(vectors[:9], 1)[1][:, 0].tolist() == list(range(9))


def mapped_bytes(path):
    """Memory of this process that pages of a mapped file take."""
    held, lines = 0, Path("/proc/self/maps").read_text().splitlines()
    with Path("/proc/self/pagemap").open("rb") as pages:
        for line in lines:
            if line.endswith(str(path)):
                start, end = (int(place, 16) // mmap.PAGESIZE for place in line.split()[0].split("-"))
                pages.seek(8 * start)
                held += int((np.frombuffer(pages.read(8 * (end - start)), np.uint64) >> np.uint64(63)).sum())
    return held * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="only Linux tells which pages are held")
def test_searches_stay_within_the_memory_limit_and_it_is_saved(monkeypatch):
    monkeypatch.setattr(writing, "WRITTEN_BYTES", 1 << 16)  # Linux holds as much as was written at once, or nothing
    monkeypatch.setattr(disk_vectors, "LOOK_ROWS", 64)
    monkeypatch.setattr(disk_vectors, "PIECE_BYTES", 1 << 19)
    vectors = clustered(np.random.default_rng(0), 16_000, 128)
    disk(vectors, search_param=4, memory_limit="1GB").save("toy")
    index = Index.load("toy")
    assert index._vectors.limit == 10**9
    file = index._vectors._exact.filename
    monkeypatch.setattr(knn, "resident", lambda: mapped_bytes(file))

    def most(limit):
        index._vectors.limit, most = limit, 0
        for query in vectors[::160]:
            index.search(query[None], 10)
            most = max(most, mapped_bytes(file))
        return most

    assert most(3 << 19) < 5 << 19 < 0.7 * most(None)  # what a few queries look at comes on top


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells it")
def test_pages_that_are_looked_at_count_until_they_are_let_go(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((64 << 20) // 8))
    before, mapped = knn.resident(), np.load(tmp_path / "a.npy", mmap_mode="r")
    assert mapped[:: mmap.PAGESIZE // 8].sum() and knn.resident() - before > 60 << 20
    knn.let_go(mapped, 0, 32 << 20)
    assert 28 << 20 < knn.resident() - before < 36 << 20
    knn.let_go(mapped)
    assert knn.resident() - before < 8 << 20


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
        assert factory.candidates("auto", 128, 10**7, "2GB", tell=True) == ["ivf-sq8", "ivf-pq-disk"]
        assert factory.candidates("auto", 128, 10**7, 10**9, tell=True) == ["ivf-pq-disk"]
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


@pytest.mark.parametrize("told", ["", "much", "-1GB", 0, -5, "0GB", 1.5, "2XB", "0.0001kB", f"{'9' * 400}GB", 10**30])
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
    mask, order = np.arange(COUNT) % allowed == 0, held._position_at[:-1]
    selector = faiss.IDSelectorBitmap(np.packbits(mask[order], bitorder="little"))
    parameters = faiss.SearchParametersIVF(nprobe=cells, sel=selector)
    _, candidates = search_faiss(held.faiss, queries, k + 10 * cells, parameters)
    exact = index.vectors_at(np.arange(COUNT))
    scores, positions = index.search(queries, k, where=mask if allowed > 1 else None)
    for query, chosen, found, cosines in zip(queries, candidates, positions, scores, strict=True):
        chosen = order[chosen[chosen >= 0]]
        products = exact[chosen] @ query
        best = np.argsort(-products, kind="stable")[:k]
        np.testing.assert_array_equal(found, chosen[best])
        np.testing.assert_allclose(cosines, products[best], atol=1e-6)


def test_files_lie_in_the_workspace_of_the_index_until_it_is_saved(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_vectors, "TAIL_ROWS", 5)
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / "default"))
    place, rest = Workspace(tmp_path / "mine"), (vectors[1000:1010], named(1000, 10))
    home = place.outputs / "indexes"

    def scratch():
        return [path.name.partition(".")[0] for path in home.iterdir() if path.suffix == ".new"]

    index = disk(vectors[:1000], search_param=3, workspace=place)
    assert scratch() == ["on-disk"]
    index.save("toy", place)
    Index.shards([index]).save("both", place)
    del index
    for name in ("toy", "both"):
        assert scratch() == []
        loaded = opening.open_index(name, place)
        loaded.add(*rest)
        assert scratch() == ["on-disk"] and not list((home / name).glob("**/*.new"))
        np.testing.assert_allclose(loaded.vectors_at(np.arange(1000, 1010)), rest[0], atol=1e-3)
        del loaded
    assert not (tmp_path / "default").exists()
