"""A backbone cut before the blocks that training frees: what lies below never changes, so it is computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.backbone import Blocks, fuse_batch_norm
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.pretrained import Headed, Pretrained, ProjectionHead
from rectrio_lib.training import two_phase
from rectrio_lib.training.augment import PerImage, RandomView
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.feature_cache import cache_features
from rectrio_lib.training.loop import TrainingResult, fit


class Lower(Encoder):
    """The blocks that stay frozen: images in, the maps before the first freed block out, as rows (B, C * h * w)."""

    kind = "lower-blocks"
    stored = np.float16  # maps are a hundred times as long as features

    def __init__(self, frozen: Pretrained, blocks: int):
        super().__init__(backbone=frozen.arguments["backbone"], blocks=blocks)
        self.preprocessing, self.resize = frozen.preprocessing, frozen.resize
        stages, side = frozen.cpu().backbone.network[0], frozen.preprocessing["resolution"]
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.network = fuse_batch_norm(Blocks(*stages[: len(stages) - blocks]), image)
            maps = self.network(image)
        self.shape, self.dim = tuple(maps.shape[1:]), maps.numel()
        self.scale = maps.abs().mean().clamp_min(1e-30).item()  # 16 bits hold numbers around 1 best

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C * h * w)."""
        return self.network(images).float().flatten(1) / self.scale


class Upper(Headed):
    """The blocks that training frees, what follows them, and the head: maps as rows in, unit vectors out."""

    kind = "upper-blocks"

    def __init__(self, whole: Pretrained, lower: Lower):
        blocks = lower.arguments["blocks"]
        super().__init__(blocks=blocks)
        stages = whole.backbone.network[0]
        self.backbone = nn.Sequential(Blocks(*stages[len(stages) - blocks :]), *whole.backbone.network[1:])
        self.head, self.dim, self.shape, self.scale = whole.head, whole.dim, lower.shape, lower.scale

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C * h * w) -> float32 (B, C, h, w)."""
        maps = (images.float() * self.scale).view(-1, *self.shape)
        return maps.contiguous(memory_format=torch.channels_last)


class Cut:
    """Both phases of fine-tuning on what the frozen blocks compute, once for each image and augmentation.

    A network that cannot be cut (CLIP and timm's are no blocks in a row) works on images: `inputs` are the images.

    Args:
        frozen: the backbone without a head.
        blocks: that phase 2 frees.
        workspace: where the cache lies.

    Attributes:
        lower: the frozen blocks; None if the network cannot be cut.
    """

    def __init__(self, frozen: Pretrained, blocks: int, workspace: Workspace | None = None):
        network, count = frozen.backbone.network, len(frozen.backbone.blocks)
        if not 0 <= blocks <= count:
            raise ArgumentError(f"blocks={blocks}: this backbone has {count} blocks, choose 0 to that.")
        in_a_row = isinstance(network, nn.Sequential) and isinstance(network[0], Blocks)
        self.frozen, self.blocks, self.workspace = frozen, blocks, workspace
        self.lower = Lower(frozen, blocks) if in_a_row and blocks < count else None

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """Return what the freed blocks see of images: maps as rows float16 (N, F), memory-mapped; or the images."""
        return images if self.lower is None else cache_features(self.lower, images, workspace=self.workspace)[:, 0]

    def views(self, images: np.ndarray, inputs: np.ndarray, transform: nn.Module, count: int) -> np.ndarray:
        """Return inputs of images as they are, and of `count` augmentations of each: (N, 1 + count, F).

        Of a network that cannot be cut, features instead: phase 2 augments its images itself.
        """
        cached, first = self.lower or self.frozen, inputs
        if self.lower is None:
            first = cache_features(self.frozen, images, workspace=self.workspace)[:, 0]
        more = cache_features(cached, images, PerImage(transform), count, workspace=self.workspace)
        return np.concatenate([first[:, None], more], axis=1)

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """Return the features of the frozen backbone, unit vectors float32 (..., dim), of `inputs` or `views`."""
        if self.lower is None:
            given = inputs.dtype != np.uint8
            return inputs if given else np.array(cache_features(self.frozen, inputs, workspace=self.workspace)[:, 0])
        rows = self.encode(self.frozen, inputs.reshape(-1, self.lower.dim))
        return rows.reshape(*inputs.shape[:-1], self.frozen.dim)

    def encode(self, encoder: Pretrained, inputs: np.ndarray) -> np.ndarray:
        """Return the vectors of `inputs` from an encoder whose lower blocks are those of the frozen one."""
        if self.lower is not None:
            encoder = Upper(encoder, self.lower).eval()
        return encoder.encode(inputs)

    def train(
        self,
        head: ProjectionHead,
        images: np.ndarray,
        views: np.ndarray,
        targets: np.ndarray,
        config: TrainConfig,
        validate: Callable[[Encoder], dict[str, float]],
        folder: Path,
        transform: v2.Transform,
        grad_checkpointing: bool = False,
    ) -> TrainingResult:
        """Phase 2 as `two_phase.train_blocks`, on cached `views`; `validate` gets a network that encodes `inputs`."""
        if self.lower is None:
            given = images, targets, config, validate, folder, self.blocks, transform, grad_checkpointing
            return two_phase.train_blocks(self.frozen, head, *given)

        def start() -> Upper:
            upper = Upper(self._attached(head), self.lower)
            upper.backbone[0].checkpointing = grad_checkpointing
            return upper

        run, whole = fit(start, views, targets, config, validate, folder, RandomView()), self._attached(head)
        Upper(whole, self.lower).load_state_dict(run.encoder.state_dict())
        return replace(run, encoder=whole.eval())

    def _attached(self, head: ProjectionHead) -> Pretrained:
        whole = two_phase.attach(self.frozen, head)
        whole.backbone.unfreeze_last(self.blocks)
        return whole
