"""What the figures of many queries tell: means, bootstrap intervals, differences, precision of what is answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError

DRAWN_AT_ONCE = 2**22  # queries or labels: some 100 MB


@dataclass(frozen=True)
class Evaluation:
    """Figures of every query.

    Attributes:
        labels: label of every query (Q,).
        scores: by name, float64 (Q,) in 0..1, in the order of the queries: recall_at_<k> (1 where one of the k nearest
            is relevant, else 0), precision_at_1, knn_accuracy, unless only the nearest were asked for r_precision,
            map_at_r and mrr, and where asked for average_precision. NaN where the query is skipped: the gallery holds
            no picture of its class.
    """

    labels: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def skipped(self) -> int:
        """How many queries count nowhere because the gallery holds no picture of their class."""
        return int(np.isnan(self.scores["precision_at_1"]).sum())

    def means(self) -> dict[str, float]:
        """Return the mean of each figure over the queries that are not skipped."""
        return {name: float(np.nanmean(values)) for name, values in self.scores.items()}

    def per_class(self) -> pd.DataFrame:
        """Return one row a class (index `label`): `queries` (without the skipped) and the mean of each figure."""
        groups = pd.DataFrame(self.scores).groupby(pd.Index(self.labels, name="label"))
        table = groups.mean()
        table.insert(0, "queries", groups["precision_at_1"].count())
        return table

    def interval(
        self, name: str, confidence: float = 0.95, draws: int = 1000, seed: int = 0, by_label: bool = False
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of a mean: how far it moves with another sample of queries.

        The encoder and the gallery stay as they are: the spread between training seeds is another matter.

        Args:
            name: a key of `scores`.
            confidence: share of resampled means inside the interval, between 0 and 1.
            draws: resamples, each of as many queries as there are, with replacement.
            seed: the same seed gives the same interval.
            by_label: draw labels instead, as many as there are, each with all of its queries: the views of one product
                succeed and fail together, and as single queries they would seem to tell more than they do.

        Returns:
            Lower and upper end.

        Raises:
            ValueError: if the name is unknown, the confidence is not between 0 and 1, there are no draws, or only one
                label to draw from.

        Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Whole labels: Davison &
            Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
        """
        return _interval(self._scores(name), self.labels if by_label else None, confidence, draws, seed)

    def _scores(self, name: str) -> np.ndarray:
        if name not in self.scores:
            raise ArgumentError(f"{name!r} was not measured: choose one of {', '.join(self.scores)}.")
        return self.scores[name]


def paired_interval(
    one: Evaluation,
    other: Evaluation,
    name: str,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    by_label: bool = True,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a difference of means, `one` minus `other`, measured on the same queries.

    Each query is compared with itself: what is hard for both does not widen the interval.

    Args:
        one: figures of an encoder.
        other: figures of another encoder for the same queries, in the same order.
        name: a key of both `scores`.
        confidence: see `Evaluation.interval`, as for `draws` and `seed`.
        draws: resamples.
        seed: of the draws.
        by_label: draw whole labels; False draws single queries.

    Returns:
        Lower and upper end. Where 0 lies outside, the difference is more than chance in the choice of queries.

    Raises:
        ValueError: if the queries are not the same; else see `Evaluation.interval`.
    """
    values = one._scores(name), other._scores(name)
    same = np.array_equal(one.labels, other.labels) and np.array_equal(*map(np.isnan, values))
    if not same:
        raise ArgumentError(
            f"The evaluations are not of the same queries ({len(one.labels):,} and {len(other.labels):,}): "
            "measure both with the same queries, in the same order, in the same gallery."
        )
    return _interval(values[0] - values[1], one.labels if by_label else None, confidence, draws, seed)


def _interval(
    values: np.ndarray, labels: np.ndarray | None, confidence: float, draws: int, seed: int
) -> tuple[float, float]:
    """Bootstrap the mean of what is not NaN in values (Q,), drawing whole labels (Q,) or single values."""
    if not 0 < confidence < 1 or draws < 1:
        raise ArgumentError(f"confidence={confidence}, draws={draws}: expected 0 < confidence < 1 and draws >= 1.")
    counted = ~np.isnan(values)
    values = values[counted]
    numbers = np.arange(len(values)) if labels is None else pd.factorize(labels[counted].astype(object))[0]
    sums, sizes = np.bincount(numbers, values), np.bincount(numbers)
    if labels is not None and len(sums) < 2:
        raise ArgumentError(
            "by_label=True draws among labels, and all queries have the same: expected two labels or more."
        )
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // len(sums))
    means = []
    for start in range(0, draws, at_once):
        drawn = rng.integers(len(sums), size=(min(at_once, draws - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def threshold_curve(scores: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Precision against the share of queries that get an answer, when answers below a similarity are withheld.

    Queries for what the gallery does not hold belong in it: their best answer is never right, and a good threshold
    withholds it.

    Args:
        scores: similarity of the best answer of every query (Q,).
        correct: whether that answer is right, bool (Q,).

    Returns:
        One row for each score that occurs, thresholds rising: threshold, of which and above which a query is answered;
        answered, the share of queries that are; precision, the share of those whose answer is right; correct, the share
        of all queries whose answer is given and right.

    Raises:
        ValueError: if the shapes differ or are empty, a score is not finite, or `correct` is not of bools.

    Source: El-Yaniv & Wiener, "On the foundations of noise-free selective classification", JMLR 2010 (coverage, risk).
    """
    scores, correct = np.asarray(scores), np.asarray(correct)
    if scores.ndim != 1 or not len(scores) or scores.shape != correct.shape:
        raise ArgumentError(
            f"scores of shape {scores.shape} and correct of shape {correct.shape}: expected one number and one bool a "
            "query, for at least one query."
        )
    if correct.dtype != bool or not np.isfinite(scores).all():
        raise ArgumentError(
            f"Expected finite scores, and bools as correct, not {correct.dtype} (True: the answer is right)."
        )
    thresholds, place = np.unique(scores, return_inverse=True)
    answered, right = (np.bincount(place, w, len(thresholds))[::-1].cumsum()[::-1] for w in (None, correct))
    shares = {"answered": answered / len(scores), "precision": right / answered, "correct": right / len(scores)}
    return pd.DataFrame({"threshold": thresholds, **shares})
