"""Any sequence of changes, and any filter, against plain arrays and a dictionary."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from makers.indexes import DIM, built, clustered, named, nearest, unit

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index import faiss_vectors
from rectrio_lib.index.factory import FEWEST_LEARNED, KINDS
from rectrio_lib.index.index import Index
from rectrio_lib.index.tuning import GroundTruth

pytestmark = pytest.mark.slow

ROUNDED = {
    "flat": 1e-5,
    "hnsw": 1e-3,
    "ivf": 1e-5,
    "ivf-pq": 1e-3,
    "ivf-sq8": 3e-2,
    "ivf-pq-disk": 1e-3,
}  # by how much a score may differ
FIRST = {kind: FEWEST_LEARNED if kind.startswith("ivf") else 0 for kind in KINDS}


def make_machine(kind):
    class Machine(RuleBasedStateMachine):
        """Random changes of an index, compared after each with a dictionary that underwent the same."""

        def __init__(self):
            super().__init__()
            self.rng, self.next = np.random.default_rng(0), 0
            self.index, self.model = Index(kind, DIM, "abc", search_param=4096), {}
            self.add(FIRST[kind])

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
            with pytest.raises(ValueError, match=f"'{known}'"):
                self.index.add(unit(self.rng, 2), rows)

        @precondition(lambda self: self.model)
        @rule(data=st.data(), share=st.sampled_from([0.01, 0.1, 0.5]))
        def remove(self, data, share):
            first = data.draw(st.integers(0, len(self.model) - 1))
            gone = sorted(self.model)[first : first + 1 + int(share * len(self.model))]
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
            with pytest.raises(ArgumentError, match="'absent'"):
                self.index.remove([known, "absent"])

        @rule()
        def compact(self):
            self.index.compact()

        @rule()
        def save_and_load(self):
            self.index.save("toy")
            self.index = Index.load("toy")

        def compare(self, queries, k, mask=None):
            scores, positions = self.index.search(queries, k, where=mask)
            names = self.index.rows["image_id"].to_numpy()
            stay = np.array([name in self.model for name in names]) & ~self.index.removed
            assert stay[positions].all() and (mask is None or mask[positions].all())
            assert all(len(set(row.tolist())) == k for row in positions)
            vectors = np.stack([self.model.get(name, np.zeros(DIM, np.float32)) for name in names])
            mask = stay if mask is None else stay & mask
            expected = nearest(vectors, queries, k, mask)[1]
            np.testing.assert_allclose(scores, expected, atol=ROUNDED[kind])
            theirs = np.einsum("qkd,qd->qk", vectors[positions], queries)
            np.testing.assert_allclose(scores, theirs, atol=ROUNDED[kind])

        @invariant()
        def holds_the_same_and_finds_the_same(self):
            assert len(self.index) == len(self.model)
            assert len(self.index.removed) == len(self.index.rows)
            if self.model:
                self.compare(unit(self.rng, 3), min(5, len(self.model)))
                self.compare(unit(self.rng, 1), len(self.model))
                mask = self.rng.random(len(self.index.rows)) < 0.5
                found = int((mask & ~self.index.removed).sum())
                if found:
                    self.compare(unit(self.rng, 2), found, mask)

        @precondition(lambda self: self.model)
        @invariant()
        def every_row_stays_with_its_vector(self):
            kept = np.flatnonzero(~self.index.removed)
            rows = self.index.rows.iloc[kept]
            assert sorted(rows["image_id"]) == sorted(self.model)
            assert [f"p{number:.0f}" for number in rows["number"]] == rows["image_id"].tolist()
            expected = [self.model[name] for name in rows["image_id"]]
            np.testing.assert_allclose(self.index.vectors_at(kept), expected, atol=ROUNDED[kind])

    return Machine


@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold(kind):
    steps = settings(max_examples=10, stateful_step_count=12, deadline=None)
    run_state_machine_as_test(make_machine(kind), settings=steps)


@pytest.fixture(scope="module", params=KINDS)
def index_and_vectors(request):
    return built(request.param, 600)


@pytest.mark.parametrize("exact_rows", [0, 20_000], ids=["inside FAISS", "one by one"])
@settings(max_examples=25, deadline=None)
@given(mask=arrays.arrays(bool, 600), k=st.integers(1, 600))
def test_a_filter_gives_what_brute_force_within_the_mask_gives(index_and_vectors, exact_rows, mask, k):
    index, vectors = index_and_vectors
    queries = unit(np.random.default_rng(3), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_vectors, "EXACT_ROWS", exact_rows)
        if k > mask.sum():
            with pytest.raises(ValueError, match=rf"k={k}, .* {mask.sum()} rows"):
                index.search(queries, k, where=mask)
            return
        scores, positions = index.search(queries, k, where=mask)
    assert mask[positions].all()
    np.testing.assert_allclose(scores, nearest(vectors, queries, k, mask)[1], atol=ROUNDED[index.kind])


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_tuned_search_widens_where_fewer_rows_may_be_results(monkeypatch, kind, share):
    monkeypatch.setattr(faiss_vectors, "EXACT_ROWS", 0)
    rng = np.random.default_rng(1)
    gallery, queries, mask = clustered(rng, 3000), clustered(rng, 300), rng.random(3000) < share
    index = Index.build(kind, gallery, named(0, 3000), "abc", recall=0.95)
    found = index.search(queries, 10, where=mask)[1]
    among = np.flatnonzero(mask)
    shares = GroundTruth(queries, gallery, among).recall_per_query(np.searchsorted(among, found))
    assert mask[found].all() and shares.mean() > 0.94


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_a_filter_that_points_away_from_the_query_is_still_answered_in_full(monkeypatch, kind):
    """Nothing near the query is mask: a walk meets only what is forbidden."""
    monkeypatch.setattr(faiss_vectors, "EXACT_ROWS", 0)
    rng = np.random.default_rng(2)
    near = np.eye(1, DIM) + 0.01 * unit(rng, 900)
    far = -np.eye(1, DIM) + 0.01 * unit(rng, 100)
    vectors = np.concatenate([near, far]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index.build(kind, vectors, named(0, 1000), "abc", search_param=10)
    mask = np.arange(1000) >= 900
    scores, positions = index.search(vectors[:5], 100, where=mask)
    assert all(sorted(row) == list(range(900, 1000)) for row in positions.tolist())
    np.testing.assert_allclose(scores, nearest(vectors, vectors[:5], 100, mask)[1], atol=1e-3)
