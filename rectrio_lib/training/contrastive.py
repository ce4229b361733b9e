"""The loss that pulls images and the texts that describe them together."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from rectrio_lib.data.captions import Captions
from rectrio_lib.encoders.dual import DualEncoder
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.losses import make_loss


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, fits: torch.Tensor, temperature: float | torch.Tensor
) -> torch.Tensor:
    """Symmetric cross entropy between images and texts, of which several may fit one another.

    Each image chooses among the texts by a softmax over its similarities, and should choose all that fit it alike; each
    text likewise among the images. A row that nothing fits is left out.

    Args:
        images: unit vectors (B, D).
        texts: unit vectors (T, D).
        fits: whether text t describes image b, bool (B, T).
        temperature: what similarities are divided by.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021; Yang et
        al., "Unified contrastive learning in image-text-label space", CVPR 2022 (several that fit).
    """
    logits = images @ texts.T / temperature
    return (_choice(logits, fits) + _choice(logits.T, fits.T)) / 2


def _choice(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    count = fits.sum(1)
    each = -(logits.log_softmax(1) * fits).sum(1) / count.clamp_min(1)
    return each.sum() / (count > 0).sum().clamp_min(1)


class DescriptionLoss:
    """For `loop.fit`: each image of a batch brings one of the texts that describe it, drawn at random.

    Args:
        captions: the texts, and which of them fit which target.
        config: adds the loss that it names, among the images alone; None adds none.
    """

    def __init__(self, captions: Captions, config: TrainConfig | None = None):
        names = ("loss", "miner", "margin", "temperature")
        self.captions, self.options = captions, {name: getattr(config, name) for name in names} if config else {}
        self.fits = torch.as_tensor(captions.fits)
        self.among_images = make_loss(**self.options) if config else None

    def __repr__(self) -> str:
        """Return a key of the texts and options: equal ones give the same."""
        digest = hashlib.sha256("\n".join(self.captions.texts).encode() + np.packbits(self.captions.fits).tobytes())
        return f"DescriptionLoss({digest.hexdigest()[:16]}, {self.options})"

    def __call__(
        self, encoder: DualEncoder, vectors: torch.Tensor, targets: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """Give the loss of a batch of image vectors (B, dim) with targets (B,), `progress` (0..1) into training."""
        fits = self.fits[targets.cpu()]  # (B, all texts)
        drawn = torch.multinomial(fits.float(), 1)[:, 0].unique()
        tokens = encoder.tokenize([self.captions.texts[number] for number in drawn])
        texts = encoder.text_tower(tokens.to(vectors.device))
        loss = contrastive_loss(vectors, texts, fits[:, drawn].to(vectors.device), encoder.temperature)
        return loss + self.among_images(vectors, targets, progress) if self.among_images else loss
