"""Small images, read from their files: inside of web pages, and as a grid of queries and results."""

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

from rectrio_lib.core.tables import shortened
from rectrio_lib.data.image_files import read_image
from rectrio_lib.report import grids
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.results import Results, thumbnail

GRID_SIDE = 144


def thumbnails(folder: Path, paths: Iterable[str], side: int) -> dict[str, str]:
    """Return images below a folder, each read once, as data URIs {path: "data:…"}; empty if it cannot be read."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:
        return dict(zip(wanted, pool.map(lambda path: thumbnail(folder / path, side), wanted), strict=True))


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
    folder = collection.images_folder()
    paths, labels = results.column("path"), results.column("label")
    found = np.stack([[_square(None if pd.isna(p) else folder / p) for p in line] for line in paths])
    queries = queries[: len(results)]
    own = [_label(collection, query) for query in queries] or [""] * len(results)
    squares = np.stack([_square(query and collection.file(query)) for query in queries or own])
    title = "" if queries else "\n".join(map(shortened, results.query_ids))
    return grids.neighbour_grid(squares, own, found, np.where(pd.isna(labels), "", labels), results.scores, title)


def _square(file: Path | None) -> np.ndarray:
    pixels = read_image(file.parent, file.name, GRID_SIDE, 3).pixels if file else None
    return np.full((3, GRID_SIDE, GRID_SIDE), 255, np.uint8) if pixels is None else pixels


def _label(collection: Collection, query: str | Path) -> str:
    """Return the label of an image of the collection; empty for one from elsewhere."""
    file = Path(query).expanduser()
    name = collection.own_id(file) if file.is_file() else str(query)
    place = collection.positions([name])
    return str(collection.index.rows["label"].iloc[place[name]]) if name in place else ""
