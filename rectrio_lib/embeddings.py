"""The embedding store: vectors of a data set on disk, in shards, never computed twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib import resources
from rectrio_lib.datasets import ImageDataset
from rectrio_lib.encoders import Encoder, fingerprint

SHARD_ROWS = 16_384
MADE_BY = "04_build_embeddings"


@dataclass(frozen=True)
class EmbeddingStore:
    """Vectors and, in the same order, what is known of their pictures.

    Attributes:
        folder: holds vectors-*.npy, rows.parquet and card.json.
        rows: one row a vector: the manifest's columns, and `shard`.
        card: encoder and its hash, data set and its hash, count, dim, dtype, normalised, stand_in.
    """

    folder: Path
    rows: pd.DataFrame
    card: dict

    def __len__(self) -> int:
        return len(self.rows)

    def vectors(self, *splits: str) -> np.ndarray:
        """Return the vectors float32 (N, dim), of all pictures or of the given splits, in the order of `select`."""
        shards = [np.load(self.folder / _shard_name(i), mmap_mode="r") for i in sorted(self.rows["shard"].unique())]
        if not shards:
            return np.empty((0, self.card["dim"]), np.float32)
        wanted = self.rows["split"].isin(splits or self.rows["split"].unique()).to_numpy()
        ends = np.cumsum([len(shard) for shard in shards])
        parts = [s[wanted[e - len(s) : e]] for s, e in zip(shards, ends, strict=True)]
        return np.concatenate(parts).astype(np.float32)

    def select(self, *splits: str) -> pd.DataFrame:
        """Return the rows of the given splits, or all of them."""
        chosen = self.rows[self.rows["split"].isin(splits)] if splits else self.rows
        return chosen.drop(columns="shard").reset_index(drop=True)


def build_store(
    encoder: Encoder, encoder_name: str, dataset: ImageDataset, dtype: str = "float16", shard_rows: int = SHARD_ROWS
) -> tuple[EmbeddingStore, int]:
    """Embed every picture of a data set that is not embedded yet.

    A shard counts once rows.parquet, renamed into place after it, names it: killed at any moment, the next call goes
    on with the first picture that is missing. New pictures are appended; pictures that left the data set are dropped
    from the rows. A store made by another encoder or in another dtype is made anew.

    Args:
        encoder: what turns pictures into vectors.
        encoder_name: its name below outputs/encoders/.
        dataset: what to embed.
        dtype: "float16" or "float32" on disk.
        shard_rows: vectors a file.

    Returns:
        The store, and how many pictures this call embedded.

    Raises:
        ValueError: if dtype is neither of the two, or the pictures do not fit the encoder.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype={dtype!r}: choose float16 or float32.")
    folder = resources.outputs_root() / "embeddings" / f"{encoder_name}--{dataset.name}"
    card = {"encoder": encoder_name, "encoder_hash": fingerprint(encoder), "dim": encoder.dim, "dtype": dtype}
    card |= {"normalised": True, "dataset": dataset.name, "dataset_hash": dataset.hash, "count": len(dataset)}
    card |= {"stand_in": dataset.stand_in}
    resources.restore_folder(folder)
    rows = _open_rows(folder, card, dataset)
    resources.write_json(folder / "card.json", card)
    missing = dataset.manifest[~dataset.manifest["image_id"].isin(rows["image_id"])]
    first = int(rows["shard"].max()) + 1 if len(rows) else 0
    for number, start in enumerate(range(0, len(missing), shard_rows), start=first):
        part = missing.iloc[start : start + shard_rows]
        vectors = encoder.encode(dataset.pixels[part["row"].to_numpy()], progress=f"{encoder_name}, shard {number}")
        _save_array(folder / _shard_name(number), vectors.astype(dtype))
        rows = pd.concat([rows, part.assign(shard=number)], ignore_index=True)
        _save_rows(folder, rows)
    return open_store(encoder_name, dataset.name), len(missing)


def _open_rows(folder: Path, card: dict, dataset: ImageDataset) -> pd.DataFrame:
    """Rows of the store that still hold for this encoder and data set; an empty frame starts anew."""
    empty = dataset.manifest.iloc[:0].assign(shard=np.empty(0, np.int64))
    whole = (folder / "card.json").exists() and (folder / "rows.parquet").exists()
    old = json.loads((folder / "card.json").read_text(encoding="utf-8")) if whole else {}
    if any(old.get(key) != card[key] for key in ("encoder_hash", "dim", "dtype")):
        if folder.exists():
            shutil.rmtree(folder)
        return empty
    kept = pd.read_parquet(folder / "rows.parquet")
    gone = ~kept["image_id"].isin(dataset.manifest["image_id"])
    if gone.any():
        _drop_rows(folder, kept, gone.to_numpy())
        return _open_rows(folder, card, dataset)
    now = dataset.manifest.set_index("image_id").loc[kept["image_id"]].reset_index()  # labels and splits may be new
    rows = now[dataset.manifest.columns].assign(shard=kept["shard"].to_numpy())
    if not rows.equals(kept):
        _save_rows(folder, rows)
    return rows


def _drop_rows(folder: Path, rows: pd.DataFrame, gone: np.ndarray) -> None:
    """Rewrite the store without some rows."""
    with resources.replaced_folder(folder) as fresh:
        shutil.copy(folder / "card.json", fresh)
        renumbered = []
        for shard, members in rows.groupby("shard"):
            stay = ~gone[members.index]
            if stay.any():
                vectors = np.load(folder / _shard_name(shard), mmap_mode="r")[stay]
                _save_array(fresh / _shard_name(len(renumbered)), vectors)
                renumbered.append(members[stay].assign(shard=len(renumbered)))
        kept = pd.concat(renumbered, ignore_index=True) if renumbered else rows.iloc[:0]
        kept.to_parquet(fresh / "rows.parquet")


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
        path = folder / _shard_name(shard)
        if _count_vectors(path) != count:
            raise ValueError(f"{path} does not hold the {count:,} vectors that rows.parquet names: delete {folder}.")
    if len(rows) != card["count"]:
        raise ValueError(
            f"{folder} holds {len(rows):,} of {card['count']:,} vectors: run chapter {MADE_BY} to finish it."
        )
    return EmbeddingStore(folder, rows, card)


def _count_vectors(path: Path) -> int:
    """Return how many vectors a shard holds, 0 if it is missing or damaged."""
    try:
        return len(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return 0


def _shard_name(number: int) -> str:
    return f"vectors-{number:05d}.npy"


def _save_array(path: Path, array: np.ndarray) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def _save_rows(folder: Path, rows: pd.DataFrame) -> None:
    partial = folder / "rows.part"
    rows.to_parquet(partial)
    partial.replace(folder / "rows.parquet")
