"""Connections, errors and points of vectors in Qdrant; see `qdrant`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, StorageError, needing
from rectrio_lib.index.servers import cards
from rectrio_lib.index.servers import rows as stored
from rectrio_lib.index.where.payloads import ROW, models

with needing("Qdrant", "qdrant"):
    from qdrant_client import QdrantClient
    from qdrant_client.http.exceptions import ApiException

BATCH = 1000  # points that are written or read at once
LOCAL = "qdrant:"  # with a path, or ":memory:": the imitation of the client, without a server
SCHEMAS = {"text": "keyword", "list": "keyword", "number": "float", "bool": "bool", "date": "datetime"}


def client(url: str) -> QdrantClient:
    """Return the client of an address; of one without a server always the same, for it locks its folder."""
    if url.startswith(LOCAL):
        return _local_client(url.removeprefix(LOCAL))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ArgumentError(f"{cards.without_password(url)} is no address of Qdrant, such as http://localhost:6333.")
    key = unquote(parts.password or parts.username or "") or os.environ.get("QDRANT_API_KEY")
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return QdrantClient(url=address, api_key=key, check_compatibility=False)


@lru_cache
def _local_client(path: str) -> QdrantClient:
    return QdrantClient(path) if path == ":memory:" else QdrantClient(path=path)


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Turn what the client raises into errors that a user can act on."""
    try:
        yield
    except ApiException as error:
        problem = str(error).strip().split("\n")[0]
        address = cards.without_password(url)
        raise StorageError(f"The vectors in {address} cannot be used: {problem}. Is the server up?") from error


def index_payloads(here: QdrantClient, url: str, collection: str, kinds: Mapping[str, str]) -> None:
    """Let a server find points by their metadata."""
    if url.startswith(LOCAL):
        return
    for name, kind in kinds.items():
        if name.isascii() and name.isidentifier():
            here.create_payload_index(collection, f"{ROW}.{name}", field_schema=SCHEMAS[kind])
    here.create_payload_index(collection, "removed", field_schema="bool")


def upsert(here: QdrantClient, collection: str, vectors: np.ndarray, rows: pd.DataFrame, start: int) -> None:
    """Write vectors (N, dim) and their rows, numbered from `start`."""
    records = stored.records(rows)
    for at in range(0, len(rows), BATCH):
        part = slice(at, at + BATCH)
        points = [
            models.PointStruct(id=start + at + i, vector=vector.tolist(), payload={ROW: record, "removed": False})
            for i, (vector, record) in enumerate(zip(vectors[part], records[part], strict=True))
        ]
        here.upsert(collection, points, wait=True)


def scrolled(
    here: QdrantClient, collection: str, offset: int | None, wanted: models.Filter | None, payload: list[str] | bool
) -> Iterator[models.Record]:
    """Read the points from a position on, in their order, that a filter lets through."""
    while offset is not None:
        points, offset = here.scroll(collection, wanted, limit=BATCH, offset=offset, with_payload=payload)
        yield from points


def publish(here: QdrantClient, name: str, alias: str) -> None:
    """Let an alias stand for a new collection, and delete the one that it stood for."""
    old = [found.collection_name for found in here.get_aliases().aliases if found.alias_name == alias]
    created = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))
    deleted = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
    here.update_collection_aliases([deleted, created] if old else [created])
    for unused in old:
        here.delete_collection(unused)
