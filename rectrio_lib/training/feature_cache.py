"""Features of a frozen backbone, computed once: with them a head trains without the backbone."""

from __future__ import annotations

import hashlib
from itertools import product

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
    encoder: Encoder,
    images: np.ndarray,
    augmentation: nn.Module | None = None,
    views: int = 1,
    seed: int = 0,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Encode every image as it is, or augmented; what was computed before is read from disk.

    Args:
        encoder: usually a frozen backbone without a head.
        images: uint8 (N, C, H, W).
        augmentation: changes a batch of images at random; its repr is part of the key. None takes them as they are.
        views: vectors per image, each of another augmentation.
        seed: of the augmentation.
        workspace: where the cache lies, in outputs/features/.

    Returns:
        Vectors (N, views, dim), memory-mapped: float32, or of the type `encoder.stored`.

    Raises:
        ArgumentError: if views is below 1, or above 1 without an augmentation.
        StorageError: if the cache cannot be written.
    """
    if views < 1 or (views > 1 and augmentation is None):
        raise ArgumentError(f"views={views}: choose at least 1; more than 1 needs an augmentation.")
    digest = hashlib.sha256(np.ascontiguousarray(images))
    precision = best_precision(best_device())  # bfloat16 features are coarser
    digest.update(repr((fingerprint(encoder), images.shape, augmentation, views, seed, precision)).encode())
    path = (workspace or Workspace()).outputs / "features" / f"{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        with renamed(path) as partial, torch.random.fork_rng(devices=[]):
            stored = getattr(encoder, "stored", np.float32)
            features = np.lib.format.open_memmap(partial, "w+", stored, (len(images), views, encoder.dim))
            torch.manual_seed(seed)
            if augmentation is None:
                features[:, 0] = encoder.encode(images, "features")
            else:
                for view, start in product(range(views), range(0, len(images), BATCH)):
                    part = augmentation(torch.from_numpy(np.array(images[start : start + BATCH])))
                    features[start : start + BATCH, view] = encoder.encode(part)
            features.flush()
            del features  # an open map cannot be renamed on Windows
    return np.load(path, mmap_mode="r")
