"""The generated image set: drawn shapes with colour, texture and pose, for tests and where no data is to be had."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError

COLOURS = {
    "red": (220, 50, 47), "green": (70, 160, 60), "blue": (50, 90, 210), "yellow": (235, 200, 50),
    "purple": (150, 70, 190), "white": (240, 240, 240),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checked")
SUPERSAMPLE = 2


def _halfplanes(x: np.ndarray, y: np.ndarray, sides: int, distance: float) -> np.ndarray:
    """Count, at every point, the edges of a regular polygon on whose inner side it lies."""
    turns = [math.pi / 2 + 2 * math.pi * k / sides for k in range(sides)]
    return sum((x * math.cos(t) + y * math.sin(t) < distance).astype(np.int8) for t in turns)


# Inside tests on object coordinates, y upwards, every shape within the unit circle. Only exact arithmetic on arrays
# (no transcendental functions), so that images are byte-identical on every processor.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x * x + y * y < 0.64,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.68,
    "triangle": lambda x, y: (y > -0.55) & (1.7 * abs(x) + y < 0.85),
    "star": lambda x, y: _halfplanes(x, y, 5, 0.3) >= 4,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.24) & (np.maximum(abs(x), abs(y)) < 0.8),
    "ring": lambda x, y: (x * x + y * y < 0.68) & (x * x + y * y > 0.2),
    "crescent": lambda x, y: (x * x + y * y < 0.68) & ((x - 0.4) * (x - 0.4) + y * y > 0.42),
    "hexagon": lambda x, y: _halfplanes(x, y, 6, 0.7) == 6,
    "heart": lambda x, y: (h := 1.5 * x * x + 1.5 * y * y - 0.55) * h * h < 3.0 * x * x * y * y * y,
    "arrow": lambda x, y: ((abs(x) < 0.2) & (y > -0.85) & (y <= 0.1)) | ((y > 0.0) & (abs(x) + 0.85 * y < 0.7)),
}


def draw_shapes(
    objects_per_class: int, views: int = 4, size: int = 28, channels: int = 1, seed: int = 0
) -> tuple[np.ndarray, pd.DataFrame]:
    """Draw ten classes of shapes, always the same to the byte; an object keeps colour, texture and proportions.

    Args:
        objects_per_class: different objects in each class.
        views: images of every object, each with its own turn, place, scale and light.
        size: side of the square images in pixels.
        channels: 1 for grey, 3 for colour.
        seed: seed of every random choice.

    Returns:
        Images uint8 (10 * objects_per_class * views, channels, size, size), and one row an image:
        label, object, view, colour, texture, tilt (degrees, counter-clockwise) and caption.

    Raises:
        ValueError: if `channels` is neither 1 nor 3, or a count is below 1.
    """
    if channels not in (1, 3) or min(objects_per_class, views, size) < 1:
        told = f"channels={channels}, objects_per_class={objects_per_class}, views={views}, size={size}"
        raise ArgumentError(f"draw_shapes wants 1 or 3 channels and at least one object, view and pixel, not {told}.")
    rng = np.random.default_rng(seed)
    pixels, rows = [], []
    for label in SHAPES:
        for number in range(objects_per_class):
            thing = _object(rng, label, f"{label}{number:04d}")
            for view in range(views):
                picture, tilt = _draw_view(rng, thing, size)
                pixels.append(picture)
                pose = "upright" if abs(tilt) <= 15 else "tilted to the left" if tilt > 0 else "tilted to the right"
                caption = f"a {thing['texture']} {thing['colour']} {label}, {pose}"
                rows.append({**thing, "view": view, "tilt": tilt, "caption": caption})
    stack = np.stack(pixels)
    if channels == 1:
        stack = (stack * np.array([299, 587, 114])[:, None, None]).sum(1, keepdims=True) // 1000
    return stack.astype(np.uint8), pd.DataFrame(rows).drop(columns=["stretch", "frequency", "phase"])


def _object(rng: np.random.Generator, label: str, name: str) -> dict:
    thing = {"label": label, "object": name, "colour": str(rng.choice(list(COLOURS)))}
    thing |= {"texture": str(rng.choice(TEXTURES)), "stretch": rng.uniform(0.85, 1.15)}
    return thing | {"frequency": rng.uniform(2.0, 3.5), "phase": rng.uniform(0.0, 1.0)}


def _draw_view(rng: np.random.Generator, thing: dict, size: int) -> tuple[np.ndarray, int]:
    """Draw one view of an object: (3, size, size) and its tilt in degrees."""
    tilt = int(rng.integers(-60, 61))
    scale, (dx, dy) = rng.uniform(0.6, 0.95), rng.uniform(-0.2, 0.2, 2)
    light, ground = rng.uniform(0.7, 1.0), rng.uniform(0, 60)
    side = size * SUPERSAMPLE
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    px, py = (axis[None, :] - dx) / scale, (-axis[:, None] - dy) / scale
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    x, y = (px * cos + py * sin) * thing["stretch"], (py * cos - px * sin) / thing["stretch"]
    paint = np.where(SHAPES[thing["label"]](x, y), _texture(thing, x, y), 0.0)
    paint = paint.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE).mean((1, 3))
    colour = np.array(COLOURS[thing["colour"]])[:, None, None]
    noise = rng.integers(-10, 11, (3, size, size))
    return np.clip(ground + (colour * light - ground) * paint + noise, 0, 255).astype(np.uint8), tilt


def _texture(thing: dict, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness 0..1 of an object's surface at object coordinates."""
    u, v = (axis * thing["frequency"] + thing["phase"] for axis in (x, y))
    dark = {
        "plain": np.zeros_like(u, dtype=bool),
        "striped": np.floor(v) % 2 == 0,
        "dotted": (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.09,
        "checked": (np.floor(u) + np.floor(v)) % 2 == 0,
    }[thing["texture"]]
    return np.where(dark, 0.55, 1.0)
