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

from rectrio_lib.core.errors import ArgumentError, StorageError, StoreInUseError
from rectrio_lib.core.files import renamed, replaced_folder, restore_folder, save_table
from rectrio_lib.core.workspace import Card, read_card
from rectrio_lib.data.places.place import is_another
from rectrio_lib.embeddings.store import SHARD_ROWS, EmbeddingStore, read_rows, read_store_card, shard_name


class Writer:
    """Appends vectors to a store, which holds `rows`, with `shard`, already; `after` is called after each shard.

    A shard is committed when rows.parquet lists it (written last); a killed process leaves no partial shard.
    """

    def __init__(
        self, folder: Path, rows: pd.DataFrame, dtype: str, shard_rows: int, after: Callable[[], None] | None = None
    ):
        self.folder, self.rows, self.dtype, self.shard_rows = folder, rows, dtype, shard_rows
        self.after = after or (lambda: None)
        self._rows, self._vectors, self._waiting = [], [], 0
        folder.mkdir(parents=True, exist_ok=True)

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
        shard = int(self.rows["shard"].max()) + 1 if len(self.rows) else 0
        with renamed(self.folder / shard_name(shard)) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate(self._vectors))
        fresh = pd.concat(self._rows, ignore_index=True).assign(shard=shard)
        self.rows = pd.concat([self.rows, fresh], ignore_index=True) if len(self.rows) else fresh
        self._rows, self._vectors, self._waiting = [], [], 0
        save_table(self.folder / "rows.parquet", self.rows)
        self.after()


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
    if not ((folder / "card.json").exists() and (folder / "rows.parquet").exists()):
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
    return read_rows(folder, old)


def drop_rows(folder: Path, rows: pd.DataFrame, gone: np.ndarray, shard_rows: int = SHARD_ROWS) -> pd.DataFrame:
    """Rewrite a store without the vectors that are `gone`, bool (N,), joining small shards; return the rows left."""
    card = read_card(folder / "card.json")
    old = EmbeddingStore(folder, rows.assign(deleted=gone), card)
    with replaced_folder(folder) as fresh:
        for name in ("card.json", "files.parquet"):
            if (folder / name).exists():
                shutil.copy(folder / name, fresh)
        writer = Writer(fresh, rows.iloc[:0], card["dtype"], shard_rows)
        _copy_rows(old, writer, {"deleted": False} if "deleted" in rows else {})
        save_table(fresh / "rows.parquet", kept := writer.rows[rows.columns])
    return kept


def _copy_rows(store: EmbeddingStore, writer: Writer, more: dict[str, Any]) -> None:
    # A function of its own: Windows renames no folder while a shard of it is still mapped by a variable.
    for vectors, rows in store.blocks():
        writer.add(rows.assign(**more), vectors)
    writer.flush()
