"""Vectors laid out in the plane, as points and in the cells of a grid."""

from __future__ import annotations

import numpy as np

MOST_MAPPED = 2_000
FEWEST_FOR_TSNE = 30
MOST_CLASSES = 20  # more cannot be told apart by colour, nor read in a matrix


def project(vectors: np.ndarray) -> tuple[str, np.ndarray]:
    """Lay vectors (N, dim), N 3 or more, out in the plane; return the method, "t-SNE" or "PCA", and points (N, 2).

    Source: van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    flat = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    if len(vectors) < FEWEST_FOR_TSNE:
        return "PCA", flat[:, :2]
    perplexity = min(30, len(vectors) / 4)
    return "t-SNE", TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(flat)


def cells(points: np.ndarray, columns: int, lines: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of points (N, 2) find a cell of their own in a grid, int64 (M,), and its column and line (M, 2)."""
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.maximum(high - low, 1e-9) * (columns, lines)
    places = np.minimum(scaled.astype(np.int64), (columns - 1, lines - 1))
    places, first = np.unique(places, axis=0, return_index=True)
    return first, places


def apart(places: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Move places of names (N, 2) among points downwards, until no name covers another one."""
    wide, high = np.ptp(points, axis=0) * (0.2, 0.05)
    moved = places.copy()
    for at, name in enumerate(order := np.argsort(-places[:, 1], kind="stable")):
        while len(hit := [p for p in moved[order[:at]] if (abs(p - moved[name]) < (wide, high)).all()]):
            moved[name, 1] = min(y for _, y in hit) - 1.01 * high
    return moved
