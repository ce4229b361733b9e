"""FAISS behind one class: build and tune, search, add, remove, save, load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, RecallOutOfReachError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.index import factory, storage
from rectrio_lib.index.base import Where, check_encoder, check_k, check_mask, not_there, unit_vectors
from rectrio_lib.index.conditions import matching
from rectrio_lib.index.faiss_vectors import FaissVectors, Subset
from rectrio_lib.index.large import filling
from rectrio_lib.index.large.disk_vectors import DiskVectors

if TYPE_CHECKING:
    from rectrio_lib.index.large.shards import Shards

REBUILD_SHARE = 0.2  # removed vectors cost time at every search: beyond this share the index is rebuilt


class Index:
    """Nearest neighbours by cosine similarity among unit vectors with stable ids; fulfils `base.VectorIndex`.

    Removed vectors are skipped at search, for HNSW cannot remove one; when they are a fifth, the index is rebuilt. A
    loaded index stays on disk, mapped into memory, until vectors are added; pickled it travels with its vectors.

    Args:
        kind: one of factory.KINDS.
        dim: length of the vectors.
        encoder_hash: fingerprint of the encoder that made the vectors; a query from another one is refused.
        search_param: efSearch of hnsw, nprobe of the ivf kinds. A larger one finds more and takes longer.
        made_from: see `base.VectorIndex`.

    Attributes:
        recall: recall@10 measured when the search parameter was tuned; None if it was not.
        removed: which rows are removed, bool (N,), read-only.

    Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable
        small world graphs", TPAMI 2020; Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011;
        https://faiss.ai.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        encoder_hash: str,
        search_param: int = factory.SEARCH_PARAM,
        made_from: dict[str, Any] | None = None,
    ):
        if kind not in factory.KINDS:
            raise ArgumentError(f"kind={kind!r} is unknown: choose one of {', '.join(factory.KINDS)}.")
        self.kind, self.dim, self.encoder_hash, self.search_param = kind, dim, encoder_hash, search_param
        self.recall, self.made_from = 1.0 if kind == "flat" else None, made_from or {}
        self._vectors = (DiskVectors if kind == factory.ON_DISK else FaissVectors)(kind, dim)
        self._rows, self._rows_file, self._sums = pd.DataFrame({"image_id": pd.Series(dtype=str)}), None, {}
        self._mark(np.zeros(0, bool))

    def __len__(self) -> int:
        return self._kept.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": self.rows, "_rows_file": None, "_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._mark(self.removed)

    def info(self) -> str:
        """Describe the index in one line."""
        name = factory.search_param_name(self.kind)
        found = "exact" if not name else "recall not measured" if self.recall is None else f"recall {self.recall:.3f}"
        setting = f" at {name} {self.search_param}" if name else ""
        return f"{self.kind}, {len(self):,} images, {found}{setting}, {self.bytes_per_vector:.0f} bytes per vector"

    __repr__ = info

    @property
    def rows(self) -> pd.DataFrame:
        """One row a vector, `image_id` among its columns, not to be changed; read when first needed."""
        if self._rows_file is not None:
            with self._rows_file as file:
                self._rows, self._rows_file = storage.read_rows(file, self._sums), None
        return self._rows

    @property
    def bytes_per_vector(self) -> float:
        """Bytes per vector, in memory and on disk, without metadata."""
        count = max(1, len(self.removed))
        return factory.memory(self.kind, self.dim, count) / count

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory that it was built for; None: any, see `build`."""
        return self._vectors.limit

    @memory_limit.setter
    def memory_limit(self, limit: int | None) -> None:
        self._vectors.limit = limit

    @classmethod
    def build(
        cls,
        kind: str,
        vectors: np.ndarray,
        rows: pd.DataFrame,
        encoder_hash: str,
        recall: float = 0.95,
        search_param: int | None = None,
        memory_limit: int | str | None = None,
        made_from: dict[str, Any] | None = None,
        workspace: Workspace | None = None,
    ) -> Index:
        """Make an index that finds enough of the true neighbours, as quickly as it can; see `tuning`.

        Args:
            kind: one of factory.KINDS, or "auto": the first of `factory.candidates` that reaches the recall.
            vectors: unit vectors float16 or float32 (N, dim), in memory or mapped; `EmbeddingStore.mapped()`.
            rows: one per vector, with `image_id`; the index keeps their order.
            encoder_hash: see `Index`, as for `made_from`.
            recall: share of the true ten nearest neighbours that a new query finds, in (0, 1].
            search_param: to use, instead of tuning it.
            memory_limit: bytes, or "2GB", that building and searching may take, without metadata and mapped files; None
                or "none": any. "auto" keeps on disk what is larger; there, beyond the limit, mapped pages are let go.
            made_from: goes into the card.
            workspace: where files lie until the index is saved; None: `Workspace()`.

        Raises:
            RecallOutOfReachError: if no such kind reaches the recall.
            ArgumentError: if vectors and rows do not fit each other, the kind or the memory.
        """
        recall = factory.recall_of(recall)
        if vectors.ndim != 2:
            raise ArgumentError(f"An index is built from an array (N, dim), not from one of shape {vectors.shape}.")
        for name in factory.candidates(kind, vectors.shape[1], len(vectors), memory_limit, tell=True):
            index = cls(name, vectors.shape[1], encoder_hash, search_param or factory.SEARCH_PARAM, made_from)
            index.memory_limit = factory.byte_count(memory_limit)
            index._vectors.home = (workspace or Workspace()).outputs / "indexes"
            try:
                filling.fill(index, vectors, rows, recall if search_param is None else None)
            except RecallOutOfReachError as error:
                failure = error
            else:
                return index
        raise failure

    @classmethod
    def shards(cls, indexes: Sequence[Index]) -> Shards:
        """Join indexes that were built independently into one that is searched as one; see `shards.Shards`."""
        from rectrio_lib.index.large.shards import Shards

        return Shards(indexes)

    def count(self, where: Where = None) -> int:
        """Count the images that may be results: not removed, and meeting a condition or mask."""
        return self._subset(where).count

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, where: Where = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query; exactly, where few rows may be results.

        Args:
            vectors: unit vectors (Q, dim).
            k: neighbours per query.
            encoder_hash: of the encoder that made the queries; None trusts the caller.
            where: which rows may be results, see `base`.

        Returns:
            Cosine similarities float32 (Q, k), best first, and positions in `rows` int64 (Q, k).

        Raises:
            ArgumentError: if fewer than k rows may be results, the vectors do not fit, or another encoder made them.
        """
        check_encoder(self, encoder_hash)
        vectors, subset = unit_vectors(vectors, self.dim), self._subset(where)
        k = check_k(k, subset.count)
        return self._vectors.search(vectors, k, self.search_param, subset)

    def vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """Return vectors at positions of any shape, float32 (..., dim), rounded but for flat and ivf; or IndexError."""
        positions = np.asarray(positions)
        return self._vectors.at(positions.ravel()).reshape(*positions.shape, self.dim)

    def add(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Add unit vectors (N, dim) with their rows; an index that has grown much finds less, and is better rebuilt.

        Raises:
            ArgumentError: if they do not fit, an image_id is there already, or they are too few to learn cells from.
        """
        filling.check_new(self, vectors, rows)
        if not len(rows):
            return
        self._vectors.learn(vectors)
        self._vectors.add(vectors)
        self._rows = pd.concat([self.rows, rows], ignore_index=True) if len(self.rows) else rows.reset_index(drop=True)
        self._mark(np.concatenate([self.removed, np.zeros(len(rows), bool)]))

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take images out; ArgumentError, and none is removed, if one of them is not in the index."""
        where = pd.Series(np.arange(len(self.rows)), index=self.rows["image_id"])[~self.removed]
        if absent := [i for i in image_ids if i not in where.index]:
            raise not_there(absent, len(image_ids))
        removed = self.removed.copy()
        removed[where[list(image_ids)].to_numpy()] = True
        self._mark(removed)
        if len(removed) and removed.mean() > REBUILD_SHARE:
            self.compact()

    def compact(self) -> None:
        """Rebuild the index without the removed vectors."""
        kept = np.flatnonzero(self._kept.mask)
        self._vectors.keep(kept)
        self._rows = self.rows.iloc[kept].reset_index(drop=True)
        self._mark(np.zeros(len(kept), bool))

    def save(self, name: str, workspace: Workspace | None = None) -> Path:
        """Write vectors.faiss, rows.parquet and card.json to outputs/indexes/<name>/, all or none (StorageError)."""
        folder = (workspace or Workspace()).path("indexes", name)
        if self.removed.any():
            self.compact()
        card = {"kind": self.kind, "dim": self.dim, "encoder_hash": self.encoder_hash, "made_from": self.made_from}
        card |= {"effort": self.search_param, "recall": self.recall, "count": len(self)}
        card["memory_limit"] = self.memory_limit
        storage.write(folder, self._vectors, self.rows, card)
        return folder

    @classmethod
    def load(cls, name: str | Path, workspace: Workspace | None = None) -> Index:
        """Open what was saved under a name, or in the folder of a `Path`, mapped: a large one answers at once.

        Raises:
            MissingArtefactError: if there is none of that name.
            DataError: if its files are damaged, of another version, or do not belong together.
        """
        folder = storage.folder_of(name, workspace)
        card = storage.read_card(folder)
        index = cls(card["kind"], card["dim"], card["encoder_hash"], card["effort"], card["made_from"])
        index.memory_limit = card["memory_limit"]
        index._rows_file = storage.open_files(folder, card, index._vectors)
        index.recall, index._sums = card["recall"], card.get("checksums", {})
        index._mark(np.zeros(card["count"], bool))
        return index

    def _subset(self, where: Where) -> Subset:
        kept = self._kept
        if where is None:
            return kept
        if isinstance(where, str):
            return kept.part(where, lambda: matching(self.rows, where))
        mask = check_mask(where, len(kept.mask))
        return kept.part(np.packbits(mask).tobytes(), lambda: mask)

    def _mark(self, removed: np.ndarray) -> None:
        """Set which rows are removed, and what every search would otherwise derive from it."""
        removed.flags.writeable = False
        self.removed, self._kept = removed, Subset(~removed)
