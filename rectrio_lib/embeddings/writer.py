"""Writing an embedding store, shard by shard, by one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from rectrio_lib.core.errors import ArgumentError, DataError, StorageError, StoreInUseError
from rectrio_lib.core.files import renamed, replaced_folder, restore_folder
from rectrio_lib.core.workspace import Card, read_card
from rectrio_lib.data.places.place import is_another
from rectrio_lib.embeddings import parts
from rectrio_lib.embeddings.journal import JOURNAL, Journal
from rectrio_lib.embeddings.store import (
    FILES,
    ROWS,
    SHARD_ROWS,
    EmbeddingStore,
    check_shard,
    read_rows,
    read_store_card,
    shard_name,
)


class Writer:
    """Appends vectors to a store, which holds the rows `before`, with `shard`; `after` each shard its number is told.

    Until it is written, the `journal` holds what is embedded; `close` also writes what earlier calls left there.
    A shard is committed by a table of its rows, rows-00000.parquet, which is written last: a killed process leaves no
    partial shard, and each costs the same however many there are. `_finish` in `embed` makes one table of them.
    """

    def __init__(
        self,
        folder: Path,
        before: pd.DataFrame,
        dtype: str,
        shard_rows: int,
        after: Callable[[int], None] | None = None,
    ):
        self.folder, self.before, self.dtype, self.shard_rows, self.after = folder, before, dtype, shard_rows, after
        self.journal = Journal(folder, dtype, before)
        self._first = self._next = int(before["shard"].max()) + 1 if len(before) else 0
        self._rows, self._vectors, self._waiting = [], [], 0

    def add(self, rows: pd.DataFrame, vectors: np.ndarray) -> None:
        """Take vectors (M, dim) and their M rows; write each shard that is full."""
        while len(rows):
            room = self.shard_rows - self._waiting
            self._rows.append(rows.iloc[:room])
            self._vectors.append(np.array(vectors[:room], self.dtype))  # copied: the array may be used again
            self._waiting += len(self._rows[-1])
            rows, vectors = rows.iloc[room:], vectors[room:]
            if self._waiting == self.shard_rows:
                self.flush()

    def flush(self) -> None:
        """Write what was taken and is not on disk yet."""
        if not self._waiting:
            return
        shard, self._next = self._next, self._next + 1
        with renamed(self.folder / shard_name(shard)) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate(self._vectors))
        rows = pd.concat(self._rows, ignore_index=True).assign(shard=shard)
        parts.add(self.folder / ROWS, shard, rows)
        self._rows, self._vectors, self._waiting = [], [], 0
        if self.after:
            self.after(shard)
        self.journal.forget(rows["image_id"])

    def close(self) -> None:
        """Write all that is in no shard yet; the journal goes."""
        self.add(self.journal.rows, self.journal.vectors)
        self.flush()
        shutil.rmtree(self.folder / JOURNAL, ignore_errors=True)

    def rows(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Read the rows of all shards, those before and those written; if any was, only some columns, where given."""
        written = parts.parts_of(self.folder / ROWS).items()
        fresh = [parts.read(path, "embedded", columns) for number, path in written if number >= self._first]
        return parts.joined([self.before[columns] if fresh and columns else self.before, *fresh])


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a store; a process that dies lets go of it.

    Raises:
        StoreInUseError: if another process is writing it.
        StorageError: if nothing can be written there.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))  # beside it: `files.replaced_folder` renames the folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreInUseError(f"{folder} is being written by another process: call again when it has ended.") from error
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error}): make it writable or set RECTRIO_OUTPUTS.") from error
    try:
        restore_folder(folder)
        for left in folder.glob("*.part"):  # by a killed process: nobody else writes while the lock is held
            left.unlink()
        yield
    finally:
        lock.release()


def kept_rows(folder: Path, card: Card) -> pd.DataFrame | None:
    """Return the rows that a store holds; None, and the folder is deleted, if another encoder or dtype made them.

    Raises:
        ArgumentError: if they belong to a data set or to a folder of images elsewhere that is still there.
        DataError: if they are damaged.
    """
    if not (folder / "card.json").exists() or _is_empty(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    old = read_store_card(folder)
    then = old["folder"]
    if is_another(then, card["folder"]):
        owner = f"the images in {then}" if then else f"the data set {old['dataset']}"
        raise ArgumentError(f"{folder} holds the vectors of {owner}: give these images another name.")
    if any(old[key] != card[key] for key in ("encoder_hash", "dim", "dtype")):
        shutil.rmtree(folder)
        return None
    if old["finished"]:
        shutil.rmtree(folder / JOURNAL, ignore_errors=True)  # older versions, which may have finished it, leave it
    else:
        _drop_torn(folder, old)
        if _is_empty(folder):
            shutil.rmtree(folder)
            return None
    return read_rows(folder, old) if any(folder.glob("rows*.parquet")) else None


def _is_empty(folder: Path) -> bool:
    return not any(folder.glob("rows*.parquet")) and not (folder / JOURNAL).exists()


def _drop_torn(folder: Path, card: Card) -> None:
    """Forget the last tables whose content, or whose shard, a power cut took: not every disk keeps what it promised."""
    for path in (folder / ROWS, folder / FILES):
        for number, part in reversed(parts.parts_of(path).items()):
            try:
                count = len(parts.read(part, "embedded"))
                if path.name == ROWS:
                    check_shard(folder / shard_name(number), (count, card["dim"]), card["dtype"])
                break
            except DataError:
                part.unlink()


def drop_rows(folder: Path, rows: pd.DataFrame, gone: np.ndarray, shard_rows: int = SHARD_ROWS) -> pd.DataFrame:
    """Rewrite a store without the vectors that are `gone`, bool (N,), joining small shards; return the rows left."""
    card = read_card(folder / "card.json")
    old = EmbeddingStore(folder, rows.assign(deleted=gone), card)
    with replaced_folder(folder) as fresh:
        for kept in (folder / "card.json", *folder.glob("files*.parquet")):
            shutil.copy(kept, fresh)
        writer = Writer(fresh, rows.iloc[:0], card["dtype"], shard_rows)
        _copy_rows(old, writer, {"deleted": False} if "deleted" in rows else {})
        parts.join(fresh / ROWS, left := writer.rows()[rows.columns])
    return left


def _copy_rows(store: EmbeddingStore, writer: Writer, more: dict[str, Any]) -> None:
    # A function of its own: Windows renames no folder while a shard of it is still mapped by a variable.
    for vectors, rows in store.blocks():
        writer.add(rows.assign(**more), vectors)
    writer.flush()
