"""Networks that turn pictures into unit vectors: inner product = cosine similarity."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from rectrio_lib import resources

PLAN = (32, 32, "M", 64, 64, "M", 128, 128, 128)
BATCH = 512  # pictures a step when only encoding


def best_device() -> str:
    """Return "cuda", "mps" or "cpu", the first that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_precision(device: str) -> str:
    """Return "bf16" where the processor computes in bfloat16, else "no" (float32 throughout)."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if device == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16") else "no"


class Encoder(nn.Module):
    """Base of all encoders: a network with its own preprocessing.

    `forward` takes float32 (B, C, H, W) as `prepare` returns it and gives float32 (B, dim) of unit length.

    Attributes:
        kind: name under which the class is saved.
        arguments: what the constructor was called with.
        dim: length of the vectors.
        preprocessing: {"channels", "size", "mean", "std"}; mean and std are for pixels in 0..1.
    """

    kind: str
    dim: int

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
        scaled = images.float().div_(255).sub_(self.preprocessing["mean"]).div_(self.preprocessing["std"])
        return scaled.contiguous(memory_format=torch.channels_last)

    def encode(self, images: np.ndarray | torch.Tensor, progress: str = "") -> np.ndarray:
        """Encode pictures in batches, in evaluation mode, without gradients.

        Args:
            images: uint8 (N, C, H, W); a memory-mapped array is read a batch at a time.
            progress: caption of a progress bar; empty shows none.

        Returns:
            float32 (N, dim), rows of unit length.
        """
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=best_precision(device.type) == "bf16")
        vectors = np.empty((len(images), self.dim), np.float32)
        before = self.training
        self.eval()
        starts = range(0, len(images), BATCH)
        with torch.inference_mode(), autocast:
            for start in tqdm(starts, desc=progress, disable=not progress or resources.quiet()):
                batch = images[start : start + BATCH]
                if not isinstance(batch, torch.Tensor):
                    batch = torch.from_numpy(np.array(batch))  # a copy: torch warns of read-only memory maps
                vectors[start : start + BATCH] = self(self.prepare(batch.to(device))).float().cpu()
        self.train(before)
        return vectors


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
    normalise. In evaluation mode the vector is the mean over the picture and its mirror image.

    Args:
        channels: 1 for grey, 3 for colour.
        size: side of the square pictures in pixels.
        plan: channels of each 3 x 3 convolution; "M" after one stands for a 2 x 2 max-pooling of its output.
        dim: length of the unit vectors.
        mean: mean of the training pixels, 0..1.
        std: standard deviation of the training pixels.

    Source: the plan's notation from Simonyan and Zisserman, "Very deep convolutional networks", ICLR 2015.
    """

    kind = "convnet"

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        plan: tuple[int | str, ...] = PLAN,
        dim: int = 128,
        mean: float = 0.0,
        std: float = 1.0,
    ):
        super().__init__(channels=channels, size=size, plan=list(plan), dim=dim, mean=mean, std=std)
        self.dim = dim
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
        vectors = F.normalize(self.project(self.features(images)).float())
        if self.training:
            return vectors
        return F.normalize(vectors + F.normalize(self.project(self.features(images.flip(-1))).float()))


KINDS: dict[str, type[Encoder]] = {cls.kind: cls for cls in (RawPixels, ConvNet)}


def count_parameters(encoder: nn.Module) -> int:
    """Count the numbers that training may change."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def save_encoder(encoder: Encoder, name: str, trained_on: str = "", seed: int | None = None) -> Path:
    """Write weights.safetensors and encoder.json to outputs/encoders/<name>/.

    Args:
        encoder: what to save.
        name: such as "fashion-triplet".
        trained_on: hash of the training data's manifest; empty for an untrained encoder.
        seed: the seed it was trained with.
    """
    folder = resources.outputs_root() / "encoders" / name
    with resources.replaced_folder(folder) as fresh:
        save_file({k: v.contiguous().cpu() for k, v in encoder.state_dict().items()}, fresh / "weights.safetensors")
        card = {"name": name, "kind": encoder.kind, "arguments": encoder.arguments, "dim": encoder.dim}
        card |= {
            "preprocessing": encoder.preprocessing,
            "activation": "relu" if encoder.kind == "convnet" else None,
        }
        card |= {"trained_on": trained_on, "seed": seed, "hash": fingerprint(encoder)}
        card["versions"] = {package: version(package) for package in ("rectrio", "torch")}
        resources.write_json(fresh / "encoder.json", card)
    return folder


def load_encoder(name: str, made_by: str = "02_train_fashion_triplet") -> Encoder:
    """Open a saved encoder, in evaluation mode, on the CPU.

    Args:
        name: as given to `save_encoder`.
        made_by: the chapter that makes it, for the error message.

    Raises:
        resources.MissingArtefact: if it is not there.
        ValueError: if the kind is unknown, the weights are damaged, or do not fit it; the message names the keys.
    """
    folder = resources.artefact(f"encoders/{name}", made_by)
    card = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    if card["kind"] not in KINDS:
        raise ValueError(f"{folder} holds an encoder of kind {card['kind']!r}; known kinds: {', '.join(KINDS)}.")
    encoder = KINDS[card["kind"]](**card["arguments"])
    try:
        state = load_file(folder / "weights.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'weights.safetensors'} is damaged: train the encoder again.") from error
    wrong = sorted({key for key, _ in _shapes(state) ^ _shapes(encoder.state_dict())})
    if wrong:
        raise ValueError(f"The weights in {folder} are of another architecture: {', '.join(wrong[:5])} do not match.")
    encoder.load_state_dict(state)
    if fingerprint(encoder) != card["hash"]:
        raise ValueError(f"The weights in {folder} are not the ones its encoder.json describes: train it again.")
    return encoder.eval()


def _shapes(state: dict[str, torch.Tensor]) -> set[tuple[str, torch.Size]]:
    return {(key, value.shape) for key, value in state.items()}


def fingerprint(encoder: Encoder) -> str:
    """Hash of kind, arguments, preprocessing and weights: equal vectors come from equal fingerprints."""
    digest = hashlib.sha256(json.dumps([encoder.kind, encoder.arguments, encoder.preprocessing]).encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
