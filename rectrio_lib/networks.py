"""What an encoder is: pictures in, unit vectors out, so that inner product = cosine similarity; and two small ones."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from rectrio_lib import resources

PLAN = (16, 32, "M", 64, 64, "M", 128, 128, 128)
BATCH = 512  # pictures a step when only encoding


def best_device() -> str:
    """Return "cuda", "mps" or "cpu", the first that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_precision(device: str) -> str:
    """Return "bf16" where the processor computes in bfloat16, "fp16" on older GPUs, else "no" (float32 throughout)."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16") else "no"


def autocast(device: str) -> torch.autocast:
    """Compute in `best_precision` inside the context."""
    precision = best_precision(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device, dtype, enabled=dtype is not None)


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors below 256 MB; called when this file is imported.

    By default it goes back to the system, and each step of a training fetches it again, page by page: measured on two
    cores, that made a step of chapter 2 a third longer and took a third off the speed of encoding. The price: a process
    keeps the most that it ever used.

    Returns:
        Whether it could be told; only Linux has it.

    Source: the manual page mallopt(3).
    """
    trim_threshold, mmap_threshold = -1, -3  # names of the options in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(mmap_threshold, 1 << 28) and mallopt(trim_threshold, -1))


keep_freed_memory()


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
        stamp: fingerprint of an encoder whose weights lie elsewhere, see `export`; empty for all others.
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
        """Turn uint8 (B, C, H, W) into the network's float32 input.

        Raises:
            ValueError: if the pictures have another number of channels or another size than the network was made for.
        """
        wanted = (self.preprocessing["channels"], self.preprocessing["size"], self.preprocessing["size"])
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(f"This encoder takes pictures of shape {wanted}, not {tuple(images.shape[1:])}.")
        mean, std = (torch.tensor(self.preprocessing[k], device=images.device).view(-1, 1, 1) for k in ("mean", "std"))
        scaled = self.resize(images.float().div_(255)).sub_(mean).div_(std)
        return scaled.contiguous(memory_format=torch.channels_last)

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """Bring float32 (B, C, size, size) to the side that the network sees; by default they are the same."""
        return images

    def parameter_groups(self, learning_rate: float, backbone_rate: float) -> list[dict]:
        """Return what training may change, as an optimizer takes it; a pretrained backbone may go slower."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": learning_rate}]

    def encode(self, images: np.ndarray | torch.Tensor, progress: str = "") -> np.ndarray:
        """Encode pictures in batches on the best device, in evaluation mode, without gradients.

        Args:
            images: uint8 (N, C, H, W), or what else `prepare` takes; memory-mapped, it is read a batch at a time.
            progress: caption of a progress bar; empty shows none.

        Returns:
            float32 (N, dim), rows of unit length.
        """
        device, side = best_device(), self.preprocessing.get("resolution", self.preprocessing["size"])
        size = min(BATCH, max(1, BATCH * 128**2 // side**2))  # what is inside the network grows with the pictures
        vectors = np.empty((len(images), self.dim), np.float32)
        starts = range(0, len(images), size)
        with self._evaluated_on(device), torch.inference_mode(), autocast(device):
            for start in tqdm(starts, desc=progress, disable=not progress or resources.quiet()):
                batch = images[start : start + size]
                if not isinstance(batch, torch.Tensor):
                    batch = torch.from_numpy(np.array(batch))  # a copy: torch warns of read-only memory maps
                vectors[start : start + size] = self(self.prepare(batch.to(device))).float().cpu()
        return vectors

    @contextmanager
    def _evaluated_on(self, device: str) -> Iterator[None]:
        """Bring the encoder to a device and to evaluation mode; afterwards it trains again, if it did before."""
        before, weights = self.training, next(self.parameters(), None)
        if weights is not None and weights.device.type != device:
            self.to(device)
        if before:  # to walk through all modules takes as long as to encode a small picture
            self.eval()
        try:
            yield
        finally:
            if before:
                self.train()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts, as `encode` does pictures, for encoders with a `text_tower` (and `tokenize`, its preparation).

        Args:
            texts: what to encode (N,); what is longer than the tower reads is cut off.

        Returns:
            float32 (N, dim), rows of unit length, in the space of the pictures.

        Raises:
            ValueError: if the encoder has no text tower, or cannot read a text; the message says why.
        """
        if getattr(self, "text_tower", None) is None:
            raise ValueError(f"An encoder of kind {self.kind!r} like this one reads no texts: it has no text tower.")
        device, tokens = best_device(), self.tokenize(texts)
        with self._evaluated_on(device):
            vectors = torch.cat([self.text_tower(part.to(device)).float().cpu() for part in tokens.split(BATCH)])
        return vectors.numpy()


class RawPixels(Encoder):
    """The floor to beat: the picture itself as a vector. A black picture counts as an evenly grey one."""

    kind = "raw-pixels"

    def __init__(self, channels: int = 1, size: int = 28):
        super().__init__(channels=channels, size=size)
        self.dim = channels * size * size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Flatten and scale to unit length: (B, C, H, W) -> (B, C * H * W)."""
        return F.normalize(images.float().flatten(1) + 1e-9)  # zero has no direction


class ConvNet(Encoder):
    """A small Conv-BN-ReLU-MaxPool network, trained from scratch.

    Pooling comes before batch norm and ReLU: maximum and ReLU commute, and a quarter of the pixels is left to
    normalise. In evaluation mode the vector is the mean over several looks at the picture.

    Args:
        channels: 1 for grey, 3 for colour.
        size: side of the square pictures in pixels.
        plan: channels of each 3 x 3 convolution; "M" after one stands for a 2 x 2 max-pooling of its output.
        dim: length of the unit vectors.
        mean: mean of the training pixels, 0..1.
        std: standard deviation of the training pixels.
        looks: 1, the picture alone; 2, and its mirror image; 6, and both moved by a pixel along each diagonal.

    Raises:
        ValueError: if `looks` is another number.

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
            raise ValueError(f"looks={looks}: choose 1, 2 or 6.")
        self.dim, self.looks = dim, looks
        layers: list[nn.Module] = []
        width = channels
        for step, following in zip(plan, [*plan[1:], None], strict=True):
            if step == "M":
                continue
            pool = [nn.MaxPool2d(2)] if following == "M" else []
            layers += [
                nn.Conv2d(width, step, 3, padding=1, bias=False),
                *pool,
                nn.BatchNorm2d(step),
                nn.ReLU(inplace=True),
            ]
            width = step
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.project = nn.Sequential(nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, dim), unit length."""
        if self.training:
            return self._embed(images)
        looks = self._looks(images)  # together: one picture is seen twice in little more time than once
        return F.normalize(self._embed(torch.cat(looks)).unflatten(0, (len(looks), -1)).sum(0))

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.project(self.features(images)).float())

    def _looks(self, images: torch.Tensor) -> list[torch.Tensor]:
        moved = [images]
        if self.looks == 6:
            black = -self.preprocessing["mean"] / self.preprocessing["std"]
            padded, size = F.pad(images, [1] * 4, value=black), images.shape[-1]
            moved += [padded[..., :size, :size], padded[..., 2:, 2:]]
        return moved if self.looks == 1 else [*moved, *(look.flip(-1) for look in moved)]
