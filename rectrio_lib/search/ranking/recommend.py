"""From what was liked and disliked to what will be liked next: varied, and without what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import file_at
from rectrio_lib.index.base import VectorIndex, Where
from rectrio_lib.index.conditions import matching
from rectrio_lib.search import rerank
from rectrio_lib.search.options import Options, listed, whole
from rectrio_lib.search.ranking.strategies import STRATEGIES, at_most, by_mean, farthest_first, rocchio
from rectrio_lib.search.results import Results

if TYPE_CHECKING:
    from rectrio_lib.search.searcher import Image, Searcher

DEFAULT = "logistic"  # the best on the validation splits of animals and products
MOST_LOOKED_AROUND = 16  # liked images whose neighbours are candidates; of more, the most different ones
ABSENT, BOTH = "not in the collection", "liked and disliked"
SAMPLE = 2000  # images that are chosen from where nothing is liked


@dataclass(frozen=True)
class Taste:
    """How to choose; each of these is a keyword of `recommend`.

    Attributes:
        strategy: "mean", "best" or "logistic", see `strategies`.
        where: only rows that meet this condition, see `conditions.matching`.
        minimum: only results of at least this score of the strategy.
        distinct: drop results whose cosine similarity to a better one exceeds this, such as 0.98.
        mmr: weigh relevance (1) against variety (0), see `rerank.mmr`.
        group_by: a column of the metadata, such as "product", of whose values at most `per_group` results share one.
        per_group: at least 1.
        pool: number of best candidates that the above choose from, at least four times as many as results.

    Raises:
        ArgumentError: if an argument is out of its range.
    """

    strategy: str = DEFAULT
    where: Where = None
    minimum: float | None = None
    distinct: float | None = None
    mmr: float | None = None
    group_by: str | None = None
    per_group: int = 1
    pool: int = 200

    def __post_init__(self) -> None:
        Options(minimum=self.minimum, distinct=self.distinct, mmr=self.mmr, pool=self.pool)  # which checks them
        if self.strategy not in [*STRATEGIES]:  # compared one by one: it may have no hash
            raise ArgumentError(f"strategy={self.strategy!r} is unknown: choose one of {', '.join(STRATEGIES)}.")
        whole("per_group", self.per_group)


def answer(
    searcher: Searcher,
    like: Image | Sequence[Image],
    dislike: Image | Sequence[Image],
    seen: str | Sequence[str],
    k: int,
    taste: Taste,
) -> Results:
    """Recommend by images, as `Searcher.recommend` describes it."""
    index, ignored = searcher.index, {}
    judged = {"like": like, "dislike": dislike}.items()
    (liked, its), (disliked, others) = (_judged(searcher, listed(*given), ignored) for given in judged)
    liked, disliked, both = apart(liked, its, disliked, others)
    ignored |= dict.fromkeys(index.rows["image_id"].iloc[both].tolist(), BOTH)
    places = searcher.positions(listed("seen", seen))
    out = np.concatenate([its, others, np.array([*places.values()], np.int64)])
    scores, found = recommend(index, liked, disliked, k, out[out >= 0], taste)
    rest = (0, k - len(found))
    scores, found = np.pad(scores, rest, constant_values=np.nan), np.pad(found, rest, constant_values=-1)
    return Results(["recommended"], scores[None], found[None], index.rows, ignored=ignored)


def _judged(searcher: Searcher, images: list[Image], ignored: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (P, dim) and positions (P,), -1 for images from elsewhere; note what is not to be found."""
    names = [str(image) for image in images if not isinstance(image, np.ndarray)]
    there = searcher.positions(names)
    absent = {name for name in names if name not in there and not file_at(name)}
    ignored |= dict.fromkeys(absent, ABSENT)
    images = [image for image in images if isinstance(image, np.ndarray) or str(image) not in absent]
    if not images:
        return np.empty((0, searcher.index.dim), np.float32), np.empty(0, np.int64)
    _, vectors, own = searcher.encode_images(images)
    return vectors, own[:, 0] if own.size else np.full(len(vectors), -1)


def apart(
    liked: np.ndarray, its: np.ndarray, disliked: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take out what is liked and disliked, by positions (-1: from elsewhere); return the rest, and its positions."""
    both = np.intersect1d(its[its >= 0], others)
    return liked[~np.isin(its, both)], disliked[~np.isin(others, both)], both


def recommend(
    index: VectorIndex, liked: np.ndarray, disliked: np.ndarray, k: int, seen: np.ndarray, taste: Taste
) -> tuple[np.ndarray, np.ndarray]:
    """Find what will be liked, best first.

    Candidates are the nearest of each liked image and of their `rocchio` mean. Where nothing is liked, they are a
    sample of all, without the half most similar to what is disliked, and different ones come first.

    Args:
        index: where to look.
        liked: unit vectors (P, dim).
        disliked: unit vectors (M, dim).
        k: most results.
        seen: positions that are no results (S,).
        taste: how to choose.

    Returns:
        Scores of the strategy float32 (R,), NaN where nothing is liked, and positions int64 (R,), with R up to k.

    Raises:
        ArgumentError: if k is below 1, or a condition or column does not fit.
    """
    if taste.group_by is not None and taste.group_by not in [*index.rows]:
        known = ", ".join(map(str, index.rows.columns))
        raise ArgumentError(f"group_by: there is no column {taste.group_by!r}; the columns are {known}.")
    if taste.group_by is not None and index.rows[taste.group_by].map(type).eq(list).any():
        raise ArgumentError(f"group_by: {taste.group_by!r} holds lists; take a column of single values.")
    size, k = index.count(taste.where), whole("k", k)
    pool = max(taste.pool, 4 * k)
    if not len(liked):
        return _varied(index, disliked, k, seen, taste)
    queries = np.concatenate([rocchio(liked, disliked)[None], _some(liked)])
    while True:
        positions = _near(index, queries, min(pool, size), seen, taste.where)
        vectors = index.vectors_at(positions)
        strategy = STRATEGIES[taste.strategy] if len(positions) else by_mean
        scores = strategy(vectors, liked, disliked).astype(np.float32)
        order, complete = _chosen(index, positions, vectors, scores, k, pool, taste)
        if len(order) == k or complete or pool >= size:
            return scores[order], positions[order]
        pool *= 4


def _some(liked: np.ndarray) -> np.ndarray:
    return liked if len(liked) <= MOST_LOOKED_AROUND else liked[farthest_first(liked, MOST_LOOKED_AROUND)]


def _near(index: VectorIndex, queries: np.ndarray, pool: int, seen: np.ndarray, where: Where) -> np.ndarray:
    """Return the positions of the nearest of each query, each once, without those seen."""
    if not pool:
        return np.empty(0, np.int64)
    positions = np.unique(index.search(queries.astype(np.float32), pool, where=where)[1])
    return positions[~np.isin(positions, seen)]


def _chosen(
    index: VectorIndex, positions: np.ndarray, vectors: np.ndarray, scores: np.ndarray, k: int, pool: int, taste: Taste
) -> tuple[np.ndarray, bool]:
    """Return the places of at most k candidates, best first, and whether more candidates would not help."""
    order, complete = np.argsort(-scores, kind="stable"), False
    if taste.minimum is not None:
        good = order[scores[order] >= taste.minimum]
        order, complete = good, len(good) < len(order)
    if taste.group_by is not None:
        order = order[at_most(index.rows[taste.group_by].iloc[positions[order]].to_numpy(), taste.per_group)]
    return rerank.varied(order[:pool], scores, vectors, k, taste.distinct, taste.mmr), complete


def _varied(
    index: VectorIndex, disliked: np.ndarray, k: int, seen: np.ndarray, taste: Taste
) -> tuple[np.ndarray, np.ndarray]:
    """Return images that differ from each other and from what is disliked, without scores."""
    met = matching(index.rows, taste.where) if isinstance(taste.where, str) else taste.where
    allowed = ~index.removed if met is None else met & ~index.removed
    allowed[seen] = False
    positions = np.flatnonzero(allowed)
    if len(positions) > SAMPLE + k:
        positions = np.sort(np.random.default_rng(0).choice(positions, SAMPLE + k, replace=False))
    vectors = index.vectors_at(positions)
    if len(disliked):
        order = np.argsort((vectors @ disliked.T).max(1), kind="stable")
        order = order[: max(k, len(order) // 2)]
        positions, vectors = positions[order], vectors[order]
    if taste.group_by is not None:
        kept = at_most(index.rows[taste.group_by].iloc[positions].to_numpy(), taste.per_group)
        positions, vectors = positions[kept], vectors[kept]
    order = farthest_first(vectors, k)
    return np.full(len(order), np.nan, np.float32), positions[order]
