"""Figures inside of web pages, and a grid of queries and results."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rectrio_lib.core.tables import shortened
from rectrio_lib.data.image_files import read_image
from rectrio_lib.data.places.place import Place
from rectrio_lib.report import grids
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.results import Results

GRID_SIDE = 144


def figure_address(figure: Figure) -> str:
    """Return a figure as a data URI, and close it."""
    written = BytesIO()
    figure.savefig(written, format="png", dpi=grids.DPI, bbox_inches="tight")
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


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
    return grids.neighbour_grid(squares, own, found, np.where(pd.isna(labels), "", labels), results.scores, title)


def _square(located: tuple[Path | Place, str] | None) -> np.ndarray:
    pixels = read_image(*located, GRID_SIDE, 3).pixels if located else None
    return np.full((3, GRID_SIDE, GRID_SIDE), 255, np.uint8) if pixels is None else pixels


def _label(collection: Collection, query: str | Path) -> str:
    """Return the label of an image of the collection; empty for one from elsewhere."""
    file = Path(query).expanduser()
    name = collection.own_id(file) if file.is_file() else str(query)
    place = collection.positions([name])
    return str(collection.index.rows["label"].iloc[place[name]]) if name in place else ""
