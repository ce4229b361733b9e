"""How much images will be liked, by what was liked and disliked before; on plain arrays.

Each strategy takes candidates (n, dim), liked (P, dim), at least one, and disliked (M, dim), all unit vectors, and
returns scores float32 (n,), the larger the better.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from rectrio_lib.search import rerank

AWAY = 0.75  # how far a wish turns away from what was disliked
SHARPNESS = 100.0  # inverse regularization of the regression: the best of 1 to 1,000 on validation splits
UNJUDGED = 200  # candidates that the regression takes for not liked, together as much as what is liked
Strategy = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def rocchio(liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
    """Return the unit vector (dim,) of mean(liked) + 0.75 (mean(liked) - mean(disliked)).

    Source: Rocchio, "Relevance feedback in information retrieval", 1971.
    """
    mean = liked.mean(0)
    wish = mean + AWAY * (mean - disliked.mean(0)) if len(disliked) else mean
    length = np.linalg.norm(wish)
    return wish / length if length > 1e-6 else liked[-1]  # they cancel each other


def by_mean(candidates: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
    """Score by the cosine to the wish of `rocchio`."""
    return candidates @ rocchio(liked, disliked)


def by_best(candidates: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
    """Score by the most similar judged image: its cosine if it was liked, minus its square if it was disliked.

    Source: Qdrant's "best score" strategy of recommendation.
    """
    near = (candidates @ liked.T).max(1, initial=-1)
    if not len(disliked):
        return near
    far = (candidates @ disliked.T).max(1)
    return np.where(near > far, near, -np.square(far))


def by_regression(candidates: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
    """Score by the probability of being liked, of a logistic regression in which candidates count as not liked.

    Source: Elkan and Noto, "Learning classifiers from only positive and unlabeled data", KDD 2008.
    """
    from sklearn.linear_model import LogisticRegression

    others = candidates[:: -(-len(candidates) // UNJUDGED) or 1]
    known, count = np.concatenate([liked, disliked, others]), len(disliked) + len(others)
    targets = np.repeat([1, 0], [len(liked), count])
    weights = np.repeat([1.0, 1.0, len(liked) / max(1, len(others))], [len(liked), len(disliked), len(others)])
    fitted = LogisticRegression(C=SHARPNESS).fit(known, targets, weights)
    return fitted.predict_proba(candidates)[:, 1].astype(np.float32)


STRATEGIES: dict[str, Strategy] = {"mean": by_mean, "best": by_best, "logistic": by_regression}


def farthest_first(vectors: np.ndarray, k: int) -> np.ndarray:
    """Choose images that differ: the most typical one, then always the one least similar to those chosen before.

    Args:
        vectors: unit vectors (n, dim).
        k: number to choose.

    Returns:
        Places in the order of choice, int64 (min(k, n),).

    Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    if not len(vectors):
        return np.empty(0, np.int64)
    order = np.argsort(-(vectors @ vectors.mean(0)), kind="stable")
    return order[rerank.mmr(np.zeros(len(order)), vectors[order], k, 0)]


def at_most(groups: np.ndarray, most: int) -> np.ndarray:
    """Return the places, ascending, of the first `most` of each group (n,); what has no group is kept."""
    groups = pd.Series(groups)
    absent = groups.isna() | groups.eq("")
    return np.flatnonzero(absent | (groups.groupby(groups, sort=False).cumcount() < most))
