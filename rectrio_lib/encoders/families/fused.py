"""Several backbones as one: each sees the image at its own size, and their features stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.encoders.backbone import Backbone

PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # each part scales them as in its own pretraining


class SideBySide(nn.Module):
    """Backbones that see the same images (B, 3, H, W), pixels in 0..1, each resized to its side; all count alike."""

    def __init__(self, parts: Sequence[Backbone], sides: Sequence[int]):
        super().__init__()
        self.parts, self.sides = nn.ModuleList(part.network for part in parts), list(sides)
        self.pixels = [part.preprocessing for part in parts]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, sum of dims): unit vectors of all parts in a row."""
        features = []
        for network, side, pixels in zip(self.parts, self.sides, self.pixels, strict=True):
            mean, std = (torch.tensor(pixels[key], device=images.device).view(-1, 1, 1) for key in ("mean", "std"))
            own = (resized(images, side) - mean) / std
            features.append(F.normalize(network(own.contiguous(memory_format=torch.channels_last)).float()))
        return torch.cat(features, 1)


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize pixels in 0..1 (B, C, H, W) to (B, C, side, side), bicubic; images of that side stay as they are."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp_(0, 1)


def fuse(parts: Sequence[Backbone], sides: Sequence[int]) -> Backbone:
    """Put backbones side by side: one block of the whole is one block of each, counted from the last."""
    named = [[_named(f"parts.{n}", [block]) for block in reversed(part.blocks)] for n, part in enumerate(parts)]
    blocks = [sum(level, ()) for level in zip_longest(*named, fillvalue=())][::-1]
    tail = [name for number, part in enumerate(parts) for name in _named(f"parts.{number}", part.tail)]
    whole = Backbone(SideBySide(parts, sides), blocks, tail, "", max(sides), False, PIXELS)
    whole.several = True
    return whole


def _named(prefix: str, names: Sequence[str | tuple[str, ...]]) -> tuple[str, ...]:
    each = (name for block in names for name in ([block] if isinstance(block, str) else block))
    return tuple(f"{prefix}.{name}" for name in each)
