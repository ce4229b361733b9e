"""Vectors in Qdrant, with their metadata: on a server, or in a folder or in memory for a trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.index import conditions
from rectrio_lib.index.base import Where, check_encoder, check_k, check_mask, check_rows, not_there, unit_vectors
from rectrio_lib.index.servers import cards
from rectrio_lib.index.servers import qdrant_points as points
from rectrio_lib.index.servers import rows as stored
from rectrio_lib.index.servers.cards import ServerIndex
from rectrio_lib.index.where.payloads import ROW, among, as_filter, models

EXACT_ROWS = 2000  # so few are compared one by one
EF_SEARCH = 128
REMOVED = models.Filter(must=[models.FieldCondition(key="removed", match=models.MatchValue(value=True))])
THERE = models.FieldCondition(key="removed", match=models.MatchValue(value=False))


class _Known(NamedTuple):
    """The rows of a collection as last read, and which are removed."""

    name: str
    version: str
    columns: stored.Columns
    table: tuple[pd.DataFrame, np.ndarray]


class QdrantIndex(ServerIndex):
    """A collection of vectors in Qdrant (1.16 or later); fulfils `base.VectorIndex`.

    One process may change it at a time. Removed rows keep their positions until the collection is built again.

    Args:
        url: http://HOST:6333, https://:KEY@HOST:6333; without a key, QDRANT_API_KEY of the environment may hold it.
            "qdrant:PATH" and "qdrant::memory:" need no server: a slow imitation, for trials.
        collection: its name on the server.

    Raises:
        MissingArtefactError: if there is no such collection.
        StorageError: if the server cannot be reached.
    """

    kind, stores = "qdrant", "HNSW"

    def __init__(self, url: str, collection: str):
        self.url, self.collection, self._client = url, collection, points.client(url)
        self._known: _Known | None = None
        card = self._card()
        self.dim, self.encoder_hash, self.made_from = card["dim"], card["encoder_hash"], card["made_from"]

    @classmethod
    def build(
        cls,
        url: str,
        collection: str,
        vectors: np.ndarray,
        rows: pd.DataFrame,
        encoder_hash: str,
        made_from: dict[str, Any] | None = None,
    ) -> QdrantIndex:
        """Make a collection of unit vectors (N, dim) and their rows, or replace it once it is complete."""
        stored.check_new(vectors, rows)
        here = points.client(url)
        name, dim = f"{collection}--{uuid4().hex[:12]}", vectors.shape[1]
        card = {"dim": dim, "encoder_hash": encoder_hash, "made_from": made_from or {}, "name": name, "version": name}
        card["columns"] = stored.columns_of(rows, {})
        with points.answering(url):
            size = models.VectorParams(size=dim, distance=models.Distance.COSINE)
            here.create_collection(name, vectors_config=size, metadata=card)
            points.index_payloads(here, url, name, stored.kinds(card["columns"]))
            points.upsert(here, name, vectors, rows, 0)
            points.publish(here, name, collection)
        return cls(url, collection)

    def count(self, where: Where = None) -> int:
        """Count the images that may be results: not removed, and meeting a condition or mask."""
        return self._count(self._filter(where))

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, where: Where = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query; see `base.VectorIndex`."""
        check_encoder(self, encoder_hash)
        vectors, allowed = unit_vectors(vectors, self.dim), self._filter(where)
        count = self._count(allowed)
        k = check_k(k, count)
        found = self._nearest(vectors, k, allowed, exact=count <= EXACT_ROWS)
        if any(len(near) < k for near in found):
            found = self._nearest(vectors, k, allowed, exact=True)
        scores = np.array([[point.score for point in near] for near in found], np.float32)
        positions = np.array([[point.id for point in near] for near in found], np.int64)
        return scores.reshape(len(vectors), k), positions.reshape(len(vectors), k)

    def _nearest(self, vectors: np.ndarray, k: int, allowed: models.Filter, exact: bool) -> list[list]:
        asked = models.SearchParams(exact=exact, hnsw_ef=max(EF_SEARCH, 2 * k))
        requests = [
            models.QueryRequest(query=vector.tolist(), filter=allowed, limit=k, params=asked) for vector in vectors
        ]
        with points.answering(self.url):
            return [answer.points for answer in self._client.query_batch_points(self.collection, requests)]

    def _vectors(self, positions: list[int]) -> list[list[float]]:
        found = {}
        with points.answering(self.url):
            for start in range(0, len(positions), points.BATCH):
                ids = [at for at in positions[start : start + points.BATCH] if at >= 0]
                got = self._client.retrieve(self.collection, ids, with_payload=False, with_vectors=True)
                found |= {point.id: point.vector for point in got}
        return [found[at] for at in positions if at in found]

    def add(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Add unit vectors (N, dim) with their rows; ArgumentError if they do not fit or an image_id is known."""
        stored.check_new(vectors, rows, self.dim)
        known, removed = self._read_table()
        check_rows(rows, len(vectors), known["image_id"][~removed])
        if len(rows):
            columns = stored.columns_of(rows, self._card()["columns"])
            points.index_payloads(self._client, self.url, self.collection, stored.kinds(columns))
            with self._changing(columns=columns):
                points.upsert(self._client, self.collection, vectors, rows, len(known))

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take images out; ArgumentError, and none is removed, if one of them is not in the index."""
        names, (rows, removed) = list(dict.fromkeys(image_ids)), self._read_table()
        places = dict(zip(rows["image_id"][~removed], np.flatnonzero(~removed).tolist(), strict=True))
        if absent := [name for name in names if name not in places]:
            raise not_there(absent, len(names))
        if names:
            with self._changing():
                self._client.set_payload(
                    self.collection, {"removed": True}, [places[name] for name in names], wait=True
                )

    def save(self, name: str, workspace: Workspace | None = None) -> Path:
        """Write the card that `load` and `opening.open_index` find the collection by; the key stays out."""
        with self._changing(made_from=self.made_from):
            return cards.write_card(self, self.url, self.collection, name, workspace)

    def _card(self) -> dict[str, Any]:
        """Return what the server says of the collection."""
        with points.answering(self.url):
            there = self._client.collection_exists(self.collection)
            card = self._client.get_collection(self.collection).config.metadata if there else None
        if not card or "encoder_hash" not in card:
            raise cards.no_collection(self.url, self.collection)
        return card

    @contextmanager
    def _changing(self, **values: Any) -> Iterator[None]:
        """Change the collection; what its card says is changed as well, so that everybody reads it again."""
        with points.answering(self.url):
            yield
            self._client.update_collection(self.collection, metadata={**values, "version": uuid4().hex})

    def _filter(self, where: Where) -> models.Filter:
        must = [THERE]
        if isinstance(where, str):
            kinds = stored.kinds(self._card()["columns"])
            must.append(as_filter(where, kinds, lambda part: conditions.holds(part, self.rows)))
        elif where is not None:
            must.append(among(check_mask(where, len(self.rows))))
        return models.Filter(must=must)

    def _count(self, allowed: models.Filter | None) -> int:
        with points.answering(self.url):
            return self._client.count(self.collection, allowed, exact=True).count

    def _read_table(self) -> tuple[pd.DataFrame, np.ndarray]:
        card, known = self._card(), self._known
        if known is None or known.version != card["version"]:
            same = known is not None and (known.name, known.columns) == (card["name"], card["columns"])
            earlier = known.table[0] if same else stored.table([], card["columns"])
            with points.answering(self.url):
                found = list(points.scrolled(self._client, self.collection, len(earlier), None, [ROW]))
                removed = [point.id for point in points.scrolled(self._client, self.collection, 0, REMOVED, False)]
            table = stored.extended(earlier, [point.payload[ROW] for point in found], card["columns"], removed)
            self._known = known = _Known(card["name"], card["version"], card["columns"], table)
        return known.table
