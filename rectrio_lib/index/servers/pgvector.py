"""Vectors in PostgreSQL, by the extension pgvector: with their metadata, in the caller's transaction if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.index.base import Where, already_there, check_encoder, not_there, unit_vectors
from rectrio_lib.index.servers import cards
from rectrio_lib.index.servers import pgvector_tables as tables
from rectrio_lib.index.servers import rows as stored
from rectrio_lib.index.servers.cards import ServerIndex
from rectrio_lib.index.servers.pgvector_search import Snapshot, among, array
from rectrio_lib.index.servers.pgvector_tables import COLLECTIONS, sa


class PgvectorIndex(ServerIndex):
    """A collection of vectors in PostgreSQL; fulfils `base.VectorIndex`. Several processes may change it at once.

    Few rows that may be results are compared one by one; among many, a graph (HNSW) is searched until k are found.
    Vectors are stored in half precision. Removed rows keep their positions until the collection is built again.

    Args:
        url: postgresql://USER:PASSWORD@HOST/DATABASE; without a password, PGPASSWORD or ~/.pgpass has it.
        collection: its name on the server.

    Raises:
        MissingArtefactError: if there is no such collection.
        StorageError: if the server cannot be reached.
    """

    kind, stores = "pgvector", "HNSW in half precision"

    def __init__(self, url: str, collection: str):
        self.url, self.collection, self._engine, self._last = url, collection, tables.new_engine(url), None
        with self._reading() as (_, snapshot):
            self.encoder_hash, self.dim, self.made_from = snapshot.encoder_hash, snapshot.dim, snapshot.made_from

    @classmethod
    def build(
        cls,
        url: str,
        collection: str,
        vectors: np.ndarray,
        rows: pd.DataFrame,
        encoder_hash: str,
        made_from: dict[str, Any] | None = None,
    ) -> PgvectorIndex:
        """Make a collection of unit vectors (N, dim) and their rows, or replace it, in one transaction."""
        stored.check_new(vectors, rows)
        name, mine = f"rectrio_{uuid4().hex[:16]}", COLLECTIONS.c.name == collection
        made = {"name": collection, "rows": name, "version": 0, "dim": vectors.shape[1], "encoder_hash": encoder_hash}
        made |= {"made_from": made_from or {}, "columns": stored.columns_of(rows, {})}
        engine = tables.new_engine(url)
        with tables.answering(url), engine.begin() as connection:
            tables.prepare(connection)
            tables.lock(connection, collection)
            tables.rows_table(name, vectors.shape[1]).create(connection)
            tables.insert_rows(connection, name, vectors, rows, 0)
            for statement in tables.INDEXES:
                connection.exec_driver_sql(statement.format(name=name))
            connection.exec_driver_sql(f'ANALYZE "{name}"')
            old = connection.scalar(sa.delete(COLLECTIONS).where(mine).returning(COLLECTIONS.c.rows))
            connection.execute(sa.insert(COLLECTIONS), made)
            if old:
                connection.exec_driver_sql(f'DROP TABLE "{old}"')
        engine.dispose()
        return cls(url, collection)

    def count(self, where: Where = None) -> int:
        """Count the images that may be results: not removed, and meeting a condition or mask."""
        with self._reading() as (connection, snapshot):
            return snapshot.part(connection, where).count

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, where: Where = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query; see `base.VectorIndex`."""
        check_encoder(self, encoder_hash)
        vectors = unit_vectors(vectors, self.dim)
        with self._reading() as (connection, snapshot):
            found = snapshot.nearest(connection, vectors, k, where)
        near = np.array(found, np.float64).reshape(len(vectors), k, 2)
        return (1 - near[:, :, 1]).astype(np.float32), near[:, :, 0].astype(np.int64)

    def _vectors(self, positions: list[int]) -> Sequence[np.ndarray]:
        with self._reading() as (connection, snapshot):
            rows = snapshot.rows
            asked = sa.select(rows.c.embedding).where(among(rows, positions)).order_by(rows.c.position)
            return connection.scalars(asked).all()

    def add(self, vectors: np.ndarray, rows: pd.DataFrame, connection: sa.Connection | None = None) -> None:
        """Add unit vectors (N, dim) with their rows, all or none, in the transaction of a connection or its own.

        Raises:
            ArgumentError: if they do not fit, or an image_id is there already.
        """
        stored.check_new(vectors, rows, self.dim)
        if not len(rows):
            return
        with self._writing(connection) as joined:
            snapshot = self._read(joined)
            mine, names = snapshot.rows.c, rows["image_id"].tolist()
            known = sa.select(mine.image_id).where(~mine.removed, mine.image_id == sa.any_(array(names, sa.Text)))
            if again := joined.scalars(known).all():
                raise already_there(again)
            self._update(joined, columns=stored.columns_of(rows, snapshot.columns))
            start = joined.scalar(sa.select(sa.func.coalesce(sa.func.max(mine.position) + 1, 0)))
            tables.insert_rows(joined, snapshot.name, vectors, rows, start)

    def remove(self, image_ids: Sequence[str], connection: sa.Connection | None = None) -> None:
        """Take images out; ArgumentError, and none is removed, if one of them is not in the index."""
        names = list(dict.fromkeys(image_ids))
        with self._writing(connection) as joined:
            rows = self._read(joined).rows
            there = (~rows.c.removed, rows.c.image_id == sa.any_(array(names, sa.Text)))
            found = set(joined.scalars(sa.select(rows.c.image_id).where(*there)))
            if absent := [name for name in names if name not in found]:
                raise not_there(absent, len(names))
            joined.execute(sa.update(rows).where(*there).values(removed=True))
            self._update(joined)

    def save(self, name: str, workspace: Workspace | None = None) -> Path:
        """Write the card that `load` and `opening.open_index` find the collection by; the password stays out."""
        with self._writing(None) as connection:
            self._update(connection, made_from=self.made_from)
        return cards.write_card(self, self.url, self.collection, name, workspace)

    def _read(self, connection: sa.Connection, before: Snapshot | None = None) -> Snapshot:
        row = None
        if before is not None or sa.inspect(connection).has_table(COLLECTIONS.name):
            row = connection.execute(sa.select(COLLECTIONS).where(COLLECTIONS.c.name == self.collection)).one_or_none()
        if row is None:
            raise cards.no_collection(self.url, self.collection)
        if before is not None and (row.rows, row.version) == (before.name, before.version):
            return before
        if before is not None and row.encoder_hash != self.encoder_hash:
            raise DataError(f"{self.collection} was built again with another encoder: open it again.")
        return Snapshot(row, before)

    @contextmanager
    def _reading(self) -> Iterator[tuple[sa.Connection, Snapshot]]:
        """Read the collection as it is at one moment."""
        frozen = self._engine.execution_options(isolation_level="REPEATABLE READ")
        with tables.answering(self.url), frozen.begin() as connection:
            self._last = snapshot = self._read(connection, self._last)
            yield connection, snapshot

    @contextmanager
    def _writing(self, connection: sa.Connection | None) -> Iterator[sa.Connection]:
        """Change the collection while nobody else does, in the caller's transaction or in one of its own."""
        own = self._engine.begin() if connection is None else nullcontext(connection)
        with tables.answering(self.url), own as joined:
            tables.lock(joined, self.collection)
            yield joined

    def _update(self, connection: sa.Connection, **values: Any) -> None:
        """Count a change, so that everybody reads the collection again."""
        mine = COLLECTIONS.c.name == self.collection
        connection.execute(sa.update(COLLECTIONS).where(mine).values(version=COLLECTIONS.c.version + 1, **values))

    def _read_table(self) -> tuple[pd.DataFrame, np.ndarray]:
        with self._reading() as (connection, snapshot):
            return snapshot.read_table(connection)
