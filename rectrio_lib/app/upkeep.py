"""What a service does between requests: it follows other processes, and finishes what was left for later."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from rectrio_lib.app.generation import Generation
from rectrio_lib.app.images import colours
from rectrio_lib.core.errors import DataError, RectrioError, StoreInUseError
from rectrio_lib.embeddings.writer import writing
from rectrio_lib.index.index import Index

if TYPE_CHECKING:
    import pandas as pd

    from rectrio_lib.app.service import Service

LOG = logging.getLogger(__name__)
POLL_SECONDS = 1  # until another process's changes are seen
LONGEST_SECONDS = 3600  # between tries to build an index that fail, each twice as long after the one before
COLOURED, COLOUR_SIDE = 64, 64  # images whose colours are found between two looks at the database, and their size
ENCODED = 32  # stale uploads that are encoded again at once


async def keep_up(service: Service) -> None:
    """Look after other processes, full tails and stale vectors, and colours while nobody asks, until cancelled."""
    asked, pause, again = 0, POLL_SECONDS, 0.0
    while True:
        await asyncio.sleep(POLL_SECONDS)
        idle, asked = service.asked == asked, service.asked
        try:
            if await asyncio.to_thread(service.rebuilt_elsewhere):
                await service.reload()
                again = 0.0
            await service.catch_up()
            if service.now.live.tail_is_full and time.monotonic() >= again:
                pause = min(2 * pause, LONGEST_SECONDS)
                try:
                    await service.reindex()
                    pause = POLL_SECONDS
                finally:
                    again = time.monotonic() + pause
            if service.now.stale:
                await asyncio.to_thread(encode_again, service.now)
            if idle:
                await asyncio.to_thread(find_colours, service.now)
        except (RectrioError, SQLAlchemyError, OSError) as error:
            LOG.warning("Not up to date with the database or the index: %s", error)
        except Exception:  # a bug, which should not end the work of all days to come
            LOG.exception("Not up to date with the database or the index.")


def encode_again(now: Generation) -> None:
    """Encode uploads of an older encoder with the present one."""
    rows = list(now.stale.values())[:ENCODED]
    wanted, vectors = now.encoder.preprocessing, {}
    for row in rows:
        record = {"image_id": row.image_id, "path": row.path, "uploaded": row.uploaded}
        with suppress(RectrioError):
            pixels = now.pictures.pixels(record, wanted["size"], wanted["channels"])
            vectors[row.image_id] = now.encoder.encode(pixels[None])[0].astype(np.float16)
    for row in rows:
        if row.image_id not in vectors:
            LOG.warning("The upload %s cannot be read any more, so that it is not found.", row.image_id)
            now.stale.pop(row.image_id)
    if vectors:
        now.catalogue.set_vectors(vectors, now.collection.index.encoder_hash)


def _as_built(rows: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """Write tags as one text, "red; summer", where the index has them so, as from metadata.csv."""
    listed = "tags" not in before or before["tags"].map(lambda tags: isinstance(tags, list)).any()
    return rows if listed else rows.assign(tags=rows["tags"].map("; ".join, na_action="ignore"))


def find_colours(now: Generation) -> None:
    """Find the dominant colours of some images that have none yet."""
    snapshot = now.live.current
    lacking = np.flatnonzero(snapshot.rows["colour"].isna().to_numpy() & ~snapshot.removed)[:COLOURED]
    found = {}
    for record in snapshot.records(lacking.tolist()):
        try:
            found[record["image_id"]] = colours.dominant(now.pictures.pixels(record, COLOUR_SIDE))
        except RectrioError:
            found[record["image_id"]] = ""
    if found:
        now.catalogue.set_colours(found)


def reindex(now: Generation) -> None:
    """Build and save an index of all images of a generation that are not removed, with the metadata of its rows.

    Raises:
        DataError: if there are none.
        StoreInUseError: if another process is changing the collection, or has given it another encoder.
    """
    folder = now.collection.workspace.path("indexes", now.collection.name)
    with writing(folder):
        there = now.collection.workspace.cards("indexes").get(folder.name, {}).get("encoder_hash")
        if there not in (None, now.collection.index.encoder_hash):
            raise StoreInUseError(f"{folder} has another encoder by now: open it again.")
        _reindex(now)


def _reindex(now: Generation) -> None:
    snapshot, index = now.live.current, now.collection.index
    kept = np.flatnonzero(~snapshot.removed)
    if not len(kept):
        raise DataError("The collection holds no image any more, and an index of none cannot be built.")
    if not isinstance(index, Index):  # a server, which takes what is new as it is
        size = len(snapshot.main_rows)
        gone = snapshot.removed[:size] & ~index.removed[:size]
        index.remove(snapshot.rows["image_id"][:size][gone])
        fresh = kept[kept >= size]
        index.add(snapshot.vectors_at(fresh), _as_built(now.rows_at(fresh), index.rows))
        index.save(now.collection.name, now.collection.workspace)
        return
    now.rebuild(kept, snapshot.mapped(kept), index.encoder_hash, index.made_from)
