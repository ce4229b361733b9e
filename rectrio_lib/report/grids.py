"""Images in rows and columns, framed and captioned. Each function returns a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import file_at, renamed
from rectrio_lib.core.tables import shortened
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data.decoding import FIGURE
from rectrio_lib.data.image_files import read_image
from rectrio_lib.data.places.place import Place
from rectrio_lib.report.lettering import fitted, lettered
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.results import Results

HIT, MISS, QUERY = "#009e73", "#d55e00", "#0072b2"  # told apart by colour-blind people (Okabe and Ito, 2008)
DPI = 110
GRID_SIDE = 144  # pixels of an image that is read from its file


def save_figure(figure: Figure, name: str) -> None:
    """Write a figure to outputs/figures/<name>.png."""
    save_image(figure, Workspace().outputs / "figures" / f"{name}.png")


def save_image(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix; ArgumentError if there is none such, StorageError if it fails."""
    kind, known = path.suffix[1:].lower(), figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ArgumentError(
            f"{path} names no format of images: choose a suffix such as .png (known: {', '.join(known)})."
        )
    with renamed(path) as partial:
        about = {"metadata": {"Software": FIGURE}} if kind == "png" else {}  # so that no index takes it for an image
        figure.savefig(partial, format=kind, dpi=DPI, bbox_inches="tight", **about)


class Wall:
    """Images in lines and columns, drawn into one axes: an axes for each would take ten times as long."""

    MARGIN = 0.05

    def __init__(self, lines: int, columns: float, inches: float, caption: float = 0.25):
        self.height, self.caption = 1 + caption, caption
        self.figure, self.axis = plt.subplots(figsize=(inches * columns, inches * self.height * lines))
        self.axis.set(xlim=(0, columns), ylim=(lines * self.height, 0))
        self.axis.axis("off")
        self.axis.set_position([0, 0, 1, 1])  # so that an inch is one, and captions fit; the title lies outside

    def show(
        self, line: int, column: float, image: np.ndarray, caption: str = "", frame: str | None = None
    ) -> tuple[float, float, float, float]:
        """Draw uint8 (C, H, W) with a caption above and a frame, dashed for a miss; return left, right, bottom, top."""
        top, side = line * self.height + self.caption + self.MARGIN, 1 - 2 * self.MARGIN
        extent = (column + self.MARGIN, column + self.MARGIN + side, top + side, top)
        self.axis.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255, extent=extent)
        if caption:
            self.axis.text(column + 0.5, top - 0.06, caption, ha="center", va="bottom", fontsize=8)
        if frame:
            dashes = (0, (2, 1)) if frame == MISS else "-"
            patch = Rectangle((extent[0], top), side, side, fill=False, edgecolor=frame, linewidth=3, linestyle=dashes)
            self.axis.add_patch(patch)
        return extent


@lettered
def example_grid(images: Mapping[Any, np.ndarray], title: str = "") -> Figure:
    """One row of images per name, such as that of a class: {name: uint8 (n, C, H, W)}."""
    wall = Wall(len(images), max(map(len, images.values())), 0.65, caption=0)
    for line, (label, row) in enumerate(images.items()):
        for column, image in enumerate(row):
            wall.show(line, column, image)
        wall.axis.text(-0.1, line + 0.5, textwrap.fill(str(label), 24), ha="right", va="center", fontsize=9)
    wall.axis.set_title(title)
    return wall.figure


@lettered
def neighbour_grid(
    queries: np.ndarray,
    query_labels: Sequence[str],
    neighbours: np.ndarray,
    neighbour_labels: np.ndarray,
    scores: np.ndarray,
    title: str = "",
) -> Figure:
    """Queries on the left, their neighbours to the right: a green frame is a hit, a dashed orange one a miss.

    Args:
        queries: uint8 (Q, C, H, W).
        query_labels: (Q,), empty text where none is known: then there are no frames.
        neighbours: uint8 (Q, k, C, H, W).
        neighbour_labels: (Q, k).
        scores: cosine similarities (Q, k); NaN where there is no result: the place stays empty.
        title: above the grid.
    """
    count, k = neighbour_labels.shape
    decimals = 2 if np.nanmin(scores, initial=1) < 0.95 else 4  # what differs there would read 1.00
    wall = Wall(count, k + 1, 1.15)
    for q in range(count):
        wall.show(q, 0, queries[q], fitted(str(query_labels[q]), 16), QUERY)
        for n in np.flatnonzero(~np.isnan(scores[q])):
            hit, known = neighbour_labels[q, n] == query_labels[q], query_labels[q] != ""
            caption = f"{'' if hit else fitted(str(neighbour_labels[q, n]))} {scores[q, n]:.{decimals}f}".strip()
            wall.show(q, n + 1, neighbours[q, n], caption, (HIT if hit else MISS) if known else None)
    wall.axis.set_title(title)
    return wall.figure


@lettered
def result_lines(
    lines: Mapping[str, tuple[np.ndarray, Sequence[bool]]], title: str = "", query: np.ndarray | None = None
) -> Figure:
    """Results in lines, under names of their own: a green frame is what was wished, a dashed orange one is not.

    Args:
        lines: {what was asked: (images uint8 (n, C, H, W), whether each is right (n,))}.
        title: above.
        query: an image (C, H, W) that all lines start from, drawn in front of the first.
    """
    most, shift = max(len(images) for images, _ in lines.values()), int(query is not None)
    wall = Wall(len(lines), most + shift, 0.7, caption=0.05)
    if query is not None:
        wall.show(0, 0, query, frame=QUERY)
    for line, (name, (images, right)) in enumerate(lines.items()):
        for column, (image, hit) in enumerate(zip(images, right, strict=True), shift):
            wall.show(line, column, image, frame=HIT if hit else MISS)
        middle = (line + 0.5) * wall.height
        wall.axis.text(-0.1, middle, textwrap.fill(name, 24), ha="right", va="center", fontsize=9)
    wall.axis.set_title(title, fontsize=11)
    return wall.figure


@lettered
def captioned_images(
    images: np.ndarray, captions: Sequence[str], columns: int = 8, right: Sequence[bool] | None = None, title: str = ""
) -> Figure:
    """Images uint8 (N, C, H, W), each under its caption; framed, where it is known what is right."""
    most = max(caption.count("\n") + 1 for caption in captions)
    wall = Wall(-(-len(images) // columns), columns, 1.3, caption=0.13 + 0.12 * most)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        frame = None if right is None else HIT if right[number] else MISS
        wall.show(*divmod(number, columns), image, caption, frame)
    wall.axis.set_title(title)
    return wall.figure


def answer_grid(collection: Collection, queries: Sequence[str | Path], results: Results) -> Figure:
    """Draw queries and results; an image that cannot be read is white.

    Args:
        collection: that was searched.
        queries: the images searched for; of a combined query the first is shown; empty for texts, which stand above.
        results: of the search.

    Raises:
        DataError: if the folder of the images is gone, or they are not files.
    """
    place = collection.images_place()
    paths, labels = results.column("path"), results.column("label")
    found = np.stack([[_square(None if pd.isna(p) else (place, p)) for p in line] for line in paths])
    queries = queries[: len(results)]
    own = [_label(collection, query) for query in queries] or [""] * len(results)
    squares = np.stack([_square(query and collection.located(query)) for query in queries or own])
    title = "" if queries else "\n".join(map(shortened, results.query_ids))
    return neighbour_grid(squares, own, found, np.where(pd.isna(labels), "", labels), results.scores, title)


def _square(located: tuple[Path | Place, str] | None) -> np.ndarray:
    pixels = read_image(*located, GRID_SIDE, 3).pixels if located else None
    return np.full((3, GRID_SIDE, GRID_SIDE), 255, np.uint8) if pixels is None else pixels


def _label(collection: Collection, query: str | Path) -> str:
    """Return the label of an image of the collection; empty for one from elsewhere."""
    file = file_at(query)
    name = collection.own_id(file) if file else str(query)
    place = collection.positions([name])
    label = collection.index.rows["label"].iloc[place[name]] if name in place else ""
    return "" if pd.isna(label) else str(label)
