"""The dominant colour of an image, as one of the eleven basic colour words."""

from __future__ import annotations

import numpy as np

NAMES = {
    "black": (20, 20, 20), "grey": (128, 128, 128), "white": (245, 245, 245), "red": (200, 30, 35),
    "orange": (240, 130, 30), "yellow": (245, 220, 60), "green": (50, 140, 60), "blue": (40, 90, 190),
    "purple": (120, 60, 150), "pink": (240, 150, 180), "brown": (115, 75, 45),
}  # fmt: skip
EVEN, ENOUGH = 0.9, 0.05  # share of the margin that is one colour, then background; of the image that must be left


def dominant(pixels: np.ndarray) -> str:
    """Return the basic colour that most pixels are nearest to, without an even background.

    Args:
        pixels: uint8 (3, H, W).

    Source: Berlin and Kay, "Basic Color Terms", 1969; distances in CIELAB, where equal ones look equally large.
    """
    _, height, width = pixels.shape
    distances = ((_lab(pixels.reshape(3, -1).T)[:, None] - _PALETTE) ** 2).sum(2)
    nearest = distances.argmin(1).reshape(height, width)
    counts = np.bincount(nearest.ravel(), minlength=len(NAMES))
    margin = np.concatenate([nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]])
    around = np.bincount(margin, minlength=len(NAMES))
    background = around.argmax()
    if around[background] > EVEN * len(margin) and counts.sum() - counts[background] > ENOUGH * counts.sum():
        counts[background] = 0
    return list(NAMES)[int(counts.argmax())]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB (N, 3) in 0..255 to CIELAB under D65."""
    scaled = np.asarray(rgb, np.float32) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz, np.float32).T / np.array([0.9505, 1, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


_PALETTE = _lab(np.array([*NAMES.values()]))
