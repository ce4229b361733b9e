"""What every index can do, whatever stores its vectors: FAISS here, a database server elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from rectrio_lib.core.workspace import Workspace


@runtime_checkable
class VectorIndex(Protocol):
    """Nearest neighbours by cosine similarity among unit vectors with stable ids.

    Attributes:
        dim: length of the vectors.
        encoder_hash: fingerprint of the encoder that made them.
        made_from: what they were made from: encoder, store, dataset, folder, dataset_hash, random_weights,
            generated_images; empty if unknown.
    """

    dim: int
    encoder_hash: str
    made_from: dict[str, Any]

    def __len__(self) -> int:
        """Count the vectors that are not removed."""

    @property
    def rows(self) -> pd.DataFrame:
        """One row a vector, `image_id` among its columns; a position counts in these rows."""

    def add(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Append unit vectors (N, dim) with their rows; an image_id that is there already is refused."""

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take vectors out: all of them, or none if one is unknown."""

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine similarities float32 (Q, k), best first, and positions int64 (Q, k); `mask` bool (N,)."""

    def vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the stored vectors at positions of any shape, float32 (..., dim)."""

    def info(self) -> str:
        """Describe the index in one line."""

    def save(self, name: str, workspace: Workspace | None = None) -> Path:
        """Save under a name below outputs/indexes/, complete or not at all."""

    @classmethod
    def load(cls, name: str | Path, workspace: Workspace | None = None) -> VectorIndex:
        """Open what `save` wrote."""
