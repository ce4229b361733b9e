"""Figures of triplets: how far anchors, positives and negatives lie apart, and what that means for the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle

from rectrio_lib.report.grids import HIT, MISS, QUERY, Wall
from rectrio_lib.report.lettering import lettered

ZONES = {"hard": MISS, "semi-hard": "#e69f00", "easy": HIT}  # where a negative lies, seen from its anchor


def zone_of(gaps: np.ndarray, margin: float) -> np.ndarray:
    """Return the zone, a key of ZONES, of triplets by their gaps, distance to positive minus distance to negative."""
    return np.where(gaps >= 0, "hard", np.where(gaps > -margin, "semi-hard", "easy"))


@lettered
def distance_matrix(images: np.ndarray, distances: np.ndarray, title: str = "") -> Figure:
    """A matrix of distances (N, N), the darker the nearer, with the images uint8 (N, C, H, W) on both sides."""
    figure, axis = plt.subplots(figsize=(6, 6))
    shown = axis.imshow(distances, cmap="Blues_r")
    for place, image in enumerate(images):
        colours = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        for spot in ((place, -1), (-1, place)):
            small = OffsetImage(colours, zoom=28 / image.shape[-1], cmap="gray")
            axis.add_artist(AnnotationBbox(small, spot, frameon=False, annotation_clip=False))
    axis.axis("off")
    axis.set_title(title, pad=38)
    figure.colorbar(shown, shrink=0.7, label="distance (dark: near)")
    return figure


@lettered
def zone_grid(images: np.ndarray, labels: np.ndarray, distances: np.ndarray, margin: float) -> Figure:
    """Three triplets of each zone, drawn at random: anchor, positive and negative, with distances to the anchor.

    Args:
        images: of a batch, uint8 (B, C, H, W).
        labels: (B,).
        distances: of their vectors (B, B).
        margin: of the loss.
    """
    same = labels[:, None] == labels
    positive = same & ~np.eye(len(labels), dtype=bool)
    rng, wall = np.random.default_rng(0), Wall(len(ZONES), 10, 0.9)
    gaps = distances[:, :, None] - distances[:, None]
    zones = zone_of(gaps, margin)
    for line, (zone, colour) in enumerate(ZONES.items()):
        wall.axis.text(-0.1, (line + 0.6) * wall.height, zone, ha="right", va="center", color=colour, weight="bold")
        found = np.argwhere((zones == zone) & positive[:, :, None] & ~same[:, None])
        for number, (a, p, n) in enumerate(found[rng.permutation(len(found))[:3]]):
            wall.show(line, 3.4 * number, images[a], "anchor", QUERY)
            wall.show(line, 3.4 * number + 1, images[p], f"{distances[a, p]:.2f}", HIT)
            wall.show(line, 3.4 * number + 2, images[n], f"{distances[a, n]:.2f}", MISS)
    return wall.figure


@lettered
def circle(positive: float, margin: float, negatives: Sequence[float] = (), title: str = "") -> Figure:
    """An anchor and its positive on the unit circle, and the arcs where a negative is hard, semi-hard or easy.

    Args:
        positive: distance of the positive from the anchor, 0 to 2.
        margin: how much farther negatives have to be.
        negatives: distances of negatives, strokes on the left and on the right in turn.
        title: above the circle.
    """
    figure, axis = plt.subplots(figsize=(5.6, 5.6))
    white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    bounds = np.clip([0, positive, positive + margin, 2], 0, 2)
    for (zone, colour), near, far in zip(ZONES.items(), bounds, bounds[1:], strict=False):
        for side in (-1, 1):
            arc = _on_circle(np.linspace(near, far, 99), side)
            axis.plot(*arc, color=colour, lw=9, alpha=0.4, solid_capstyle="butt")
        if far > near:
            x, y = 1.16 * _on_circle((near + far) / 2, 1)
            axis.text(x, y, zone, color=colour, weight="bold", ha="left", va="center", bbox=white)
    for radius, style, name in ((positive, "-", "as far as the positive"), (positive + margin, "--", "and the margin")):
        axis.add_patch(Circle((0, 1), radius, fill=False, linestyle=style, color="0.55", lw=1))
        axis.text(0, 1 + radius, name, color="0.4", fontsize=8, ha="center", va="center", bbox=white)
    axis.plot(*np.transpose([(0, 1), _on_circle(positive, 1)]), color=HIT, lw=1)
    for name, (x, y), colour, place in (
        ("anchor", (0, 1), QUERY, (0, 8)),
        ("positive", _on_circle(positive, 1), HIT, (-8, -16)),
    ):
        axis.plot(x, y, "o", color=colour, ms=9, zorder=3)
        offset = {"xytext": place, "textcoords": "offset points", "ha": "center" if place[0] == 0 else "right"}
        axis.annotate(name, (x, y), color=colour, weight="bold", **offset)
    for number, distance in enumerate(negatives):
        colour = list(ZONES.values())[int(np.searchsorted(bounds[1:3], distance))]
        axis.plot(*np.outer(_on_circle(distance, (-1, 1)[number % 2]), (0.88, 1.12)), color=colour, lw=2, zorder=3)
    axis.set(xlim=(-1.75, 1.75), ylim=(-1.2, min(3, 1.2 + positive + margin)), aspect="equal", title=title)
    axis.axis("off")
    return figure


def _on_circle(distance: np.ndarray | float, side: int) -> np.ndarray:
    """Return the places (2, …) on the unit circle at a distance from its top, to the right (1) or left (-1)."""
    angle = 2 * np.arcsin(np.asarray(distance) / 2)
    return np.stack([side * np.sin(angle), np.cos(angle)])


def similarity_histograms(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "") -> Figure:
    """Histograms one above the other, {name: cosines of pairs of one class, cosines of pairs of two}."""
    low = min(values.min() for pair in panels.values() for values in pair)
    figure, axes = plt.subplots(len(panels), figsize=(8, 1.9 * len(panels)), sharex=True, squeeze=False)
    figure.suptitle(title)
    for axis, (panel, pair) in zip(axes[:, 0], panels.items(), strict=True):
        for values, colour, name in zip(pair, (HIT, MISS), ("same class", "different classes"), strict=True):
            axis.hist(values, np.linspace(low, 1, 80), density=True, color=colour, alpha=0.55, label=name)
            axis.axvline(values.mean(), color=colour, lw=1.5)
        axis.set(yticks=[])
        axis.set_title(panel, loc="left", fontsize=10)
        axis.spines[["top", "left", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    axes[-1, 0].set_xlabel("cosine similarity of a pair (line: mean)")
    figure.tight_layout()
    return figure
