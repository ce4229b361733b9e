"""Vectors and labels as the metrics take them, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.errors import ArgumentError

Vectors = np.ndarray | torch.Tensor
Labels = Sequence | np.ndarray | pd.Series | torch.Tensor
LENGTH_TOLERANCE = 0.01  # float16 vectors are off by 0.0005


def unit_vectors(given: Vectors, name: str) -> torch.Tensor:
    """Return finite unit vectors as a float32 tensor, without a copy where none is needed."""
    if not isinstance(given, torch.Tensor):
        given = torch.from_numpy(np.require(given, np.float32, ["C", "W"]))
    if given.ndim != 2 or not given.numel():
        raise ArgumentError(f"{name}: shape {tuple(given.shape)}, expected (images, dimensions), both at least 1.")
    vectors = (given.cpu() if given.device.type == "mps" else given).detach().float()  # mps has no float64
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    bad = (~((lengths - 1).abs() <= LENGTH_TOLERANCE)).nonzero()
    if len(bad):
        row, length = bad[0].item(), lengths[bad[0]].item()
        if not math.isfinite(length):
            raise ArgumentError(f"{name}: row {row} holds NaN or infinity, expected finite numbers.")
        raise ArgumentError(f"{name}: row {row} has length {length:.3g}, expected 1: divide each row by its length.")
    return vectors


def as_array(labels: Labels) -> np.ndarray:
    """Return labels as an array."""
    return labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)


def checked_labels(given: Labels, rows: int, name: str) -> np.ndarray:
    """Return labels (rows,), none of them missing."""
    labels = as_array(given)
    if labels.shape != (rows,):
        raise ArgumentError(f"Labels of shape {labels.shape} for {rows:,} {name}: expected one label for each.")
    if pd.isna(labels).any():
        raise ArgumentError(f"Label {pd.isna(labels).argmax()} of {rows:,} {name} is missing (None or NaN).")
    return labels


def class_numbers(labels: np.ndarray, gallery_labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the classes of queries and gallery together; as objects, so that 1 and "1" stay different."""
    both = np.concatenate([labels.astype(object), gallery_labels.astype(object)])
    numbers = torch.from_numpy(pd.factorize(both)[0])
    return numbers[: len(labels)], numbers[len(labels) :]


def nothing_relevant(labels: np.ndarray, gallery_labels: np.ndarray | None) -> str:
    """Say why no query has a relevant image."""
    if gallery_labels is None:
        return "No query has a relevant image: every label occurs once, expected classes of two images or more."
    first, other = labels.tolist()[0], gallery_labels.tolist()[0]
    return f"No query has a relevant image: queries have labels such as {first!r}, the gallery such as {other!r}."


def check_sizes(queries: torch.Tensor, gallery: torch.Tensor, ks: Sequence[int], knn: int, alone: bool) -> None:
    """Refuse vectors of different lengths and cut-offs beyond the gallery."""
    if queries.shape[1] != gallery.shape[1]:
        lengths = f"{queries.shape[1]} dimensions, the gallery {gallery.shape[1]}"
        raise ArgumentError(f"Queries have {lengths}: use one encoder for both.")
    if not len(ks):
        raise ArgumentError("ks is empty: expected at least one cut-off, such as (1, 5, 10).")
    size = len(gallery) - alone
    for name, k in [*(("k", k) for k in ks), ("knn", knn)]:
        if not 1 <= k <= size:
            besides = " besides the query" if alone else ""
            raise ArgumentError(f"{name}={k} but the gallery holds {size:,} images{besides}: choose 1 to {size:,}.")
