"""Random pictures, as arrays and as files."""

import io
import struct
import zlib
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


def written(image: Image.Image | None = None, kind: str = "JPEG", **options) -> bytes:
    """The bytes of an image file, by default of a photograph."""
    target = io.BytesIO()
    (image or photograph(1)).save(target, kind, **options)
    return target.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG file of a thousand zeros that claims to be large."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def save_photograph(path: Path, seed: int) -> None:
    """Write a photograph; one as JPEG differs a little from the same one as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed).save(path)
