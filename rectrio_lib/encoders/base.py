"""What an encoder is: images in, unit vectors out, so that inner product = cosine similarity; and the simplest one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from rectrio_lib.core.device import autocast, best_device, keep_freed_memory
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import shortened
from rectrio_lib.core.workspace import quiet

BATCH = 512  # images per step when encoding
PIXELS_AT_ONCE = {"cpu": 16 * 224**2}  # whose activations fit the caches of a processor; a GPU takes ten times as many


class Encoder(nn.Module):
    """Base of all encoders: a network with its own preprocessing.

    `forward` takes float32 (B, C, H, W) as `prepare` returns it and gives float32 (B, dim) of unit length.

    Attributes:
        kind: name under which the class is saved.
        arguments: what the constructor was called with.
        dim: length of the vectors.
        preprocessing: {"channels", "size", "mean", "std"}; mean and std are for pixels in 0..1, of all or each channel.
        activation: names of the activations inside.
        stand_in: whether random weights took the place of pretrained ones.
        stamp: fingerprint of an encoder whose weights lie elsewhere, see `openvino`; empty for all others.
    """

    kind: str
    dim: int
    activation = ""
    stand_in = False
    stamp = ""

    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments
        shared = {k: arguments.get(k, default) for k, default in {"channels": 1, "size": 28}.items()}
        self.preprocessing = {**shared, "mean": arguments.get("mean", 0.0), "std": arguments.get("std", 1.0)}

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Turn uint8 (B, C, H, W), with channels and size of `preprocessing`, into the network's float32 input."""
        expected = (self.preprocessing["channels"], self.preprocessing["size"], self.preprocessing["size"])
        if tuple(images.shape[1:]) != expected:
            raise ArgumentError(f"This encoder takes images of shape {expected}, not {tuple(images.shape[1:])}.")
        given = {"dtype": torch.float32, "device": images.device}  # NumPy's would be float64, which Apple's GPUs lack
        mean, std = (torch.tensor(self.preprocessing[k], **given).view(-1, 1, 1) for k in ("mean", "std"))
        scaled = self.resize(images.float().div_(255)).sub_(mean).div_(std)
        return scaled.contiguous(memory_format=torch.channels_last)

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """Resize float32 (B, C, size, size) to the network's resolution; by default they are the same."""
        return images

    def parameter_groups(self, learning_rate: float, backbone_rate: float) -> list[dict]:
        """Return the trainable parameters as an optimizer takes them; a pretrained backbone may learn more slowly."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": learning_rate}]

    def encode(self, images: np.ndarray | torch.Tensor, progress: str = "") -> np.ndarray:
        """Encode images in batches on the best device, in evaluation mode, without gradients.

        Args:
            images: uint8 (N, C, H, W), or what else `prepare` takes; memory-mapped ones are read batch by batch.
            progress: caption of a progress bar; empty shows none.

        Returns:
            float32 (N, dim), rows of unit length.
        """
        keep_freed_memory()
        device, side = best_device(), self.preprocessing.get("resolution", self.preprocessing.get("size", 1))
        size = min(BATCH, max(1, PIXELS_AT_ONCE.get(device, BATCH * 128**2) // side**2))  # activations grow with them
        vectors = np.empty((len(images), self.dim), np.float32)
        starts = range(0, len(images), size)
        with self._evaluated_on(device), torch.inference_mode(), autocast(device):
            for start in tqdm(starts, desc=progress, disable=not progress or quiet()):
                batch = images[start : start + size]
                if not isinstance(batch, torch.Tensor):
                    batch = torch.from_numpy(np.array(batch))  # a copy: torch warns of read-only memory maps
                vectors[start : start + size] = self(self.prepare(batch.to(device))).float().cpu()
        return vectors

    @contextmanager
    def _evaluated_on(self, device: str) -> Iterator[None]:
        """Put the encoder on a device and in evaluation mode; afterwards restore the mode."""
        before = self.training
        tensors = chain(self.parameters(), self.buffers())  # those shared with another encoder may be there already
        if device != "cpu" and any(tensor.device.type != device for tensor in tensors):
            self.to(device)  # never in inference mode: what is moved there cannot be trained any more
        if before:  # walking through all modules takes as long as encoding a small image
            self.eval()
        try:
            yield
        finally:
            if before:
                self.train()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts with the `text_tower`, after `tokenize`: float32 (N, dim) of unit length, in the images' space.

        Raises:
            ArgumentError: if the encoder has no text tower, or cannot read a text; the message says why.
        """
        if getattr(self, "text_tower", None) is None:
            raise ArgumentError(f"This encoder of kind {self.kind!r} cannot read texts: it has no text tower.")
        device, tokens = best_device(), self.tokenize(texts)
        with self._evaluated_on(device), torch.inference_mode():
            vectors = torch.cat([self.text_tower(part.to(device)).float().cpu() for part in tokens.split(BATCH)])
        return vectors.numpy()


class RawPixels(Encoder):
    """The baseline: the image itself as a vector. A black image counts as a uniformly grey one."""

    kind = "raw-pixels"

    def __init__(self, channels: int = 1, size: int = 28):
        super().__init__(channels=channels, size=size)
        self.dim = channels * size * size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Flatten and scale to unit length: (B, C, H, W) -> (B, C * H * W)."""
        return F.normalize(images.float().flatten(1) + 1e-9)  # zero has no direction


def validate_texts(texts: Sequence[str]) -> list[str]:
    """Return texts as a list; ArgumentError if it is none, or holds no text or an empty one."""
    if isinstance(texts, str) or not len(texts):
        raise ArgumentError(f"Expected a list of at least one text, not {shortened(repr(texts))}.")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ArgumentError(f"Text {number} of {len(texts)} is not text but {type(text).__name__}.")
        if not text.strip():
            raise ArgumentError(f"Text {number} of {len(texts)} is empty: describe what to look for.")
    return list(texts)
