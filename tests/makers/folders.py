"""Folders of small photographs, and encoders that turn them into vectors in no time."""

from pathlib import Path

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
