"""An embedding store on disk: read in blocks, written shard by shard by one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.core.workspace import Workspace

SHARD_ROWS = 16_384
MADE_BY = "04_build_embeddings"
OWN_COLUMNS = ["shard", "deleted"]


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


def store_folder(encoder_name: str, name: str) -> Path:
    """Return where the store of an encoder and a data set lies."""
    return Workspace().outputs / "embeddings" / f"{encoder_name}--{name}"


def open_store(encoder_name: str, dataset_name: str) -> EmbeddingStore:
    """Open a store for reading.

    Raises:
        resources.MissingArtefact: if chapter 04 has not made it.
        ValueError: if the build was stopped half way, or a shard is missing or of another length than the rows say.
    """
    folder = Workspace().require("embeddings", f"{encoder_name}--{dataset_name}", "rectrio run --only 04")
    try:
        rows = pd.read_parquet(folder / "rows.parquet")
    except OSError as error:
        raise DataError(
            f"{folder} was stopped before its first shard, or is damaged: embed the images again."
        ) from error
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    for shard, count in rows["shard"].value_counts().items():
        path = folder / shard_name(shard)
        if _count_vectors(path) != count:
            raise ArgumentError(f"{path} does not hold the {count:,} vectors that rows.parquet names: delete {folder}.")
    store = EmbeddingStore(folder, rows, card)
    if not card.get("finished") or len(store) != card["count"]:
        raise ArgumentError(
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


def vectors_of(store: EmbeddingStore, image_ids: Sequence[str]) -> np.ndarray:
    """Return the vectors of some pictures, float32 (N, dim), in their order; the store is read a shard at a time."""
    wanted = pd.Index(image_ids)
    found = np.empty((len(wanted), store.card["dim"]), np.float32)
    for block, rows in store.blocks():
        places = wanted.get_indexer(rows["image_id"])
        found[places[places >= 0]] = block[places >= 0]
    return found
