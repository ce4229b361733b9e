"""Any folder of images as a source: only what is new or changed is read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.files import save_table
from rectrio_lib.data import image_files
from rectrio_lib.embeddings.store import files_of
from rectrio_lib.encoders.base import Encoder

LOG = logging.getLogger(__name__)
COMPACT_SHARE = 0.2  # of deleted rows; beyond it the store is rewritten without them
KEYS, TABLES = ("file_name", "path"), ("metadata.csv", "metadata.parquet")
OWN_COLUMNS = ["image_id", "path", "row", "width", "height", "shard", "deleted"]  # never taken from a table


class FolderSource:
    """Image files below a folder, a few hundred in memory at once; see `embed.Source`.

    A file is known by path, size and time without reading it, else by its content. Byte-identical files have one row,
    under the first path. Label and split come from the folders, a table beside the images (`metadata.csv` or
    `.parquet`, keyed by `file_name` or `path`) or a manifest; what earlier calls told is kept.
    """

    def __init__(self, folder: str | Path, manifest: pd.DataFrame | None, outputs: Path):
        self.folder = Path(folder).expanduser().resolve()
        self.name, self._manifest, self._outputs, self._read = self.folder.name, manifest, outputs, []
        self.card = {"folder": str(self.folder), "generated_images": False}
        self.empty = pd.DataFrame(columns=["image_id", "path"]).assign(width=0, height=0, shard=0)

    def open(self, encoder: Encoder, home: Path, rows: pd.DataFrame) -> int:
        """List the files, and find those that are new or changed."""
        files = image_files.list_images(self.folder, [self._outputs])
        self._tables = [*_tables_beside(self.folder, files["path"])]
        self._tables += [] if self._manifest is None else [_checked(self._manifest, "manifest", "path")]
        self._own = _not_from_path(rows)
        files = image_files.match_known(files, files_of(home), rows["image_id"])
        new = files["image_id"].eq("") & files["reason"].eq("")
        self._fresh, self._known = files.loc[new, "path"], files[~new]
        self._side, self._channels = encoder.preprocessing["size"], encoder.preprocessing["channels"]
        return len(self._fresh)

    def batches(self, known: set[str], step: int) -> Iterator[tuple[pd.DataFrame, torch.Tensor]]:
        """Yield contents that are not embedded; the array is used again for the next batch."""
        memory = np.empty((step, self._side, self._side, self._channels), np.uint8)
        images, rows = memory.transpose(0, 3, 1, 2), []  # channels last, as decoders and processors have them
        for read in image_files.read_ahead(self.folder, self._fresh, self._side, self._channels, known, 2 * step):
            self._read.append(read[: len(image_files.FILE_COLUMNS)])
            if read.pixels is None or read.image_id in known:
                continue
            known.add(read.image_id)
            images[len(rows)] = read.pixels
            rows.append((read.image_id, read.path, *read.shape))
            if len(rows) == step:
                yield _frame(rows), torch.from_numpy(images)
                rows = []
        if rows:
            yield _frame(rows), torch.from_numpy(images[: len(rows)])

    def droppable(self, rows: pd.DataFrame) -> np.ndarray:
        """Return what is gone from folders that still hold images, if that is a fifth of all."""
        homes = {path.rpartition("/")[0] for path in self._files()["path"]}
        there = rows["path"].map(lambda path: path.rpartition("/")[0] in homes)
        gone = (there & ~rows["image_id"].isin(self._paths().index)).to_numpy(bool)
        return gone if len(gone) and gone.mean() > COMPACT_SHARE else np.zeros(len(gone), bool)

    def describe(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Enter where each image lies now, and what is known of it; mark those whose files are gone."""
        paths = rows["image_id"].map(self._paths())
        deleted, paths = paths.isna().to_numpy(), paths.fillna(rows["path"])
        told = image_files.describe(paths)
        own = self._own.reindex(rows["image_id"]).reset_index(drop=True)
        tables = [t.set_index("path").reindex(paths).reset_index(drop=True) for t in self._tables]
        kept = rows.drop(columns=[*OWN_COLUMNS, "label", "split"], errors="ignore")
        for table in (kept, own, *tables):
            for column in table.columns.difference(OWN_COLUMNS, sort=False):
                told[column] = table[column].combine_first(told[column]) if column in told else table[column]
        first = pd.DataFrame({"image_id": rows["image_id"], "path": paths})
        return pd.concat([first, told, rows[["width", "height", "shard"]].assign(deleted=deleted)], axis=1)

    def save(self, home: Path) -> None:
        """Remember what became of each file."""
        save_table(home / "files.parquet", self._files())

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
        if self._read:
            both = pd.concat([self._known, pd.DataFrame(self._read, columns=image_files.FILE_COLUMNS)])
            self._known, self._read = both.sort_values("path", ignore_index=True), []
        return self._known

    def _paths(self) -> pd.Series:
        """Return the first path of each image_id."""
        files = self._files()
        good = files[files["image_id"].ne("") & files["reason"].eq("")].drop_duplicates("image_id")
        return good.set_index("image_id")["path"]


def _frame(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["image_id", "path", "width", "height"])
    return frame.assign(label="", split="", deleted=False)  # entered at the end, see `describe`


def _not_from_path(rows: pd.DataFrame) -> pd.DataFrame:
    """Return labels and splits that differ from what the path says, by image_id; missing where they do not."""
    if "label" not in rows:
        return pd.DataFrame(index=rows["image_id"])
    told = rows[["label", "split"]].set_axis(rows["image_id"])
    return told.where(told.ne("") & (told.to_numpy() != image_files.describe(rows["path"]).to_numpy()))


def _tables_beside(folder: Path, paths: Collection[str]) -> Iterator[pd.DataFrame]:
    """Read metadata.csv and metadata.parquet of the folder and of those below it that hold images."""
    homes = {p.rpartition("/")[0] for p in paths} | {"."}
    for home in sorted({parent.as_posix() for path in homes for parent in Path(path, "x").parents}):
        for path in (folder / home / name for name in TABLES):
            if path.is_file():
                try:
                    csv = path.suffix == ".csv"
                    texts = dict.fromkeys([*KEYS, "label", "split"], str)
                    table = pd.read_csv(path, dtype=texts, low_memory=False) if csv else pd.read_parquet(path)
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise DataError(f"{path} cannot be read as a table: {error}") from error
                key = next((key for key in KEYS if key in table), KEYS[0])
                table = _checked(table, path, key)
                prefix = "" if home == "." else f"{home}/"
                yield table.assign(path=prefix + table["path"].str.replace("\\", "/"))


def _checked(table: pd.DataFrame, where: str | Path, key: str) -> pd.DataFrame:
    """Return a table with unique paths and columns that can be stored, or raise DataError that names the column."""
    if key not in table:
        raise DataError(f"{where} has no column {' or '.join(KEYS)} that names the image files.")
    if not table[key].map(lambda value: isinstance(value, str)).all() or table[key].duplicated().any():
        raise DataError(f"{where}: column {key!r} should name each image file once, as text.")
    if key != "path":
        table = table.drop(columns="path", errors="ignore").rename(columns={key: "path"})
    for column in table:
        if pd.api.types.infer_dtype(table[column], skipna=True).startswith("mixed"):
            raise DataError(f"{where}: column {column!r} holds lists or values of several types, expected one type.")
    ignored = [column for column in table if column in OWN_COLUMNS and column != "path"]
    if ignored and isinstance(where, Path):
        LOG.warning("%s: %s ignored, RecTrio uses these names itself.", where, ", ".join(ignored))
    return table.drop(columns=ignored)
