"""A dual encoder that nobody trained, and one of toys whose vectors can be told by hand: colour beside shape."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.dual import FIRST, DualEncoder, token_ids

WORDS = ["a", "coat", "red", "star", "warm"]
COLOURS, SHAPES = ("red", "green", "blue"), ("star", "ring", "heart")


def dual(seed=0, **changes):
    """A small network of both towers; its running statistics are those of a few batches."""
    torch.manual_seed(seed)
    small = {"vocabulary": WORDS, "size": 12, "plan": (4, "M", 8), "dim": 10, "embedding": 6, "hidden": 5, "length": 7}
    encoder = DualEncoder(**{**small, **changes})
    channels, size = encoder.preprocessing["channels"], encoder.preprocessing["size"]
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(torch.rand(20, channels, size, size))
    return encoder.eval()


class UnitLength(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors)


class Toys(Encoder):
    """Sees what `toy` draws, and reads the names of colours and shapes: three numbers for each of the two."""

    kind = "toys"
    dim = 6

    def __init__(self):
        super().__init__(channels=1, size=6)
        words = torch.cat([torch.zeros(FIRST, 6), torch.eye(6)])
        bag = nn.EmbeddingBag.from_pretrained(words, mode="sum", padding_idx=0)
        self.text_tower = nn.Sequential(bag, UnitLength())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The picture's main diagonal."""
        return F.normalize(images[:, 0].diagonal(dim1=1, dim2=2))

    def tokenize(self, texts):
        """At most two words."""
        return token_ids(texts, [*COLOURS, *SHAPES], 2)


def toy(colour, shape):
    """A picture whose diagonal tells colour and shape: uint8 (1, 6, 6)."""
    lit = [name in (colour, shape) for name in (*COLOURS, *SHAPES)]
    return np.diag(np.array(lit, np.uint8) * 255)[None]
