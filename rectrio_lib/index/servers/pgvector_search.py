"""Searching vectors in PostgreSQL: which rows may be results, and how the nearest of them are found; see `pgvector`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from rectrio_lib.index.base import Where, check_k, check_mask
from rectrio_lib.index.servers import rows as stored
from rectrio_lib.index.servers.pgvector_tables import rows_table
from rectrio_lib.index.where.sql import expression

EXACT_ROWS = 2000  # so few are compared one by one
EXACT_K = 300  # so many neighbours are found by comparing all
EF_SEARCH, MOST_EF_SEARCH = 100, 1000
CACHED_PARTS = 32  # conditions that are remembered until the collection changes


class Part(NamedTuple):
    """Rows that may be results: their number, what SQL asks for, and their positions if they are few."""

    count: int
    condition: sa.ColumnElement[bool]
    positions: list[int] | None


class Snapshot:
    """A collection at one version: its row in COLLECTIONS, and what was found out about it since."""

    def __init__(self, row: sa.Row, before: Snapshot | None):
        self.name, self.version, self.dim, self.columns = row.rows, row.version, row.dim, row.columns
        self.encoder_hash, self.made_from = row.encoder_hash, row.made_from
        self.rows = rows_table(row.rows, row.dim)
        self._parts: dict[str | tuple | None, Part] = {}
        same = before is not None and (before.name, before.columns) == (self.name, self.columns)
        self._earlier, self._table = (before._table or before._earlier if same else None), None

    def read_table(self, connection: sa.Connection) -> tuple[pd.DataFrame, np.ndarray]:
        """Return the metadata of all rows, and which are removed, bool (N,); of an earlier version only what is new."""
        if self._table is None:
            mine, earlier = self.rows.c, self._earlier[0] if self._earlier else stored.table([], self.columns)
            fresh = sa.select(mine.data).where(mine.position >= len(earlier)).order_by(mine.position)
            removed = connection.scalars(sa.select(mine.position).where(mine.removed)).all()
            self._table = stored.extended(earlier, connection.scalars(fresh).all(), self.columns, removed)
            self._earlier = None
        return self._table

    def part(self, connection: sa.Connection, where: Where) -> Part:
        """Return the rows that are not removed and meet a condition or mask."""
        key = where
        if not (where is None or isinstance(where, str)):
            mask = np.asarray(where)
            key = mask.dtype, mask.shape, mask.tobytes()  # arrays of other shapes may have the same bytes
        if key not in self._parts:
            part = self._count(connection, where)
            if len(self._parts) >= CACHED_PARTS:
                self._parts = {}
            self._parts[key] = part
            return part
        return self._parts[key]

    def _count(self, connection: sa.Connection, where: Where) -> Part:
        mine = self.rows.c
        condition = ~mine.removed
        if isinstance(where, str):
            condition &= expression(where, stored.kinds(self.columns), mine.data)
        elif where is not None:
            total = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(mine.position) + 1, 0)))
            condition &= among(self.rows, np.flatnonzero(check_mask(where, total)).tolist())
        few = sa.select(mine.position).where(condition).limit(EXACT_ROWS + 1)
        positions = connection.scalars(few).all()
        if len(positions) <= EXACT_ROWS:
            return Part(len(positions), condition, list(positions))
        return Part(connection.scalar(sa.select(sa.func.count()).where(condition)), condition, None)

    def nearest(
        self, connection: sa.Connection, vectors: np.ndarray, k: int, where: Where
    ) -> list[Sequence[tuple[int, float]]]:
        """Return positions and cosine distances of the k nearest rows that meet `where`, for vectors (Q, dim)."""
        part = self.part(connection, where)
        k = check_k(k, part.count)
        if part.positions is not None or k > EXACT_K:
            return [self._exact(connection, vector, k, part) for vector in vectors]
        self._set_scan(connection, k, part)
        found = []
        for vector in vectors:
            near = self._by_graph(connection, vector, k, part)
            found.append(near if len(near) == k else self._exact(connection, vector, k, part))
        return found

    def _exact(self, connection: sa.Connection, vector: np.ndarray, k: int, part: Part) -> Sequence[sa.Row]:
        chosen = part.condition if part.positions is None else among(self.rows, part.positions)
        mine = self.rows.c
        allowed = sa.select(mine.position, mine.embedding).where(chosen).cte().prefix_with("MATERIALIZED")
        return connection.execute(_ordered(allowed, vector).limit(k)).all()

    def _by_graph(self, connection: sa.Connection, vector: np.ndarray, k: int, part: Part) -> Sequence[sa.Row]:
        wanted = _ordered(self.rows, vector, by_position=False).where(part.condition).limit(k)
        return sorted(connection.execute(wanted).all(), key=lambda near: (near.distance, near.position))[:k]

    def _set_scan(self, connection: sa.Connection, k: int, part: Part) -> None:
        """Make the search of the graph go on until it has met k rows that may be results, for this transaction."""
        share = part.count / self.part(connection, None).count
        settings = {
            "hnsw.ef_search": min(MOST_EF_SEARCH, int((EF_SEARCH + k) / share)),
            "hnsw.iterative_scan": "relaxed_order",
            "hnsw.max_scan_tuples": 2**31 - 1,
            "enable_seqscan": "off",
            "jit": "off",
        }
        connection.execute(sa.select(*[sa.func.set_config(name, str(v), True) for name, v in settings.items()]))


def among(rows: sa.Table, positions: list[int]) -> sa.ColumnElement[bool]:
    """Return the condition that a row has one of some positions."""
    return rows.c.position == sa.any_(array(positions, sa.BigInteger))


def array(values: list, kind: type[sa.types.TypeEngine]) -> sa.ColumnElement:
    """Return values as one parameter of SQL."""
    return sa.literal(values, ARRAY(kind))


def _ordered(rows: sa.FromClause, vector: np.ndarray, by_position: bool = True) -> sa.Select:
    distance = rows.c.embedding.cosine_distance(vector).label("distance")
    return sa.select(rows.c.position, distance).order_by(*[distance, rows.c.position][: 1 + by_position])
