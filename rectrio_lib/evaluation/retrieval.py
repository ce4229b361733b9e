"""How good a ranking is: recall@k, precision@1, R-precision, mAP@R, mAP, MRR and k-NN accuracy, query by query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation import inputs
from rectrio_lib.evaluation.evaluation import Evaluation
from rectrio_lib.evaluation.inputs import Labels, Vectors

Figures = dict[str, torch.Tensor]  # by name, one number a query
BLOCK_ENTRIES = 2**22  # scores held at once: about 300 MB with everything derived from them
GROUP = 64  # columns of which only the best is compared first; fastest of 8..512 at 55,000 vectors
TIE_STEP = 2.0**-52  # the smallest step that a float64 near 1 still takes


@torch.no_grad()
def evaluate(
    queries: Vectors,
    query_labels: Labels,
    gallery: Vectors | None = None,
    gallery_labels: Labels | None = None,
    ks: Sequence[int] = (1, 5, 10),
    knn: int = 20,
    nearest_only: bool = False,
    average_precision: bool = False,
) -> Evaluation:
    """Search every query in the gallery exactly, and measure the rankings. An image of the same label is relevant.

    Scores that are equal in float32 rank in gallery order, so that relevant images are never favoured. A query whose
    class the gallery lacks is left out of all means, as in pytorch-metric-learning, and counted in `skipped`. Unlike
    there, the reciprocal rank covers the complete gallery.

    Args:
        queries: unit vectors (Q, D), in memory or memory-mapped; computed on the tensor's device, in float32.
        query_labels: (Q,) numbers or text.
        gallery: unit vectors (N, D). None searches each query among all others, exact copies of it included.
        gallery_labels: (N,) of the same kind as `query_labels`.
        ks: cut-offs of recall.
        knn: neighbours that vote on the class; a tie goes to the class of the nearest.
        nearest_only: leave out r_precision, map_at_r and mrr, which look beyond the nearest: several times faster.
        average_precision: also measure the average precision (its mean is mAP), which sorts the complete gallery.

    Raises:
        ArgumentError: if vectors, labels and cut-offs do not fit each other, or no query has a relevant image.

    Source: R-precision and mAP@R: Musgrave, Belongie & Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.2.
        Recall@k: Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011, section V.
        Average precision: Manning, Raghavan & Schütze, "Introduction to Information Retrieval", 2008, section 8.4.
    """
    if average_precision and nearest_only:
        raise ArgumentError("average_precision sorts the complete gallery: leave nearest_only out.")
    if (gallery is None) != (gallery_labels is None):
        raise ArgumentError("gallery and gallery_labels go together: pass both, or neither to search the queries.")
    alone = gallery is None
    queries = inputs.unit_vectors(queries, "queries")
    gallery = queries if alone else inputs.unit_vectors(gallery, "gallery").to(queries.device)
    labels = inputs.checked_labels(query_labels, len(queries), "queries")
    others = labels if alone else inputs.checked_labels(gallery_labels, len(gallery), "gallery rows")
    classes, gallery_classes = (numbers.to(queries.device) for numbers in inputs.class_numbers(labels, others))
    inputs.check_sizes(queries, gallery, ks, knn, alone)
    counts = torch.bincount(gallery_classes, minlength=int(classes.max()) + 1)
    relevant = counts[classes] - int(alone)  # (Q,), the R of R-precision
    order = relevant.argsort()[(relevant == 0).sum() :]  # queries of similar R share a block, skipped ones are left out
    if not len(order):
        raise ArgumentError(inputs.nothing_relevant(labels, None if alone else others))
    # Added to the scores it orders equal ones by position, and is far below the resolution of float32.
    tie_break = -TIE_STEP * torch.arange(len(gallery), dtype=torch.float64, device=queries.device)  # (N,)
    parts = []
    block = max(1, BLOCK_ENTRIES // max(len(gallery), knn * knn))
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
    """Return the columns (B, k) of the k best, best first: they lie in the k groups with the best maximum."""
    gap = -similarity.shape[1] % GROUP
    padded = torch.nn.functional.pad(similarity, (0, gap), value=-torch.inf)
    tie_break = torch.nn.functional.pad(tie_break, (0, gap))
    best = padded.unflatten(1, (-1, GROUP)).amax(2) + tie_break[::GROUP]
    groups = best.topk(min(k, best.shape[1])).indices
    columns = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)).flatten(1)
    chosen = (padded.gather(1, columns) + tie_break[columns]).topk(k).indices
    return columns.gather(1, chosen)


def _of_nearest(nearest: torch.Tensor, classes: torch.Tensor, ks: Sequence[int], knn: int) -> Figures:
    """Return the figures that need only the classes (B, K) of the nearest, K at least max(ks) and knn."""
    hits = nearest == classes[:, None]
    votes = (nearest[:, :knn, None] == nearest[:, None, :knn]).sum(2)  # (B, knn): of each neighbour's class
    predicted = nearest.gather(1, votes.argmax(1, keepdim=True))  # argmax returns the first, so the nearest
    figures = {f"recall_at_{k}": hits[:, :k].any(1) for k in ks}
    figures |= {"precision_at_1": hits[:, 0], "knn_accuracy": predicted[:, 0] == classes}
    return {name: values.double() for name, values in figures.items()}


def _of_all(
    keys: torch.Tensor,  # float64 (B, N), distinct
    gallery_classes: torch.Tensor,
    classes: torch.Tensor,
    relevant: torch.Tensor,  # (B,), at least 1
    ks: Sequence[int],
    knn: int,
    whole: int,  # images to rank for average precision; 0 leaves it out
) -> Figures:
    nearest = gallery_classes[keys.topk(max(*ks, knn, int(relevant.max()), whole)).indices]  # (B, K)
    hits = nearest == classes[:, None]
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
    figures = _of_nearest(nearest, classes, ks, knn) | {
        "r_precision": within.sum(1) / relevant.double(),
        "map_at_r": (precision * within).sum(1) / relevant,
        "mrr": 1 / first.double(),
    }
    return figures | ({"average_precision": (precision * hits).sum(1) / relevant} if whole else {})


def evaluate_results(found: Labels, query_labels: Labels, relevant: Sequence[int] | np.ndarray) -> Evaluation:
    """Measure what any search returned, re-ranked or approximate: recall_at_1 and map_at_r, query by query.

    Args:
        found: labels of the results (Q, K), nearest first; None where a place is empty.
        query_labels: (Q,) of the same kind.
        relevant: how many images of its class a query could find, R (Q,), at most K; 0 skips it, as in `evaluate`.

    Raises:
        ArgumentError: if the shapes do not fit, or a query could find more than K.
    """
    found, relevant = inputs.as_array(found), np.asarray(relevant)
    labels = inputs.checked_labels(query_labels, len(found), "rows of results")
    if found.ndim != 2 or relevant.shape != labels.shape or relevant.max(initial=0) > found.shape[1]:
        told = f"results of shape {found.shape}, up to {relevant.max(initial=0)} relevant of shape {relevant.shape}"
        raise ArgumentError(f"Expected (Q, K) results and (Q,) numbers of relevant images up to K, not {told}.")
    ranks = np.arange(1, found.shape[1] + 1)
    hits = found == labels[:, None]
    precise = (hits.cumsum(1) / ranks * hits * (ranks <= relevant[:, None])).sum(1)
    with np.errstate(invalid="ignore"):
        first, precise = np.where(relevant, hits[:, 0], np.nan), precise / np.where(relevant, relevant, np.nan)
    return Evaluation(labels, {"recall_at_1": first, "precision_at_1": first, "map_at_r": precise})


def recall_at_k(neighbour_labels: Labels, query_labels: Labels, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries with at least one image of their own label among their k nearest: {k: recall in 0..1}.

    For results of any search, approximate ones too. All queries count, also those without a relevant image.

    Args:
        neighbour_labels: (Q, K) nearest first.
        query_labels: (Q,) of the same kind.
        ks: cut-offs, each from 1 to K.

    Raises:
        ArgumentError: if a cut-off is below 1 or above K, or the shapes differ or are empty.

    Source: Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011, section V.
    """
    neighbours = inputs.as_array(neighbour_labels)
    if neighbours.ndim != 2 or not len(neighbours):
        raise ArgumentError(f"neighbour_labels have shape {neighbours.shape}: expected (Q, K) with at least one row.")
    hits = neighbours == inputs.checked_labels(query_labels, len(neighbours), "rows of neighbour_labels")[:, None]
    for k in ks:
        if not 1 <= k <= hits.shape[1]:
            raise ArgumentError(f"k={k} but every query has {hits.shape[1]} neighbours: choose k from 1 to that.")
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}
