"""Random pictures, as arrays and as files."""

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(count: int, seed: int = 0, channels: int = 1, side: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def save_classes(folder: Path, labels, pixels=None) -> None:
    """Write one PNG a label to FOLDER/<label>/<n>.png."""
    for n, (label, picture) in enumerate(zip(labels, pictures(len(labels)) if pixels is None else pixels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(folder / label / f"{n}.png")


def photograph(seed: int, side: int = 64) -> Image.Image:
    """Blur random colours: large soft forms, as in a photograph."""
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)


def save_photograph(path: Path, seed: int) -> None:
    """Write a photograph; one as JPEG differs a little from the same one as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed).save(path)
