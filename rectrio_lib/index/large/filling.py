"""Filling an index: what is refused, and what is held out until it is tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectrio_lib.index import factory, tuning
from rectrio_lib.index.base import check_rows, check_vectors

if TYPE_CHECKING:
    from rectrio_lib.index.index import Index


def fill(index: Index, vectors: np.ndarray, rows: pd.DataFrame, recall: float | None) -> None:
    """Fill an empty index; unless `recall` is None, some vectors are held out until it is tuned on them."""
    queries, held = ([], []) if recall is None or index.kind == "flat" else tuning.holdout(vectors)
    if not len(held):
        return index.add(vectors, rows)
    check_new(index, vectors, rows)
    if index.kind == factory.ON_DISK:
        return _fill_disk(index, vectors, rows, recall, queries, held)
    rest = np.delete(np.arange(len(vectors)), held)
    index._vectors.learn(vectors, rest)
    index._vectors.add(vectors, rest)
    index._mark(np.zeros(len(rest), bool))
    index.recall = tuning.tune(index, tuning.GroundTruth(vectors[queries], vectors, rest), recall)
    index._vectors.add_between(vectors, held)
    index._rows = rows.reset_index(drop=True)
    index._mark(np.zeros(len(rows), bool))


def _fill_disk(
    index: Index, vectors: np.ndarray, rows: pd.DataFrame, recall: float, queries: np.ndarray, held: np.ndarray
) -> None:
    """As `fill`, but everything is written once: until the index is tuned, what is held out counts as removed."""
    rest = np.ones(len(vectors), bool)
    rest[held] = False
    index._vectors.learn(vectors, np.flatnonzero(rest))
    index._vectors.add(vectors)
    index._mark(~rest)
    index.recall = tuning.tune(index, tuning.GroundTruth(vectors[queries], vectors, rest), recall)
    index._rows = rows.reset_index(drop=True)
    index._mark(np.zeros(len(rows), bool))


def check_new(index: Index, vectors: np.ndarray, rows: pd.DataFrame) -> None:
    """Refuse vectors or rows that cannot be added to an index: ArgumentError."""
    check_vectors(vectors, index.dim)
    check_rows(rows, len(vectors), index.rows["image_id"][~index.removed])
