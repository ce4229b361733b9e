"""An encoder with something added around it: the mirror image as a second look, a head that whitens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.pretrained import ProjectionHead


class Adapted(Encoder):
    """Another encoder, whose vectors of an image and its mirror image are averaged, or taken through a linear head.

    Args:
        source: {"kind", "arguments"} of the other encoder.
        mirror: whether the mirror image counts as well: twice the work.
        dim: length of the vectors after the head; 0: there is none. With a head it has no text tower.
    """

    kind = "adapted"

    def __init__(self, source: dict[str, Any], mirror: bool = False, dim: int = 0):
        from rectrio_lib.encoders.registry import KINDS  # which has this class, too

        super().__init__(source=source, mirror=mirror, dim=dim)
        self.source = KINDS[source["kind"]](**source["arguments"])
        self.preprocessing, self.stand_in, self.mirror = self.source.preprocessing, self.source.stand_in, mirror
        self.head = ProjectionHead(self.source.dim, dim) if dim else None
        self.dim = dim or self.source.dim

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Prepare images as the other encoder does."""
        return self.source.prepare(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length."""
        vectors = self.source(images)
        if self.mirror:
            vectors = F.normalize(vectors + self.source(images.flip(-1)))
        return self.head(vectors) if self.head else vectors

    @property
    def activation(self) -> str:
        """Names of the activations inside the other encoder."""
        return self.source.activation

    @property
    def text_tower(self) -> nn.Module | None:
        """That of the other encoder, as long as vectors stay in its space."""
        return None if self.head else getattr(self.source, "text_tower", None)

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Turn texts into what the text tower takes."""
        return self.source.tokenize(texts)


def adapted(encoder: Encoder, mirror: bool = False, head: ProjectionHead | None = None) -> Adapted:
    """Return an encoder with a mirror image, a head, or both, added; see `Adapted`."""
    source = {"kind": encoder.kind, "arguments": encoder.arguments}
    whole = Adapted(source, mirror, head.dim if head else 0)
    whole.source, whole.head = encoder, head
    return whole.eval()
