"""Vectors of pictures, never computed twice: a reader, the encoder and a writer, each timed; here of a data set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from rectrio_lib import resources, stores
from rectrio_lib.datasets import ImageDataset
from rectrio_lib.encoders import fingerprint
from rectrio_lib.networks import Encoder, autocast, best_device
from rectrio_lib.stores import SHARD_ROWS, EmbeddingStore, Writer, open_store

BATCH = 128  # pictures handed to the encoder at once
STAGES = ("listing", "reading", "encoding", "writing")
Batches = Iterator[tuple[pd.DataFrame, torch.Tensor]]


@dataclass
class Report:
    """What a call found, and how long each stage took; printed, one line.

    Attributes:
        files: how many there are; the other counts are of these.
        embedded: new contents.
        copies: equal to the byte to a file before them.
        bad: could not be read.
        deleted: rows whose files are gone, still in the store.
        seconds: by stage; "reading" is what the encoder waited for pictures, which are decoded while it works.
        ledger: files left out or joined with another one (picture, reason).
    """

    files: int = 0
    embedded: int = 0
    copies: int = 0
    bad: int = 0
    deleted: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    ledger: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["picture", "reason"]), repr=False)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    @property
    def timings(self) -> dict[str, Any]:
        """Pictures per second, share of each stage, and the stage that limits."""
        total = sum(self.seconds.values())
        shares = {stage: seconds / total if total else 0.0 for stage, seconds in self.seconds.items()}
        rate = self.embedded / total if total else 0.0
        return {"pictures_per_second": rate, **shares, "limit": max(shares, key=shares.get)}

    def __str__(self) -> str:
        timings = self.timings
        shares = ", ".join(f"{stage} {timings[stage]:.0%}" for stage in self.seconds)
        return (
            f"{self.embedded:,} of {self.files:,} embedded in {sum(self.seconds.values()):.1f} s, "
            f"{timings['pictures_per_second']:.1f} a second ({shares}: {timings['limit']} limits); "
            f"{self.copies:,} copies, {self.bad:,} unreadable, {self.deleted:,} deleted"
        )


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
    home, report = stores.home_of(encoder_name, dataset.name), Report(len(dataset))
    with stores.writing(home):
        writer = Writer(home, _dataset_rows(home, card, dataset, shard_rows), dtype, shard_rows)
        missing = dataset.manifest[~dataset.manifest["image_id"].isin(writer.rows["image_id"])]
        if len(missing):
            resources.write_json(home / "card.json", card | {"finished": False})
        fill(encoder, writer, _slices(dataset, missing, shard_rows), report, len(missing))
        finish(writer, writer.rows, card)
    return open_store(encoder_name, dataset.name), report


def _dataset_rows(home: Path, card: dict, dataset: ImageDataset, shard_rows: int) -> pd.DataFrame:
    """Rows of the store that still hold for this encoder and data set."""
    kept = stores.kept_rows(home, card)
    if kept is None:
        return dataset.manifest.iloc[:0].assign(shard=np.empty(0, np.int64))
    gone = ~kept["image_id"].isin(dataset.manifest["image_id"]).to_numpy()
    if gone.any():
        kept = stores.drop_rows(home, kept, gone, shard_rows)
    now = dataset.manifest.set_index("image_id").loc[kept["image_id"]].reset_index()  # labels and splits may be new
    rows = now[dataset.manifest.columns].assign(shard=kept["shard"].to_numpy())
    if not rows.equals(kept):
        stores.save_table(home / "rows.parquet", rows)
    return rows


def _slices(dataset: ImageDataset, missing: pd.DataFrame, shard_rows: int) -> Batches:
    step = min(BATCH, shard_rows)
    for start in range(0, len(missing), step):
        part = missing.iloc[start : start + step]
        yield part, torch.from_numpy(dataset.pixels[part["row"].to_numpy()])


def fill(encoder: Encoder, writer: Writer, batches: Batches, report: Report, total: int) -> None:
    """Take pictures from a reader through the encoder to the writer, each timed, until all are on disk.

    Args:
        encoder: what turns pictures into vectors.
        writer: of the store.
        batches: the reader: B rows and their pictures uint8 (B, C, H, W), in memory only until the next are asked for.
        report: what is counted and timed.
        total: pictures to expect at most, for the progress bar.
    """
    caption, cast = f"embed {writer.folder.name}", autocast(best_device())
    # Around all batches, autocast keeps the weights that it has cast; in `encode` it would forget them after each.
    with cast, tqdm(total=total, desc=caption, disable=resources.quiet() or not total, unit="picture") as bar:
        while True:
            with report.timed("reading"):
                rows, images = next(batches, (None, None))
            if rows is None:
                break
            with report.timed("encoding"):
                vectors = encoder.encode(images)
            with report.timed("writing"):
                writer.add(rows, vectors)
            report.embedded += len(rows)
            bar.update(len(rows))
    with report.timed("writing"):
        writer.flush()


def new_card(encoder: Encoder, encoder_name: str, name: str, dtype: str) -> dict[str, Any]:
    """Say which encoder makes the vectors of what, and how they are kept.

    Raises:
        ValueError: if dtype is neither float16 nor float32.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype={dtype!r}: choose float16 or float32.")
    card = {"encoder": encoder_name, "encoder_hash": fingerprint(encoder), "dim": encoder.dim, "dtype": dtype}
    return card | {"normalised": True, "dataset": name}


def finish(writer: Writer, rows: pd.DataFrame, card: dict[str, Any]) -> None:
    """Write the rows if they are other than the writer's, and then the card, which says that the store is whole."""
    path = writer.folder / "rows.parquet"
    if not path.exists() or not rows.equals(writer.rows):
        stores.save_table(path, rows)
    resources.write_json(writer.folder / "card.json", card | {"finished": True})
