"""Triplet losses by name: which triplets of a batch count, and how much; and two without triplets to compare with.

A triplet is an anchor a, a positive p of its class and a negative n of another. With d the Euclidean distance of unit
vectors (0..2), it is fulfilled when d(a, p) + margin <= d(a, n). One margin serves loss and miner.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NormalizedSoftmaxLoss, SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, DistanceWeightedMiner

from rectrio_lib.core.errors import ArgumentError

MINERS = ("all", "semihard", "distance-weighted", "hard", "semihard-then-hard", "soft-margin")
CONTRASTIVE, SOFTMAX = "supervised-contrastive", "normalised-softmax"  # no triplets: to compare with
NAMES = (*MINERS, CONTRASTIVE, SOFTMAX)
HARD_AFTER = 0.3  # share of the training that "hard" spends on all triplets first: from scratch it collapses
HARDER_AFTER = 0.5  # share that "semihard-then-hard" spends on semi-hard ones
Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def pairwise_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (B, B) of unit vectors (B, D), with a finite gradient everywhere."""
    return (2 - 2 * vectors @ vectors.T).clamp_min(1e-6).sqrt()


def violations(vectors: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compare every anchor-positive pair of a batch with every negative.

    Args:
        vectors: unit vectors (B, D).
        targets: class numbers (B,).

    Returns:
        d(a, p) - d(a, n) for the P pairs and all B pictures (P, B); which of them are negatives, bool (P, B);
        d(a, p) of each pair (P,).
    """
    distances = pairwise_distances(vectors)
    same = targets[:, None] == targets[None, :]
    anchor, positive = (same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)).nonzero(as_tuple=True)
    to_positive = distances[anchor, positive]
    return to_positive[:, None] - distances[anchor], ~same[anchor], to_positive


class NormalisedSoftmax(torch.nn.Module):
    """Classification: a learned unit vector stands for each class, and each picture is to lie nearest to its own.

    The class vectors are weights that training has to change; they start with unit length, as a picture's vector has,
    so that one learning rate suits both.

    Args:
        classes: class numbers of the training pictures, each once (C,).
        dim: length of the vectors.
        temperature: divides the cosine similarities before the softmax.

    Source: Zhai & Wu, "Classification is a strong baseline for deep metric learning", BMVC 2019.
    """

    def __init__(self, classes: np.ndarray, dim: int, temperature: float):
        super().__init__()
        self.register_buffer("classes", torch.as_tensor(np.sort(classes)))
        self.loss = NormalizedSoftmaxLoss(len(classes), dim, temperature)
        with torch.no_grad():
            self.loss.W.copy_(F.normalize(self.loss.W, dim=0))

    def forward(self, vectors: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean cross entropy of vectors (B, dim) of the classes targets (B,)."""
        return self.loss(vectors, torch.searchsorted(self.classes, targets))


def make_loss(miner: str, margin: float, classes: np.ndarray | None = None, dim: int = 0) -> Loss:
    """Return a function of vectors (B, D), targets (B,) and progress (0..1 of the training) that gives the loss.

    Args:
        miner: which triplets count.
            "all": the mean over all that violate the margin (d(a, n) < d(a, p) + margin).
            "semihard": of those, only negatives farther than the positive (d(a, p) < d(a, n)).
            "distance-weighted": negatives drawn evenly over distance.
            "hard": hardest positive and hardest negative of each anchor, after a warm-up on "all".
            "semihard-then-hard": "semihard" in the first half of the training, then hardest positive and negative.
            "soft-margin": log(1 + sum over n of exp((d(a, p)^2 - d(a, n)^2) / margin)) of each pair, mean over pairs:
                no kink at the margin, and all negatives of a pair at once, the nearest counting most.
            "supervised-contrastive": no triplets: the similarities of an anchor go through a softmax, and positives
                are to have all of it; `margin` is twice its temperature, as in "soft-margin".
            "normalised-softmax": no triplets: see `NormalisedSoftmax`, a module with weights of its own; `margin` is
                twice its temperature, too.
        margin: in distances of unit vectors, above 0.
        classes: all class numbers of the training pictures (C,); only "normalised-softmax" needs them.
        dim: D; only "normalised-softmax" needs it.

    Raises:
        ValueError: if the miner is unknown, the margin not positive, or classes and dim are missing.

    Source: Schroff et al., "FaceNet", CVPR 2015 (semi-hard); Wu et al., "Sampling matters", ICCV 2017
        (distance-weighted); Hermans et al., "In defense of the triplet loss", 2017 (hard, non-zero mean, soft margin);
        Sohn, "Improved deep metric learning with multi-class N-pair loss objective", NIPS 2016 (all negatives at once);
        Khosla et al., "Supervised contrastive learning", NeurIPS 2020.
    """
    if miner not in NAMES:
        raise ArgumentError(f"miner={miner!r} is unknown: choose one of {', '.join(NAMES)}.")
    if margin <= 0:
        raise ArgumentError(f"margin={margin} should be above 0: with none, all pictures may sit in one point.")
    if miner == "distance-weighted":
        return _mined(DistanceWeightedMiner(), margin)
    if miner == CONTRASTIVE:
        contrastive = SupConLoss(temperature=margin / 2)
        return lambda vectors, targets, progress: contrastive(vectors, targets)
    if miner == SOFTMAX:
        if classes is None or dim < 1:
            raise ArgumentError(
                f"miner={miner!r} learns a vector for each class: give the classes, and dim of the vectors."
            )
        return NormalisedSoftmax(classes, dim, temperature=margin / 2)
    if miner == "hard":
        return _then_hard("all", margin, HARD_AFTER)
    if miner == "semihard-then-hard":
        return _then_hard("semihard", margin, HARDER_AFTER)
    return _soft_margin(margin) if miner == "soft-margin" else _dense(miner, margin)


def _mined(miner: torch.nn.Module, margin: float) -> Loss:
    loss = TripletMarginLoss(margin=margin)
    return lambda vectors, targets, progress: loss(vectors, targets, miner(vectors, targets))


def _then_hard(first: str, margin: float, after: float) -> Loss:
    hard, easier = _mined(BatchHardMiner(), margin), _dense(first, margin)
    return lambda v, t, progress: (easier if progress < after else hard)(v, t, progress)


def _dense(miner: str, margin: float) -> Loss:
    """The same figures as pytorch-metric-learning's, 20 to 50 times faster: no index of every triplet is built."""

    def loss(vectors: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
        gap, negative, _ = violations(vectors, targets)
        counted = negative & (gap + margin > 0)
        if miner == "semihard":
            counted &= gap < 0
        return ((gap + margin) * counted).sum() / counted.sum().clamp_min(1)

    return loss


def _soft_margin(margin: float) -> Loss:
    def loss(vectors: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
        squared = (2 - 2 * vectors @ vectors.T) / margin  # (B, B)
        same = targets[:, None] == targets[None, :]
        pair = same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device) & ~same.all(1, keepdim=True)
        nearest = torch.logsumexp((-squared).masked_fill(same, -1e9), 1, keepdim=True)  # (B, 1)
        return (F.softplus(squared + nearest) * pair).sum() / pair.sum().clamp_min(1)

    return loss


@torch.no_grad()
def triplet_accuracy(vectors: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of all triplets of a set whose negative is farther than the positive: d(a, p) < d(a, n).

    Args:
        vectors: unit vectors (N, D); memory grows with N squared.
        targets: class numbers (N,).

    Returns:
        0..1, one half for vectors without meaning; NaN if there is no triplet.
    """
    fulfilled = triplets = 0
    similarity = vectors @ vectors.T
    for row, (scores, target) in enumerate(zip(similarity, targets, strict=True)):
        same = targets == target
        negatives = scores[~same].sort().values
        same[row] = False
        fulfilled += int(torch.searchsorted(negatives, scores[same]).sum())  # negatives of a lower score
        triplets += int(same.sum()) * len(negatives)
    return fulfilled / triplets if triplets else float("nan")


@torch.no_grad()
def batch_statistics(vectors: torch.Tensor, targets: torch.Tensor, margin: float, sample: int = 64) -> dict[str, float]:
    """Describe a batch by its first pictures: share of active triplets, mean distances to positives and negatives.

    Args:
        vectors: unit vectors (B, D).
        targets: class numbers (B,).
        margin: a triplet is active if d(a, p) + margin > d(a, n).
        sample: pictures looked at; the cost grows with its cube.

    Returns:
        "active", "positive_distance" and "negative_distance"; NaN where the pictures looked at form no triplet or pair.
    """
    gap, negative, to_positive = violations(vectors[:sample].float(), targets[:sample])
    triplets = negative.sum()
    return {
        "active": ((gap + margin > 0) & negative).sum().div(triplets).item(),
        "positive_distance": to_positive.mean().item(),
        "negative_distance": ((to_positive[:, None] - gap) * negative).sum().div(triplets).item(),
    }
