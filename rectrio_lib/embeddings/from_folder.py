"""Any folder of pictures, embedded from disk: only what is new or changed is read."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.files import save_table, write_json
from rectrio_lib.data import image_files
from rectrio_lib.embeddings import embed, store
from rectrio_lib.embeddings.embed import BATCH, Batches, Report
from rectrio_lib.embeddings.store import SHARD_ROWS, EmbeddingStore
from rectrio_lib.embeddings.writer import Writer, drop_rows, kept_rows, writing
from rectrio_lib.encoders.base import Encoder

COMPACT_SHARE = 0.2  # of deleted rows; beyond it the store is rewritten without them


def embed_folder(
    encoder: Encoder,
    encoder_name: str,
    folder: str | Path,
    name: str = "",
    manifest: pd.DataFrame | None = None,
    dtype: str = "float16",
    shard_rows: int = SHARD_ROWS,
) -> tuple[EmbeddingStore, Report]:
    """Embed every picture file below a folder that is not embedded yet; however many, a few hundred are in memory.

    A file is known by its path, size and time without reading it, else by its content: one that was moved or renamed
    is not embedded again, one that was replaced is. Files that are equal to the byte have one row, under the first of
    their paths; `EmbeddingStore.files` names them all. Files that are gone are marked, and dropped when they are a
    fifth of all. A file that cannot be read stands there with the reason, and is tried again when it changes. Killed
    at any moment, the next call goes on after the last shard.

    Args:
        encoder: what turns pictures into vectors.
        encoder_name: its name below outputs/encoders/.
        folder: of pictures: in class folders, in {train,val,test} and class folders, or flat.
        name: of the store; empty: that of the folder.
        manifest: with `path` relative to `folder`; what it says of a picture (`split`, `group`, …) enters the rows.
        dtype: "float16" or "float32" on disk.
        shard_rows: vectors a file.

    Returns:
        The store, its rows with image_id, path, label, split, width and height; and what happened.

    Raises:
        ValueError: if dtype is neither of the two, there is no picture, or the name is that of other pictures.
        stores.StoreInUse: if another process is writing the store.
        OSError: if the store cannot be written; what was embedded before is kept.
    """
    folder = Path(folder).expanduser().resolve()
    name = name or folder.name
    card = embed.new_card(encoder, encoder_name, name, dtype)
    card |= {"folder": str(folder), "stand_in": encoder.stand_in}
    home, report = store.store_folder(encoder_name, name), Report()
    with writing(home):
        with report.timed("listing"):
            found = image_files.list_images(folder)
        kept = kept_rows(home, card)
        writer = Writer(home, _no_rows() if kept is None else kept, dtype, shard_rows)
        reader = _FolderReader(
            encoder, folder, image_files.match_known(found, _old_files(home), writer.rows["image_id"])
        )
        writer.after = lambda: save_table(home / "files.parquet", reader.files())
        if len(reader.fresh):
            write_json(home / "card.json", card | {"count": 0, "finished": False})
        with closing(reader.batches(writer, shard_rows)) as batches:
            embed.fill(encoder, writer, batches, report, len(reader.fresh))
        with report.timed("writing"):
            rows = _described(writer.rows, reader.files(), manifest)
            if rows["deleted"].mean() > COMPACT_SHARE:
                rows = writer.rows = drop_rows(home, rows, rows["deleted"].to_numpy(bool), shard_rows)
            live = rows[~rows["deleted"]]
            writer.after()
            embed.finish(writer, rows, card | {"dataset_hash": _content_hash(live), "count": len(live)})
    _count(report, reader.files(), rows)
    return store.open_store(encoder_name, name), report


class _FolderReader:
    """Reads what is new in a folder, a batch at a time, and remembers what became of each file."""

    def __init__(self, encoder: Encoder, folder: Path, found: pd.DataFrame):
        self.folder, self.side = folder, encoder.preprocessing["size"]
        self.channels = encoder.preprocessing["channels"]
        new = found["image_id"].eq("") & found["reason"].eq("")
        self.fresh, self._known, self._read = found.loc[new, "path"], found[~new], []

    def files(self) -> pd.DataFrame:
        """Return what is known of each file by now."""
        if self._read:
            both = pd.concat([self._known, pd.DataFrame(self._read, columns=image_files.FILE_COLUMNS)])
            self._known, self._read = both.sort_values("path", ignore_index=True), []
        return self._known

    def batches(self, writer: Writer, shard_rows: int) -> Batches:
        """Yield rows and uint8 (B, C, H, W) of contents that are not embedded; the array is used again for the next."""
        seen, step = set(writer.rows["image_id"]), min(BATCH, shard_rows)
        memory = np.empty((step, self.side, self.side, self.channels), np.uint8)
        images, rows = memory.transpose(0, 3, 1, 2), []  # channels last, as decoders and processors have them
        for read in image_files.read_ahead(self.folder, self.fresh, self.side, self.channels, seen, 2 * step):
            self._read.append(read[: len(image_files.FILE_COLUMNS)])
            if read.pixels is None or read.image_id in seen:
                continue
            seen.add(read.image_id)
            images[len(rows)] = read.pixels
            rows.append((read.image_id, read.path, *read.shape))
            if len(rows) == step:
                yield self._frame(rows), torch.from_numpy(images)
                rows = []
        if rows:
            yield self._frame(rows), torch.from_numpy(images[: len(rows)])

    def _frame(self, rows: list[tuple]) -> pd.DataFrame:
        frame = pd.DataFrame(rows, columns=["image_id", "path", "width", "height"])
        return frame.assign(label="", split="", deleted=False)  # entered at the end, see `_described`


def _described(rows: pd.DataFrame, files: pd.DataFrame, manifest: pd.DataFrame | None) -> pd.DataFrame:
    """Enter where each picture lies now, and what that and the manifest say of it; mark those whose files are gone."""
    there = files[files["image_id"].ne("") & files["reason"].eq("")].drop_duplicates("image_id")
    paths = rows["image_id"].map(there.set_index("image_id")["path"])
    deleted, paths = paths.isna().to_numpy(), paths.fillna(rows["path"])
    told = image_files.describe(paths)
    if manifest is not None:
        own = ["image_id", "row", "width", "height", *store.OWN_COLUMNS]
        more = manifest.set_index("path").drop(columns=own, errors="ignore")
        told = more.reindex(paths).reset_index(drop=True).combine_first(told)
        told = told[["label", "split", *more.columns.difference(["label", "split"], sort=False)]]
    first = pd.DataFrame({"image_id": rows["image_id"], "path": paths})
    rest = rows[["width", "height", "shard"]].assign(deleted=deleted)
    return pd.concat([first, told, rest], axis=1)


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame(columns=["image_id", "path"]).assign(width=0, height=0, shard=0)


def _old_files(home: Path) -> pd.DataFrame:
    path = home / "files.parquet"
    if path.exists():
        return pd.read_parquet(path)
    return pd.DataFrame(columns=image_files.FILE_COLUMNS).astype({"size": np.int64, "mtime_ns": np.int64})


def _content_hash(rows: pd.DataFrame) -> str:
    """Fingerprint of pictures, labels and splits, whatever their order, as `ImageDataset.hash`."""
    lines = sorted(map("|".join, rows[["image_id", "label", "split"]].astype(str).itertuples(index=False)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _count(report: Report, files: pd.DataFrame, rows: pd.DataFrame) -> None:
    bad = files["reason"].ne("")
    good = files[~bad]
    copy = good["image_id"].duplicated()
    first = good[~copy].set_index("image_id")["path"]
    twins = "copy of " + good.loc[copy, "image_id"].map(first).astype(str)
    ledger = pd.concat([files.loc[bad, ["path", "reason"]], good.loc[copy, ["path"]].assign(reason=twins)])
    report.ledger = ledger.rename(columns={"path": "picture"}).sort_values("picture", ignore_index=True)
    report.files, report.bad, report.copies = len(files), int(bad.sum()), int(copy.sum())
    report.deleted = int(rows["deleted"].sum())
