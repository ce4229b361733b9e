"""Losses among the vectors of a batch, and the miners that choose which triplets count.

A triplet is an anchor a, a positive p of its class and a negative n of another. With d the Euclidean distance of unit
vectors (0..2), it is fulfilled when d(a, p) + margin <= d(a, n).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NormalizedSoftmaxLoss, SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, DistanceWeightedMiner

from rectrio_lib.core.errors import ArgumentError

TRIPLET_LOSSES = ("triplet", "soft-margin")  # the others take no miner
LOSSES = (*TRIPLET_LOSSES, "nt-xent", "supcon", "normalized-softmax")
MINERS = ("all", "semihard", "hard", "distance-weighted", "semihard-then-hard")
FORMER = {"soft-margin": "nt-xent", "supervised-contrastive": "supcon", "normalised-softmax": "normalized-softmax"}
HARD_AFTER = 0.3  # share of the training that "hard" spends on all triplets first: from scratch it collapses
HARDER_AFTER = 0.5  # share that "semihard-then-hard" spends on semi-hard ones
Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def pairwise_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (B, B) of unit vectors (B, D), with a finite gradient everywhere."""
    return (2 - 2 * vectors @ vectors.T).clamp_min(1e-6).sqrt()


def violations(vectors: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compare every anchor-positive pair of a batch of unit vectors (B, D) with every negative.

    Returns:
        d(a, p) - d(a, n) of P pairs and all images (P, B); which are negatives, bool (P, B); d(a, p) of the pairs (P,).
    """
    distances = pairwise_distances(vectors)
    same = targets[:, None] == targets[None, :]
    anchor, positive = (same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)).nonzero(as_tuple=True)
    to_positive = distances[anchor, positive]
    return to_positive[:, None] - distances[anchor], ~same[anchor], to_positive


def make_loss(
    loss: str = "triplet",
    miner: str = "all",
    margin: float = 0.2,
    temperature: float = 0.1,
    classes: np.ndarray | None = None,
    dim: int = 0,
) -> Loss:
    """Return a function of vectors (B, D), targets (B,) and progress (0..1 of the training) that gives the loss.

    Args:
        loss: what is minimized.
            "triplet": max(0, d(a, p) - d(a, n) + margin), the mean over the triplets that violate the margin.
            "soft-margin": log(1 + exp(d(a, p) - d(a, n))), the mean over the mined triplets: a hinge without a kink.
            "nt-xent": of each pair, the cross entropy of its cosine among those to the anchor's negatives.
            "supcon": the same, except that the anchor's other positives take part in the softmax.
            "normalized-softmax": classification by learned class vectors, see `NormalizedSoftmax`.
        miner: which triplets count for "triplet" and "soft-margin": "all"; "semihard", negatives farther than the
            positive, but within the margin; "hard", hardest positive and negative of each anchor, after a warm-up on
            "all"; "distance-weighted", negatives drawn evenly over distance; or "semihard-then-hard", each for half.
        margin: of "triplet" and of the miner "semihard", in distances of unit vectors, above 0.
        temperature: what the other losses divide cosines by, above 0.
        classes: all class numbers of the training images (C,); only "normalized-softmax" needs them.
        dim: D; only "normalized-softmax" needs it.

    Raises:
        ArgumentError: if a name is unknown, the two do not go together, or a number is not positive or missing.

    Source: Schroff et al., "FaceNet", CVPR 2015 (semi-hard); Wu et al., "Sampling matters", ICCV 2017 (by distance);
        Hermans et al., "In defense of the triplet loss", 2017 (hard, soft margin); Chen et al., "A simple framework for
        contrastive learning", ICML 2020 (NT-Xent); Khosla et al., "Supervised contrastive learning", NeurIPS 2020; Zhai
        & Wu, "Classification is a strong baseline for deep metric learning", BMVC 2019 (normalized softmax).
    """
    _check(loss, miner, margin, temperature)
    if loss == "nt-xent":
        return _nt_xent(temperature)
    if loss == "supcon":
        contrastive = SupConLoss(temperature)
        return lambda vectors, targets, progress: contrastive(vectors, targets)
    if loss == "normalized-softmax":
        if classes is None or dim < 1:
            raise ArgumentError(f"loss={loss!r} learns a vector for each class: it needs classes and dim.")
        return NormalizedSoftmax(classes, dim, temperature)
    soft = loss == "soft-margin"
    if miner == "distance-weighted":
        return _mined(DistanceWeightedMiner(), margin, soft)
    if miner in ("hard", "semihard-then-hard"):
        first, after = ("all", HARD_AFTER) if miner == "hard" else ("semihard", HARDER_AFTER)
        easier, hard = _dense(first, margin, soft), _mined(BatchHardMiner(), margin, soft)
        return lambda v, t, progress: (easier if progress < after else hard)(v, t, progress)
    return _dense(miner, margin, soft)


def _check(loss: str, miner: str, margin: float, temperature: float) -> None:
    if miner in FORMER:
        raise ArgumentError(f"miner={miner!r} is spelled loss={FORMER[miner]!r} now, with temperature = margin / 2.")
    for name, value, known in (("loss", loss, LOSSES), ("miner", miner, MINERS)):
        if value not in known:
            raise ArgumentError(f"{name}={value!r} is unknown: choose one of {', '.join(known)}.")
    if miner != "all" and loss not in TRIPLET_LOSSES:
        able = " or ".join(TRIPLET_LOSSES)
        raise ArgumentError(f"miner={miner!r} chooses triplets, loss={loss!r} has none: {able} do.")
    for name, value in (("margin", margin), ("temperature", temperature)):
        if not value > 0:
            raise ArgumentError(f"{name}={value} should be above 0.")


def _mined(miner: torch.nn.Module, margin: float, soft: bool) -> Loss:
    loss = TripletMarginLoss(margin=0 if soft else margin, smooth_loss=soft)
    return lambda vectors, targets, progress: loss(vectors, targets, miner(vectors, targets))


def _dense(miner: str, margin: float, soft: bool) -> Loss:
    """The same figures as pytorch-metric-learning's, 20 to 50 times faster: no index of every triplet is built."""

    def loss(vectors: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
        gap, counted, _ = violations(vectors, targets)
        if miner == "semihard":
            counted &= gap < 0
        if miner == "semihard" or not soft:
            counted &= gap + margin > 0
        terms = F.softplus(gap) if soft else gap + margin
        return (terms * counted).sum() / counted.sum().clamp_min(1)

    return loss


def _nt_xent(temperature: float) -> Loss:
    """The same figures as pytorch-metric-learning's NTXentLoss, without an index of every pair."""

    def loss(vectors: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
        scaled = (1 - vectors @ vectors.T) / temperature  # (B, B)
        same = targets[:, None] == targets[None, :]
        pair = same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device) & ~same.all(1, keepdim=True)
        nearest = torch.logsumexp((-scaled).masked_fill(same, -1e9), 1, keepdim=True)  # (B, 1)
        return (F.softplus(scaled + nearest) * pair).sum() / pair.sum().clamp_min(1)

    return loss


class NormalizedSoftmax(torch.nn.Module):
    """Classification: a learned vector, at first of unit length, stands for each class; see `make_loss`."""

    def __init__(self, classes: np.ndarray, dim: int, temperature: float):
        super().__init__()
        self.register_buffer("classes", torch.as_tensor(np.sort(classes)))
        self.loss = NormalizedSoftmaxLoss(len(classes), dim, temperature)
        with torch.no_grad():
            self.loss.W.copy_(F.normalize(self.loss.W, dim=0))

    def forward(self, vectors: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean cross entropy of vectors (B, dim) of the classes targets (B,)."""
        return self.loss(vectors, torch.searchsorted(self.classes.to(targets.device), targets))


@torch.no_grad()
def batch_statistics(vectors: torch.Tensor, targets: torch.Tensor, margin: float, sample: int = 64) -> dict[str, float]:
    """Describe a batch by its first images: share of active triplets, mean distances to positives and negatives.

    Args:
        vectors: unit vectors (B, D).
        targets: class numbers (B,).
        margin: a triplet is active if d(a, p) + margin > d(a, n).
        sample: number of images used; the cost grows with its cube.

    Returns:
        "active", "positive_distance" and "negative_distance"; NaN where the sample forms no triplet or pair.
    """
    gap, negative, to_positive = violations(vectors[:sample].float(), targets[:sample])
    triplets = negative.sum()
    return {
        "active": ((gap + margin > 0) & negative).sum().div(triplets).item(),
        "positive_distance": to_positive.mean().item(),
        "negative_distance": ((to_positive[:, None] - gap) * negative).sum().div(triplets).item(),
    }
