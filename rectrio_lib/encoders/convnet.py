"""A small convolutional network, trained from scratch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.encoders.base import Encoder

PLAN = (16, 32, "M", 64, 64, "M", 128, 128, 128)


class ConvNet(Encoder):
    """A small Conv-BN-ReLU-MaxPool network, trained from scratch.

    Pooling comes before batch norm and ReLU, which then have a quarter of the pixels to compute. In evaluation mode the
    vector is the mean over test-time augmentations of the image.

    Args:
        channels: 1 for grey, 3 for colour.
        size: side of the square images in pixels.
        plan: channels of each 3 x 3 convolution; "M" after one stands for a 2 x 2 max-pooling of its output.
        dim: length of the unit vectors.
        mean: mean of the training pixels, 0..1.
        std: standard deviation of the training pixels.
        looks: test-time augmentations: 1, the image; 2, and mirrored; 6, and both shifted by a pixel diagonally.

    Source: the plan's notation from Simonyan and Zisserman, "Very deep convolutional networks", ICLR 2015.
    """

    kind = "convnet"
    activation = "relu"

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        plan: tuple[int | str, ...] = PLAN,
        dim: int = 128,
        mean: float = 0.0,
        std: float = 1.0,
        looks: int = 2,
    ):
        super().__init__(channels=channels, size=size, plan=list(plan), dim=dim, mean=mean, std=std, looks=looks)
        if looks not in (1, 2, 6):
            raise ArgumentError(f"looks={looks}: choose 1, 2 or 6.")
        self.dim, self.looks = dim, looks
        layers: list[nn.Module] = []
        width = channels
        for step, following in zip(plan, [*plan[1:], None], strict=True):
            if step == "M":
                continue
            pool = [nn.MaxPool2d(2)] if following == "M" else []
            convolution = nn.Conv2d(width, step, 3, padding=1, bias=False)
            layers += [convolution, *pool, nn.BatchNorm2d(step), nn.ReLU(inplace=True)]
            width = step
        self.features = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length."""
        if self.training:
            return self._embed(images)
        views = self._views(images)  # in one batch: two views take little more time than one
        return F.normalize(self._embed(torch.cat(views)).unflatten(0, (len(views), -1)).sum(0))

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        places = self.features(images).permute(0, 2, 3, 1).flatten(1, 2)  # as they lie in memory; their gradients, too
        return F.normalize(self.project(places.mean(1)).float())

    def _views(self, images: torch.Tensor) -> list[torch.Tensor]:
        shifted = [images]
        if self.looks == 6:
            black = -self.preprocessing["mean"] / self.preprocessing["std"]
            padded, size = F.pad(images, [1] * 4, value=black), images.shape[-1]
            shifted += [padded[..., :size, :size], padded[..., 2:, 2:]]
        return shifted if self.looks == 1 else [*shifted, *(view.flip(-1) for view in shifted)]
