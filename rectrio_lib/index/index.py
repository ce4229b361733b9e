"""FAISS behind one class: build and tune, search, add, remove, save, load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectrio_lib.core import errors, knn
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.index import factory, storage, tuning
from rectrio_lib.index.faiss_vectors import FaissVectors, Subset

if TYPE_CHECKING:
    pass


REBUILD_SHARE = 0.2  # removed vectors cost time at every search: beyond this share the index is built anew
MADE_BY = "05_search_and_visualize"


class Index:
    """Nearest neighbours by cosine similarity among unit vectors with stable ids.

    Removing marks a vector and skips it at search, for HNSW cannot forget one; when a fifth is marked, the index is
    rebuilt without them. A loaded index stays on disk, mapped into memory, until vectors are added.

    Args:
        kind: "flat" compares with every vector; "hnsw" walks a graph of 32 links a vector; "ivf" looks into the
            nearest of many cells; "ivf-pq" does so with codes of a byte for four numbers, re-ranked by float16
            vectors; "ivf-sq8" with a byte a number.
        dim: length of the vectors.
        encoder_hash: fingerprint of the encoder that made the vectors; a query from another one is refused.
        effort: how far a search looks: efSearch of hnsw, nprobe of the ivf kinds. More finds more and takes longer.
        made_from: what the vectors come from: names of encoder, store and data set, folder, hash and flags.

    Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable
        small world graphs", TPAMI 2020; Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011;
        https://faiss.ai.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        encoder_hash: str,
        effort: int = factory.SEARCH_PARAM,
        made_from: dict | None = None,
    ):
        if kind not in factory.KINDS:
            raise ArgumentError(f"kind={kind!r} is unknown: choose one of {', '.join(factory.KINDS)}.")
        self.kind, self.dim, self.encoder_hash, self.effort = kind, dim, encoder_hash, effort
        self.made_from = dict(made_from or {})
        self.recall = 1.0 if kind == "flat" else None  # recall@10 measured when the effort was tuned
        self._vectors = FaissVectors(kind, dim)
        self._rows, self._rows_file = pd.DataFrame({"image_id": pd.Series(dtype=str)}), None
        self._mark(np.zeros(0, bool))

    def __len__(self) -> int:
        return self._kept.count

    def __repr__(self) -> str:
        return self.info()

    def info(self) -> str:
        """Say in one line what this index is."""
        name = factory.search_param_name(self.kind)
        found = "exact" if not name else "recall not measured" if self.recall is None else f"recall {self.recall:.3f}"
        looks = f" at {name} {self.effort}" if name else ""
        return f"{self.kind}, {len(self):,} pictures, {found}{looks}, {self.bytes_per_vector:.0f} bytes a vector"

    @property
    def rows(self) -> pd.DataFrame:
        """What is known of each vector, `image_id` first of all; of a loaded index read when first asked for."""
        if self._rows_file is not None:
            with self._rows_file as file:
                self._rows, self._rows_file = storage.read_rows(file), None
        return self._rows

    @property
    def removed(self) -> np.ndarray:
        """Which rows are removed, bool (N,), read-only."""
        return self._removed

    @property
    def bytes_per_vector(self) -> float:
        """Bytes that the index takes for one vector, in memory and on disk; of its metadata none."""
        count = max(1, len(self._removed))
        return factory.memory(self.kind, self.dim, count) / count

    @classmethod
    def build(
        cls,
        kind: str,
        vectors: np.ndarray,
        rows: pd.DataFrame,
        encoder_hash: str,
        recall: float = 0.95,
        effort: int | None = None,
        memory_limit: int | None = None,
        made_from: dict | None = None,
    ) -> Index:
        """Make an index that finds enough of the true neighbours, as quickly as it can.

        A tenth of the vectors (2,000 at most) is kept out at first and asked for; the effort is the least that finds
        the asked share of their true ten neighbours, by three standard errors. Fewer than 500 vectors are not measured.

        Args:
            kind: one of kinds.KINDS, or "auto": what suits number and memory best, see `factory.candidates`; if that
                cannot reach the recall, the next one.
            vectors: unit vectors float16 or float32 (N, dim), in memory or mapped; read in blocks.
            rows: what is known of them, with `image_id`; the index keeps their order.
            encoder_hash: fingerprint of the encoder that made them.
            recall: share of the true ten nearest neighbours to be found by a new query, in (0, 1].
            effort: efSearch or nprobe to use, instead of tuning.
            memory_limit: bytes the index may take, without its metadata; None sets no limit.
            made_from: see the class; kept in the card.

        Raises:
            tuning.RecallOutOfReach: if no such kind reaches the recall.
            ValueError: if vectors and rows do not fit each other, are too few for the kind or too many for the memory.
        """
        if not 0 < recall <= 1:
            raise ArgumentError(f"recall={recall} should be above 0 and at most 1.")
        if vectors.ndim != 2:
            raise ArgumentError(f"An index is built from an array (N, dim), not from one of shape {vectors.shape}.")
        for name in factory.candidates(kind, vectors.shape[1], len(vectors), memory_limit):
            index = cls(name, vectors.shape[1], encoder_hash, effort or factory.SEARCH_PARAM, made_from)
            try:
                index._fill(vectors, rows, recall if effort is None else None)
            except errors.RecallOutOfReachError as error:
                failure = error
            else:
                return index
        raise failure

    def _fill(self, vectors: np.ndarray, rows: pd.DataFrame, recall: float | None) -> None:
        """Add vectors to an empty index, of which some are held out until the effort is tuned on them."""
        held = tuning.holdout(len(vectors))
        if recall is None or self.kind == "flat" or not len(held):
            return self.add(vectors, rows)
        self._check_new(vectors, rows)
        rest = np.delete(np.arange(len(vectors)), held)
        self._vectors.learn(vectors, rest)
        self._vectors.add(vectors, rest)
        self._mark(np.zeros(len(rest), bool))
        self.recall = tuning.tune(self, tuning.GroundTruth(vectors[held], vectors, rest), recall)
        self._vectors.add_between(vectors, held)
        self._rows = rows.reset_index(drop=True)
        self._mark(np.zeros(len(rows), bool))

    def add(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Add vectors (N, dim) with their rows.

        The effort stays as it is: an index that has grown much finds less, and is better built anew.

        Raises:
            ValueError: if numbers or dimensions differ, an image_id is there already, or the kind has nothing to learn
                its cells from.
        """
        self._check_new(vectors, rows)
        if not len(rows):
            return
        self._vectors.learn(vectors)
        self._vectors.add(vectors)
        self._rows = pd.concat([self.rows, rows], ignore_index=True) if len(self.rows) else rows.reset_index(drop=True)
        self._mark(np.concatenate([self._removed, np.zeros(len(rows), bool)]))

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take pictures out.

        Raises:
            KeyError: if one of them is not in the index; then none is removed.
        """
        where = pd.Series(np.arange(len(self.rows)), index=self.rows["image_id"])[~self._removed]
        absent = [i for i in image_ids if i not in where.index]
        if absent:
            raise KeyError(f"{len(absent)} of {len(image_ids)} pictures are not in the index, such as {absent[0]!r}.")
        removed = self._removed.copy()
        removed[where[list(image_ids)].to_numpy()] = True
        self._mark(removed)
        if len(removed) and removed.mean() > REBUILD_SHARE:
            self.compact()

    def compact(self) -> None:
        """Build the index anew without the removed vectors."""
        kept = np.flatnonzero(~self._removed)
        self._vectors.keep(kept)
        self._rows = self.rows.iloc[kept].reset_index(drop=True)
        self._mark(np.zeros(len(kept), bool))

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar pictures of each query.

        Args:
            vectors: unit vectors (Q, dim).
            k: neighbours a query.
            encoder_hash: fingerprint of the encoder that made the queries; None trusts the caller.
            allowed: which rows may be answers, bool (N,), N = len(rows); None for all. Removed rows never are. Among
                few (20,000 or a twentieth) the search is exact; else it looks the farther the fewer they are.

        Returns:
            Cosine similarities float32 (Q, k), best first, and positions in `rows` int64 (Q, k); always k answers.

        Raises:
            ValueError: if fewer than k rows may be answers, the dimensions differ, or another encoder made the queries.
        """
        if encoder_hash is not None and encoder_hash != self.encoder_hash:
            raise ArgumentError(
                f"The index was built with encoder {self.encoder_hash}, the query was made by encoder {encoder_hash}: "
                "their similarities mean nothing. Embed the query with the index's encoder, or build the index again."
            )
        vectors = self._check(vectors)
        among = self._kept if allowed is None else self._allow(allowed)
        if not 1 <= k <= among.count:
            there = f"the index holds {len(self)} pictures" if allowed is None else f"{among.count} rows are allowed"
            raise ArgumentError(f"k={k}, but {there}: ask for 1 to that many.")
        return self._vectors.search(vectors, k, self.effort, among)

    def vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors of rows, float32 (..., dim), as the index holds them: rounded, but for flat and ivf.

        Raises:
            IndexError: if a position, of an array of any shape, is not in 0..len(rows)-1.
        """
        positions = np.asarray(positions)
        return self._vectors.at(positions.ravel()).reshape(*positions.shape, self.dim)

    def _mark(self, removed: np.ndarray) -> None:
        """Set which rows are removed, and what every search would otherwise derive from it."""
        removed.flags.writeable = False
        self._removed, self._kept = removed, Subset(~removed)

    def _allow(self, allowed: np.ndarray) -> Subset:
        allowed = np.asarray(allowed)
        if allowed.dtype != bool or allowed.shape != self._removed.shape:
            raise ArgumentError(
                f"allowed should be a bool array with one entry for each of the {len(self._removed)} rows, not "
                f"{allowed.dtype} of shape {allowed.shape}."
            )
        return Subset(allowed & self._kept.mask)

    def _check(self, vectors: np.ndarray) -> np.ndarray:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ArgumentError(f"The index holds vectors of length {self.dim}, not an array of shape {vectors.shape}.")
        if not np.isfinite(vectors).all():
            raise ArgumentError("Some of the vectors hold NaN or infinity: they have no neighbours.")
        return np.ascontiguousarray(vectors, np.float32)

    def _check_new(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        self._check(vectors[:0])
        for block in knn.blocks(vectors):
            self._check(block)
        if len(vectors) != len(rows):
            raise ArgumentError(f"{len(vectors)} vectors but {len(rows)} rows.")
        known = set(self.rows["image_id"][self._kept.mask])
        again = rows["image_id"][rows["image_id"].isin(known) | rows["image_id"].duplicated()].tolist()
        if again:
            raise ArgumentError(f"{len(again)} of these pictures are in the index already or come twice: {again[0]!r}.")

    def save(self, name: str, workspace: Workspace | None = None) -> Path:
        """Write vectors.faiss, rows.parquet and card.json to outputs/indexes/<name>/, all or nothing."""
        folder = (workspace or Workspace()).path("indexes", name)
        if self._removed.any():
            self.compact()
        self._vectors.own()  # Windows replaces no file that is mapped
        card = {"kind": self.kind, "dim": self.dim, "encoder_hash": self.encoder_hash}
        card |= {"effort": self.effort, "recall": self.recall, "count": len(self)}
        card["made_from"] = self.made_from
        storage.write(folder, self._vectors.faiss, self.rows, card)
        return folder

    @classmethod
    def load(cls, name: str, workspace: Workspace | None = None) -> Index:
        """Open a saved index, its vectors mapped into memory: a large one answers at once.

        Raises:
            resources.MissingArtefact: if there is none of that name.
            ValueError: if its files are damaged, of another version, or do not belong together.
        """
        folder = (workspace or Workspace()).require("indexes", name, "rectrio index FOLDER")
        card = storage.read_card(folder)
        index = cls(card["kind"], card["dim"], card["encoder_hash"], card["effort"], card["made_from"])
        index._vectors.faiss, index._rows_file = storage.open_files(folder, card, like=index._vectors.faiss)
        index._vectors.mapped, index.recall = True, card["recall"]
        index._mark(np.zeros(card["count"], bool))
        return index
