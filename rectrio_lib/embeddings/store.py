"""An embedding store on disk, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.core.files import check_sum
from rectrio_lib.core.lookup import all_differ
from rectrio_lib.core.workspace import Card, Workspace, read_card
from rectrio_lib.data.image_files import FILE_COLUMNS
from rectrio_lib.embeddings import parts
from rectrio_lib.embeddings.journal import Journal

ROWS, FILES = "rows.parquet", "files.parquet"  # see `parts`
MANIFESTS = "files-manifests.parquet"  # what manifests told of files, and neither a table beside them nor their paths
SHARD_ROWS = 16_384
OWN_COLUMNS = ["shard", "deleted"]
SCHEMA = {"encoder": str, "encoder_hash": str, "dim": int, "dtype": str, "dataset": str, "folder": str, "count": int}
SCHEMA |= {"finished": bool, "dataset_hash?": str, "checksums?": dict}
SCHEMA |= {f"{flag}?": bool for flag in ("normalised", "stand_in", "random_weights", "generated_images")}
SHARD_BYTES = 1 << 20  # of a larger shard only size and ends are checked when a store is opened


@dataclass(frozen=True)
class EmbeddingStore:
    """Vectors and, in the same order, what is known of their images.

    `vectors("train")` is a NumPy array and `select("train")` the pandas table of the same images in the same order.

    Attributes:
        folder: holds vectors-*.npy, rows.parquet and card.json; of a folder of images also files.parquet.
        rows: what is known of each image, its `shard`, and whether its file is `deleted`: such rows are not returned.
        card: see SCHEMA.
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
                yield vectors if wanted.all() else vectors[wanted], self._own_columns_off(self.rows.iloc[part][wanted])

    def vectors(self, *splits: str) -> np.ndarray:
        """Return the vectors float32 (N, dim), of all images or of the given splits, in the order of `select`."""
        found, start = np.empty((np.count_nonzero(self._chosen(splits)), self.card["dim"]), np.float32), 0
        for block, _ in self.blocks(*splits):
            found[start : (start := start + len(block))] = block
        return found

    def mapped(self, *splits: str) -> MappedVectors:
        """Return the same vectors as they lie on disk, read when asked for: an index of any size is built from them."""
        return MappedVectors(self, np.flatnonzero(self._chosen(splits)))

    def select(self, *splits: str) -> pd.DataFrame:
        """Return the rows of the given splits, or all of them."""
        return self._own_columns_off(self.rows[self._chosen(splits)])

    def files(self) -> pd.DataFrame:
        """Return one row a file of the folder of images: path, size, mtime_ns, image_id, reason.

        Byte-identical files share an image_id, and so a vector. A file with a `reason` is left out.
        """
        return files_of(self.folder)

    def _chosen(self, splits: tuple[str, ...]) -> np.ndarray:
        chosen = self.rows["split"].isin(splits).to_numpy() if splits else np.ones(len(self.rows), bool)
        return chosen & ~self.rows["deleted"].to_numpy(bool) if "deleted" in self.rows else chosen

    def _own_columns_off(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.drop(columns=OWN_COLUMNS, errors="ignore").reset_index(drop=True)


class MappedVectors:
    """Vectors of a store as an array (N, dim) that takes slices and positions; only what is asked for is read."""

    ndim = 2

    def __init__(self, store: EmbeddingStore, chosen: np.ndarray):
        counts = store.rows["shard"].value_counts().sort_index()
        self._folder, self._shards = store.folder, counts.index.to_numpy()
        self._starts = np.concatenate([[0], counts.cumsum().to_numpy(np.int64)])
        self._chosen = None if len(chosen) == len(store.rows) else chosen  # None: all
        self.shape, self.dtype = (len(chosen), store.card["dim"]), np.dtype(store.card["dtype"])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        places = np.asarray(places, np.int64)
        flat = places.ravel() if self._chosen is None else self._chosen[places.ravel()]
        found = np.empty((len(flat), self.shape[1]), self.dtype)
        order = np.argsort(flat, kind="stable")
        bounds = np.searchsorted(flat[order], self._starts)
        for number in np.flatnonzero(np.diff(bounds)):
            part = order[bounds[number] : bounds[number + 1]]
            shard = np.load(self._folder / shard_name(self._shards[number]), mmap_mode="r")  # let go of at once
            found[part] = shard[flat[part] - self._starts[number]]
        return found.reshape(*places.shape, self.shape[1])


def store_folder(encoder_name: str, name: str, workspace: Workspace | None = None) -> Path:
    """Return where the store of an encoder and a data set or folder lies."""
    return (workspace or Workspace()).path("embeddings", f"{encoder_name}--{name}")


def open_store(
    encoder_name: str, dataset_name: str, workspace: Workspace | None = None, told: pd.DataFrame | None = None
) -> EmbeddingStore:
    """Open a store for reading; with the rows `told`, which need not be read into memory again, if it holds just them.

    Raises:
        MissingArtefactError: if it was not made.
        DataError: if it is not finished, a file is damaged, or the files do not belong together.
    """
    name = f"{encoder_name}--{dataset_name}"
    folder = (workspace or Workspace()).require("embeddings", name, "rectrio run --only 04")
    card = read_store_card(folder)
    store = EmbeddingStore(folder, read_rows(folder, card, told), card)
    if not card["finished"] or len(store) != card["count"]:
        raise _stopped(folder, card, store.rows)
    return store


def _stopped(folder: Path, card: Card, rows: pd.DataFrame) -> DataError:
    held = len(not_deleted(rows)) + len(Journal(folder, card["dtype"], rows).rows)
    told = f"{folder} was stopped half way, it holds {held:,} vectors"
    return DataError(f"{told}: embed the images again to finish it (chapter 04_build_embeddings).")


def read_store_card(folder: Path) -> Card:
    """Read the card of a store, or raise DataError; flags that older versions lacked follow from the one they had."""
    card = read_card(folder / "card.json", SCHEMA)
    stand_in, drawn = card.get("stand_in", False), not card["folder"]
    return {"random_weights": stand_in and not drawn, "generated_images": stand_in and drawn} | card


def read_rows(folder: Path, card: Card, told: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read the table of rows of a store; DataError if it or a shard is damaged or not the one of the card.

    It is `told` itself, if that is what would be read.
    """
    path, sums = folder / ROWS, card.get("checksums", {})
    if card["finished"]:
        check_sum(path, sums)
    tables = [parts.read(path, "embedded", like=told)] if card["finished"] or path.exists() else []
    if not card["finished"]:
        listed = {*tables[0].get("shard", ())} if tables else ()  # their small files were left by a killed process
        tables += [parts.read(part, "embedded") for shard, part in parts.parts_of(path).items() if shard not in listed]
    if not tables:
        raise _stopped(folder, card, pd.DataFrame({"image_id": []}, dtype=str))
    rows = parts.joined(tables)
    files = ("path", "width", "height", "deleted") if card["folder"] else ()
    missing = [column for column in ("image_id", "label", "split", "shard", *files) if column not in rows]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: delete {folder} and embed the images again.")
    kinds = {"shard": "integer", "image_id": "string", "deleted": "boolean"}
    wrong = [c for c, kind in kinds.items() if c in rows and len(rows) and pd.api.types.infer_dtype(rows[c]) != kind]
    if not wrong and not all_differ(rows["image_id"]):
        wrong = ["image_id"]
    if not wrong and not rows["shard"].is_monotonic_increasing:
        wrong = ["shard"]
    if wrong:
        raise DataError(f"{path}: column {wrong[0]!r} is damaged: delete {folder} and embed the images again.")
    for shard, count in rows["shard"].value_counts().items():
        check_shard(folder / shard_name(shard), (int(count), card["dim"]), card["dtype"])
        check_sum(folder / shard_name(shard), sums, whole=SHARD_BYTES)
    return rows


def not_deleted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose images are there."""
    return rows[~rows["deleted"].to_numpy(bool)] if "deleted" in rows and rows["deleted"].any() else rows


def is_finished(folder: Path) -> bool:
    """Tell whether a store holds all that its last call listed; not if that call was killed, or there is none."""
    return (folder / "card.json").exists() and read_store_card(folder)["finished"]


def files_of(folder: Path, unfinished: bool = False) -> pd.DataFrame:
    """Read the table of files of a store, see `EmbeddingStore.files`; empty if there is none, DataError if damaged.

    What an `unfinished` call has told belongs to whoever writes the store: others would see it come and go.
    """
    path = folder / FILES
    there = [path] * path.exists() + [*parts.parts_of(path).values()] * unfinished
    if not there:
        return pd.DataFrame(columns=FILE_COLUMNS).astype({"size": np.int64, "mtime_ns": np.int64})
    files = parts.joined([parts.read(one, "read", FILE_COLUMNS) for one in there])
    return files if len(there) == 1 else files.drop_duplicates("path", keep="last", ignore_index=True)


def check_shard(path: Path, shape: tuple[int, int], dtype: str) -> None:
    """Compare a shard's header and size with what the rows say, without reading its vectors."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            *layout, kept_as = np.lib.format.read_array_header_1_0(file)
            size = path.stat().st_size - file.tell()
        found = (*layout, str(kept_as), size // kept_as.itemsize)
    except Exception as error:  # whatever NumPy's header parser says of a damaged file
        found = error
    if found != (shape, False, dtype, shape[0] * shape[1]):
        raise DataError(
            f"{path} does not hold the {shape[0]:,} vectors that its rows name ({found}): delete {path.parent} "
            "and embed the images again."
        )


def shard_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"vectors-{number:05d}.npy"


def vectors_of(store: EmbeddingStore, image_ids: Sequence[str]) -> np.ndarray:
    """Return the vectors of some images, float32 (N, dim), in their order; ArgumentError if the store lacks one.

    Rows of one store and vectors of another go together only in this way: each store has an order of its own.
    """
    wanted, missing = pd.Index(image_ids), np.ones(len(image_ids), bool)
    found = np.empty((len(wanted), store.card["dim"]), np.float32)
    for block, rows in store.blocks():
        places = wanted.get_indexer(rows["image_id"])
        found[places[places >= 0]] = block[places >= 0]
        missing[places[places >= 0]] = False
    if missing.any():
        raise ArgumentError(
            f"{store.folder} holds no vector of {missing.sum():,} images, such as {wanted[missing][0]!r}."
        )
    return found
