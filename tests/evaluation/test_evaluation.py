"""Means, intervals and curves, from figures of single queries that are made up here."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation import evaluation as evaluation_module
from rectrio_lib.evaluation.evaluation import Evaluation, paired_interval, threshold_curve
from rectrio_lib.evaluation.retrieval import evaluate


def evaluation(values, labels=None, name="recall_at_1") -> Evaluation:
    values = np.asarray(values, float)
    labels = np.arange(len(values)) if labels is None else np.asarray(labels)
    return Evaluation(labels, {name: values, "precision_at_1": values})


def products(rng, count, views, spread=1.0):
    """Hits of every view of products: some are easy, some hard, and NaN now and then."""
    ease = np.clip(0.6 + spread * rng.uniform(-0.4, 0.4, count), 0, 1)
    hits = (rng.random((count, views)) < ease[:, None]).astype(float)
    hits[:: max(2, count // 5), 0] = np.nan
    return hits.ravel(), np.repeat([f"p{n}" for n in range(count)], views)


# --- means


def test_classes_average_back_to_the_total_and_skipped_ones_count_nowhere():
    labels = np.repeat(list("abcd"), [3, 5, 2, 4])
    values = np.r_[np.random.default_rng(0).random(10), [np.nan] * 4]
    figures = Evaluation(labels, {"precision_at_1": (values > 0.5) + 0 * values, "mrr": values})
    table = figures.per_class()
    assert table.index.tolist() == list("abcd") and table.index.name == "label"
    assert table["queries"].tolist() == [3, 5, 2, 0] and table.loc["d", "mrr":].isna().all()
    assert figures.skipped == 4
    assert list(figures.means()) == ["precision_at_1", "mrr"]
    for name, mean in figures.means().items():
        assert np.average(table[name][:3], weights=table["queries"][:3]) == pytest.approx(mean, abs=1e-12)
    assert table.loc["b", "mrr"] == pytest.approx(values[3:8].mean())


# --- intervals


def test_the_interval_matches_the_normal_one_is_repeatable_and_shrinks_with_more_queries(monkeypatch):
    rng = np.random.default_rng(11)
    few, many = (evaluation(rng.random(size) < 0.7) for size in (100, 1600))
    for figures in (few, many):
        values, (low, high) = figures.scores["recall_at_1"], figures.interval("recall_at_1")
        assert low < values.mean() < high
        assert (high - low) / 2 == pytest.approx(1.96 * values.std() / len(values) ** 0.5, rel=0.15)
    assert np.ptp(few.interval("recall_at_1")) > 3 * np.ptp(many.interval("recall_at_1"))
    other = evaluation(rng.random(50))
    assert other.interval("recall_at_1", seed=3) == other.interval("recall_at_1", seed=3)
    assert other.interval("recall_at_1", seed=3) != other.interval("recall_at_1", seed=4)
    assert np.ptp(other.interval("recall_at_1", 0.99)) > 2 * np.ptp(other.interval("recall_at_1", 0.5))
    whole = [other.interval("recall_at_1", draws=333, by_label=flag) for flag in (False, True)]
    monkeypatch.setattr(evaluation_module, "DRAWN_AT_ONCE", 1_000)
    assert [other.interval("recall_at_1", draws=333, by_label=flag) for flag in (False, True)] == whole


def naive_interval(values, labels, draws, seed):
    """One resample at a time: the same labels are drawn, and all their queries put into one list."""
    names = list(dict.fromkeys(label for label, value in zip(labels, values, strict=True) if not np.isnan(value)))
    of = {name: [v for v, label in zip(values, labels, strict=True) if label == name and v == v] for name in names}
    rng = np.random.default_rng(seed)
    drawn = [[names[i] for i in rng.integers(len(names), size=len(names))] for _ in range(draws)]
    means = [np.mean([value for name in some for value in of[name]]) for some in drawn]
    return np.quantile(means, [0.025, 0.975])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 5))
def test_by_label_draws_whole_products_as_the_naive_loop_does(seed, count, views):
    values, labels = products(np.random.default_rng(seed), count, views)
    values[0], values[-1] = 1.0, 0.0  # of two products at least something is known
    figures = evaluation(values, labels).interval("recall_at_1", draws=40, seed=seed, by_label=True)
    np.testing.assert_allclose(figures, naive_interval(values, labels, 40, seed), rtol=0, atol=1e-12)


def test_views_that_succeed_and_fail_together_widen_the_interval_by_label_and_independent_ones_do_not():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(100), 9)
    together, apart = np.repeat(rng.random(100) < 0.6, 9), rng.random(900) < 0.6
    widths = [
        [np.ptp(evaluation(hits, labels).interval("recall_at_1", by_label=flag)) for flag in (False, True)]
        for hits in (together, apart)
    ]
    assert widths[0][1] == pytest.approx(3 * widths[0][0], rel=0.2)  # nine views tell as much as one
    assert widths[1][1] == pytest.approx(widths[1][0], rel=0.2)


def test_with_one_query_a_label_both_intervals_are_the_same():
    figures = evaluation(np.random.default_rng(2).random(60))
    assert figures.interval("recall_at_1", by_label=True) == figures.interval("recall_at_1")


def test_the_paired_interval_is_that_of_the_differences_and_narrower_than_both_apart():
    rng = np.random.default_rng(3)
    values, labels = products(rng, 80, 4, spread=1.5)
    better = np.where(rng.random(len(values)) < 0.1, np.maximum(values, 1.0), values)
    one, other = evaluation(better, labels), evaluation(values, labels)
    low, high = paired_interval(one, other, "recall_at_1")
    assert 0 < low < np.nanmean(better - values) < high
    assert paired_interval(other, one, "recall_at_1") == pytest.approx((-high, -low), abs=0.003)
    assert (low, high) == evaluation(better - values, labels).interval("recall_at_1", by_label=True)
    assert paired_interval(one, other, "recall_at_1", by_label=False) == evaluation(better - values).interval(
        "recall_at_1"
    )
    assert high - low < np.ptp(other.interval("recall_at_1", by_label=True)) / 2
    assert paired_interval(one, one, "recall_at_1") == (0, 0)


def test_bad_questions_get_a_sentence():
    figures = evaluation([0, 1, 1, np.nan], list("aabb"))
    with pytest.raises(ValueError, match=r"'map_at_r'.*recall_at_1, precision_at_1"):
        figures.interval("map_at_r")
    with pytest.raises(ValueError, match="'mrr' was not measured"):
        paired_interval(figures, figures, "mrr")
    for wrong in ({"confidence": 1.0}, {"confidence": 95}, {"draws": 0}):
        with pytest.raises(ValueError, match="confidence="):
            figures.interval("recall_at_1", **wrong)
    with pytest.raises(ValueError, match="by_label"):
        evaluation([0, 1], ["a", "a"]).interval("recall_at_1", by_label=True)
    for values, labels in (([0, 1, 1], "aab"), ([0, 1, 1, 0], "aabb"), ([0, 1, 1, np.nan], "aabc")):
        with pytest.raises(ValueError, match=r"\(4 and [34]\)"):
            paired_interval(figures, evaluation(values, list(labels)), "recall_at_1")


# --- the threshold curve

ANSWERS = st.lists(
    st.tuples(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=40
)


@settings(deadline=None, max_examples=100)
@given(ANSWERS)
def test_the_threshold_curve_equals_the_naive_loop_and_fewer_are_answered_as_it_rises(answers):
    scores, correct = (np.array(column) for column in zip(*answers, strict=True))
    curve = threshold_curve(scores, correct)
    assert curve["threshold"].tolist() == sorted(set(scores.tolist()))
    for row in curve.itertuples():
        given_out = [right for score, right in answers if score >= row.threshold]
        assert row.answered == pytest.approx(len(given_out) / len(answers))
        assert row.precision == pytest.approx(np.mean(given_out))
        assert row.correct == pytest.approx(sum(given_out) / len(answers))
    assert (np.diff(curve["answered"]) < 0).all() and (np.diff(curve["correct"]) <= 0).all()
    assert curve["answered"].iloc[0] == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_queries_of_absent_products_are_never_hits_however_near_their_best_answer(seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, 6))
    labels = rng.integers(12, size=60)
    vectors = centres[labels] + 0.3 * rng.normal(size=(60, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    listed = np.flatnonzero((labels < 6) & (np.arange(60) % 2 == 0))
    queries = np.setdiff1d(np.arange(60), listed)
    absent = ~np.isin(labels[queries], labels[listed])
    if absent.all() or not absent.any():
        return
    best = (similarity := vectors[queries] @ vectors[listed].T).argmax(1)
    curve = threshold_curve(similarity.max(1), labels[listed][best] == labels[queries])
    assert (curve["correct"] <= 1 - absent.mean() + 1e-12).all()
    figures = evaluate(vectors[queries], labels[queries], vectors[listed], labels[listed], ks=(1,), knn=1)
    assert figures.skipped == absent.sum()
    assert curve["correct"].iloc[0] == pytest.approx(figures.means()["recall_at_1"] * (1 - absent.mean()))


def test_a_score_that_tells_right_from_wrong_gives_full_precision_and_lists_will_do():
    curve = threshold_curve([0.9, 0.8, 0.3, 0.2], [True, True, False, False])
    expected = {
        "threshold": [0.2, 0.3, 0.8, 0.9],
        "answered": [1, 0.75, 0.5, 0.25],
        "precision": [0.5, 2 / 3, 1, 1],
        "correct": [0.5, 0.5, 0.5, 0.25],
    }
    pd.testing.assert_frame_equal(curve, pd.DataFrame(expected, dtype=float))


@pytest.mark.parametrize(
    ("scores", "correct", "token"),
    [
        ([], np.array([], bool), "shape (0,)"),
        ([0.1, 0.2], [True], "(2,) and correct of shape (1,)"),
        ([[0.1]], [[True]], "scores of shape (1, 1)"),
        ([0.1, np.nan], [True, False], "finite"),
        ([0.1, 0.2], [1.0, 0.0], "float64"),
    ],
)
def test_a_curve_of_nothing_or_of_what_does_not_fit_is_refused(scores, correct, token):
    with pytest.raises(ArgumentError, match=re.escape(token)):
        threshold_curve(scores, correct)


def split_of(labels, recall, **others):
    return Evaluation(np.array(labels), {"recall_at_1": np.array(recall, float), **others})


def test_pooled_queries_keep_their_order_and_the_figures_that_all_have():
    one = split_of(["a", "b"], [1, np.nan], mrr=np.array([1.0, 0.5]))
    both = evaluation_module.pooled([one, split_of(["c"], [0])])
    assert both.labels.tolist() == ["a", "b", "c"]
    assert set(both.scores) == {"recall_at_1"}
    np.testing.assert_array_equal(both.scores["recall_at_1"], [1, np.nan, 0])


def test_figures_are_averaged_over_the_splits_that_test_a_group():
    parts = [split_of("abc", [1, 0, 1]), split_of("de", [0, np.nan]), split_of("fg", [1, 1])]
    groups = [np.array(["cup", "cup", "box"]), np.array(["cup", "box"]), np.array(["cup", "box"])]
    table = evaluation_module.over_splits(parts, groups, ["recall_at_1"])
    assert table["splits"].to_dict() == {"box": 2, "cup": 3}  # the only box of the second split was skipped
    means = [0.5, 0.0, 1.0]
    assert table.loc["cup", "recall_at_1"] == f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}"
    assert table.loc["box", "recall_at_1"] == "1.000 ± 0.000"
