"""One generation of a served collection: its index, encoder and rows, which belong together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from sqlalchemy import Engine

from rectrio_lib.app.batching import Batcher
from rectrio_lib.app.images.pictures import Pictures
from rectrio_lib.app.records.catalogue import Catalogue, fits, frame_of, in_kinds, kinds_of, record_of
from rectrio_lib.app.records.database import ImageRow
from rectrio_lib.core.device import best_device
from rectrio_lib.core.errors import RectrioError
from rectrio_lib.core.workspace import Card
from rectrio_lib.encoders import openvino
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.index import factory
from rectrio_lib.index.base import check_encoder
from rectrio_lib.index.index import Index
from rectrio_lib.index.live import LiveIndex
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.ranking.calibration import Calibration
from rectrio_lib.search.searcher import encode_texts

LOG = logging.getLogger(__name__)


class Generation:
    """A collection as it was built last, with what was added, changed and removed since.

    A query is encoded and answered by one generation; a new build makes the next one, and this one ends when nobody
    uses it any more.

    Args:
        collection: as opened.
        catalogue: its rows in the database, in step with the index already, see `Catalogue.sync`.
        pictures: its pixels.
        batch: largest number of queries that are encoded at once; 1 switches batching off.
        threads: batches of images under way at once, each on one core; 1 leaves the cores to PyTorch.

    Attributes:
        live: what is searched.
        columns: of the metadata.
        stale: uploads whose vectors another encoder made; they are found once they are encoded again.
    """

    def __init__(self, collection: Collection, catalogue: Catalogue, pictures: Pictures, batch: int, threads: int = 1):
        self.collection, self.catalogue, self.pictures = collection, catalogue, pictures
        one_core = partial(torch.set_num_threads, 1) if threads > 1 else lambda: None
        self.images = Batcher(
            lambda images: self.encoder.encode(np.stack(images)), batch, threads=threads, initializer=one_core
        )
        self.texts = Batcher(lambda texts: encode_texts(self.encoder, texts), batch)
        self._encoder_lock, self._apply_lock, self._size = Lock(), Lock(), len(collection.index)
        self._calibration_lock = Lock()
        names, gone = collection.index.rows["image_id"].tolist(), collection.index.removed
        rows = {row.image_id: row for row in catalogue.since(0)}
        self._seen = max((row.sequence for row in rows.values()), default=0)
        built = {name for name, absent in zip(names, gone, strict=True) if not absent}
        later = [row for name, row in rows.items() if name not in built]
        fresh = [row for row in later if self._belongs(row)]
        self.stale = {row.image_id: row for row in later if self._is_stale(row)}
        said = [record_of(rows[name]) if name in rows else {"image_id": name} for name in names]
        records = said + [record_of(row) for row in fresh]
        self._kinds = kinds_of(records)
        frame = frame_of(records, self._kinds)
        removed = gone | np.array([name not in rows or rows[name].removed for name in names], bool)
        self.columns = list(frame.columns)
        self.live = LiveIndex(collection.index, frame.iloc[: len(names)].reset_index(drop=True), removed)
        self._add(fresh)

    @classmethod
    def of(cls, collection: Collection, engine: Engine, batch: int = 1, threads: int = 1) -> Generation:
        """Bring the database in step with the index of a collection, and return both together."""
        catalogue = Catalogue(engine, collection.name)
        catalogue.sync(collection.index.rows[~collection.index.removed], collection.folder)
        return cls(collection, catalogue, Pictures(collection, uploads_of(collection)), batch, threads)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the index, or its export to OpenVINO; loaded when first needed, which takes seconds."""
        with self._encoder_lock:
            return self._exported() or self.collection.encoder

    def _exported(self) -> Encoder | None:
        """Return the quickest export that the encoder of the index has; None on a GPU, or if there is none."""
        name, workspace = self.collection.encoder_name, self.collection.workspace
        for precision in ("fp16", "fp32"):
            if name and best_device() == "cpu" and openvino.exported_folder(name, precision, workspace).is_dir():
                try:
                    encoder = openvino.load_exported(name, precision, workspace)
                    check_encoder(self.collection.index, encoder.stamp)
                except RectrioError as error:
                    LOG.warning("The export of %s in %s is not used: %s", name, precision, error)
                else:
                    self.images.threads = 1  # which OpenVINO spreads over all cores
                    return encoder
        return None

    @property
    def is_outdated(self) -> bool:
        """Whether the index holds more or fewer images than when it was opened, as one on a server may."""
        return len(self.collection.index) != self._size

    async def quick(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what takes a fraction of a millisecond in memory, less than a thread; for a server or disk, in one."""
        index = self.collection.index
        if isinstance(index, Index) and index.kind != factory.ON_DISK:
            return function(*arguments)
        return await asyncio.to_thread(function, *arguments)

    def calibrate(self) -> Calibration:
        """Return what scores mean here; learned when first needed. ArgumentError if there is nothing to learn from."""
        with self._calibration_lock:
            return self.collection.calibration or self.collection.calibrate()

    @property
    def calibrated(self) -> bool:
        """Whether it is known what scores mean here; another process may have learned it meanwhile."""
        if self.collection.calibration is None:
            self.collection.__dict__.pop("calibration", None)  # so that the file is looked for again
        return self.collection.calibration is not None

    def catch_up(self) -> bool:
        """Take in what changed in the database since; tell whether new columns or types need a new generation."""
        with self._apply_lock:
            rows = self.catalogue.since(self._seen)
            if not rows:
                return False
            if any(not fits(value, self._kinds.get(name)) for row in rows for name, value in row.extra.items()):
                return True  # which reads all rows anew
            there = self.live.current.positions([row.image_id for row in rows])
            self.live.remove([row.image_id for row in rows if row.removed])
            kept = [row for row in rows if not row.removed]
            self.live.update([self._record(row) for row in kept if row.image_id in there])
            self._add([row for row in kept if row.image_id not in there and self._belongs(row)])
            self.stale |= {r.image_id: r for r in kept if r.image_id not in there and self._is_stale(r)}
            self._seen = rows[-1].sequence
            return False

    def rows_at(self, positions: np.ndarray) -> pd.DataFrame:
        """Return rows as `Collection` keeps them: whole paths of uploads, as of added files; "" where no label is."""
        rows = self.live.current.rows.iloc[positions].reset_index(drop=True).fillna({"label": "", "split": ""})
        home = self.pictures.uploads.resolve().as_posix()
        return rows.assign(path=rows["path"].mask(rows["uploaded"], home + "/" + rows["path"]))

    def rebuild(self, kept: np.ndarray, vectors: np.ndarray, encoder_hash: str, made_from: Card) -> None:
        """Save an index of the images at some positions, with vectors (N, dim), in the place of the present one."""
        before, rows = self.collection.index, self.rows_at(kept)
        if "asked" not in made_from:  # by an older version, or by `Index.build`
            kind = "auto" if before.kind in factory.candidates("auto", before.dim, len(before)) else before.kind
            recall = before.recall if before.recall and before.kind != "flat" else 0.95  # a flat one finds all, unasked
            made_from = made_from | {"asked": {"kind": kind, "recall": recall}}
        asked, place = made_from["asked"], self.collection.workspace
        given = {"recall": asked["recall"], "memory_limit": before.memory_limit, "workspace": place}
        Index.build(asked["kind"], vectors, rows, encoder_hash, **given, made_from=made_from).save(
            self.collection.name, place
        )

    def _add(self, rows: Sequence[ImageRow]) -> None:
        if rows:
            vectors = np.stack([np.frombuffer(row.vector, np.float16) for row in rows]).astype(np.float32)
            self.live.add(vectors, [self._record(row) for row in rows])
            for row in rows:
                self.stale.pop(row.image_id, None)

    def _record(self, row: ImageRow) -> dict:
        return dict.fromkeys(self.columns) | in_kinds(record_of(row), self._kinds)

    def _belongs(self, row: ImageRow) -> bool:
        """Tell whether an image has a vector that the encoder of this index made, and is not removed."""
        return row.vector is not None and row.encoder_hash == self.collection.index.encoder_hash and not row.removed

    def _is_stale(self, row: ImageRow) -> bool:
        """Tell whether an upload has to be encoded again; edited images of the folder only wait for their file."""
        return row.uploaded and not row.removed and not self._belongs(row)


def uploads_of(collection: Collection) -> Path:
    """Return the folder of the images that were uploaded to a collection."""
    return collection.workspace.outputs / "uploads" / collection.name
