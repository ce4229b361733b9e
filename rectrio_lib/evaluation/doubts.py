"""Which labels look wrong: images that lie closer to another class than to their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation import inputs

NEAREST = 5  # images of a class that speak for it; 3 to 20 rank planted wrong labels equally well
BLOCK = 1000  # images compared with all others at once


@torch.no_grad()
def doubtful_labels(
    vectors: np.ndarray, labels: Sequence[str], groups: Sequence | None = None, nearest: int = NEAREST
) -> pd.DataFrame:
    """List the images that are closer to another class than to their own, the most doubtful first.

    Close is the mean similarity to the `nearest` most similar images of a class, or to as many as an image's own class
    has besides it and its copies; smaller classes are not suggested. Most images found are rare or ambiguous rather
    than labelled wrongly: look at them in this order, and stop when there is nothing left to mend.

    Args:
        vectors: unit vectors (N, D) that did not learn these labels, as of a frozen backbone: a trained encoder has
            learned the wrong ones, too.
        labels: (N,).
        groups: (N,), equal for likely copies, which are not compared with each other: they share a label, right or not.
        nearest: at least 1.

    Returns:
        A row for each: row, the position among the N; label; closer_to; doubt, by how much, in cosine similarity.

    Raises:
        ArgumentError: if the lengths differ, or there is nothing to compare.

    Source: the idea of judging labels by features that did not see them: Northcutt, Jiang & Chuang, "Confident
        learning", JAIR 2021.
    """
    if nearest < 1:
        raise ArgumentError(f"nearest={nearest}: expected at least 1.")
    vectors = inputs.unit_vectors(vectors, "vectors")
    labels = inputs.checked_labels(labels, len(vectors), "vectors")
    classes, codes = np.unique(labels, return_inverse=True)
    groups = np.arange(len(labels)) if groups is None else pd.factorize(np.asarray(groups))[0]
    if len(groups) != len(labels) or len(classes) < 2:
        told = f"{len(labels)} labels of {len(classes)} classes and {len(groups)} groups"
        raise ArgumentError(f"{told}: expected two classes or more, and a group for each label.")
    members = [torch.as_tensor(np.flatnonzero(codes == c)) for c in range(len(classes))]
    numbers, found = torch.as_tensor(groups), []
    for rows in torch.arange(len(labels)).split(BLOCK):
        similarity = vectors[rows] @ vectors.T
        similarity[numbers[rows, None] == numbers] = -torch.inf
        found.append(_closeness(similarity, members, torch.as_tensor(codes)[rows], nearest))
    closeness = torch.cat(found).numpy()
    everyone = np.arange(len(labels))
    own = closeness[everyone, codes].copy()
    closeness[everyone, codes] = -np.inf
    doubt = np.where(np.isfinite(own), closeness.max(1) - own, -np.inf)
    order = np.argsort(-doubt, kind="stable")[: int((doubt > 0).sum())]
    columns = {"row": order, "label": labels[order], "closer_to": classes[closeness[order].argmax(1)]}
    return pd.DataFrame({**columns, "doubt": doubt[order]})


def _closeness(
    similarity: torch.Tensor, members: list[torch.Tensor], codes: torch.Tensor, nearest: int
) -> torch.Tensor:
    """Mean similarity of B images to the nearest of each class (B, C); -inf where a class has too few."""
    best = torch.full((len(codes), len(members), nearest), -torch.inf)
    for number, columns in enumerate(members):
        count = min(nearest, len(columns))
        best[:, number, :count] = similarity[:, columns].topk(count).values
    able = best[torch.arange(len(codes)), codes].isfinite().sum(1).clamp_min(1)  # how many its own class has
    means = best.cumsum(2) / torch.arange(1, nearest + 1)
    return means.gather(2, (able - 1)[:, None, None].expand(-1, len(members), 1))[:, :, 0]
