"""What every index can do, whatever stores its vectors: FAISS here, a database server elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace

LENGTH_TOLERANCE = 0.01  # float16 vectors are off by 0.0005


@runtime_checkable
class VectorIndex(Protocol):
    """Nearest neighbours by cosine similarity among unit vectors with stable ids.

    Attributes:
        dim: length of the vectors.
        encoder_hash: fingerprint of the encoder that made them.
        made_from: encoder, store, dataset, folder, dataset_hash, random_weights, generated_images, as far as known.
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


def unit_vectors(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Return vectors (N, dim) as float32.

    Raises:
        ArgumentError: if they are of another shape, not finite, or not of unit length.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype.kind not in "fiu":
        given = f"an array of {vectors.dtype} of shape {vectors.shape}"
        raise ArgumentError(f"The index holds vectors of length {dim}: expected numbers (N, {dim}), not {given}.")
    vectors = np.ascontiguousarray(vectors, np.float32)
    bad = np.flatnonzero(~(abs(np.einsum("nd,nd->n", vectors, vectors) - 1) <= 2 * LENGTH_TOLERANCE))  # NaN is bad
    if len(bad):
        length = np.linalg.norm(vectors[bad[0]].astype(np.float64))
        problem = f"has length {length:.3g}" if np.isfinite(length) else "holds NaN or infinity"
        raise ArgumentError(f"Vector {bad[0]} {problem}, expected unit length: divide each vector by its length.")
    return vectors
