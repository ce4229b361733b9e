"""Vectors of pictures, never computed twice: a reader, the encoder and a writer, each timed; here of a data set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from rectrio_lib.core.device import autocast, best_device
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import save_table, write_json
from rectrio_lib.core.workspace import quiet
from rectrio_lib.embeddings.writer import Writer
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint

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
    with cast, tqdm(total=total, desc=caption, disable=quiet() or not total, unit="picture") as bar:
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
        raise ArgumentError(f"dtype={dtype!r}: choose float16 or float32.")
    card = {"encoder": encoder_name, "encoder_hash": fingerprint(encoder), "dim": encoder.dim, "dtype": dtype}
    return card | {"normalised": True, "dataset": name}


def finish(writer: Writer, rows: pd.DataFrame, card: dict[str, Any]) -> None:
    """Write the rows if they are other than the writer's, and then the card, which says that the store is whole."""
    path = writer.folder / "rows.parquet"
    if not path.exists() or not rows.equals(writer.rows):
        save_table(path, rows)
    write_json(writer.folder / "card.json", card | {"finished": True})
