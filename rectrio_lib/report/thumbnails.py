"""Small pictures, read from their files: as arrays, inside of web pages, and as a grid of questions and answers."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import shortened
from rectrio_lib.data.image_files import decode
from rectrio_lib.report import grids
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.results import Results

GRID_SIDE = 144
JPEG_QUALITY = 78


def read_thumbnail(path: Path, side: int) -> np.ndarray | None:
    """Read a picture as uint8 (3, side, side), cropped to its middle; None if it cannot be read."""
    decoded = decode(path, side, 3)
    return None if isinstance(decoded, str) else decoded[0]


def thumbnails(folder: Path, paths: Iterable[str], side: int) -> dict[str, str]:
    """Return pictures as addresses that a web page can hold, {path: "data:…"}; empty for one that cannot be read.

    Args:
        folder: what the paths are relative to.
        paths: of the pictures; each is read once.
        side: pixels.
    """
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:
        return dict(
            zip(wanted, pool.map(lambda path: _address(read_thumbnail(folder / path, side)), wanted), strict=True)
        )


def _address(pixels: np.ndarray | None) -> str:
    if pixels is None:
        return ""
    written = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(written, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def figure_address(figure: Figure) -> str:
    """Return a figure as an address that a web page can hold, and close it."""
    written = BytesIO()
    figure.savefig(written, format="png", dpi=grids.DPI, bbox_inches="tight")
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def answer_grid(gallery: Collection, asked: Sequence[str | Path], results: Results) -> Figure:
    """Draw what was asked and what was found; a picture that cannot be read is white.

    Args:
        gallery: that was searched.
        asked: as it was given to `collection.search`; of a combined question the first picture is shown;
            empty for questions in words, which stand above.
        results: what came back.

    Raises:
        ValueError: if the pictures of the index are no files.
    """
    if gallery.folder is None:
        raise ArgumentError(f"The pictures of index {gallery.name} lie in no folder: there are no files to show.")
    files = [gallery.file(one) for one in asked][: len(results)]
    paths, labels = results.column("path"), results.column("label")
    found = np.stack([[_square(None if pd.isna(p) else gallery.folder / p) for p in line] for line in paths])
    own = [_label(gallery, file) for file in files] or [""] * len(results)
    queries = np.stack([_square(file) for file in files or [None] * len(results)])
    title = "" if files else "\n".join(map(shortened, results.query_ids))
    return grids.neighbour_grid(queries, own, found, np.where(pd.isna(labels), "", labels), results.scores, title)


def _square(path: Path | None) -> np.ndarray:
    pixels = read_thumbnail(path, GRID_SIDE) if path else None
    return np.full((3, GRID_SIDE, GRID_SIDE), 255, np.uint8) if pixels is None else pixels


def _label(gallery: Collection, file: Path) -> str:
    """Return the label of a file that is in the index; empty if none is known."""
    place = file.resolve()
    if not place.is_relative_to(gallery.folder):
        return ""
    rows = gallery.index.rows
    return next(iter(rows["label"][rows["path"].eq(place.relative_to(gallery.folder).as_posix())]), "")
