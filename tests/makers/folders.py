"""Folders of small photographs, and encoders that turn them into vectors in no time."""

from pathlib import Path

import numpy as np
from PIL import Image

from makers.images import save_photograph
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder

ENCODER = "pixels"


def save_encoder_of_pixels(size: int = 8, name: str = ENCODER) -> str:
    save_encoder(RawPixels(3, size), name)
    return name


def save_photographs(folder: Path, numbers, home: str = "", suffix: str = "png") -> Path:
    """Write FOLDER/<home>/<number>.<suffix>; a number gives the same picture every time."""
    for number in numbers:
        save_photograph(folder / home / f"{number:02}.{suffix}", number)
    return folder


def save_classes(folder: Path, each: int = 6) -> Path:
    """Write classes of pictures: cats are 0…, dogs are 50…"""
    save_photographs(folder, range(each), "cat")
    return save_photographs(folder, range(50, 50 + each), "dog")


def save_texture(path: Path, number: int = 0) -> Path:
    """Write a JPEG of 2500 x 1900 pixels with fine texture, as of fabric or a print."""
    draw = np.random.default_rng(number)
    coarse = np.kron(draw.integers(0, 256, (19, 25)), np.ones((100, 100))).astype(np.uint8)
    noise = (draw.integers(0, 2, coarse.shape) * np.arange(1, 2501) // 10).astype(np.uint8)
    stripes = np.broadcast_to((np.arange(2500) // (number + 2) % 2 * 255).astype(np.uint8), noise.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([noise, stripes, coarse], axis=2)).save(path, quality=92)
    return path
