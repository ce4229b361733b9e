"""What every index can do, whatever stores its vectors: FAISS here, a database server elsewhere.

Which rows may be results is told by `where`, the same everywhere: a condition, see `conditions.matching`; or a
mask, bool (N,), over all N rows, removed ones too; or None for all. Removed rows are never results.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from rectrio_lib.core import knn
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.lookup import all_differ
from rectrio_lib.core.workspace import Workspace

LENGTH_TOLERANCE = 0.01  # float16 vectors are off by 0.0005
Where = str | np.ndarray | None  # a condition, or a mask; see above


@runtime_checkable
class VectorIndex(Protocol):
    """Nearest neighbours by cosine similarity among unit vectors with stable ids.

    Positions 0..N-1 count in `rows`. Added rows come last; removed rows keep their positions until `save`, or until the
    index is rebuilt.

    Attributes:
        dim: length of the vectors.
        encoder_hash: fingerprint of the encoder that made them.
        kind: one of factory.KINDS, pgvector or qdrant.
        recall: recall@10 measured when the index was built; None if it was not.
        made_from: encoder, store, dataset, folder, dataset_hash, random_weights, generated_images, whitening, and which
            kind and recall were asked for, as far as known.
    """

    dim: int
    encoder_hash: str
    kind: str
    recall: float | None
    made_from: dict[str, Any]

    def __len__(self) -> int:
        """Count the vectors that are not removed."""

    @property
    def rows(self) -> pd.DataFrame:
        """One row a vector, `image_id` among its columns; a position counts in these rows."""

    @property
    def removed(self) -> np.ndarray:
        """Which rows are removed, bool (N,), read-only."""

    def add(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Append unit vectors (N, dim) with their rows; an image_id that is there already is refused."""

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take vectors out: all of them; or none, and ArgumentError, if one is unknown."""

    def count(self, where: Where = None) -> int:
        """Count the rows that may be results: not removed, and meeting `where`; ArgumentError if it does not fit."""

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, where: Where = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine similarities float32 (Q, k), best first, and positions int64 (Q, k).

        All k places are filled, however few rows meet `where`.

        Raises:
            ArgumentError: if k is not 1 to `count(where)`, another encoder made the index (None trusts the caller), or
                vectors or `where` do not fit.
        """

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
    if (
        len(vectors) == 1 and abs(vectors[0] @ vectors[0] - 1) <= 2 * LENGTH_TOLERANCE
    ):  # a query: every microsecond counts
        return vectors
    good = abs(np.einsum("nd,nd->n", vectors, vectors) - 1) <= 2 * LENGTH_TOLERANCE  # NaN is not
    if not good.all():
        bad = np.flatnonzero(~good)
        length = np.linalg.norm(vectors[bad[0]].astype(np.float64))
        problem = f"has length {length:.3g}" if np.isfinite(length) else "holds NaN or infinity"
        raise ArgumentError(f"Vector {bad[0]} {problem}, expected unit length: divide each vector by its length.")
    return vectors


def check_vectors(vectors: np.ndarray, dim: int) -> None:
    """Refuse vectors (N, dim), in memory or mapped, as `unit_vectors` does, a block at a time."""
    unit_vectors(vectors[:0], dim)
    for block in knn.blocks(vectors):
        unit_vectors(block, dim)


def check_encoder(index: VectorIndex, encoder_hash: str | None) -> None:
    """Refuse an encoder, by its fingerprint, that did not make the index; None trusts the caller."""
    if encoder_hash not in (None, index.encoder_hash):
        raise ArgumentError(
            f"The index was built with encoder {index.encoder_hash}, the query was made by encoder {encoder_hash}: "
            "their similarities mean nothing. Use the encoder of the index, or build the index again."
        )


def check_k(k: int, count: int) -> int:
    """Return a number of neighbours; refuse one that is not 1 to `count`, the number of rows that may be results."""
    if (type(k) is not int and (not isinstance(k, Integral) or isinstance(k, bool))) or not 1 <= k <= count:
        raise ArgumentError(f"k={k!r}, but {count:,} rows may be results: expected 1 to that many.")
    return int(k)  # NumPy's small ones overflow


def check_rows(rows: pd.DataFrame, count: int, known: pd.Series | None = None) -> None:
    """Refuse rows that are not one for each of `count` vectors, or whose image_id comes twice or is known."""
    if len(rows) != count:
        raise ArgumentError(f"{count} vectors but {len(rows)} rows.")
    names = rows["image_id"]
    known = names[:0] if known is None else known
    if not all_differ(names) or names.isin(known).any():
        raise already_there(names[names.duplicated() | names.isin(known)].tolist())


def already_there(names: Sequence[str]) -> ArgumentError:
    """Return the error of images that would come twice."""
    return ArgumentError(f"{len(names)} of these images are in the index already or come twice: {names[0]!r}.")


def not_there(absent: Sequence[str], count: int) -> ArgumentError:
    """Return the error of images that cannot be removed."""
    return ArgumentError(f"{len(absent)} of {count} images are not in the index, such as {absent[0]!r}.")


def check_mask(where: np.ndarray, count: int) -> np.ndarray:
    """Return a mask over `count` rows; ArgumentError if it is none."""
    mask = np.asarray(where)
    if mask.dtype != bool or mask.shape != (count,):
        raise ArgumentError(f"where is {mask.dtype} of shape {mask.shape}, expected a condition, or bool ({count},).")
    return mask
