"""Images in rows and columns, framed and captioned. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rectrio_lib.core.workspace import Workspace

HIT, MISS, QUERY = "#2a9d5c", "#d1495b", "#3366aa"
DPI = 110


def save_figure(figure: Figure, name: str) -> None:
    """Write a figure to outputs/figures/<name>.png."""
    path = Workspace().outputs / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


class Wall:
    """Pictures in lines and columns, drawn into one axes: an axes for each would take ten times as long."""

    MARGIN = 0.05

    def __init__(self, lines: int, columns: int, inches: float, caption: float = 0.25):
        self.height, self.caption = 1 + caption, caption
        self.figure, self.axis = plt.subplots(figsize=(inches * columns, inches * self.height * lines))
        self.axis.set(xlim=(0, columns), ylim=(lines * self.height, 0))
        self.axis.axis("off")

    def show(
        self, line: int, column: int, picture: np.ndarray, caption: str = "", frame: str | None = None
    ) -> tuple[float, float, float, float]:
        """Draw uint8 (C, H, W) with an optional caption above and coloured frame; return its extent."""
        top, side = line * self.height + self.caption + self.MARGIN, 1 - 2 * self.MARGIN
        extent = (column + self.MARGIN, column + self.MARGIN + side, top + side, top)
        colours = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
        self.axis.imshow(colours, cmap="gray", vmin=0, vmax=255, extent=extent)
        if caption:
            self.axis.text(column + 0.5, top - 0.06, caption, ha="center", va="bottom", fontsize=8)
        if frame:
            self.axis.add_patch(Rectangle((extent[0], top), side, side, fill=False, edgecolor=frame, linewidth=3))
        return extent


def example_grid(pictures: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """One row of pictures a class: {class: uint8 (n, C, H, W)}."""
    wall = Wall(len(pictures), max(map(len, pictures.values())), 0.8, caption=0)
    for line, (label, row) in enumerate(pictures.items()):
        for column, picture in enumerate(row):
            wall.show(line, column, picture)
        wall.axis.text(-0.1, line + 0.5, label, ha="right", va="center", fontsize=9)
    wall.axis.set_title(title)
    return wall.figure


def mean_images(images: np.ndarray, labels: Sequence[str], classes: Sequence[str]) -> Figure:
    """The average picture of each class.

    Args:
        images: uint8 (N, C, H, W).
        labels: class names (N,).
        classes: in the order to show.
    """
    labels = np.asarray(labels)
    columns = (len(classes) + 1) // 2
    wall = Wall(2, columns, 1.4)
    for number, label in enumerate(classes):
        members = images[labels == label]
        if len(members):
            wall.show(*divmod(number, columns), members.mean(0).astype(np.uint8), label)
    return wall.figure


def neighbour_grid(
    queries: np.ndarray,
    query_labels: Sequence[str],
    neighbours: np.ndarray,
    neighbour_labels: np.ndarray,
    scores: np.ndarray,
    title: str = "",
) -> Figure:
    """Queries on the left, their neighbours to the right: a green frame is a hit, a red one a miss.

    The neighbours of a query without a label have no frame, and a place without an answer stays empty.

    Args:
        queries: uint8 (Q, C, H, W).
        query_labels: (Q,), empty text where none is known.
        neighbours: uint8 (Q, k, C, H, W).
        neighbour_labels: (Q, k).
        scores: cosine similarities (Q, k); NaN where there is no answer.
        title: above the grid.
    """
    count, k = neighbour_labels.shape
    wall = Wall(count, k + 1, 1.2)
    for q in range(count):
        wall.show(q, 0, queries[q], str(query_labels[q]), QUERY)
        for n in np.flatnonzero(~np.isnan(scores[q])):
            hit, known = neighbour_labels[q, n] == query_labels[q], query_labels[q] != ""
            caption = f"{'' if hit else neighbour_labels[q, n]} {scores[q, n]:.2f}".strip()
            wall.show(q, n + 1, neighbours[q, n], caption, (HIT if hit else MISS) if known else None)
    wall.axis.set_title(title)
    return wall.figure


def captioned_images(pictures: np.ndarray, captions: Sequence[str], columns: int = 8) -> Figure:
    """Pictures uint8 (N, C, H, W), each under its caption of one line or more."""
    most = max(caption.count("\n") + 1 for caption in captions)
    wall = Wall(-(-len(pictures) // columns), columns, 1.5, caption=0.13 + 0.12 * most)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        wall.show(*divmod(number, columns), picture, caption)
    return wall.figure


def similarity_maps(
    couples: Sequence[tuple[np.ndarray, np.ndarray]], maps: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Figure:
    """Pairs of pictures, each beside itself with what made the two similar laid over it.

    Args:
        couples: uint8 (C, H, W) each.
        maps: the same shape of list, each map (h, w) at least 0, of any size.
    """
    wall = Wall(len(couples), 4, 1.6)
    for line, (pair, heat) in enumerate(zip(couples, maps, strict=True)):
        titles = ("query", "its nearest") if line == 0 else ("", "")
        for column, picture, warmth, title in zip((0, 2), pair, heat, titles, strict=True):
            wall.show(line, column, picture, title)
            extent = wall.show(line, column + 1, picture)
            wall.axis.imshow(warmth, cmap="inferno", alpha=0.6, interpolation="bilinear", extent=extent)
    return wall.figure
