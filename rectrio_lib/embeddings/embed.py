"""Data and an encoder become vectors on disk: one call for data sets and folders; nothing is embedded twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from rectrio_lib.core.device import autocast, best_device
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.files import checksum, write_json
from rectrio_lib.core.lookup import positions
from rectrio_lib.core.workspace import Workspace, quiet
from rectrio_lib.data.dataset import ImageDataset, content_hash
from rectrio_lib.data.layout import count_of
from rectrio_lib.data.places.place import Place
from rectrio_lib.embeddings import parts
from rectrio_lib.embeddings import store as stores
from rectrio_lib.embeddings.from_dataset import DatasetSource
from rectrio_lib.embeddings.from_folder import Batches, FolderSource
from rectrio_lib.embeddings.store import SHARD_ROWS, EmbeddingStore
from rectrio_lib.embeddings.writer import Writer, drop_rows, kept_rows, writing
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint, load_encoder

if TYPE_CHECKING:
    from rectrio_lib.embeddings.ray import Workers

LOG = logging.getLogger(__name__)
BATCH = 128  # images handed to the encoder at once
UNFINISHED = {"count": 0, "finished": False}  # in the card, while a store changes
STAGES = ("listing", "reading", "encoding", "writing")
Vectors = Iterator[tuple[pd.DataFrame, np.ndarray]]
Keep = Callable[[pd.DataFrame, np.ndarray], np.ndarray]  # see `Journal.add`
ALARM_SHARE = 0.2  # of the known images: if more vanish at once, a warning says so


class Source(Protocol):
    """Images to embed."""

    name: str  # of the store, unless another one is given
    card: dict[str, Any]  # keys of the store's card: folder (empty if the images are not files), generated_images
    empty: pd.DataFrame  # the rows of a store that holds nothing yet
    needed: list[str] | None  # columns of the rows that `droppable` and `describe` look at; None: all

    def open(self, encoder: Encoder, home: Path, rows: pd.DataFrame, waiting: pd.Series) -> pd.Series:
        """Find what `rows` of the store `home` lack; return its ids or paths in order. Ids that wait have vectors."""

    def batches(self, step: int) -> Batches:
        """Yield rows and images uint8 (B, C, H, W), B up to `step`, valid until the next."""

    def spread(self, step: int, workers: Workers) -> Batches:
        """Yield the same with vectors float32 (B, dim) in the place of the images: `workers` on Ray encode them."""

    def droppable(self, rows: pd.DataFrame) -> np.ndarray:
        """Return which rows to drop from the store, bool (N,)."""

    def describe(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with all that is known of them now; a column `deleted` marks images that are gone."""

    def save(self, home: Path, shard: int | None = None) -> None:
        """Write what the source needs to know next time: what is new, after each shard; all, if none is given."""

    def counts(self) -> dict[str, Any]:
        """Return fields of `Report`."""


def embed(
    source: str | Path | Place | ImageDataset | Source,
    encoder: str | Encoder,
    name: str = "",
    manifest: pd.DataFrame | None = None,
    dtype: str = "float16",
    shard_rows: int = SHARD_ROWS,
    encoder_name: str = "",
    workspace: Workspace | None = None,
    engine: str = "local",
    address: str | None = None,
) -> tuple[EmbeddingStore, Report]:
    """Embed every image that is not embedded yet; killed at any moment, the next call continues with the batch in hand.

    New images are appended; a store made by another encoder or in another dtype is rebuilt.

    Args:
        source: a prepared data set, or a folder of images: in class folders, in split and class folders, or flat. Also
            an address such as s3://shop/photos, or archives of images, see `RemotePlace`.
        encoder: the name of a saved one, or the encoder itself.
        name: of the store; empty: that of the data set or folder.
        manifest: of a folder, with `path` relative to it; its columns (`label`, `split`, `group`, …) enter the rows.
        dtype: "float16" or "float32" on disk.
        shard_rows: vectors per file.
        encoder_name: name of an encoder that is given itself; empty: its kind.
        workspace: where the store is written.
        engine: "local": this process; "ray": workers on Ray, one per GPU, or else per core or group of cores.
        address: HOST:PORT of a running Ray, or "auto" for that of this machine; None: RAY_ADDRESS, else one is started.

    Returns:
        The store, and what this call did; printed, one line.

    Raises:
        ArgumentError: if dtype or engine is unknown, the images do not fit the encoder, or others have that name.
        ClusterError: if Ray cannot be reached, or its nodes differ or fail; what was embedded before is kept.
        DataError: if there is no image, or the store or a table beside the images is damaged.
        MissingPackageError: if Ray is not installed.
        StoreInUseError: if another process is writing the store.
        StorageError: if the store cannot be written; what was embedded before is kept.
    """
    if dtype not in ("float16", "float32"):
        raise ArgumentError(f"dtype={dtype!r}: choose float16 or float32.")
    encoded = _encoder_loop(engine, address)
    if isinstance(encoder, str):
        encoder, encoder_name = load_encoder(encoder, workspace), encoder
    workspace = workspace or Workspace()
    if isinstance(source, ImageDataset):
        source = DatasetSource(source)
    elif not hasattr(source, "batches"):
        source = FolderSource(source, manifest, workspace.outputs)
    name, encoder_name, report = name or source.name, encoder_name or encoder.kind, Report()
    card = {"encoder": encoder_name, "encoder_hash": fingerprint(encoder), "dim": encoder.dim, "dtype": dtype}
    card |= {"normalised": True, "dataset": name, **source.card}
    card["random_weights"] = bool(encoder.stand_in)
    card["stand_in"] = card["random_weights"] or card["generated_images"]  # as older versions read it
    home = stores.store_folder(encoder_name, name, workspace)
    with writing(home):
        before = kept_rows(home, card)
        before = source.empty if before is None else before
        writer = Writer(home, before, dtype, shard_rows, partial(source.save, home))
        with report.timed("listing"):
            listed = source.open(encoder, home, before, writer.journal.rows["image_id"])
            done = writer.journal.sort(listed)
        if len(listed):
            write_json(home / "card.json", card | UNFINISHED)
            encoded = encoded if done < len(listed) else encoded_here  # which reads again what waits, and encodes none
            with closing(encoded(source, encoder, min(BATCH, shard_rows), report, writer.journal.add)) as batches:
                fill(writer, batches, report, done, len(listed))
        with report.timed("writing"):
            writer.close()
            report.deleted, rows = _finish(source, writer, card)
    vars(report).update(source.counts())
    if report.deleted > ALARM_SHARE * (known := len(stores.not_deleted(before))):
        told = "%s of %s known images of %s are gone: is a drive disconnected?"
        LOG.warning(told, f"{report.deleted:,}", f"{known:,}", name)
    del before, writer  # not two tables of all rows in memory
    pa.default_memory_pool().release_unused()
    return stores.open_store(encoder_name, name, workspace, rows), report


def _finish(source: Source, writer: Writer, card: dict[str, Any]) -> tuple[int, pd.DataFrame]:
    """Drop what is gone, bring the rows up to date, and write the card, which completes the store.

    Returns:
        How many images went, and the rows.
    """
    home, path, rows = writer.folder, writer.folder / stores.ROWS, writer.rows(source.needed)
    gone = source.droppable(rows)
    if gone.any():
        write_json(home / "card.json", card | UNFINISHED)
        rows = drop_rows(home, writer.rows(), gone, writer.shard_rows)
    told = source.describe(rows)
    changed = not path.exists() or parts.parts_of(path) or not told.equals(rows)
    del rows
    if changed:
        write_json(home / "card.json", card | UNFINISHED)
        parts.join(path, told)
    source.save(home)
    live = stores.not_deleted(told)
    shards = sorted(home.glob("vectors-*.npy"))
    sums = {path.name: checksum(path)} | {shard.name: checksum(shard, whole=stores.SHARD_BYTES) for shard in shards}
    card = card | {"dataset_hash": content_hash(live), "count": len(live), "checksums": sums}
    write_json(home / "card.json", card | {"finished": True})
    return int((positions(stores.not_deleted(writer.before)["image_id"], live["image_id"]) < 0).sum()), told


@dataclass
class Report:
    """What a call found, and the seconds of each stage; printed, one line.

    Attributes:
        files: how many there are; the other counts are of these.
        embedded: new images.
        copies: byte-identical to an earlier file.
        bad: unreadable.
        deleted: known images that this call found gone.
        seconds: by stage; "reading" is what the encoder waited for images.
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
        """Images per second, share of each stage, and the stage that limits."""
        total = sum(self.seconds.values())
        shares = {stage: seconds / total if total else 0.0 for stage, seconds in self.seconds.items()}
        rate = self.embedded / total if total else 0.0
        return {"images_per_second": rate, **shares, "limit": max(shares, key=shares.get)}

    def __str__(self) -> str:
        timings = self.timings
        shares = ", ".join(f"{stage} {timings[stage]:.0%}" for stage in self.seconds)
        return (
            f"{self.embedded:,} of {self.files:,} embedded in {sum(self.seconds.values()):.1f} s, "
            f"{timings['images_per_second']:.1f} a second ({shares}: {timings['limit']} limits); "
            f"{count_of(self.copies, 'copy', 'copies')}, {self.bad:,} unreadable, {self.deleted:,} deleted"
        )


def fill(writer: Writer, batches: Vectors, report: Report, done: int, total: int) -> None:
    """Take rows and vectors to the writer; for the progress bar, `done` images of at most `total` are embedded."""
    with tqdm(initial=done, total=total, desc=f"embed {writer.folder.name}", disable=quiet(), unit="image") as bar:
        for rows, vectors in batches:
            with report.timed("writing"):
                writer.add(*writer.journal.with_earlier(rows, vectors))
            report.embedded += len(rows)
            bar.set_postfix_str(f"{report.timings['limit']} limits", refresh=False)
            bar.update(len(rows))


def _encoder_loop(engine: str, address: str | None) -> Callable[..., Vectors]:
    """Return what turns a source into rows and vectors; errors that need no work show now."""
    if engine == "ray":
        from rectrio_lib.embeddings import ray

        return partial(ray.encoded, address=ray.checked_address(address))
    if engine != "local" or address:
        raise ArgumentError(
            f"engine={engine!r}, address={address!r}: choose 'local', or 'ray' with an address or none."
        )
    return encoded_here


def encoded_here(source: Source, encoder: Encoder, step: int, report: Report, keep: Keep) -> Vectors:
    """Take the batches of a source through the encoder in this process; yield rows and vectors (B, dim), once kept."""
    # Around all batches, autocast keeps the weights that it has cast; in `encode` it would forget them after each.
    with closing(source.batches(step)) as batches, autocast(best_device()):
        while True:
            with report.timed("reading"):
                rows, images = next(batches, (None, None))
            if rows is None:
                return
            with report.timed("encoding"):
                vectors = encoder.encode(images)
            with report.timed("writing"):
                vectors = keep(rows, vectors)
            yield rows, vectors
