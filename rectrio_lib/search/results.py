"""What a search returns: neighbours, scores and their metadata."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.data.places.place import Place

OWN_COLUMNS = ("query", "rank", "score")
SHOWN_COLUMNS = (*OWN_COLUMNS, "probability", "label", "path")
JPEG_QUALITY = 78
MOST_SHOWN, SHOWN_SIDE = 50, 96  # images in a notebook, and their size in pixels


@dataclass(frozen=True)
class Results:
    """Results of Q queries, best first. Where there are fewer than k, the last places are empty.

    Attributes:
        query_ids: names of the queries: image_ids, files, texts, or numbers (Q,).
        scores: cosine similarities to the query, or with `expand` to the expanded one, float32 (Q, k); NaN if empty.
        positions: rows of the results in `rows`, int64 (Q, k); -1 in empty places.
        rows: metadata of the searched index, one row per image.
        place: where the paths in `rows` start; None if the images are not files.
        probabilities: that results are right (Q, k), NaN in empty places; None if nobody knows, see `Calibration`.
        ignored: images of a recommendation that were left out of account, and why.
    """

    query_ids: Sequence[str]
    scores: np.ndarray
    positions: np.ndarray
    rows: pd.DataFrame
    place: Place | None = None
    probabilities: np.ndarray | None = None
    ignored: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.query_ids)

    def column(self, name: str) -> np.ndarray:
        """Return one column of the metadata, such as "label", (Q, k): NaN in empty places."""
        values = self.rows[name].to_numpy()
        return pd.api.extensions.take(values, self.positions.ravel(), allow_fill=True).reshape(self.positions.shape)

    def frame(self) -> pd.DataFrame:
        """Return one row per result: query, rank (from 1), score, probability if known, and the metadata.

        Columns of the metadata that have one of these names get "_metadata".
        """
        query, place = np.nonzero(self.positions >= 0)
        frame = self.rows.iloc[self.positions[query, place]].reset_index(drop=True)
        own = OWN_COLUMNS if self.probabilities is None else (*OWN_COLUMNS, "probability")
        frame = frame.rename(columns={name: f"{name}_metadata" for name in own})
        frame = frame.loc[:, ~frame.columns.duplicated()]
        frame.insert(0, "query", np.asarray(self.query_ids, dtype=object)[query])
        frame.insert(1, "rank", place + 1)
        frame.insert(2, "score", self.scores[query, place])
        if self.probabilities is not None:
            frame.insert(3, "probability", self.probabilities[query, place])
        return frame

    def __repr__(self) -> str:
        frame = self.frame()
        shown = frame[[name for name in SHOWN_COLUMNS if name in frame]].head(MOST_SHOWN)
        more = f"\n… and {len(frame) - MOST_SHOWN:,} more" if len(frame) > MOST_SHOWN else ""
        return shown.to_string(index=False) + more if len(shown) else "no results"

    def _repr_html_(self) -> str:
        """Show the images in a notebook, as far as their files are there; else the table."""
        frame = self.frame().head(MOST_SHOWN)
        if self.place is None or "path" not in frame or not self.place.there():
            return frame.to_html(index=False)
        lines, shown = [], thumbnails(self.place, frame["path"], SHOWN_SIDE)
        for query, found in frame.groupby("query", sort=False):
            cells = []
            for row in found.itertuples():
                caption = html.escape(f"{row.score:.3f} {getattr(row, 'label', '')}")
                cells.append(f'<td title="{html.escape(row.path)}"><img src="{shown[row.path]}"><br>{caption}</td>')
            lines.append(f"<tr><th>{html.escape(str(query))}</th>{''.join(cells)}</tr>")
        return f"<table>{''.join(lines)}</table>"


def thumbnails(place: Path | Place, paths: Iterable[str], side: int) -> dict[str, str]:
    """Return images, each read once, as data URIs {path: "data:…"}; empty if it cannot be read."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:
        return dict(zip(wanted, pool.map(lambda path: _thumbnail(place, path, side), wanted), strict=True))


def _thumbnail(place: Path | Place, path: str, side: int) -> str:
    """Return the middle square of an image as a data URI (JPEG); empty if it cannot be read."""
    from PIL import Image

    from rectrio_lib.data.image_files import read_image

    pixels, written = read_image(place, path, side, 3).pixels, BytesIO()
    if pixels is None:
        return ""
    Image.fromarray(pixels.transpose(1, 2, 0)).save(written, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
