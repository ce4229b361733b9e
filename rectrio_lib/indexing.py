"""FAISS behind one small class: build, search, add, remove, save, load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pandas as pd

from rectrio_lib import resources

KINDS = {"flat": "Flat", "hnsw": "HNSW32"}
EF_CONSTRUCTION = 80
EF_SEARCH = 64
REBUILD_SHARE = 0.2  # removed vectors cost time at every search: beyond this share the index is built anew
MADE_BY = "05_search_and_visualize"


class Index:
    """Nearest neighbours by cosine similarity among unit vectors with stable ids.

    Removing marks a vector and skips it at search, for HNSW cannot forget one; when a fifth is marked, the index is
    rebuilt without them.

    Args:
        kind: "flat" compares with every vector; "hnsw" walks a graph of 32 links a vector and may miss a neighbour.
        dim: length of the vectors.
        encoder_hash: fingerprint of the encoder that made the vectors; a query from another one is refused.
        ef_search: HNSW: vectors kept in mind on the walk; more finds more and takes longer.

    Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable
        small world graphs", TPAMI 2020; https://faiss.ai.
    """

    def __init__(self, kind: str, dim: int, encoder_hash: str, ef_search: int = EF_SEARCH):
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown: choose one of {', '.join(KINDS)}.")
        self.kind, self.dim, self.encoder_hash, self.ef_search = kind, dim, encoder_hash, ef_search
        self.rows = pd.DataFrame({"image_id": pd.Series(dtype=str)})
        self._removed = np.empty(0, bool)
        self._faiss = _new_faiss(kind, dim)

    def __len__(self) -> int:
        return int((~self._removed).sum())

    @classmethod
    def build(cls, kind: str, vectors: np.ndarray, rows: pd.DataFrame, encoder_hash: str, **options) -> Index:
        """Make an index of vectors (N, dim) and their rows, which carry `image_id`."""
        index = cls(kind, vectors.shape[1], encoder_hash, **options)
        index.add(vectors, rows)
        return index

    def add(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Add vectors (N, dim) with their rows.

        Raises:
            ValueError: if numbers or dimensions differ, or an image_id is there already.
        """
        vectors = self._check(vectors)
        if len(vectors) != len(rows):
            raise ValueError(f"{len(vectors)} vectors but {len(rows)} rows.")
        known = set(self.rows["image_id"][~self._removed])
        again = rows["image_id"][rows["image_id"].isin(known) | rows["image_id"].duplicated()].tolist()
        if again:
            raise ValueError(f"{len(again)} of these pictures are in the index already or come twice: {again[0]!r}.")
        self._faiss.add(vectors)
        self.rows = pd.concat([self.rows, rows], ignore_index=True) if len(self.rows) else rows.reset_index(drop=True)
        self._removed = np.concatenate([self._removed, np.zeros(len(rows), bool)])

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take pictures out.

        Raises:
            KeyError: if one of them is not in the index; then none is removed.
        """
        where = pd.Series(np.arange(len(self.rows)), index=self.rows["image_id"])[~self._removed]
        absent = [i for i in image_ids if i not in where.index]
        if absent:
            raise KeyError(f"{len(absent)} of {len(image_ids)} pictures are not in the index, such as {absent[0]!r}.")
        self._removed[where[list(image_ids)].to_numpy()] = True
        if self._removed.mean() > REBUILD_SHARE:
            self.compact()

    def compact(self) -> None:
        """Build the index anew without the removed vectors."""
        kept = ~self._removed
        vectors = self._faiss.reconstruct_n(0, self._faiss.ntotal)[kept] if len(kept) else np.empty((0, self.dim))
        self._faiss = _new_faiss(self.kind, self.dim)
        self._faiss.add(np.ascontiguousarray(vectors, np.float32))
        self.rows, self._removed = self.rows[kept].reset_index(drop=True), self._removed[kept]

    def search(self, vectors: np.ndarray, k: int, encoder_hash: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar pictures of each query.

        Args:
            vectors: unit vectors (Q, dim).
            k: neighbours a query.
            encoder_hash: fingerprint of the encoder that made the queries; None trusts the caller.

        Returns:
            Cosine similarities float32 (Q, k), best first, and positions in `rows` int64 (Q, k).

        Raises:
            ValueError: if k is not in 1..len(self), the dimensions differ, or another encoder made the queries.
        """
        if encoder_hash is not None and encoder_hash != self.encoder_hash:
            raise ValueError(
                f"The index was built with encoder {self.encoder_hash}, the query was made by encoder {encoder_hash}: "
                "their similarities mean nothing. Embed the query with the index's encoder, or build the index again."
            )
        vectors = self._check(vectors)
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k}, but the index holds {len(self)} pictures: ask for 1 to {len(self)}.")
        threads = faiss.omp_get_max_threads()
        if len(vectors) == 1:
            faiss.omp_set_num_threads(1)  # measured: a second thread makes a single query 2 to 30 times slower
        try:
            scores, positions = _search(self._faiss, vectors, k, self._parameters(k))
            lost = (positions < 0).any(1)  # a walk that ended before it had met k pictures: ask for these exactly
            if lost.any():
                parameters = self._parameters(k, faiss.SearchParameters)
                scores[lost], positions[lost] = _search(self._faiss.storage, vectors[lost], k, parameters)
            return scores, positions
        finally:
            faiss.omp_set_num_threads(threads)

    def _parameters(self, k: int, kind: type | None = None) -> faiss.SearchParameters:
        kind = kind or (faiss.SearchParametersHNSW if self.kind == "hnsw" else faiss.SearchParameters)
        parameters = kind()
        if kind is faiss.SearchParametersHNSW:
            parameters.efSearch = max(self.ef_search, k)
        if self._removed.any():
            parameters.sel = faiss.IDSelectorBitmap(np.packbits(~self._removed, bitorder="little"))
        return parameters

    def _check(self, vectors: np.ndarray) -> np.ndarray:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"The index holds vectors of length {self.dim}, not an array of shape {vectors.shape}.")
        if not np.isfinite(vectors).all():
            raise ValueError("Some of the vectors hold NaN or infinity: they have no neighbours.")
        return np.ascontiguousarray(vectors, np.float32)

    def save(self, name: str) -> Path:
        """Write vectors.faiss, rows.parquet and card.json to outputs/indexes/<name>/, all or nothing."""
        folder = resources.outputs_root() / "indexes" / name
        if self._removed.any():
            self.compact()
        with resources.replaced_folder(folder) as fresh:
            faiss.write_index(self._faiss, str(fresh / "vectors.faiss"))
            self.rows.to_parquet(fresh / "rows.parquet")
            card = {"kind": self.kind, "dim": self.dim, "encoder_hash": self.encoder_hash}
            resources.write_json(fresh / "card.json", {**card, "ef_search": self.ef_search, "count": len(self)})
        return folder

    @classmethod
    def load(cls, name: str) -> Index:
        """Open a saved index.

        Raises:
            resources.MissingArtefact: if there is none of that name.
            ValueError: if its files are damaged or do not belong together.
        """
        folder = resources.artefact(f"indexes/{name}", MADE_BY)
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        index = cls(card["kind"], card["dim"], card["encoder_hash"], card["ef_search"])
        try:
            found = faiss.read_index(str(folder / "vectors.faiss"))
        except RuntimeError as error:
            raise ValueError(f"{folder / 'vectors.faiss'} is damaged or no FAISS index: build it again.") from error
        index.rows = pd.read_parquet(folder / "rows.parquet")
        as_told = isinstance(found, type(index._faiss)) and found.d == card["dim"]
        if not as_told or not found.ntotal == len(index.rows) == card["count"]:
            raise ValueError(
                f"{folder}: vectors.faiss, rows.parquet and card.json do not belong together: build it again."
            )
        index._faiss, index._removed = found, np.zeros(len(index.rows), bool)
        return index


def _new_faiss(kind: str, dim: int) -> faiss.Index:
    index = faiss.index_factory(dim, KINDS[kind], faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = EF_CONSTRUCTION
    return index


def _search(
    index: faiss.Index, vectors: np.ndarray, k: int, parameters: faiss.SearchParameters
) -> tuple[np.ndarray, np.ndarray]:
    # faiss.contrib.torch_utils, which other libraries import, swaps `search` for one that takes no parameters.
    return getattr(index, "search_numpy", index.search)(vectors, k, params=parameters)
