"""The index that changes while it is searched."""

import numpy as np
import pandas as pd
import pytest
from makers.indexes import DIM, built, named, unit

from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.base import VectorIndex
from rectrio_lib.index.index import Index
from rectrio_lib.index.live import LiveIndex, Snapshot


def live(kind="flat", count=40):
    index, vectors = built(kind, count)
    return LiveIndex(index), vectors


def records(start, count):
    return named(start, count).to_dict("records")


def naive(vectors, allowed, queries, k):
    products = np.where(allowed, queries @ vectors.T, -np.inf)
    order = np.argsort(-products, 1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, 1)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_main_and_tail_are_searched_as_one(kind):
    index, vectors = live(kind)
    fresh = unit(np.random.default_rng(1), 15)
    index.add(fresh[:5], records(40, 5))
    index.add(fresh[5:], records(45, 10))
    index.remove(["p3", "p41"])
    everything = np.concatenate([vectors, fresh])
    allowed = np.ones(55, bool)
    allowed[[3, 41]] = False
    queries = unit(np.random.default_rng(2), 8)
    scores, positions = index.current.search(queries, 12)
    expected, products = naive(everything, allowed, queries, 12)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, products, atol=1e-3)
    assert len(index.current) == 53


def test_vectors_of_main_and_tail_are_read_as_they_are_asked_for_and_make_the_same_index(monkeypatch):
    index, vectors = live()
    fresh = unit(np.random.default_rng(1), 15)
    index.add(fresh, records(40, 15))
    index.remove(["p3", "p41"])
    kept, asked, read = np.flatnonzero(~index.current.removed), [], Snapshot.vectors_at
    monkeypatch.setattr(Snapshot, "vectors_at", lambda self, at: asked.append(np.size(at)) or read(self, at))
    monkeypatch.setattr(knn, "BLOCK_ROWS", 10)
    mapped, expected = index.current.mapped(kept), np.concatenate([vectors, fresh])[kept]
    assert (mapped.shape, mapped.ndim, len(mapped), mapped.dtype) == ((53, DIM), 2, 53, np.float32)
    again = Index.build("flat", mapped, index.current.rows.iloc[kept].reset_index(drop=True), "abc")
    assert sum(asked) >= 53 and max(asked) == 10
    np.testing.assert_array_equal(again.vectors_at(np.arange(53)), expected)
    np.testing.assert_array_equal(mapped[np.array([[52, 0], [1, 40]])], expected[[[52, 0], [1, 40]]])


def test_a_condition_counts_in_main_and_tail():
    index, _ = live()
    fresh = unit(np.random.default_rng(1), 5)
    index.add(fresh, records(40, 5))
    assert index.current.count("number >= 38") == 7
    _, positions = index.current.search(fresh[:1], 7, where="number >= 38")
    assert sorted(positions[0].tolist()) == [38, 39, 40, 41, 42, 43, 44]
    mask = np.zeros(45, bool)
    mask[[2, 44]] = True
    assert sorted(index.current.search(fresh[:1], 2, where=mask)[1][0].tolist()) == [2, 44]


def test_a_snapshot_stays_as_it_is():
    index, _ = live()
    before = index.current
    index.add(unit(np.random.default_rng(1), 70), records(40, 70))  # more than the tail first has room for
    index.remove(["p0"])
    index.update([{"image_id": "p1", "number": 1000}])
    assert (len(before), len(index.current)) == (40, 109)
    assert before.positions(["p0", "p40"]) == {"p0": 0}
    assert before.records([1]) == [{"image_id": "p1", "number": 1}]
    assert before.count("number == 1000") == 0
    assert index.current.count("number == 1000") == 1


def test_metadata_changes_in_main_and_tail():
    index, _ = live()
    index.add(unit(np.random.default_rng(1), 2), records(40, 2))
    changed = [{"image_id": "p5", "number": 500}, {"image_id": "p41", "number": 410}, {"image_id": "no", "number": 1}]
    index.current.records([0])  # the columns are read before they change
    index.update(changed)
    assert index.current.records([5, 41, 6]) == [changed[0], changed[1], {"image_id": "p6", "number": 6}]
    assert index.current.count("number > 400") == 2


def test_an_image_that_was_removed_may_come_again():
    index, _ = live()
    index.remove(["p7"])
    vector = unit(np.random.default_rng(1), 1)
    index.add(vector, [{"image_id": "p7", "number": 70}])
    assert index.current.positions(["p7"]) == {"p7": 40}
    assert index.current.search(vector, 1)[1].tolist() == [[40]]
    np.testing.assert_allclose(index.current.vectors_at(np.array([40])), vector)
    with pytest.raises(ArgumentError):
        index.add(vector, [{"image_id": "p7", "number": 70}])


def test_vectors_come_back_by_position():
    index, vectors = live()
    fresh = unit(np.random.default_rng(1), 3)
    index.add(fresh, records(40, 3))
    found = index.current.vectors_at(np.array([[0, 42], [39, 40]]))
    np.testing.assert_allclose(found, np.stack([[vectors[0], fresh[2]], [vectors[39], fresh[0]]]), atol=1e-3)


@pytest.mark.parametrize(
    ("vectors", "rows"),
    [
        (np.ones((1, DIM), np.float32), 1),  # not of unit length
        (np.full((1, DIM), np.nan, np.float32), 1),
        (np.eye(DIM + 1, dtype=np.float32)[:1], 1),
        (np.eye(DIM, dtype=np.float32)[:2], 1),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(vectors, rows):
    index, _ = live()
    with pytest.raises(ArgumentError):
        index.add(vectors, records(40, rows))
    assert len(index.current) == 40


@pytest.mark.parametrize("given", [[39, 40], [40, 41, 40]])
def test_an_image_that_is_there_or_comes_twice_is_refused(given):
    index, _ = live()
    with pytest.raises(ArgumentError, match="in the index already or come twice"):
        index.add(np.eye(DIM, dtype=np.float32)[: len(given)], [records(number, 1)[0] for number in given])
    assert len(index.current) == 40


def test_k_is_at_most_what_is_there():
    index, _ = live(count=5)
    index.remove(["p0"])
    query = unit(np.random.default_rng(3), 1)
    assert index.current.search(query, 4)[1].shape == (1, 4)
    for k in (0, 5):
        with pytest.raises(ArgumentError):
            index.current.search(query, k)
    with pytest.raises(ArgumentError):
        index.current.search(query, 1, encoder_hash="another")


def test_an_index_that_was_emptied_still_takes_images():
    index, _ = live(count=2)
    index.remove(["p0", "p1"])
    assert len(index.current) == 0
    vector = unit(np.random.default_rng(3), 1)
    index.add(vector, records(2, 1))
    assert index.current.search(vector, 1)[1].tolist() == [[2]]


def test_rows_keep_the_types_of_the_columns():
    rows = pd.DataFrame({"image_id": ["a", "b"], "price": [1.5, np.nan], "label": ["x", None]})
    index = LiveIndex(Index.build("flat", np.eye(DIM, dtype=np.float32)[:2], rows, "abc"), rows)
    index.add(np.eye(DIM, dtype=np.float32)[2:3], [{"image_id": "c", "price": None, "label": "y"}])
    assert index.current.rows["price"].dtype == np.float64
    assert index.current.records([1, 2]) == [
        {"image_id": "b", "price": None, "label": None},
        {"image_id": "c", "price": None, "label": "y"},
    ]
    assert isinstance(index.current, Snapshot)
    assert {"search", "count", "vectors_at", "rows", "removed"} <= set(dir(VectorIndex)) & set(dir(index.current))
