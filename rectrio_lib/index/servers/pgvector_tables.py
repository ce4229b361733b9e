"""Tables, connections and errors of vectors in PostgreSQL; see `pgvector`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, StorageError, needing
from rectrio_lib.core.knn import blocks
from rectrio_lib.index.servers import cards
from rectrio_lib.index.servers import rows as stored

with needing("PostgreSQL", "postgres"):
    import sqlalchemy as sa
    from pgvector import HalfVector
    from pgvector.sqlalchemy import HALFVEC
    from psycopg.types.json import Jsonb
    from sqlalchemy import exc
    from sqlalchemy.dialects.postgresql import JSONB

CONNECT_SECONDS = 5
LOCK = 7_268_318  # this program's, among the advisory locks of a database
COLLECTIONS = sa.Table(
    "rectrio_collections",
    sa.MetaData(),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("rows", sa.Text, nullable=False),  # name of the table of vectors
    sa.Column("version", sa.BigInteger, nullable=False),  # counts the changes
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("encoder_hash", sa.Text, nullable=False),
    sa.Column("made_from", sa.JSON, nullable=False),
    sa.Column("columns", sa.JSON, nullable=False),
)
INDEXES = (
    'CREATE UNIQUE INDEX ON "{name}" (image_id) WHERE NOT removed',
    'CREATE INDEX ON "{name}" USING hnsw (embedding halfvec_cosine_ops) WITH (m = 16, ef_construction = 100) '
    "WHERE NOT removed",
)


def rows_table(name: str, dim: int) -> sa.Table:
    """Return the table of the vectors of a collection."""
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.Column("embedding", HALFVEC(dim), nullable=False),
    )


def new_engine(url: str) -> sa.Engine:
    """Return connections to the server of an address; they are made when needed."""
    scheme, rest = urlsplit(url).scheme, url.partition("://")[2]
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ArgumentError(f"{cards.without_password(url)} is no address of PostgreSQL: postgresql://HOST/DATABASE.")
    waiting = {} if "connect_timeout=" in rest else {"connect_timeout": CONNECT_SECONDS}
    return sa.create_engine(f"postgresql+psycopg://{rest}", pool_pre_ping=True, connect_args=waiting)


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Turn what the server or its driver raises into errors that a user can act on."""
    try:
        yield
    except exc.DataError as error:  # numbers beyond float64
        raise ArgumentError(f"where makes numbers that PostgreSQL cannot hold: {_first_line(error)}.") from error
    except (exc.OperationalError, exc.ProgrammingError, exc.InternalError) as error:
        raise StorageError(
            f"The vectors in {cards.without_password(url)} cannot be used: {_first_line(error)}. Is the server up, "
            f"with the extension pgvector, and the password in {cards.VARIABLE} or PGPASSWORD?"
        ) from error


def prepare(connection: sa.Connection) -> None:
    """Make what every collection needs, unless it is there."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK, 0)))
    connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
    COLLECTIONS.create(connection, checkfirst=True)


def lock(connection: sa.Connection, collection: str) -> None:
    """Let nobody else change a collection until the transaction ends."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK, sa.func.hashtext(collection))))


def insert_rows(connection: sa.Connection, name: str, vectors: np.ndarray, rows: pd.DataFrame, start: int) -> None:
    """Write vectors (N, dim) and their rows, numbered from `start`."""
    lines = zip(rows["image_id"], stored.records(rows), chain.from_iterable(blocks(vectors)), strict=True)
    names = "position, image_id, removed, data, embedding"
    with (
        connection.connection.driver_connection.cursor() as cursor,
        cursor.copy(f'COPY "{name}" ({names}) FROM STDIN') as copy,
    ):
        for position, (image_id, record, vector) in enumerate(lines, start):
            copy.write_row((position, image_id, False, Jsonb(record), HalfVector(vector).to_text()))


def _first_line(error: exc.DBAPIError) -> str:
    return str(error.orig).strip().split("\n")[0].rstrip(".")
