"""What a frozen backbone sees, computed once: with it a head trains without the backbone."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from rectrio_lib.core.device import best_device, best_precision
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import renamed
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.base import BATCH, Encoder
from rectrio_lib.encoders.registry import fingerprint


def cache_features(
    encoder: Encoder, images: np.ndarray, disguise: nn.Module | None = None, views: int = 1, seed: int = 0
) -> np.ndarray:
    """Encode every picture as it is, or in disguises; what was computed before is read from disk.

    Args:
        encoder: usually a frozen backbone without a head.
        images: uint8 (N, C, H, W).
        disguise: changes a batch of pictures by chance, and is told apart by its repr; None takes them as they are.
        views: vectors a picture, each of another disguise.
        seed: of the disguises.

    Returns:
        Unit vectors float32 (N, views, dim), memory-mapped from outputs/features/.

    Raises:
        ValueError: if there is no view, or several and no disguise.
    """
    if views < 1 or (views > 1 and disguise is None):
        raise ArgumentError(f"views={views}: choose at least 1, and for more than 1 name a disguise.")
    digest = hashlib.sha256(np.ascontiguousarray(images))
    precision = best_precision(best_device())  # bfloat16 features are coarser
    digest.update(repr((fingerprint(encoder), images.shape, disguise, views, seed, precision)).encode())
    path = Workspace().outputs / "features" / f"{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        with renamed(path) as partial, torch.random.fork_rng(devices=[]):
            found = np.lib.format.open_memmap(partial, "w+", np.float32, (len(images), views, encoder.dim))
            torch.manual_seed(seed)
            for view in range(views):
                found[:, view] = _encode_views(encoder, images, disguise)
            found.flush()
            del found  # an open map cannot be renamed on Windows
    return np.load(path, mmap_mode="r")


def _encode_views(encoder: Encoder, images: np.ndarray, disguise: nn.Module | None) -> np.ndarray:
    if disguise is None:
        return encoder.encode(images, progress="features")
    starts = range(0, len(images), BATCH)
    batches = (torch.from_numpy(np.array(images[start : start + BATCH])) for start in starts)
    return np.concatenate([encoder.encode(disguise(batch)) for batch in batches])
