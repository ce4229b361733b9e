"""Training a projection head on cached features, by judgements and labels; and how good one is."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F

from rectrio_lib.encoders.pretrained import ProjectionHead
from rectrio_lib.evaluation.evaluation import Evaluation
from rectrio_lib.training.losses import make_loss

STEPS, BATCH, RATE, MARGIN = 200, 128, 1e-3, 0.2
CLASSES, EACH = 32, 4  # of the labelled images of a step
LABELLED, KEEPING = 0.3, 1.0  # weights of the labels, and of staying as similar as before


def train(
    head: ProjectionHead, features: np.ndarray, triplets: np.ndarray, labelled: np.ndarray, targets: np.ndarray,
    steps: int = STEPS, seed: int = 0,
) -> ProjectionHead:  # fmt: skip
    """Return a copy of a head, trained on triplets, and on labels, while similarities of other images stay.

    Args:
        head: to start from.
        features: of all images (N, F).
        triplets: positions of anchor, positive and negative (T, 3).
        labelled: positions of labelled images (L,), may be none.
        targets: their class numbers (L,).
        steps: of the optimizer.
        seed: of the batches.
    """
    known, rng = torch.from_numpy(features), np.random.default_rng(seed)
    old, new = head, deepcopy(head)
    by_labels, classes = make_loss("triplet", margin=MARGIN), (targets == target for target in np.unique(targets))
    members = [places for own in classes if len(places := np.flatnonzero(own)) > 1]
    optimizer = torch.optim.Adam(new.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        anchor, positive, negative = (new(known[part]) for part in rng.choice(triplets, BATCH).T)
        near, far = ((anchor - other).norm(dim=1) for other in (positive, negative))
        loss = F.relu(near - far + MARGIN).mean()
        if len(members) > 1:
            chosen = rng.permutation(len(members))[:CLASSES]
            places = np.concatenate([rng.choice(members[c], min(EACH, len(members[c])), replace=False) for c in chosen])
            vectors = new(known[labelled[places]])
            loss = loss + LABELLED * by_labels(vectors, torch.from_numpy(targets[places]), step / steps)
        some = known[rng.integers(len(features), size=BATCH)]
        with torch.no_grad():
            before = old(some)
        after = new(some)
        loss = loss + KEEPING * F.mse_loss(after @ after.T, before @ before.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return new.eval()


def between(old: ProjectionHead, new: ProjectionHead, share: float) -> ProjectionHead:
    """Return the head that lies at a share of the way from the old weights to the new: it forgets less.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
    """
    mixed, ends = deepcopy(new), (old.state_dict(), new.state_dict())
    names = [name for name, value in ends[0].items() if value.is_floating_point()]
    mixed.load_state_dict(ends[1] | {name: torch.lerp(ends[0][name], ends[1][name], share) for name in names})
    return mixed.eval()


@torch.inference_mode()
def vectors_of(head: ProjectionHead, features: np.ndarray) -> np.ndarray:
    """Return the vectors float32 (N, dim) that a head makes of features (N, F), in full precision."""
    return head(torch.from_numpy(features)).numpy()


def on_triplets(vectors: np.ndarray, triplets: np.ndarray) -> Evaluation:
    """Tell of triplets whether the anchor is nearer to the positive; as `triplets`, labelled by the positive."""
    anchor, positive, negative = (vectors[part] for part in triplets.T)
    right = np.einsum("nd,nd->n", anchor, positive) > np.einsum("nd,nd->n", anchor, negative)
    return Evaluation(triplets[:, 1], {"triplets": right.astype(float)})
