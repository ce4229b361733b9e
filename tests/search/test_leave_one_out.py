"""A search measured on its own index, against the exact evaluation and a loop over results."""

import numpy as np
import pandas as pd
import pytest

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation.retrieval import evaluate, evaluate_results
from rectrio_lib.index.index import Index
from rectrio_lib.search.ranking.leave_one_out import leave_one_out
from rectrio_lib.search.searcher import Searcher


@pytest.fixture
def shelf():
    """Fifteen objects of one to five views."""
    rng = np.random.default_rng(1)
    labels = np.array([f"thing{n:02}" for n in range(15) for _ in range(1 + n % 5)])[rng.permutation(45)]
    centres = {name: rng.normal(size=8) for name in np.unique(labels)}
    vectors = np.stack([centres[name] + 0.8 * rng.normal(size=8) for name in labels]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = pd.DataFrame({"image_id": [f"id{n}" for n in range(45)], "label": labels})
    return Index.build("flat", vectors, rows, ""), vectors, labels


def test_without_options_it_is_the_exact_evaluation(shelf):
    index, vectors, labels = shelf
    measured, exact = leave_one_out(index), evaluate(vectors, labels, knn=1)
    for name in ("recall_at_1", "map_at_r"):
        np.testing.assert_allclose(measured.scores[name], exact.scores[name], atol=1e-9)
    assert measured.skipped == exact.skipped == 3
    assert 0 < exact.means()["recall_at_1"] < 1


@pytest.mark.parametrize("options", [{"expand": 2}, {"reciprocal": 4}, {"expand": 1, "reciprocal": 3}])
def test_with_options_it_follows_the_results_of_the_search(shelf, options):
    index, _, labels = shelf
    measured = leave_one_out(index, 10, **options)
    found = Searcher(index).search([f"id{n}" for n in range(45)], k=10, **options)
    for query, label in enumerate(labels):
        relevant, right, precise = (labels == label).sum() - 1, 0, 0.0
        for rank, position in enumerate(found.positions[query][:relevant], 1):
            assert position != query
            if labels[position] == label:
                right += 1
                precise += right / rank
        if relevant:
            assert measured.scores["map_at_r"][query] == pytest.approx(precise / relevant)
            assert measured.scores["recall_at_1"][query] == (labels[found.positions[query, 0]] == label)
        else:
            assert np.isnan(measured.scores["map_at_r"][query])


def test_fewer_results_than_views_are_refused(shelf):
    with pytest.raises(ArgumentError, match="k=3"):
        leave_one_out(shelf[0], 3)


def test_results_and_numbers_that_do_not_fit_are_refused():
    for found, relevant in (([["a"], ["b"]], [1]), ([["a"], ["b"]], [1, 2]), (["a", "b"], [1, 1])):
        with pytest.raises(ArgumentError, match="Expected"):
            evaluate_results(np.array(found), ["a", "b"], np.array(relevant))


def test_an_empty_place_is_never_right():
    found = np.array([["a", None], [None, "b"], ["b", "a"]], object)
    measured = evaluate_results(found, np.array(["a", "b", "c"]), np.array([2, 2, 0]))
    assert measured.scores["map_at_r"][:2].tolist() == [0.5, 0.25]
    assert measured.scores["recall_at_1"][:2].tolist() == [1, 0]
    assert np.isnan(measured.scores["recall_at_1"][2]) and measured.skipped == 1
