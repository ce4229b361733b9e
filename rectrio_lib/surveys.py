"""What a folder of pictures looks like to an encoder: near copies, neighbours, a map, and how well classes hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rectrio_lib import cleaning, metrics
from rectrio_lib.indexing import Index
from rectrio_lib.stores import EmbeddingStore

MOST_COMPARED = 10_000  # pictures that are compared with one another, all with all
MOST_MAPPED = 2_000
FEWEST_FOR_TSNE = 30
MOST_CLASSES = 20  # more cannot be told apart by colour, nor read in a matrix
NEAR_COPY = 0.87  # mirrored and bordered copies of photographs lie between 0.84 and 0.95
NEAREST = 10  # so many neighbours of each picture are looked at for near copies
FEWEST = 10  # pictures of a class that is worth training on


def why_untrained(rows: pd.DataFrame) -> str:
    """Say why no encoder can be trained on pictures; empty if one can.

    Args:
        rows: the readable, different pictures, with `label`, empty where a picture lies in no class folder.
    """
    counts = rows["label"][rows["label"].ne("")].value_counts()
    if counts.empty:
        return "the pictures lie in no class folders"
    if len(counts) == 1:
        return f"there is one class folder only, {counts.index[0]}"
    if counts.min() < 2:
        return f"class {counts.idxmin()} has a single picture"
    if (counts >= FEWEST).sum() < 2:
        return f"only {(counts >= FEWEST).sum()} of the {len(counts)} classes have {FEWEST} pictures or more"
    return ""


def sample(rows: pd.DataFrame, most: int, seed: int = 0) -> pd.DataFrame:
    """Return at most so many rows, drawn by chance, in their order."""
    return rows if len(rows) <= most else rows.sample(most, random_state=seed).sort_index()


def vectors_of(store: EmbeddingStore, image_ids: Sequence[str]) -> np.ndarray:
    """Return the vectors of some pictures, float32 (N, dim), in their order; the store is read a shard at a time."""
    wanted = pd.Index(image_ids)
    found = np.empty((len(wanted), store.card["dim"]), np.float32)
    for block, rows in store.blocks():
        places = wanted.get_indexer(rows["image_id"])
        found[places[places >= 0]] = block[places >= 0]
    return found


def similar_pairs(features: np.ndarray) -> np.ndarray:
    """Find pairs of pictures that an untrained backbone sees as one: the same scene, a crop, a mirror image.

    All features share a large common part, so what is left without it is compared.

    Args:
        features: unit vectors (N, dim) of a pretrained backbone; a trained encoder brings whole classes as close, and
            random weights see copies everywhere.

    Returns:
        Positions (P, 2), the smaller first; of each picture the ten nearest are looked at.
    """
    if len(features) < 3:  # without their mean, two are as unlike as can be
        return np.empty((0, 2), np.int64)
    centred = features - features.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-9)
    rows = pd.DataFrame({"image_id": np.arange(len(centred)).astype(str)})
    scores, found = Index.build("flat", centred, rows, "").search(centred, min(NEAREST + 1, len(rows)))
    left, place = np.nonzero(scores > NEAR_COPY)
    pairs = np.sort(np.column_stack([left, found[left, place]]), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def near_copies(features: np.ndarray, rows: pd.DataFrame) -> list[np.ndarray]:
    """Join similar pairs, see `similar_pairs`, to groups.

    Args:
        features: unit vectors (N, dim) of a pretrained backbone.
        rows: N rows with `image_id`.

    Returns:
        Positions of each group of two or more, the largest group first.
    """
    joined = cleaning.join_groups(rows.assign(group=rows["image_id"]), similar_pairs(features))
    groups = [members for members in joined.groupby("group").indices.values() if len(members) > 1]
    return sorted(groups, key=lambda members: (-len(members), members[0]))


def examples(rows: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """Choose pictures by chance, of every class one before any class two; of the test split where there is one."""
    rows = rows[rows["split"].eq("test")] if rows["split"].eq("test").any() else rows
    shuffled = rows.sample(frac=1, random_state=seed)
    turn = shuffled.groupby("label").cumcount().to_numpy()
    return shuffled.iloc[turn.argsort(kind="stable")].head(count)


def project(vectors: np.ndarray) -> tuple[str, np.ndarray]:
    """Lay vectors (N, dim), N 3 or more, out in the plane, neighbours beside each other as far as that goes.

    Returns:
        The method, "t-SNE" or for fewer than 30 vectors "PCA", and points (N, 2).

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
    """Lay points (N, 2) on a grid, of which a cell holds one.

    Returns:
        Which points found a place, int64 (M,), and their column and line (M, 2), counted from 0.
    """
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.maximum(high - low, 1e-9) * (columns, lines)
    places = np.minimum(scaled.astype(np.int64), (columns - 1, lines - 1))
    places, first = np.unique(places, axis=0, return_index=True)
    return first, places


def quality(spaces: Mapping[str, np.ndarray], rows: pd.DataFrame, tested: bool) -> dict[str, metrics.Evaluation]:
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
        return {name: metrics.evaluate(v[known], labels[known], **options) for name, v in spaces.items()}
    return {
        name: metrics.evaluate(v[asked], labels[asked], v[others], labels[others], **options)
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
