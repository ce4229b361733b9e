"""Indexes by name or address, whatever stores their vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace, read_card
from rectrio_lib.index import storage
from rectrio_lib.index.base import VectorIndex
from rectrio_lib.index.index import Index
from rectrio_lib.index.large.shards import Shards
from rectrio_lib.index.servers import cards
from rectrio_lib.index.servers import rows as stored

SCHEMES = {"postgresql": "pgvector", "postgres": "pgvector", "postgresql+psycopg": "pgvector"}
SCHEMES |= {"http": "qdrant", "https": "qdrant", "qdrant": "qdrant"}


def open_index(name: str | Path, workspace: Workspace | None = None) -> VectorIndex:
    """Open what was saved under a name, or in the folder of a `Path`: vectors there, or on the server of its card.

    Raises:
        MissingArtefactError: if there is none of that name, or it is gone from the server.
        MissingPackageError: if the server needs an extra that is not installed.
        DataError: if its files are damaged, of another version, or do not belong together.
        StorageError: if the server cannot be reached.
    """
    folder = storage.folder_of(name, workspace)
    kind = read_card(folder / "card.json").get("kind")
    if kind == Shards.kind:
        return Shards.load(folder)
    return (_server(kind) if kind in SCHEMES.values() else Index).load(folder)


def server_kind(url: str) -> str:
    """Return the kind of index, pgvector or qdrant, that an address leads to; ArgumentError if none."""
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        expected = "postgresql://HOST/DATABASE or http://HOST:6333 (Qdrant)"
        raise ArgumentError(f"{cards.without_password(url)!r} is no address of vectors: expected {expected}.")
    return SCHEMES[scheme]


def build_on_server(
    url: str,
    collection: str,
    vectors: np.ndarray,
    rows: pd.DataFrame,
    encoder_hash: str,
    made_from: dict[str, Any] | None = None,
) -> VectorIndex:
    """Make a collection of unit vectors (N, dim) and their rows on a server, or replace it there; see `open_index`."""
    return _server(server_kind(url)).build(url, collection, vectors, rows, encoder_hash, made_from)


def holds_exactly(index: VectorIndex, rows: pd.DataFrame) -> bool:
    """Tell whether an index holds these rows, in their order, and no others; a server may have changed their types."""
    if isinstance(index, Index | Shards):
        return index.rows.equals(rows)
    written = stored.table(stored.records(rows), stored.columns_of(rows, {}))
    return not index.removed.any() and index.rows.equals(written)


def lies_at(index: VectorIndex, url: str) -> bool:
    """Tell whether the vectors of an index lie on the server of an address."""
    return cards.without_password(getattr(index, "url", "")) == cards.without_password(url)


def _server(kind: str) -> type[VectorIndex]:
    if kind == "pgvector":
        from rectrio_lib.index.servers.pgvector import PgvectorIndex

        return PgvectorIndex
    from rectrio_lib.index.servers.qdrant import QdrantIndex

    return QdrantIndex
