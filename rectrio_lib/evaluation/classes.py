"""How well classes hold together in a space of vectors: ranking figures and mean similarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rectrio_lib.evaluation import evaluation, retrieval


def quality(spaces: Mapping[str, np.ndarray], rows: pd.DataFrame, tested: bool) -> dict[str, evaluation.Evaluation]:
    """Measure how well each encoder ranks pictures of one class before all others.

    Args:
        spaces: {encoder: unit vectors (N, dim)}.
        rows: N rows with `label` and `split`; pictures without a label are left out.
        tested: search the test pictures among those for training and validation; else every picture among all others
            (leave-one-out).

    Returns:
        {encoder: figures}; empty if there is nothing to measure: fewer than two classes, or fewer than six pictures.
    """
    labels, split = rows["label"].to_numpy(), rows["split"].to_numpy()
    known = labels != ""
    counts = pd.Series(labels[known]).value_counts()
    asked, others = known & (split == "test"), known & np.isin(split, ("train", "val"))
    size = others.sum() if tested else known.sum() - 1
    if len(counts) < 2 or counts.max() < 2 or size < 5 or (tested and not asked.any()):
        return {}
    options = {"ks": (1, 5), "knn": min(20, int(size))}
    if not tested:
        return {name: retrieval.evaluate(v[known], labels[known], **options) for name, v in spaces.items()}
    return {
        name: retrieval.evaluate(v[asked], labels[asked], v[others], labels[others], **options)
        for name, v in spaces.items()
    }


def class_similarity(vectors: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the mean cosine similarity of the pictures of each class to those of each (classes, classes).

    A picture is not compared with itself; a class of one is as similar to itself as can be.

    Args:
        vectors: unit vectors (N, dim).
        labels: (N,).
        classes: names of rows and columns, each with a picture at least.
    """
    sums = np.stack([vectors[labels == name].sum(0) for name in classes])
    sizes = np.array([(labels == name).sum() for name in classes], float)
    found = sums @ sums.T / np.outer(sizes, sizes)
    own = ((sums**2).sum(1) - sizes) / np.maximum(sizes * (sizes - 1), 1)
    found[np.diag_indices(len(classes))] = np.where(sizes > 1, own, 1)
    return found
