"""Any folder of images, of this machine or not, as a source: only what is new or changed is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.files import save_table
from rectrio_lib.core.lookup import IdSet, positions
from rectrio_lib.data import image_files
from rectrio_lib.data.image_files import ImageFile
from rectrio_lib.data.places import archives
from rectrio_lib.data.places.place import Place, place_of
from rectrio_lib.data.places.tables import MANIFEST, OWN_COLUMNS, checked, storable
from rectrio_lib.embeddings import parts
from rectrio_lib.embeddings.store import FILES, MANIFESTS, files_of, is_finished
from rectrio_lib.encoders.base import Encoder

if TYPE_CHECKING:
    from rectrio_lib.embeddings.ray import Workers

LOG = logging.getLogger(__name__)
Batches = Iterator[tuple[pd.DataFrame, torch.Tensor]]
UNNAMED = "%s: a table beside the images, or a manifest, names %s, and no image that is there, such as %s."
COMPACT_SHARE = 0.2  # of deleted rows; beyond it the store is rewritten without them


class FolderSource:
    """Image files of a place, a few hundred in memory at once; see `embed.Source`.

    A file is known by path, size and time without reading it, else by its content. Byte-identical files have one row,
    under the first path. What is known of an image comes, the later ones first, from its folders, manifests of earlier
    calls, a table beside the images (`metadata.csv` or `.parquet`, keyed by `file_name` or `path`), and the manifest of
    this call. So what such a table does not say any more is gone, except of images whose files are gone, too.
    """

    def __init__(self, folder: str | Path | Place, manifest: pd.DataFrame | None, outputs: Path):
        self.place = place_of(folder)
        self._given = pd.DataFrame({"path": []}) if manifest is None else manifest
        self.name, self._outputs = self.place.name, outputs
        self._read, self._saved = [], []  # since the last shard, and before: a table of each
        self.card, self.needed = {"folder": self.place.uri, "generated_images": False}, None
        self.empty = pd.DataFrame(columns=["image_id", "path"]).assign(width=0, height=0, shard=0)

    def open(self, encoder: Encoder, home: Path, rows: pd.DataFrame, waiting: pd.Series) -> pd.Series:
        """List the files, and find those that are new or changed; those of images that wait are read again."""
        before = files_of(home, unfinished=True)
        files = self.place.list([self._outputs], before if is_finished(home) else None)
        self._tables = [table.set_index("path") for table in self.place.tables(files["path"])]
        self._manifest = checked(self._given, MANIFEST, "path").set_index("path")
        for table in (*self._tables, self._manifest):
            if len(table) and not table.index.isin(files["path"]).any():
                LOG.warning(UNNAMED, self.place.uri, table.index[0], files["path"].iloc[0])
        told = home / MANIFESTS
        self._told = parts.read(told, "described").set_index("image_id") if told.exists() else None
        self._own, self._embedded = _not_from_path(rows), IdSet(chain(rows["image_id"], waiting))
        files = image_files.match_known(files, before, rows["image_id"])
        new = files["image_id"].eq("") & files["reason"].eq("")
        self._fresh, self._known = files.loc[new], files[~new]
        packed = archives.archive_of(self._known["path"]).ne(self._known["path"])
        self._unopened = self._known["image_id"][packed]  # in archives that did not change, and tell nothing this time
        self._side, self._channels = encoder.preprocessing["size"], encoder.preprocessing["channels"]
        return self._fresh["path"]

    def batches(self, step: int) -> Batches:
        """Yield contents that are not embedded; the array is used again for the next batch."""
        return self._batches(step, image_files.read_ahead)

    def spread(self, step: int, workers: Workers) -> Batches:
        """Let workers read the files, too."""
        return self._batches(step, workers.read_ahead)

    def _batches(self, step: int, read_ahead: Callable[..., Iterator[ImageFile]]) -> Batches:
        rows, images, known = [], None, self._embedded
        paths, listed = self._fresh["path"], self._fresh[["size", "mtime_ns"]].itertuples(index=False, name=None)
        for read in read_ahead(self.place, paths, self._side, self._channels, known, 2 * step, listed):
            self._read.append(read[: len(image_files.FILE_COLUMNS)])
            if read.pixels is None or read.image_id in known:
                continue
            known.add(read.image_id)
            if images is None:  # channels last, as decoders and processors have them
                pixels = np.moveaxis(read.pixels, 0, -1)
                images = np.moveaxis(np.empty((step, *pixels.shape), pixels.dtype), -1, 1)
            images[len(rows)] = read.pixels
            rows.append((read.image_id, read.path, *read.shape))
            if len(rows) == step:
                yield frame_of(rows), torch.from_numpy(images)
                rows = []
        if rows:
            yield frame_of(rows), torch.from_numpy(images[: len(rows)])

    def droppable(self, rows: pd.DataFrame) -> np.ndarray:
        """Return what is gone from folders that still hold images, if that is a fifth of all."""
        homes = {path.rpartition("/")[0] for path in self._files()["path"]}
        there = rows["path"].map(lambda path: path.rpartition("/")[0] in homes)
        gone = there.to_numpy(bool) & (positions(rows["image_id"], self._paths().index) < 0)
        return gone if len(gone) and gone.mean() > COMPACT_SHARE else np.zeros(len(gone), bool)

    def describe(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Enter where each image lies now, and what is known of it; mark those whose files are gone."""
        known = self._paths()
        places = positions(rows["image_id"], known.index)
        deleted, paths = places < 0, pd.Series(known.array.take(places, allow_fill=True), rows.index)
        paths = paths.fillna(rows["path"])
        ids, folders, there = rows["image_id"], _from_folders(paths, deleted), paths.mask(deleted)
        tables = _over(folders[[]], *(_at(table, there) for table in self._tables))
        before = _over(_at(self._own, ids), rows.drop(columns=["label", "split"], errors="ignore"))
        if self._told is None:  # the store is of an older version: what no table says may come from a manifest
            self._told = before.mask(tables.reindex(columns=before.columns).notna()).set_axis(ids)
        manifest = _at(self._manifest, there)
        told = _over(_at(self._told, ids), manifest)
        unasked = deleted | (positions(ids, self._unopened) >= 0)
        now = _over(folders, _filled(told[~unasked]), _filled(before[unasked]), tables, manifest)
        order = rows.columns.union(now.columns, sort=False)
        now = storable(now[order[order.isin(now.columns)]], deleted)
        for column in folders.columns.intersection(told.columns):  # what the path says follows the path
            told[column] = told[column].mask(told[column].astype(object) == folders[column])
        self._told = storable(_filled(told), deleted).set_axis(ids).dropna(how="all")
        first = pd.DataFrame({"image_id": rows["image_id"], "path": paths})
        return pd.concat([first, now, rows[["width", "height", "shard"]].assign(deleted=deleted)], axis=1)

    def save(self, home: Path, shard: int | None = None) -> None:
        """Remember what became of the files read since the last shard, or of each file."""
        if shard is None:
            save_table(home / MANIFESTS, self._told.reset_index())
            parts.join(home / FILES, self._files())
        else:
            self._saved.append(pd.DataFrame(self._read, columns=image_files.FILE_COLUMNS))
            parts.add(home / FILES, shard, self._saved[-1])
            self._read = []

    def counts(self) -> dict:
        """Count files, copies and unreadable ones, with the ledger of the last two."""
        files = self._files()
        bad = files["reason"].ne("")
        good = files[~bad]
        copy = good["image_id"].duplicated()
        twins = "copy of " + good.loc[copy, "image_id"].map(self._paths()).astype(str)
        ledger = pd.concat([files.loc[bad, ["path", "reason"]], good.loc[copy, ["path"]].assign(reason=twins)])
        ledger = ledger.rename(columns={"path": "picture"}).sort_values("picture", ignore_index=True)
        return {"files": len(files), "bad": int(bad.sum()), "copies": int(copy.sum()), "ledger": ledger}

    def _files(self) -> pd.DataFrame:
        if self._read or self._saved:
            last = pd.DataFrame(self._read, columns=image_files.FILE_COLUMNS)
            self._known = parts.joined([self._known, *self._saved, last]).sort_values("path", ignore_index=True)
            self._read, self._saved = [], []
        return self._known

    def _paths(self) -> pd.Series:
        """Return the first path of each image_id."""
        files = self._files()
        good = files[files["image_id"].ne("") & files["reason"].eq("")].drop_duplicates("image_id")
        return good.set_index("image_id")["path"]


def frame_of(rows: list[tuple]) -> pd.DataFrame:
    """Return the rows of images of which only id, path, width and height are known yet."""
    frame = pd.DataFrame(rows, columns=["image_id", "path", "width", "height"])
    return frame.assign(label="", split="", deleted=False)  # entered at the end, see `describe`


def _not_from_path(rows: pd.DataFrame) -> pd.DataFrame:
    """Return labels and splits that differ from what the path says, by image_id; missing where they do not."""
    if "label" not in rows:
        return pd.DataFrame(index=rows["image_id"])
    told = rows[["label", "split"]].set_axis(rows["image_id"])
    return told.where(told.ne("") & (told.to_numpy() != _from_folders(rows["path"], rows["deleted"]).to_numpy()))


def _from_folders(paths: pd.Series, deleted: np.ndarray) -> pd.DataFrame:
    """Return what folders tell of images; where those that are deleted lay says nothing of how the others are split."""
    deleted = np.asarray(deleted, bool)
    parts = [image_files.describe(paths[own]).set_axis(np.flatnonzero(own)) for own in (~deleted, deleted)]
    return pd.concat(parts).sort_index()


def _at(table: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    return table.reindex(names).reset_index(drop=True)


def _over(below: pd.DataFrame, *tables: pd.DataFrame) -> pd.DataFrame:
    """Lay tables over another one of the same images: of each cell the last that is filled counts."""
    below = below.copy()
    for table in tables:
        for column in table.columns.difference(OWN_COLUMNS, sort=False):
            below[column] = table[column].combine_first(below[column]) if column in below else table[column]
    return below


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    return table.dropna(axis=1, how="all")
