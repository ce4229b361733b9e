"""What a search returns: neighbours, scores and their metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Results:
    """Answers to Q queries, best first. Where fewer than k were found, the places that are left stand at the end.

    Attributes:
        query_ids: what was asked: an image_id, a file, or the query's number (Q,).
        scores: cosine similarities to the query, or with `expand` to the expanded one, float32 (Q, k); NaN where there
            is no answer. They fall along a row, unless `mmr` or `reciprocal` chose another order.
        positions: rows of the answers in `rows`, int64 (Q, k); -1 where there is no answer.
        rows: metadata of the searched gallery, one row a picture.
    """

    query_ids: Sequence[str]
    scores: np.ndarray
    positions: np.ndarray
    rows: pd.DataFrame

    def __len__(self) -> int:
        return len(self.query_ids)

    def column(self, name: str) -> np.ndarray:
        """Return one column of the answers' metadata, such as "label", (Q, k): NaN where there is no answer."""
        values = self.rows[name].to_numpy()
        return pd.api.extensions.take(values, self.positions.ravel(), allow_fill=True).reshape(self.positions.shape)

    def frame(self) -> pd.DataFrame:
        """Return one row an answer: query, rank (from 1), score, and the answer's metadata."""
        query, place = np.nonzero(self.positions >= 0)
        answers = self.rows.iloc[self.positions[query, place]].reset_index(drop=True)
        answers.insert(0, "query", np.asarray(self.query_ids, dtype=object)[query])
        answers.insert(1, "rank", place + 1)
        answers.insert(2, "score", self.scores[query, place])
        return answers
