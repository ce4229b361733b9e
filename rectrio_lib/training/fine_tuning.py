"""Fine-tuning in one call: both phases with the settings of chapter 3, and validation images that choose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.transforms import v2

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data.dataset import ImageDataset
from rectrio_lib.data.duplicates import join_groups, similar_pairs
from rectrio_lib.data.splits import split_by_group
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.pretrained import Pretrained, ProjectionHead
from rectrio_lib.evaluation.retrieval import evaluate
from rectrio_lib.training import two_phase
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.cut import Cut

FROZEN = "frozen backbone"
DIM, HIDDEN, BATCH = 128, 512, 128
HEAD = TrainConfig(30, BATCH, 0.003, loss="nt-xent", temperature=0.25, average=0.99)
BLOCKS = replace(HEAD, learning_rate=1e-4, backbone_rate=1.0, average=0.995)
MOST_WATCHED = 500  # training images among which validation images are searched while phase 2 runs


class FineTuned(NamedTuple):
    """What `fine_tune` gives; encoders and figures are called "frozen backbone", "phase 1" and "phase 2"."""

    encoders: dict[str, Pretrained]
    figures: dict[str, dict[str, float]]  # map_at_r and recall_at_1 of validation images among training images
    best: str  # see `two_phase.preferred`
    data: ImageDataset  # as it was trained on: likely copies lie on one side


@dataclass(frozen=True)
class _Judge:
    inputs: np.ndarray
    targets: np.ndarray
    train: np.ndarray
    val: np.ndarray

    def rank(self, queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        means = evaluate(queries, self.targets[self.val], gallery, self.targets[rows], ks=(1,), knn=1).means()
        return {name: means[name] for name in ("map_at_r", "recall_at_1")}

    def vectors(self, vectors: np.ndarray) -> dict[str, float]:
        return self.rank(vectors[self.val], vectors[self.train], self.train)

    def network(self, network: Encoder) -> dict[str, float]:
        rows = np.random.default_rng(0).permutation(self.train)[:MOST_WATCHED]
        return self.rank(network.encode(self.inputs[self.val]), network.encode(self.inputs[rows]), rows)


def fine_tune(
    frozen: Pretrained,
    data: ImageDataset,
    folder: Path,
    epochs: int = 2,
    blocks: int = 4,
    seed: int = 0,
    workspace: Workspace | None = None,
) -> FineTuned:
    """Train a head, then the last blocks of the backbone with it, and compare them on validation images.

    Args:
        frozen: a pretrained backbone without a head, for images of the size of `data`.
        data: with the splits "train" and "val".
        folder: where the checkpoints go.
        epochs: of phase 2.
        blocks: of the backbone that phase 2 trains, as far as it has as many.
        seed: of weights, order and augmentation.
        workspace: where features are cached.

    Raises:
        ArgumentError, OutOfMemoryError, StorageError: see `loop.fit`.
    """
    images, targets = data.images, data.targets
    cut = Cut(frozen, min(blocks, len(frozen.backbone.blocks)), workspace)
    inputs = cut.inputs(images)
    features = cut.features(inputs)
    pairs = [] if frozen.stand_in else similar_pairs(features)  # random features tell no copies
    data = replace(data, manifest=split_by_group(join_groups(data.manifest, pairs), {}))
    train, val = (np.flatnonzero(data.manifest["split"] == split) for split in ("train", "val"))
    judge, changes = _Judge(inputs, targets, train, val), augmentation(images.shape[-1])
    views = cut.views(images[train], inputs[train], changes, 1)
    hidden = 0 if frozen.arguments["backbone"].startswith("clip:") else HIDDEN  # CLIP's were made for comparison
    head = two_phase.train_head(
        lambda: ProjectionHead(frozen.dim, DIM, hidden),
        cut.features(views),
        targets[train],
        replace(HEAD, batch_size=min(BATCH, len(train)), seed=seed),
        lambda network: judge.vectors(network.encode(features)),
        folder / "head",
    ).encoder
    config = replace(BLOCKS, batch_size=min(BATCH, len(train)), epochs=epochs, seed=seed)
    given = images[train], views, targets[train], config, judge.network, folder / "blocks", changes
    encoders = {FROZEN: frozen, "phase 1": two_phase.attach(frozen, head), "phase 2": cut.train(head, *given).encoder}
    vectors = {FROZEN: features, "phase 1": head.encode(features), "phase 2": cut.encode(encoders["phase 2"], inputs)}
    figures = {name: judge.vectors(vectors[name]) for name in encoders}
    return FineTuned(encoders, figures, two_phase.preferred(figures, FROZEN), data)


def augmentation(side: int) -> v2.Transform:
    """Return what changes one training image, uint8 (C, side, side), at random: its part, its side, its colours."""
    crop, mirror = v2.RandomResizedCrop(side, scale=(0.6, 1.0), antialias=True), v2.RandomHorizontalFlip()
    return v2.Compose([crop, mirror, v2.ColorJitter(0.3, 0.3, 0.3, 0.05)])
