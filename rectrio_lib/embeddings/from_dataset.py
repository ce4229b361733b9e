"""Vectors of a prepared data set; an image is never embedded twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.files import save_table, write_json
from rectrio_lib.data.dataset import ImageDataset
from rectrio_lib.embeddings import store
from rectrio_lib.embeddings.embed import BATCH, Batches, Report, fill, finish, new_card
from rectrio_lib.embeddings.store import SHARD_ROWS, EmbeddingStore, open_store
from rectrio_lib.embeddings.writer import Writer, drop_rows, kept_rows, writing
from rectrio_lib.encoders.base import Encoder


def build_store(
    encoder: Encoder, encoder_name: str, dataset: ImageDataset, dtype: str = "float16", shard_rows: int = SHARD_ROWS
) -> tuple[EmbeddingStore, Report]:
    """Embed every picture of a data set that is not embedded yet.

    Killed at any moment, the next call goes on with the first picture that is missing. New pictures are appended;
    pictures that left the data set are dropped. A store made by another encoder or in another dtype is made anew.

    Args:
        encoder: what turns pictures into vectors.
        encoder_name: its name below outputs/encoders/.
        dataset: what to embed.
        dtype: "float16" or "float32" on disk.
        shard_rows: vectors a file.

    Returns:
        The store, and what this call did.

    Raises:
        ValueError: if dtype is neither of the two, or the pictures do not fit the encoder.
        stores.StoreInUse: if another process is writing the store.
    """
    card = new_card(encoder, encoder_name, dataset.name, dtype) | {"folder": "", "stand_in": dataset.stand_in}
    card |= {"dataset_hash": dataset.hash, "count": len(dataset)}
    home, report = store.store_folder(encoder_name, dataset.name), Report(len(dataset))
    with writing(home):
        writer = Writer(home, _dataset_rows(home, card, dataset, shard_rows), dtype, shard_rows)
        missing = dataset.manifest[~dataset.manifest["image_id"].isin(writer.rows["image_id"])]
        if len(missing):
            write_json(home / "card.json", card | {"finished": False})
        fill(encoder, writer, _slices(dataset, missing, shard_rows), report, len(missing))
        finish(writer, writer.rows, card)
    return open_store(encoder_name, dataset.name), report


def _dataset_rows(home: Path, card: dict, dataset: ImageDataset, shard_rows: int) -> pd.DataFrame:
    """Rows of the store that still hold for this encoder and data set."""
    kept = kept_rows(home, card)
    if kept is None:
        return dataset.manifest.iloc[:0].assign(shard=np.empty(0, np.int64))
    gone = ~kept["image_id"].isin(dataset.manifest["image_id"]).to_numpy()
    if gone.any():
        kept = drop_rows(home, kept, gone, shard_rows)
    now = dataset.manifest.set_index("image_id").loc[kept["image_id"]].reset_index()  # labels and splits may be new
    rows = now[dataset.manifest.columns].assign(shard=kept["shard"].to_numpy())
    if not rows.equals(kept):
        save_table(home / "rows.parquet", rows)
    return rows


def _slices(dataset: ImageDataset, missing: pd.DataFrame, shard_rows: int) -> Batches:
    step = min(BATCH, shard_rows)
    for start in range(0, len(missing), step):
        part = missing.iloc[start : start + step]
        yield part, torch.from_numpy(dataset.pixels[part["row"].to_numpy()])
