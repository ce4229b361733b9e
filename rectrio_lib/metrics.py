"""How good a ranking is: recall@k, precision@1, R-precision, mAP@R, mAP, MRR and k-NN accuracy, query by query."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rectrio_lib.evaluations import Evaluation

Vectors = np.ndarray | torch.Tensor
Figures = dict[str, torch.Tensor]  # by name, one number a query
Labels = Sequence | np.ndarray | pd.Series | torch.Tensor

BLOCK_ENTRIES = 2**22  # scores held at once: about 300 MB with everything derived from them
GROUP = 64  # columns of which only the best is looked at first; fastest of 8..512 at 55,000 vectors
TIE_STEP = 2.0**-52  # the smallest step that a float64 near 1 still takes
LENGTH_TOLERANCE = 0.01  # float16 vectors are off by 0.0005


@torch.no_grad()
def evaluate(
    queries: Vectors,
    query_labels: Labels,
    gallery: Vectors | None = None,
    gallery_labels: Labels | None = None,
    ks: Sequence[int] = (1, 5, 10),
    knn: int = 20,
    nearest_only: bool = False,
    block: int | None = None,
    average_precision: bool = False,
) -> Evaluation:
    """Search every query in the gallery exactly, and measure the rankings. A picture of the same label is relevant.

    Equal scores rank in gallery order, so a relevant picture is never favoured. Scores count as equal when their
    float32 inner products are; as in every matrix product, their last bit may depend on the place and on `block`.
    A query whose class the gallery lacks is left out of all means, as pytorch-metric-learning does, and counted in
    `skipped`. Unlike there, the reciprocal rank looks through the whole gallery.

    Args:
        queries: unit vectors (Q, D), in memory or memory-mapped; work happens where a tensor lives, in float32.
        query_labels: (Q,) numbers or text.
        gallery: unit vectors (N, D). None searches each query among all others: it never finds itself, but does find
            exact copies of itself.
        gallery_labels: (N,) of the same kind as `query_labels`.
        ks: cut-offs of recall.
        knn: neighbours that vote on the class; among classes with equally many votes the one of the nearest wins.
        nearest_only: leave out r_precision, map_at_r and mrr, which look beyond the nearest: several times faster.
        block: queries at once; None takes as many as 300 MB hold.
        average_precision: measure it too: the precision at the rank of each relevant picture, averaged over them. The
            whole gallery is sorted for it; its mean over queries is known as mAP.

    Returns:
        The figures of every query.

    Raises:
        ValueError: if vectors are not of unit length, finite and (rows, D) with one D; if labels do not fit them; if a
            cut-off is below 1 or above the gallery; if no query has a relevant picture; if average_precision is asked
            for together with nearest_only.

    Source: R-precision and mAP@R: Musgrave, Belongie & Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.2.
        Recall@k: Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011, section V.
        Average precision: Manning, Raghavan & Schütze, "Introduction to Information Retrieval", 2008, section 8.4.
    """
    if average_precision and nearest_only:
        raise ValueError("average_precision looks through the whole gallery: leave nearest_only out.")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels go together: pass both, or neither to search among the queries.")
    if block is not None and block < 1:
        raise ValueError(f"block={block}: expected at least one query at once, or None.")
    alone = gallery is None
    queries = _vectors(queries, "queries")
    gallery = queries if alone else _vectors(gallery, "gallery").to(queries.device)
    labels = _labels(query_labels, len(queries), "queries")
    classes, gallery_classes = _encode(labels, None if alone else _labels(gallery_labels, len(gallery), "gallery rows"))
    _check(queries, gallery, ks, knn, alone)
    classes, gallery_classes = classes.to(queries.device), gallery_classes.to(queries.device)
    counts = torch.bincount(gallery_classes, minlength=int(classes.max()) + 1)
    relevant = counts[classes] - int(alone)  # (Q,), the R of R-precision
    order = relevant.argsort()[(relevant == 0).sum() :]  # queries of like R share a block, the skipped are left out
    if not len(order):
        raise ValueError(_nothing_relevant(labels, gallery_labels))
    # Added to the scores it orders equal ones by their place, and is far below what float32 tells apart.
    tie_break = -TIE_STEP * torch.arange(len(gallery), dtype=torch.float64, device=queries.device)  # (N,)
    parts = []
    block = block or max(1, BLOCK_ENTRIES // max(len(gallery), knn * knn))
    whole = len(gallery) - alone if average_precision else 0
    for rows in order.split(int(block)):
        similarity = queries[rows] @ gallery.T  # (B, N)
        if alone:
            similarity[torch.arange(len(rows)), rows] = -torch.inf
        if nearest_only:
            nearest = _nearest(similarity, max(*ks, knn), tie_break)
            parts.append(_of_nearest(gallery_classes[nearest], classes[rows], ks, knn))
        else:
            keys = similarity + tie_break
            parts.append(_of_all(keys, gallery_classes, classes[rows], relevant[rows], ks, knn, whole))
    scores = {name: np.full(len(labels), np.nan) for name in parts[0]}
    for name, values in scores.items():
        values[order.cpu()] = torch.cat([part[name] for part in parts]).cpu()
    return Evaluation(labels, scores)


def _nearest(similarity: torch.Tensor, k: int, tie_break: torch.Tensor) -> torch.Tensor:
    """Return the columns (B, k) of the k best, best first.

    The k best lie in the k groups of columns with the best maximum, so only those are looked into.
    """
    gap = -similarity.shape[1] % GROUP
    padded = torch.nn.functional.pad(similarity, (0, gap), value=-torch.inf)
    tie_break = torch.nn.functional.pad(tie_break, (0, gap))
    best = padded.unflatten(1, (-1, GROUP)).amax(2) + tie_break[::GROUP]
    groups = best.topk(min(k, best.shape[1])).indices
    columns = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)).flatten(1)
    chosen = (padded.gather(1, columns) + tie_break[columns]).topk(k).indices
    return columns.gather(1, chosen)


def _of_nearest(found: torch.Tensor, classes: torch.Tensor, ks: Sequence[int], knn: int) -> Figures:
    """Return the figures that the classes (B, K) of the nearest tell, K at least max(ks) and knn."""
    hits = found == classes[:, None]
    votes = (found[:, :knn, None] == found[:, None, :knn]).sum(2)  # (B, knn): of each neighbour's class
    predicted = found.gather(1, votes.argmax(1, keepdim=True))  # argmax returns the first, so the nearest
    figures = {f"recall_at_{k}": hits[:, :k].any(1) for k in ks}
    figures |= {"precision_at_1": hits[:, 0], "knn_accuracy": predicted[:, 0] == classes}
    return {name: values.double() for name, values in figures.items()}


def _of_all(
    keys: torch.Tensor,
    gallery_classes: torch.Tensor,
    classes: torch.Tensor,
    relevant: torch.Tensor,
    ks: Sequence[int],
    knn: int,
    whole: int,
) -> Figures:
    """Return all figures from float64 sort keys (B, N), no two alike, and the numbers `relevant` (B,), at least 1.

    Average precision is among them if `whole` says how many pictures there are to rank, and not if it is 0.
    """
    found = gallery_classes[keys.topk(max(*ks, knn, int(relevant.max()), whole)).indices]  # (B, K)
    hits = found == classes[:, None]
    ranks = torch.arange(1, hits.shape[1] + 1, device=keys.device)
    within = hits & (ranks <= relevant[:, None])
    precision = hits.cumsum(1) / ranks.double()
    first = hits.byte().argmax(1) + 1
    late = (~hits.any(1)).nonzero()[:, 0]
    if len(late):
        same = gallery_classes == classes[late, None]
        keys = keys[late]
        best = keys.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
        first[late] = (keys >= best).sum(1)
    figures = _of_nearest(found, classes, ks, knn) | {
        "r_precision": within.sum(1) / relevant.double(),
        "map_at_r": (precision * within).sum(1) / relevant,
        "mrr": 1 / first.double(),
    }
    return figures | ({"average_precision": (precision * hits).sum(1) / relevant} if whole else {})


def recall_at_k(neighbour_labels: Labels, query_labels: Labels, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries with at least one picture of their own label among their k nearest.

    For results of any search, approximate ones too. All queries count, as a result does not tell what it left out.

    Args:
        neighbour_labels: (Q, K) nearest first.
        query_labels: (Q,) of the same kind.
        ks: cut-offs, each from 1 to K.

    Returns:
        {k: recall in 0..1}.

    Raises:
        ValueError: if a cut-off is below 1 or above K, or the shapes differ or are empty.

    Source: Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011, section V.
    """
    found = _array(neighbour_labels)
    if found.ndim != 2 or not len(found):
        raise ValueError(f"neighbour_labels have shape {found.shape}: expected (Q, K) with at least one row.")
    hits = found == _labels(query_labels, len(found), "rows of neighbour_labels")[:, None]
    for k in ks:
        if not 1 <= k <= found.shape[1]:
            raise ValueError(f"k={k} but every query has {found.shape[1]} neighbours: choose k from 1 to that.")
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}


def _vectors(given: Vectors, name: str) -> torch.Tensor:
    """Return finite unit vectors as a float32 tensor, without a copy where none is needed."""
    if not isinstance(given, torch.Tensor):
        given = torch.from_numpy(np.require(given, np.float32, ["C", "W"]))
    if given.ndim != 2 or not given.numel():
        raise ValueError(f"{name}: shape {tuple(given.shape)}, expected (pictures, dimensions), both at least 1.")
    vectors = (given.cpu() if given.device.type == "mps" else given).detach().float()  # mps has no float64
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    bad = (~((lengths - 1).abs() <= LENGTH_TOLERANCE)).nonzero()
    if len(bad):
        row, length = bad[0].item(), lengths[bad[0]].item()
        if math.isfinite(length):
            raise ValueError(f"{name}: row {row} has length {length:.3g}, expected 1: divide each row by its length.")
        raise ValueError(f"{name}: row {row} holds NaN or infinity, expected finite numbers.")
    return vectors


def _array(labels: Labels) -> np.ndarray:
    return labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)


def _labels(given: Labels, rows: int, name: str) -> np.ndarray:
    labels = _array(given)
    if labels.shape != (rows,):
        raise ValueError(f"Labels of shape {labels.shape} for {rows:,} {name}: expected one label for each.")
    if pd.isna(labels).any():
        raise ValueError(f"Label {pd.isna(labels).argmax()} of {rows:,} {name} is missing (None or NaN).")
    return labels


def _encode(labels: np.ndarray, gallery_labels: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the classes of queries and gallery alike; as objects, so that 1 and "1" stay different."""
    gallery_labels = labels if gallery_labels is None else gallery_labels
    both = np.concatenate([labels.astype(object), gallery_labels.astype(object)])
    numbers = torch.from_numpy(pd.factorize(both)[0])
    return numbers[: len(labels)], numbers[len(labels) :]


def _nothing_relevant(labels: np.ndarray, gallery_labels: Labels | None) -> str:
    if gallery_labels is None:
        return "No query has a relevant picture: every label occurs once, expected classes of two pictures or more."
    first, other = labels.tolist()[0], _array(gallery_labels).tolist()[0]
    return f"No query has a relevant picture: queries have labels such as {first!r}, the gallery such as {other!r}."


def _check(queries: torch.Tensor, gallery: torch.Tensor, ks: Sequence[int], knn: int, alone: bool) -> None:
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}: use one encoder for both."
        )
    if not len(ks):
        raise ValueError("ks is empty: expected at least one cut-off, such as (1, 5, 10).")
    size = len(gallery) - alone
    for name, k in [*(("k", k) for k in ks), ("knn", knn)]:
        if not 1 <= k <= size:
            besides = " besides the query" if alone else ""
            raise ValueError(f"{name}={k} but the gallery holds {size:,} pictures{besides}: choose 1 to {size:,}.")
