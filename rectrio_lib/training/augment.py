"""Augmentations of training images: what changes an image, but not what it shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def augment(images: torch.Tensor, shift: int = 2, flip: bool = True, erase: float = 0.0) -> torch.Tensor:
    """Mirror, move and partly blank each image of a batch independently, in a handful of tensor operations.

    Args:
        images: uint8 (B, C, H, W).
        shift: largest move in pixels; what comes in from outside is black.
        flip: whether to mirror half of the images.
        erase: share of images that lose a box of 1/7 to 3/7 of the side to black.

    Source: Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """
    count, _, height, width = images.shape
    rows, columns = torch.arange(height), torch.arange(width)
    if flip:
        mirrored = (torch.rand(count) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        padded = F.pad(images, [shift] * 4)
        down, right = torch.randint(2 * shift + 1, (2, count, 1))
        y, x = (down + rows)[:, :, None].to(images.device), (right + columns)[:, None, :].to(images.device)
        images = padded[torch.arange(count, device=images.device)[:, None, None], :, y, x].permute(0, 3, 1, 2)
    if erase:
        side = torch.randint(height // 7, 3 * height // 7 + 1, (2, count, 1))
        top, left = (torch.rand(2, count, 1) * (torch.tensor([height, width])[:, None, None] - side + 1)).long()
        tall, wide = (rows >= top) & (rows < top + side[0]), (columns >= left) & (columns < left + side[1])
        box = tall[:, :, None] & wide[:, None, :] & (torch.rand(count) < erase)[:, None, None]
        images = images.masked_fill(box[:, None].to(images.device), 0)
    return images


class PerImage(nn.Module):
    """Applies a torchvision transform, identified by its repr, to each image of a batch independently."""

    def __init__(self, transform: nn.Module):
        super().__init__()
        self.transform = transform

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> uint8 (B, C, H, W)."""
        return torch.stack([self.transform(image) for image in images])


class RandomView(nn.Module):
    """Takes one of the V cached views of each image, at random: (B, V, F) -> (B, F)."""

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Draw a view for each row."""
        if views.shape[1] == 1:
            return views[:, 0]
        drawn = torch.randint(views.shape[1], (len(views),))
        return views[torch.arange(len(views), device=views.device), drawn.to(views.device)]
