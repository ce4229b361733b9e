"""Figures of many queries: means, bootstrap intervals, paired differences, several splits, precision and coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import mean_and_spread, with_interval

DRAWN_AT_ONCE = 2**22  # queries or labels: some 100 MB


@dataclass(frozen=True)
class Evaluation:
    """Figures of every query.

    Attributes:
        labels: label of every query (Q,).
        scores: by name, float64 (Q,) in 0..1, in the order of the queries: recall_at_<k> (1 where one of the k nearest
            is relevant, else 0), precision_at_1, knn_accuracy and, if measured, r_precision, map_at_r, mrr and
            average_precision. NaN where a query is skipped.
    """

    labels: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def skipped(self) -> int:
        """Queries excluded from every mean: the gallery holds no image of their class."""
        return int(np.isnan(self.scores["precision_at_1"]).sum())

    def means(self) -> dict[str, float]:
        """Return the mean of each figure over the queries that are not skipped."""
        return {name: float(np.nanmean(values)) for name, values in self.scores.items()}

    def per_class(self) -> pd.DataFrame:
        """Return one row per class (index `label`): `queries` (without skipped ones) and the mean of each figure."""
        groups = pd.DataFrame(self.scores).groupby(pd.Index(self.labels, name="label"))
        table = groups.mean()
        table.insert(0, "queries", groups["precision_at_1"].count())
        return table

    def interval(
        self, name: str, confidence: float = 0.95, draws: int = 1000, seed: int = 0, by_label: bool = False
    ) -> tuple[float, float]:
        """Percentile bootstrap interval (low, high) of a mean: how far it moves with another sample of queries.

        Encoder and gallery stay fixed: the interval does not cover the spread between training seeds.

        Args:
            name: a key of `scores`.
            confidence: share of resampled means inside the interval, between 0 and 1.
            draws: resamples, each of as many queries as there are, with replacement.
            seed: the same seed gives the same interval.
            by_label: resample labels with all of their queries: views of one product succeed and fail together.

        Raises:
            ArgumentError: if the name is unknown, confidence or draws are out of range, or there is only one label.

        Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Whole labels: Davison &
            Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
        """
        return _interval(self._scores(name), self.labels if by_label else None, confidence, draws, seed)

    def _scores(self, name: str) -> np.ndarray:
        if name not in self.scores:
            raise ArgumentError(f"{name!r} was not measured: choose one of {', '.join(self.scores)}.")
        return self.scores[name]


def paired_interval(
    one: Evaluation, other: Evaluation, name: str, confidence: float = 0.95, by_label: bool = True
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a difference of means, `one` minus `other`, on the same queries.

    Each query is compared with itself: queries that are hard for both do not widen the interval. If 0 lies outside, the
    choice of queries alone does not explain the difference. Other arguments as for `Evaluation.interval`.

    Raises:
        ArgumentError: if the queries are not the same; else see `Evaluation.interval`.
    """
    values = one._scores(name), other._scores(name)
    if not (np.array_equal(one.labels, other.labels) and np.array_equal(*map(np.isnan, values))):
        raise ArgumentError(
            f"The evaluations are not of the same queries ({len(one.labels):,} and {len(other.labels):,}): "
            "measure both with the same queries, in the same order, in the same gallery."
        )
    return _interval(values[0] - values[1], one.labels if by_label else None, confidence)


def _interval(
    values: np.ndarray, labels: np.ndarray | None, confidence: float, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap the mean of the values (Q,) that are not NaN, resampling whole labels (Q,) or single values."""
    if not 0 < confidence < 1 or draws < 1:
        raise ArgumentError(f"confidence={confidence}, draws={draws}: expected 0 < confidence < 1 and draws >= 1.")
    counted = ~np.isnan(values)
    values = values[counted]
    numbers = np.arange(len(values)) if labels is None else pd.factorize(labels[counted].astype(object))[0]
    sums, sizes = np.bincount(numbers, values), np.bincount(numbers)
    if labels is not None and len(sums) < 2:
        raise ArgumentError("by_label=True resamples labels, and all queries have the same: expected two or more.")
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // len(sums))
    means = []
    for start in range(0, draws, at_once):
        drawn = rng.integers(len(sums), size=(min(at_once, draws - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def rows_with_intervals(
    results: Mapping[str, Evaluation], names: Mapping[str, str], by_label: bool = True
) -> list[dict[str, str]]:
    """Write figures as rows of a table, each as "0.841 (0.811 to 0.871)".

    Args:
        results: {encoder or setting: its figures}.
        names: {key of `scores`: title of its column}.
        by_label: see `Evaluation.interval`.
    """

    def figure(result: Evaluation, name: str) -> str:
        return with_interval(result.means()[name], result.interval(name, by_label=by_label))

    return [{"": n} | {title: figure(r, name) for name, title in names.items()} for n, r in results.items()]


def pooled(parts: Sequence[Evaluation]) -> Evaluation:
    """Join the queries of several evaluations, such as one per split; figures that one of them lacks are left out."""
    names = [name for name in parts[0].scores if all(name in part.scores for part in parts)]
    scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in names}
    return Evaluation(np.concatenate([part.labels for part in parts]), scores)


def over_splits(parts: Sequence[Evaluation], groups: Sequence[np.ndarray], names: Sequence[str]) -> pd.DataFrame:
    """Average figures over several splits, apart for each group of queries.

    Args:
        parts: one evaluation per split.
        groups: of each split the group of every query (Q,), such as the kind of thing it shows.
        names: keys of `scores`.

    Returns:
        One row per group: `splits`, those that test the group; each figure as "mean ± deviation" of the splits' means.
    """
    means = [pd.DataFrame(p.scores)[list(names)].groupby(g).mean() for p, g in zip(parts, groups, strict=True)]
    by_group = pd.concat(means).dropna().groupby(level=0)
    figures = {name: by_group[name].agg(lambda values: mean_and_spread(values.tolist())) for name in names}
    return pd.DataFrame({"splits": by_group.size(), **figures}).rename_axis("group")


def threshold_curve(scores: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Precision against coverage, when results below a similarity are withheld.

    Include queries that the gallery cannot answer: their best result is never right, and a good threshold withholds it.

    Args:
        scores: similarity of the best result of every query (Q,).
        correct: whether that result is right, bool (Q,).

    Returns:
        One row per distinct score, rising: threshold, the lowest score that is answered; answered, share of queries at
        or above it; precision, share of those that are right; correct, share of all queries answered and right.

    Raises:
        ArgumentError: if the shapes differ or are empty, a score is not finite, or `correct` is not of bools.

    Source: El-Yaniv & Wiener, "On the foundations of noise-free selective classification", JMLR 2010 (coverage, risk).
    """
    scores, correct = np.asarray(scores), np.asarray(correct)
    if scores.ndim != 1 or not len(scores) or scores.shape != correct.shape:
        raise ArgumentError(
            f"scores of shape {scores.shape} and correct of shape {correct.shape}: expected (Q,) for both, Q >= 1."
        )
    if correct.dtype != bool or not np.isfinite(scores).all():
        raise ArgumentError(f"Expected finite scores, and bools as correct, not {correct.dtype}.")
    thresholds, place = np.unique(scores, return_inverse=True)
    answered, right = (np.bincount(place, w, len(thresholds))[::-1].cumsum()[::-1] for w in (None, correct))
    shares = {"answered": answered / len(scores), "precision": right / answered, "correct": right / len(scores)}
    return pd.DataFrame({"threshold": thresholds, **shares})
