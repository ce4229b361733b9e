"""Objects that are classes of their own, against loops over queries."""

import numpy as np
import pandas as pd
import pytest

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation import catalogue
from rectrio_lib.evaluation.retrieval import evaluate


@pytest.fixture
def world():
    """Twelve objects of one to five views, close enough to be mistaken for each other."""
    rng = np.random.default_rng(0)
    labels = np.array([f"thing{n}" for n in range(12) for _ in range(1 + n % 5)])
    centres = {name: rng.normal(size=6) for name in np.unique(labels)}
    vectors = np.stack([centres[name] + 0.9 * rng.normal(size=6) for name in labels])
    order = rng.permutation(len(labels))  # views of one object do not lie side by side
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)[order], labels[order]


def naive_recall(vectors, labels, most, seed):
    turn, hits = np.random.default_rng(seed).permutation(len(labels)).tolist(), []
    for query, label in enumerate(labels):
        gallery = []
        for name in set(labels):
            gallery += [i for i in turn if labels[i] == name and i != query][:most]
        if (labels == label).sum() > 1:
            nearest = max(gallery, key=lambda i: float(vectors[query] @ vectors[i]))
            hits.append(labels[nearest] == label)
    return sum(hits) / len(hits)


@pytest.mark.parametrize("most", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", [0, 5])
def test_recall_with_few_views_is_that_of_a_loop(world, most, seed):
    assert catalogue.recall_with_views(*world, most, seed) == pytest.approx(naive_recall(*world, most, seed))


def test_with_all_views_it_is_the_usual_recall(world):
    expected = evaluate(*world, ks=(1,), knn=1).means()["recall_at_1"]
    assert 0 < expected < 1
    assert catalogue.recall_with_views(*world, 9) == pytest.approx(expected)


def test_no_view_at_all_is_refused(world):
    with pytest.raises(ArgumentError, match="most=0"):
        catalogue.recall_with_views(*world, 0)


def test_the_best_result_is_searched_in_the_gallery_without_the_query(world):
    vectors, labels = world
    held = np.isin(labels, np.unique(labels)[::2])
    scores, right = catalogue.best_results(vectors, labels, held)
    for query in range(len(labels)):
        others = [i for i in np.flatnonzero(held) if i != query]
        best = max(others, key=lambda i: float(vectors[query] @ vectors[i]))
        assert scores[query] == pytest.approx(float(vectors[query] @ vectors[best]), abs=1e-6)
        assert right[query] == (labels[best] == labels[query])
    assert not right[~held].any() and right[held].any()
    recall = catalogue.best_results(vectors, labels, np.ones(len(labels), bool))[1]
    several = pd.Series(labels).groupby(labels).transform("size").to_numpy() > 1
    assert recall[several].mean() == evaluate(vectors, labels, ks=(1,), knn=1).means()["recall_at_1"]


@pytest.mark.parametrize("held", [np.zeros(36, bool), np.ones(3, bool), np.ones(36)])
def test_a_gallery_that_does_not_fit_is_refused(world, held):
    with pytest.raises(ArgumentError, match="held"):
        catalogue.best_results(*world, held[: len(world[1])])


def test_the_threshold_answers_most_queries_of_those_with_the_precision(world):
    scores, right = catalogue.best_results(*world, np.arange(len(world[1])) % 3 > 0)
    for wanted in (0.5, 0.8, 1.0):
        able = [t for t in scores if right[scores >= t].mean() >= wanted]
        threshold = catalogue.choose_threshold(scores, right, wanted)
        assert threshold == pytest.approx(min(able) if able else np.inf)
        shares = catalogue.at_threshold(scores, right, threshold)
        if able:
            assert shares["answered"] == sum(s >= threshold for s in scores) / len(scores)
            assert shares["right"] == right[scores >= threshold].mean() >= wanted


def test_a_precision_that_is_never_reached_answers_nothing():
    scores, right = np.array([0.1, 0.9]), np.array([True, False])
    assert catalogue.choose_threshold(scores, right, 0.9) == np.inf
    assert catalogue.at_threshold(scores, right, np.inf) == {"answered": 0.0, "right": None}


def test_the_closest_are_the_best_of_a_sorted_list_without_the_query(world):
    vectors, labels = world
    found, scores = catalogue.closest(vectors, labels, np.array([4, 0]), 5)
    for query, row, own in zip((4, 0), found, scores, strict=True):
        alike = sorted(((float(vectors[query] @ v), -i) for i, v in enumerate(vectors) if i != query), reverse=True)
        assert row.tolist() == [-i for _, i in alike[:5]]
        np.testing.assert_allclose(own, [score for score, _ in alike[:5]], atol=1e-6)


def test_mistaken_objects_are_counted_with_their_most_alike_case(world):
    vectors, labels = world
    counted = {}
    for query, label in enumerate(labels):
        best = max((i for i in range(len(labels)) if i != query), key=lambda i: float(vectors[query] @ vectors[i]))
        if labels[best] != label:
            counted.setdefault((label, labels[best]), []).append((float(vectors[query] @ vectors[best]), query, best))
    table = catalogue.mistaken(vectors, labels)
    assert dict(zip(zip(table["label"], table["taken_for"], strict=True), table["times"], strict=True)) == {
        pair: len(cases) for pair, cases in counted.items()
    }
    assert max(table["times"]) > 1 and table["times"].is_monotonic_decreasing
    for row in table.itertuples():
        assert (row.query, row.result) == max(counted[row.label, row.taken_for])[1:]


def test_where_nothing_is_mistaken_the_table_is_empty():
    assert catalogue.mistaken(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]], np.array(list("aabb"))).empty


def test_half_of_the_objects_leave_with_all_of_their_images(world):
    labels = world[1]
    held = catalogue.half_absent(labels, 3)
    assert len(np.unique(labels[held])) == len(np.unique(labels[~held])) == 6
    assert not set(labels[held]) & set(labels[~held])
    assert (held != catalogue.half_absent(labels, 4)).any()
