"""Finding the very same object: how many views it takes, whether it is there at all, what it is mistaken for."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation import inputs
from rectrio_lib.evaluation.evaluation import threshold_curve


def recall_with_views(vectors: np.ndarray, labels: np.ndarray, most: int, seed: int = 0) -> float:
    """Return leave-one-out recall@1 where each object keeps at most `most` other views, drawn at random.

    Args:
        vectors: unit vectors (N, dim).
        labels: the object of each (N,); a query without another view is left out.
        most: other views of the object of a query, at least 1; a smaller number keeps a subset of a larger one's.
        seed: of the draw.

    Raises:
        ArgumentError: if `most` is below 1, or vectors and labels do not fit.
    """
    labels, similarity = _compared(vectors, labels)
    if most < 1:
        raise ArgumentError(f"most={most}: a query needs at least one other view in the gallery.")
    turn = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels), np.int64)
    place[turn] = pd.Series(labels[turn]).groupby(labels[turn]).cumcount()  # of each image among those of its object
    same = labels[:, None] == labels
    before = place - (same & (place > place[:, None]))  # the query is no view of its own: those after it move up
    nearest = np.where(before < most, similarity, -np.inf).argmax(1)
    return float((labels[nearest] == labels)[same.sum(1) > 1].mean())


def half_absent(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Take half of the objects out of a gallery with all of their images: return what it still holds, bool (N,)."""
    own = np.random.default_rng(seed).permutation(np.unique(labels))
    return np.isin(labels, own[len(own) // 2 :])


def best_results(vectors: np.ndarray, labels: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Search every image in a part of the set, itself left out.

    Args:
        vectors: unit vectors (N, dim).
        labels: the object of each (N,).
        held: which images the gallery holds, bool (N,), at least two; the others ask for what is not there.

    Returns:
        Score of the best result of each image (N,), and whether it shows the same object (N,): as `threshold_curve`
        takes them.

    Raises:
        ArgumentError: if the gallery holds fewer than two images, or the arguments do not fit.
    """
    labels, similarity = _compared(vectors, labels)
    if held.dtype != bool or held.shape != labels.shape or held.sum() < 2:
        raise ArgumentError(f"held: expected {len(labels)} bools, two of them true, not {held.dtype} {held.shape}.")
    similarity[:, ~held] = -np.inf
    nearest = similarity.argmax(1)
    return np.take_along_axis(similarity, nearest[:, None], 1)[:, 0], labels[nearest] == labels


def choose_threshold(scores: np.ndarray, correct: np.ndarray, precision: float) -> float:
    """Return the threshold that answers most queries with that precision; infinity, which answers none, if none has it.

    Args:
        scores: of the best result of each validation query (Q,).
        correct: whether it is right, bool (Q,).
        precision: share of the answered queries that should be right, in 0..1.
    """
    curve = threshold_curve(scores, correct)
    good = curve[curve["precision"] >= precision]
    return float(good["threshold"].min()) if len(good) else float("inf")


def at_threshold(scores: np.ndarray, correct: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Return the share of queries answered from a threshold on, and of these the share that is right; None if none."""
    above = scores >= threshold
    return {"answered": float(above.mean()), "right": float(correct[above].mean()) if above.any() else None}


def closest(vectors: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and scores (Q, k) of what is most alike to the queries, themselves left out, best first."""
    similarity = _compared(vectors, labels)[1][queries]
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, 1)


def mistaken(vectors: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Count which object is taken for which by the nearest neighbour, leave-one-out.

    Returns:
        Most frequent first: label, taken_for, times, and one case: query and result, the positions of the pair that is
        most alike.
    """
    labels, similarity = _compared(vectors, labels)
    nearest, score = similarity.argmax(1), similarity.max(1)
    columns = {"label": labels, "taken_for": labels[nearest], "query": np.arange(len(labels)), "result": nearest}
    pairs = pd.DataFrame(columns | {"score": score}).query("label != taken_for").sort_values("score", ascending=False)
    groups = pairs.groupby(["label", "taken_for"], sort=False)
    cases = groups[["query", "result"]].first().assign(times=groups.size()).reset_index()
    return cases.sort_values("times", ascending=False, kind="stable", ignore_index=True)


def _compared(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (N,) and similarities (N, N), minus infinity to itself."""
    units = inputs.unit_vectors(vectors, "vectors").numpy()
    labels = inputs.checked_labels(labels, len(units), "vectors")
    similarity = units @ units.T
    np.fill_diagonal(similarity, -np.inf)
    return labels, similarity
