"""Fine-tuning in two phases: a head on cached features of the frozen backbone, then the last blocks with it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.pretrained import Pretrained, ProjectionHead
from rectrio_lib.training.augment import PerImage, RandomView
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.feature_cache import cache_features
from rectrio_lib.training.loop import TrainingResult, fit


def augmented_features(
    frozen: Pretrained,
    features: np.ndarray,
    images: np.ndarray,
    transform: nn.Module,
    views: int,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Add to features (N, F) of images those of `views` augmentations of each, cached on disk: (N, 1 + views, F)."""
    augmented = cache_features(frozen, images, PerImage(transform), views, workspace=workspace)
    return np.concatenate([features[:, None], augmented], axis=1)


def whitening_head(features: np.ndarray, dim: int, floor: float = 0.01) -> ProjectionHead:
    """Make a linear head after which vectors like these are about as large in each of the strongest `dim` directions.

    It whitens second moments: vectors are not centred, so one of the directions holds their mean. It needs no labels,
    and is a good place to start training: its weights are as large as those of an untrained head.

    Args:
        features: unit vectors (N, F) of the training images, not fewer than a few times dim.
        dim: length of the vectors that the head makes, at most F.
        floor: added to the variance of each direction, as a share of the mean one: what hardly varies is noise.

    Raises:
        ArgumentError: if dim is above F.

    Source: Jégou & Chum, "Negative evidences and co-occurences in image retrieval", ECCV 2012.
    """
    if not 1 <= dim <= features.shape[1]:
        raise ArgumentError(f"dim={dim}: features of length {features.shape[1]} have that many directions, no more.")
    variance, directions = np.linalg.eigh(features.T @ features / len(features))
    strongest = np.argsort(-variance)[:dim]
    scale = np.sqrt(variance[strongest].clip(0) + floor * variance.mean())
    start = torch.from_numpy((directions[:, strongest] / scale).T.astype(np.float32))
    head = ProjectionHead(features.shape[1], dim)
    (weights,) = head.parameters()
    weights.data.copy_(start * weights.abs().mean() / start.abs().mean())
    return head.eval()


def train_head(
    make_head: Callable[[], ProjectionHead],
    features: np.ndarray,
    targets: np.ndarray,
    config: TrainConfig,
    validate: Callable[[Encoder], dict[str, float]],
    folder: Path,
) -> TrainingResult:
    """Phase 1: train a head on cached features (N, V, F), at random one view per image and step; see `loop.fit`."""
    return fit(make_head, features, targets, config, validate, folder, RandomView())


def attach(frozen: Pretrained, head: ProjectionHead) -> Pretrained:
    """Return a copy of a frozen backbone, with a copy of a head that was trained on its features; on the CPU."""
    encoder = Pretrained(**{**frozen.arguments, "dim": head.dim, "hidden": head.arguments["hidden"]})
    encoder.backbone = deepcopy(frozen.backbone)
    encoder.backbone.unfreeze_last(0)
    encoder.head.load_state_dict(head.state_dict())
    return encoder.cpu().eval()


def train_blocks(
    frozen: Pretrained,
    head: ProjectionHead,
    images: np.ndarray,
    targets: np.ndarray,
    config: TrainConfig,
    validate: Callable[[Encoder], dict[str, float]],
    folder: Path,
    blocks: int,
    transform: nn.Module,
    grad_checkpointing: bool = False,
) -> TrainingResult:
    """Phase 2: unfreeze the last blocks of the backbone, and train them and the head on images.

    Half of the images of a batch are augmented, the others are taken as they are, for that is how they are searched.

    Args:
        frozen: the backbone without a head.
        head: of phase 1.
        images: uint8 (N, C, H, W).
        targets: class numbers (N,).
        config: see `TrainConfig`.
        validate: see `loop.fit`.
        folder: see `loop.fit`.
        blocks: number of blocks to unfreeze; 0 trains the head alone.
        transform: augments one image, uint8 (C, H, W).
        grad_checkpointing: saves memory at the cost of a second forward pass of each block.

    Raises:
        ArgumentError, OutOfMemoryError, StorageError: see `loop.fit`; or the backbone has fewer blocks.

    Source: Kumar et al., "Fine-tuning can distort pretrained features", ICLR 2022 (the head first).
    """

    def start() -> Pretrained:
        encoder = attach(frozen, head)
        encoder.backbone.unfreeze_last(blocks)
        encoder.backbone.set_grad_checkpointing(grad_checkpointing)
        return encoder

    half = PerImage(v2.RandomApply([transform], p=0.5))
    return fit(start, images, targets, config, validate, folder, half)


def preferred(figures: dict[str, dict[str, float]], baseline: str) -> str:
    """Name the encoder to keep: the highest "map_at_r" of those whose "recall_at_1" is not below the baseline's."""
    able = [name for name in figures if figures[name]["recall_at_1"] >= figures[baseline]["recall_at_1"]]
    return max(able, key=lambda name: figures[name]["map_at_r"])
