"""How well vectors separate classes: ranking figures and mean similarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rectrio_lib.evaluation import evaluation, retrieval


def quality(spaces: Mapping[str, np.ndarray], rows: pd.DataFrame, tested: bool) -> dict[str, evaluation.Evaluation]:
    """Measure how well each encoder ranks images of one class before all others.

    Args:
        spaces: {encoder: unit vectors (N, dim)}.
        rows: N rows with `label` and `split`; images without a label are left out.
        tested: search the test images among training and validation images; else every image among all others.

    Returns:
        {encoder: figures}; empty if there are fewer than two classes, or fewer than six images.
    """
    labels, split = rows["label"].to_numpy(), rows["split"].to_numpy()
    known = labels != ""
    counts = pd.Series(labels[known]).value_counts()
    queries, gallery = known & (split == "test"), known & np.isin(split, ("train", "val"))
    size = gallery.sum() if tested else known.sum() - 1
    if len(counts) < 2 or counts.max() < 2 or size < 5 or (tested and not queries.any()):
        return {}
    options = {"ks": (1, 5), "knn": min(20, int(size))}
    sides = (queries, gallery) if tested else (known,)
    return {
        name: retrieval.evaluate(*(part for side in sides for part in (v[side], labels[side])), **options)
        for name, v in spaces.items()
    }


def class_similarity(vectors: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the mean cosine similarity between the images of each pair of classes, each of at least one image.

    An image is not compared with itself; a class of one image has similarity 1 to itself.
    """
    sums = np.stack([vectors[labels == name].sum(0) for name in classes])
    sizes = np.array([(labels == name).sum() for name in classes], float)
    similarity = sums @ sums.T / np.outer(sizes, sizes)
    own = ((sums**2).sum(1) - sizes) / np.maximum(sizes * (sizes - 1), 1)
    similarity[np.diag_indices(len(classes))] = np.where(sizes > 1, own, 1)
    return similarity
