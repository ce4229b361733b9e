"""What a user asks: which pictures look like this one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.encoders import Encoder, fingerprint
from rectrio_lib.indexing import Index
from rectrio_lib.readers import BadData, decode


@dataclass(frozen=True)
class Results:
    """Answers to Q queries, nearest first.

    Attributes:
        query_ids: what was asked: an image_id, a file, or the query's number (Q,).
        scores: cosine similarities float32 (Q, k).
        positions: rows of the answers in `rows`, int64 (Q, k).
        rows: metadata of the searched gallery, one row a picture.
    """

    query_ids: Sequence[str]
    scores: np.ndarray
    positions: np.ndarray
    rows: pd.DataFrame

    def __len__(self) -> int:
        return len(self.query_ids)

    def column(self, name: str) -> np.ndarray:
        """Return one column of the answers' metadata, such as "label" or "image_id": (Q, k)."""
        return self.rows[name].to_numpy()[self.positions]

    def frame(self) -> pd.DataFrame:
        """Return one row an answer: query, rank (from 1), score, and the answer's metadata."""
        count, k = self.positions.shape
        answers = self.rows.iloc[self.positions.ravel()].reset_index(drop=True)
        answers.insert(0, "query", np.repeat(np.asarray(self.query_ids, dtype=object), k))
        answers.insert(1, "rank", np.tile(np.arange(1, k + 1), count))
        answers.insert(2, "score", self.scores.ravel())
        return answers


def search_vectors(
    index: Index,
    vectors: np.ndarray,
    k: int = 10,
    query_ids: Sequence[str] | None = None,
    encoder_hash: str | None = None,
) -> Results:
    """Search with vectors (Q, dim); see `Index.search` for the errors."""
    scores, positions = index.search(vectors, k, encoder_hash)
    ids = [str(i) for i in range(len(vectors))] if query_ids is None else list(query_ids)
    return Results(ids, scores, positions, index.rows)


def search_images(
    index: Index, encoder: Encoder, images: np.ndarray, k: int = 10, query_ids: Sequence[str] | None = None
) -> Results:
    """Search with pictures uint8 (Q, C, H, W).

    Raises:
        ValueError: if the index was built with another encoder, the pictures do not fit it, or k is out of range.
    """
    return search_vectors(index, encoder.encode(images), k, query_ids, fingerprint(encoder))


def search_files(index: Index, encoder: Encoder, paths: Sequence[str | Path], k: int = 10) -> Results:
    """Search with picture files of any size, brought to the encoder's size and colours as its training pictures were.

    Raises:
        BadData: if a file is missing or no picture.
        ValueError: as `search_images`.
    """
    shape = (encoder.preprocessing["size"], encoder.preprocessing["channels"])
    decoded = [(path, decode(Path(path), *shape)) for path in paths]
    for path, got in decoded:
        if isinstance(got, str):
            raise BadData(f"{path} cannot be read as a picture: {got}")
    return search_images(index, encoder, np.stack([got[0] for _, got in decoded]), k, [str(p) for p in paths])
