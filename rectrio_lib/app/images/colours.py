"""The dominant colour of an image, as one of the eleven basic colour words."""

from __future__ import annotations

import numpy as np

NAMES = {
    "black": (20, 20, 20), "grey": (128, 128, 128), "white": (245, 245, 245), "red": (200, 30, 35),
    "orange": (240, 130, 30), "yellow": (245, 220, 60), "green": (50, 140, 60), "blue": (40, 90, 190),
    "purple": (120, 60, 150), "pink": (240, 150, 180), "brown": (115, 75, 45),
}  # fmt: skip
CENTRE_WEIGHT = 3  # of the middle half against the margin, which is mostly background


def dominant(pixels: np.ndarray) -> str:
    """Return the basic colour that most pixels are nearest to, those in the middle counting more.

    Args:
        pixels: uint8 (3, H, W).

    Source: Berlin and Kay, "Basic Color Terms", 1969; distances in CIELAB, where equal ones look equally large.
    """
    _, height, width = pixels.shape
    weights = np.ones((height, width))
    weights[height // 4 : height - height // 4, width // 4 : width - width // 4] = CENTRE_WEIGHT
    distances = ((_lab(pixels.reshape(3, -1).T)[:, None] - _PALETTE) ** 2).sum(2)
    votes = np.bincount(distances.argmin(1), weights.ravel(), len(NAMES))
    return list(NAMES)[int(votes.argmax())]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB (N, 3) in 0..255 to CIELAB under D65."""
    scaled = np.asarray(rgb, np.float32) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz, np.float32).T / np.array([0.9505, 1, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


_PALETTE = _lab(np.array([*NAMES.values()]))
