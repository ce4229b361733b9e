"""Labels that look wrong: planted ones are found first, and the order is that of a naive loop."""

import numpy as np
import pytest
from makers.indexes import unit

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation import doubts
from rectrio_lib.evaluation.doubts import doubtful_labels

CLASSES = np.array(["ant", "bee", "cow"])


def clouds(each=12, dim=8, spread=0.5):
    """Vectors of three classes, and their labels."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(unit(rng, 3, dim), each, 0) + spread * rng.normal(size=(3 * each, dim)) / dim**0.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), np.repeat(CLASSES, each)


def naive(vectors, labels, groups, nearest):
    """{row: (doubt, class)} by loops."""
    found = {}
    for row in range(len(labels)):

        def closeness(name, count, row=row):
            others = [i for i in range(len(labels)) if labels[i] == name and groups[i] != groups[row]]
            scores = sorted((float(vectors[row] @ vectors[i]) for i in others), reverse=True)
            return np.mean(scores[:count]) if len(scores) >= count else -np.inf

        able = sum(labels[i] == labels[row] and groups[i] != groups[row] for i in range(len(labels)))
        if count := min(nearest, able):
            best = max((closeness(name, count), name) for name in set(labels) - {labels[row]})
            if (doubt := best[0] - closeness(labels[row], count)) > 0:
                found[row] = (doubt, best[1])
    return found


def test_planted_wrong_labels_come_first():
    vectors, labels = clouds()
    wrong = labels.copy()
    wrong[[3, 20, 30]] = ["bee", "cow", "ant"]
    found = doubtful_labels(vectors, wrong)
    assert set(found["row"][:3]) == {3, 20, 30}
    first = found[:3].set_index("row")
    assert first["closer_to"].to_dict() == {row: labels[row] for row in (3, 20, 30)}
    assert first["label"].to_dict() == {row: wrong[row] for row in (3, 20, 30)}
    assert (found["doubt"] > 0).all() and found["doubt"].is_monotonic_decreasing


@pytest.mark.parametrize("nearest", [1, 5])
@pytest.mark.parametrize("block", [7, 1000])
def test_doubts_are_those_of_a_naive_loop_also_in_small_classes_and_among_copies(monkeypatch, nearest, block):
    monkeypatch.setattr(doubts, "BLOCK", block)
    vectors, labels = clouds(spread=1.5)
    labels = labels.copy()
    labels[[0, 1, 2]] = ["dog", "elk", "elk"]  # classes of one and of two
    groups = np.arange(len(labels))
    groups[[5, 6]] = groups[[13, 14]] = 40
    found = doubtful_labels(vectors, labels, groups, nearest).set_index("row")
    expected = naive(vectors, labels, groups, nearest)
    assert set(found.index) == set(expected) and len(found) > 3
    for row, (doubt, name) in expected.items():
        assert found["doubt"][row] == pytest.approx(doubt, abs=1e-5) and found["closer_to"][row] == name


def test_a_copy_does_not_vouch_for_a_wrong_label():
    vectors, labels = clouds()
    labels = labels.copy()
    vectors[4] = vectors[3]
    labels[[3, 4]] = "bee"
    groups = np.arange(len(labels))
    groups[4] = 3
    alone, grouped = doubtful_labels(vectors, labels, nearest=1), doubtful_labels(vectors, labels, groups, 1)
    assert not set(alone["row"]) & {3, 4} and set(grouped["row"]) >= {3, 4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nearest": 0}, "nearest=0"),
        ({"labels": ["ant"] * 36}, "1 classes"),
        ({"groups": [1, 2]}, "2 groups"),
        ({"labels": ["ant"]}, "36 vectors"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, said):
    vectors, labels = clouds()
    with pytest.raises(ArgumentError, match=said):
        doubtful_labels(**{"vectors": vectors, "labels": labels, **change})
