"""An embedding store on disk: read in blocks, written shard by shard by one process at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from rectrio_lib import resources

SHARD_ROWS = 16_384
MADE_BY = "04_build_embeddings"
OWN_COLUMNS = ["shard", "deleted"]


class StoreInUse(OSError):  # noqa: N818 - the name says what is wrong
    """Another process is writing the store."""


@dataclass(frozen=True)
class EmbeddingStore:
    """Vectors and, in the same order, what is known of their pictures.

    Attributes:
        folder: holds vectors-*.npy, rows.parquet and card.json; of a folder of pictures also files.parquet.
        rows: one row a vector: what is known of its picture, `shard`, and, in the store of a folder of pictures,
            `deleted`: its file is gone. Such rows are not counted, and neither `blocks` nor `vectors` nor `select`
            returns them.
        card: encoder and its hash, data set and its hash, folder of the pictures, count, dim, dtype, normalised,
            stand_in, finished.
    """

    folder: Path
    rows: pd.DataFrame
    card: dict

    def __len__(self) -> int:
        return int(np.count_nonzero(self._chosen(())))

    def blocks(self, *splits: str) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        """Yield a shard's vectors float16 or float32 (M, dim), mapped from disk, and its rows; see `select`."""
        chosen, start = self._chosen(splits), 0
        for shard, count in self.rows["shard"].value_counts().sort_index().items():
            part = slice(start, start := start + count)
            if (wanted := chosen[part]).any():
                vectors = np.load(self.folder / shard_name(shard), mmap_mode="r")
                yield vectors if wanted.all() else vectors[wanted], self._told(self.rows.iloc[part][wanted])

    def vectors(self, *splits: str) -> np.ndarray:
        """Return the vectors float32 (N, dim), of all pictures or of the given splits, in the order of `select`."""
        found, start = np.empty((np.count_nonzero(self._chosen(splits)), self.card["dim"]), np.float32), 0
        for block, _ in self.blocks(*splits):
            found[start : (start := start + len(block))] = block
        return found

    def select(self, *splits: str) -> pd.DataFrame:
        """Return the rows of the given splits, or all of them."""
        return self._told(self.rows[self._chosen(splits)])

    def files(self) -> pd.DataFrame:
        """Return one row a file of the folder of pictures: path, size, mtime_ns, image_id, reason.

        Files that are equal to the byte share an image_id, and so a vector. A file with a `reason` is left out.
        """
        return pd.read_parquet(self.folder / "files.parquet")

    def _chosen(self, splits: tuple[str, ...]) -> np.ndarray:
        chosen = self.rows["split"].isin(splits).to_numpy() if splits else np.ones(len(self.rows), bool)
        return chosen & ~self.rows["deleted"].to_numpy(bool) if "deleted" in self.rows else chosen

    def _told(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.drop(columns=OWN_COLUMNS, errors="ignore").reset_index(drop=True)


class Writer:
    """Appends vectors to a store.

    A shard counts once rows.parquet, renamed into place after it, names it: whoever is killed leaves whole shards.

    Args:
        folder: of the store; made if need be.
        rows: what it holds already, with `shard`.
        dtype: "float16" or "float32" on disk.
        shard_rows: vectors a file.
        after: called after each shard.
    """

    def __init__(
        self,
        folder: Path,
        rows: pd.DataFrame,
        dtype: str,
        shard_rows: int = SHARD_ROWS,
        after: Callable[[], None] = lambda: None,
    ):
        self.folder, self.rows, self.dtype, self.shard_rows, self.after = folder, rows, dtype, shard_rows, after
        self._rows, self._vectors, self._waiting = [], [], 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, rows: pd.DataFrame, vectors: np.ndarray) -> None:
        """Take vectors (M, dim) and their M rows; write each shard that is full."""
        while len(rows):
            room = self.shard_rows - self._waiting
            self._rows.append(rows.iloc[:room])
            self._vectors.append(vectors[:room].astype(self.dtype, copy=False))
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


def home_of(encoder_name: str, name: str) -> Path:
    """Return where the store of an encoder and a data set lies."""
    return resources.outputs_root() / "embeddings" / f"{encoder_name}--{name}"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a store; a process that dies lets go of it.

    Raises:
        StoreInUse: if another process is writing it.
        OSError: if nothing can be written there.
    """
    lock = FileLock(
        folder.with_name(f"{folder.name}.lock")
    )  # beside it: `resources.replaced_folder` renames the folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreInUse(f"{folder} is being written by another process: call again when that has ended.") from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error}): make it writable or set RECTRIO_OUTPUTS.") from error
    try:
        resources.restore_folder(folder)
        yield
    finally:
        lock.release()


def kept_rows(folder: Path, card: dict[str, Any]) -> pd.DataFrame | None:
    """Return the rows that a store holds; None, and the folder is deleted, if another encoder or dtype made them.

    Raises:
        ValueError: if they belong to a data set or to a folder of pictures elsewhere that is still there.
    """
    whole = (folder / "card.json").exists() and (folder / "rows.parquet").exists()
    old = json.loads((folder / "card.json").read_text(encoding="utf-8")) if whole else {}
    then = old.get("folder", "")
    if whole and then != card["folder"] and (not then or Path(then).is_dir()):
        owner = f"the pictures in {then}" if then else f"the data set {old['dataset']}"
        raise ValueError(f"{folder} holds the vectors of {owner}: give these pictures another name.")
    if any(old.get(key) != card[key] for key in ("encoder_hash", "dim", "dtype")):
        if folder.exists():
            shutil.rmtree(folder)
        return None
    return pd.read_parquet(folder / "rows.parquet")


def drop_rows(folder: Path, rows: pd.DataFrame, gone: np.ndarray, shard_rows: int = SHARD_ROWS) -> pd.DataFrame:
    """Rewrite a store without some of its vectors, shard by shard, joining small shards.

    Args:
        folder: of the store.
        rows: of all its vectors.
        gone: which to drop, bool (N,).
        shard_rows: vectors a file.

    Returns:
        The rows that are left.
    """
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    old = EmbeddingStore(folder, rows.assign(deleted=gone), card)
    with resources.replaced_folder(folder) as fresh:
        for name in ("card.json", "files.parquet"):
            if (folder / name).exists():
                shutil.copy(folder / name, fresh)
        writer = Writer(fresh, rows.iloc[:0], card["dtype"], shard_rows)
        _copy(old, writer, {"deleted": False} if "deleted" in rows else {})
        save_table(fresh / "rows.parquet", kept := writer.rows[rows.columns])
    return kept


def _copy(store: EmbeddingStore, writer: Writer, more: dict[str, Any]) -> None:
    # A function of its own: Windows renames no folder while a shard of it is still mapped by a variable.
    for vectors, rows in store.blocks():
        writer.add(rows.assign(**more), vectors)
    writer.flush()


def open_store(encoder_name: str, dataset_name: str) -> EmbeddingStore:
    """Open a store for reading.

    Raises:
        resources.MissingArtefact: if chapter 04 has not made it.
        ValueError: if the build was stopped half way, or a shard is missing or of another length than the rows say.
    """
    folder = resources.artefact(f"embeddings/{encoder_name}--{dataset_name}", MADE_BY)
    rows = pd.read_parquet(resources.artefact(f"embeddings/{folder.name}/rows.parquet", MADE_BY))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    for shard, count in rows["shard"].value_counts().items():
        path = folder / shard_name(shard)
        if _count_vectors(path) != count:
            raise ValueError(f"{path} does not hold the {count:,} vectors that rows.parquet names: delete {folder}.")
    store = EmbeddingStore(folder, rows, card)
    if not card.get("finished") or len(store) != card["count"]:
        raise ValueError(
            f"{folder} was stopped half way, it holds {len(store):,} vectors: embed the pictures again to finish it "
            f"(chapter {MADE_BY})."
        )
    return store


def _count_vectors(path: Path) -> int:
    """Return how many vectors a shard holds, 0 if it is missing or damaged."""
    try:
        return len(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return 0


def shard_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"vectors-{number:05d}.npy"


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    with renamed(path) as partial:
        table.to_parquet(partial, index=False)


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Yield a temporary name, and rename it when the block ends without an error.

    Raises:
        OSError: if the file cannot be written; what was there stays.
    """
    partial = path.with_suffix(".part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}). What was embedded before is kept: make room, or make it writable, "
            "and call again."
        ) from error
