import json
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from rectrio_lib import indexing, resources
from rectrio_lib.indexing import KINDS, Index

ROOT = Path(__file__).resolve().parents[1]
DIM = 6


def unit(rng, count, dim=DIM):
    vectors = rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def named(start, count):
    return pd.DataFrame(
        {"image_id": [f"p{i}" for i in range(start, start + count)], "number": range(start, start + count)}
    )


def built(kind="flat", count=40, seed=0, **options):
    vectors = unit(np.random.default_rng(seed), count)
    return Index.build(kind, vectors, named(0, count), "abc", **options), vectors


def found(index, queries, k):
    scores, positions = index.search(queries, k)
    return index.rows["image_id"].to_numpy()[positions].tolist(), scores


def naive(model, queries, k):
    """One query at a time among the vectors that a dictionary holds."""
    ids, scores = [], []
    for query in queries:
        ranked = sorted(((float(np.dot(query, vector)), name) for name, vector in model.items()), reverse=True)[:k]
        ids.append([name for _, name in ranked])
        scores.append([score for score, _ in ranked])
    return ids, scores


def same_answers(index, model, queries, k):
    ids, scores = found(index, queries, k)
    expected_ids, expected_scores = naive(model, queries, k)
    assert ids == expected_ids
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


# --- against a dictionary of vectors


def make_machine(kind):
    class Machine(RuleBasedStateMachine):
        """Random changes of an index, compared after each with a dictionary that underwent the same."""

        def __init__(self):
            super().__init__()
            self.rng, self.next = np.random.default_rng(0), 0
            self.index, self.model = Index(kind, DIM, "abc"), {}

        def add_rows(self, rows):
            vectors = unit(self.rng, len(rows))
            self.index.add(vectors, rows)
            self.model |= dict(zip(rows["image_id"], vectors, strict=True))

        @rule(count=st.integers(0, 12))
        def add(self, count):
            self.add_rows(named(self.next, count))
            self.next += count

        @precondition(lambda self: self.model)
        @rule(data=st.data())
        def add_what_is_there_already(self, data):
            known = data.draw(st.sampled_from(sorted(self.model)))
            rows = pd.DataFrame({"image_id": ["fresh", known]})
            with pytest.raises(ValueError, match=f"already or come twice: '{known}'"):
                self.index.add(unit(self.rng, 2), rows)

        @precondition(lambda self: self.model)
        @rule(data=st.data())
        def remove(self, data):
            gone = data.draw(st.lists(st.sampled_from(sorted(self.model)), max_size=8, unique=True))
            self.index.remove(gone)
            for name in gone:
                del self.model[name]

        @precondition(lambda self: self.model)
        @rule(data=st.data())
        def remove_and_add_again(self, data):
            again = data.draw(st.sampled_from(sorted(self.model)))
            self.index.remove([again])
            self.add_rows(pd.DataFrame({"image_id": [again], "number": [int(again[1:])]}))

        @precondition(lambda self: self.model)
        @rule(data=st.data())
        def remove_something_absent(self, data):
            known = data.draw(st.sampled_from(sorted(self.model)))
            with pytest.raises(KeyError, match="1 of 2 pictures are not in the index, such as 'absent'"):
                self.index.remove([known, "absent"])

        @rule()
        def compact(self):
            self.index.compact()

        @rule()
        def save_and_load(self):
            self.index.save("toy")
            self.index = Index.load("toy")

        @invariant()
        def holds_the_same_and_finds_the_same(self):
            assert len(self.index) == len(self.model)
            if self.model:
                same_answers(self.index, self.model, unit(self.rng, 3), min(5, len(self.model)))
                same_answers(self.index, self.model, unit(self.rng, 1), len(self.model))

        @invariant()
        def every_row_stays_with_its_vector(self):
            if self.model:
                names, vectors = list(self.model), np.stack(list(self.model.values()))
                rows = self.index.rows.iloc[self.index.search(vectors, 1)[1][:, 0]]
                assert rows["image_id"].tolist() == names
                assert [f"p{number:.0f}" for number in rows["number"]] == names

    return Machine


@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold(kind):
    steps = settings(max_examples=25, stateful_step_count=15, deadline=None)
    run_state_machine_as_test(make_machine(kind), settings=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_many_vectors_are_found_as_by_naive_search_and_a_graph_misses_few(kind):
    rng = np.random.default_rng(1)
    index, vectors = built(kind, 1500)
    model, queries = dict(zip(index.rows["image_id"], vectors, strict=True)), unit(rng, 50)
    index.remove([f"p{i}" for i in range(0, 1500, 6)])
    kept = {name: vector for name, vector in model.items() if int(name[1:]) % 6}
    (ids, _), (expected, _) = found(index, queries, 10), naive(kept, queries, 10)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, expected, strict=True)])
    assert hits == 1 if kind == "flat" else hits > 0.95
    assert {int(name[1:]) % 6 for row in ids for name in row} <= {1, 2, 3, 4, 5}


def test_a_wider_walk_finds_more():
    queries = unit(np.random.default_rng(2), 200)
    truth = built("flat", 3000)[0].search(queries, 10)[1]
    shares = []
    for ef_search in (10, 200):
        index, _ = built("hnsw", 3000, ef_search=ef_search)
        shares.append(
            np.mean([len(np.intersect1d(a, b)) for a, b in zip(index.search(queries, 10)[1], truth, strict=True)])
        )
    assert shares[0] < shares[1] <= 10


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_cosine_similarities_best_first(kind):
    index, vectors = built(kind)
    scores, positions = index.search(vectors[:5], 40)
    assert scores.dtype == np.float32 and positions.dtype == np.int64
    np.testing.assert_allclose(scores, np.take_along_axis(vectors[:5] @ vectors.T, positions, 1), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert positions[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_any_float_type_and_memory_order_is_taken(kind):
    index, vectors = built(kind)
    expected = index.search(vectors[:6], 3)[1]
    for queries in (vectors[:6].astype(np.float64), np.asfortranarray(vectors[:6]), vectors[:12:2]):
        np.testing.assert_array_equal(index.search(queries, 3)[1][0], expected[0])
    again = Index.build(kind, np.asfortranarray(vectors.astype(np.float64)), named(0, 40), "abc")
    np.testing.assert_array_equal(again.search(vectors[:6], 3)[1], expected)


def test_a_graph_answers_in_full_even_where_its_walk_ends_early():
    """Many copies of two opposite vectors make a graph of two islands."""
    vectors = np.repeat(np.eye(2, DIM, dtype=np.float32), 400, axis=0)
    index = Index.build("hnsw", vectors, named(0, 800), "abc")
    index.remove([f"p{i}" for i in range(100)])
    _, positions = indexing._search(index._faiss, vectors[:1], 600, index._parameters(600))
    assert (positions < 0).any(), "the walk did not end early: this test shows nothing"
    scores, positions = index.search(vectors[[0, 799]], 600)
    for row in positions:
        assert len(set(row.tolist())) == 600 and row.min() >= 100
    expected = [[1.0] * 300 + [0.0] * 300, [1.0] * 400 + [0.0] * 200]
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_removed_vectors_are_dropped_for_good_beyond_a_fifth(kind):
    index, _ = built(kind, 40)
    index.remove([f"p{i}" for i in range(8)])
    assert (len(index), len(index.rows)) == (32, 40)
    index.remove(["p8"])
    assert (len(index), len(index.rows), index._faiss.ntotal) == (31, 31, 31)


def test_what_was_removed_cannot_be_removed_again():
    index, _ = built()
    index.remove(["p1", "p2"])
    with pytest.raises(KeyError, match="1 of 2 pictures are not in the index, such as 'p2'"):
        index.remove(["p3", "p2"])
    assert len(index) == 38


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_may_be_emptied_saved_and_filled_again(kind):
    index, vectors = built(kind, 5)
    index.remove(index.rows["image_id"].tolist())
    index.save("toy")
    index = Index.load("toy")
    assert len(index) == 0
    index.add(vectors, named(0, 5))
    assert index.search(vectors, 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]


# --- what is refused


def test_an_unknown_kind_is_refused_with_the_known_ones_named():
    with pytest.raises(ValueError, match="kind='ivf' is unknown: choose one of flat, hnsw"):
        Index("ivf", DIM, "abc")


@pytest.mark.parametrize("k", [0, -1, 38])
def test_more_neighbours_than_pictures_are_refused_removed_ones_not_counted(k):
    index, vectors = built()
    index.remove(["p1", "p2", "p3"])
    with pytest.raises(ValueError, match=f"k={k}, but the index holds 37 pictures: ask for 1 to 37"):
        index.search(vectors[:1], k)


@pytest.mark.parametrize("shape", [(2, DIM + 1), (DIM,), (1, 1, DIM)])
def test_vectors_of_another_shape_are_refused(shape):
    index, _ = built()
    for action in (lambda v: index.search(v, 1), lambda v: index.add(v, named(99, len(v)))):
        with pytest.raises(ValueError, match=f"vectors of length {DIM}, not an array of shape"):
            action(np.zeros(shape, np.float32))
    assert len(index) == 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_no_numbers_are_refused(kind, bad):
    index, vectors = built(kind)
    vectors[3, 2] = bad
    for action in (lambda: index.search(vectors, 1), lambda: index.add(vectors, named(99, 40))):
        with pytest.raises(ValueError, match="NaN or infinity"):
            action()


def test_a_query_from_another_encoder_is_refused_with_both_named():
    index, vectors = built()
    with pytest.raises(ValueError, match="built with encoder abc, the query was made by encoder xyz"):
        index.search(vectors, 1, encoder_hash="xyz")
    for trusted in ("abc", None):
        assert index.search(vectors, 1, encoder_hash=trusted)[1].shape == (40, 1)


def test_rows_that_do_not_match_the_vectors_are_refused_and_nothing_is_added():
    index, vectors = built()
    with pytest.raises(ValueError, match="40 vectors but 39 rows"):
        index.add(vectors, named(100, 39))
    with pytest.raises(ValueError, match="1 of these pictures are in the index already or come twice: 'p100'"):
        index.add(vectors[:2], named(100, 1).iloc[[0, 0]])
    assert (len(index), len(index.rows), index._faiss.ntotal) == (40, 40, 40)


# --- saved and loaded


@pytest.mark.parametrize(("kind", "module"), [("flat", "torch, faiss.contrib.torch_utils"), ("hnsw", "sys")])
def test_a_saved_index_gives_the_same_answers_in_a_new_process_whatever_that_imports(kind, module, tmp_path):
    index, _ = built(kind, 200, ef_search=20)
    index.remove([f"p{i}" for i in range(0, 200, 9)])
    queries = unit(np.random.default_rng(5), 30)
    ids, scores = found(index, queries, 7)
    index.save("toy")
    np.save(tmp_path / "queries.npy", queries)
    code = (
        f"import {module}, sys, json, numpy as np; from rectrio_lib.indexing import Index; index = Index.load('toy'); "
        "scores, positions = index.search(np.load(sys.argv[1]), 7, 'abc'); "
        "print(json.dumps([index.rows['image_id'].to_numpy()[positions].tolist(), scores.tolist(), index.ef_search]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "queries.npy")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    their_ids, their_scores, ef_search = json.loads(done.stdout)
    assert ef_search == 20
    assert their_ids == ids if kind == "flat" else np.mean(np.array(their_ids) == np.array(ids)) > 0.98
    np.testing.assert_allclose(their_scores, scores, atol=1e-5 if kind == "flat" else 0.1)


def test_the_folder_holds_three_files_that_tell_what_the_index_is():
    index, _ = built("hnsw", ef_search=33)
    index.remove(["p0"])
    folder = index.save("toy")
    assert folder == resources.outputs_root() / "indexes" / "toy"
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "rows.parquet", "vectors.faiss"]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card == {"kind": "hnsw", "dim": DIM, "encoder_hash": "abc", "ef_search": 33, "count": 39}
    assert Index.load("toy").encoder_hash == "abc"


def test_a_missing_index_names_the_chapter_that_makes_it():
    with pytest.raises(resources.MissingArtefact, match=r"toy is missing\. Chapter 05_search_and_visualize makes it"):
        Index.load("toy")


@pytest.mark.parametrize("left", [slice(-99), slice(0), slice(9, None)], ids=["cut", "empty", "headless"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_vector_file_is_named(kind, left):
    path = built(kind)[0].save("toy") / "vectors.faiss"
    path.write_bytes(path.read_bytes()[left])
    with pytest.raises(ValueError, match=r"vectors\.faiss is damaged or no FAISS index: build it again"):
        Index.load("toy")


@pytest.mark.parametrize("change", [{"count": 41}, {"dim": 5}, {"kind": "hnsw"}, "vectors.faiss", "rows.parquet"])
def test_files_that_do_not_belong_together_are_refused(change):
    folder, other = built()[0].save("toy"), built(count=41)[0].save("other")
    if isinstance(change, str):
        shutil.copy(other / change, folder / change)
    else:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        resources.write_json(folder / "card.json", {**card, **change})
    with pytest.raises(ValueError, match="do not belong together: build it again"):
        Index.load("toy")


def die(*arguments):
    raise OSError("killed")


@pytest.mark.parametrize("rename", range(3))
def test_a_save_killed_before_any_rename_leaves_an_index_that_opens(monkeypatch, rename):
    """The renames: card.json, the old folder aside, the new folder into its place."""
    old, vectors = built()
    old.save("toy")
    done, real = [], Path.replace

    def replace_or_die(path, target):
        done.append(path.name)
        return die() if len(done) > rename else real(path, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(Path, "replace", replace_or_die)
        built(count=50, seed=1)[0].save("toy")
    assert len(done) == rename + 1
    loaded = Index.load("toy")
    assert loaded.rows.equals(old.rows)
    np.testing.assert_array_equal(loaded.search(vectors, 3)[1], old.search(vectors, 3)[1])
    built(count=50, seed=1)[0].save("toy")
    assert len(Index.load("toy")) == 50
    assert [p.name for p in (resources.outputs_root() / "indexes").iterdir()] == ["toy"]


def test_a_vector_file_that_cannot_be_written_leaves_the_old_index_whole(monkeypatch):
    built()[0].save("toy")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(indexing.faiss, "write_index", die)
        built(count=50)[0].save("toy")
    assert len(Index.load("toy")) == 40


# --- threads


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

    def search(self, vectors, k, params):
        self.seen.append(faiss.omp_get_max_threads())
        return die() if self.fail else indexing._search(self.inner, vectors, k, params)


@pytest.mark.parametrize(("queries", "threads"), [(1, 1), (2, 2)])
def test_a_single_query_takes_one_thread_and_gives_the_others_back(two_threads, queries, threads):
    index, vectors = built()
    index._faiss = Watched(index._faiss)
    index.search(vectors[:queries], 3)
    assert index._faiss.seen == [threads]
    assert faiss.omp_get_max_threads() == 2


def test_threads_are_given_back_after_a_failed_search(two_threads):
    index, vectors = built()
    index._faiss = Watched(index._faiss, fail=True)
    with pytest.raises(OSError, match="killed"):
        index.search(vectors[:1], 3)
    assert index._faiss.seen == [1]
    assert faiss.omp_get_max_threads() == 2
