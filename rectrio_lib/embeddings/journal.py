"""What is embedded and in no shard yet, a file per block: a death costs only the blocks that are being encoded."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from rectrio_lib.core.files import storage_errors
from rectrio_lib.core.lookup import positions
from rectrio_lib.embeddings import parts

JOURNAL = "journal"  # a folder in that of the store


class Journal:
    """Blocks of rows and vectors, kept from when they are encoded until a shard holds them.

    A block is handed to the operating system, without waiting for the disk: a killed process loses none. A power cut
    may take or tear the last ones; what is torn does not count.

    Attributes:
        rows: what earlier calls left here, unless it is in the store, which holds the rows `before`.
        vectors: theirs, in the dtype of the store (N, dim).
    """

    def __init__(self, store: Path, dtype: str, before: pd.DataFrame):
        self._folder, self._dtype = store / JOURNAL, dtype
        found = {path: block for path in self._folder.glob("*.arrow") if (block := _read(path))}
        self.rows, self.vectors = before.iloc[:0], np.empty((0, 0), dtype)
        if found:
            tables, vectors = zip(*found.values(), strict=True)
            rows, vectors = parts.joined([*tables]), np.concatenate(vectors)
            new = positions(rows["image_id"], before["image_id"]) < 0
            self.rows, self.vectors = rows[new], vectors[new]
        waiting = {*self.rows["image_id"]}
        self._left = {path: waiting.intersection(rows["image_id"]) for path, (rows, _) in found.items()}  # in no shard

    def sort(self, listed: pd.Series) -> int:
        """Bring `rows` into the order of the images `listed`, a column of theirs; return how many are listed.

        Of an image that two workers encoded at once, as copies, the first one counts, as in a call that was not killed.
        """
        keys = positions(self.rows[listed.name], listed)
        keys = np.where(keys < 0, len(listed), keys)  # behind all
        order = np.argsort(keys, kind="stable")
        order = order[~self.rows["image_id"].iloc[order].duplicated().to_numpy()]
        self.rows, self.vectors = self.rows.set_axis(keys).iloc[order], self.vectors[order]
        keys = keys[order]
        there = keys[keys < len(listed)]
        self._listed = listed.iloc[: there.max(initial=-1) + 1]
        return len(there)

    def with_earlier(self, rows: pd.DataFrame, vectors: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
        """Return these with those of earlier calls that are listed before the last of them, which leave `rows`."""
        if self.rows.empty:
            return rows, vectors
        keys = positions(rows[self._listed.name], self._listed)
        keys = np.where(keys < 0, len(self._listed), keys)  # behind all
        due = int(np.searchsorted(self.rows.index, keys.max()))
        order = np.argsort(np.append(self.rows.index[:due], keys), kind="stable")
        rows, vectors = parts.joined([self.rows[:due], rows]), np.append(self.vectors[:due], vectors, axis=0)
        self.rows, self.vectors = self.rows[due:], self.vectors[due:]
        return rows.iloc[order], vectors[order]

    def add(self, rows: pd.DataFrame, vectors: np.ndarray) -> np.ndarray:
        """Keep a block; return its vectors (B, dim) in the dtype of the store. StorageError if it cannot be written."""
        vectors = np.ascontiguousarray(vectors, self._dtype)
        last = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        block = pa.RecordBatch.from_arrays([*(pa.array(rows[name]) for name in rows), last], [*rows, ""])
        sink, path = pa.BufferOutputStream(), self._folder / f"{secrets.token_hex(8)}.arrow"
        with pa.ipc.new_stream(sink, block.schema) as stream:
            stream.write_batch(block)
        content = sink.getvalue()
        with storage_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join([_checksum(content), content]))
        self._left[path] = {*rows["image_id"].to_numpy()}
        return vectors

    def forget(self, image_ids: Iterable[str]) -> None:
        """Note that a shard holds these images; blocks of which nothing else is left are removed."""
        written = {*image_ids}
        self._left = {path: left - written for path, left in self._left.items()}
        for path in [path for path, left in self._left.items() if not left]:
            path.unlink(missing_ok=True)
            del self._left[path]


def _read(path: Path) -> tuple[pd.DataFrame, np.ndarray] | None:
    """Read a block; None if it is torn."""
    with suppress(OSError):
        content = path.read_bytes()
        if content[:4] == _checksum(content[4:]):
            block = pa.ipc.open_stream(content[4:]).read_all()
            vectors = block.column(last := block.num_columns - 1).combine_chunks()
            shape = len(block), vectors.type.list_size
            return block.remove_column(last).to_pandas(), vectors.flatten().to_numpy().reshape(shape)
    return None


def _checksum(content: bytes | pa.Buffer) -> bytes:
    return zlib.crc32(content, 1).to_bytes(4, "big")  # from 1: nothing but zeros does not pass
