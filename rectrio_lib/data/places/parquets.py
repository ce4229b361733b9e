"""Parquet files with the bytes of images in a column, as Hugging Face writes them, or anyone."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import deque
from threading import Lock
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rectrio_lib.data.decoding import UnreadableError
from rectrio_lib.data.places.archives import Contents, storable

USUAL = ("image", "img", "jpg", "jpeg", "png", "picture", "photo", "image_bytes", "bytes")
NO_COLUMN = "no column holds the bytes of images, as binary or as a struct with `bytes`; addresses are not fetched"
BATCH_ROWS, BATCHES_KEPT = 32, 4  # threads read nearly in order: these many rows are at hand
BUFFER = 1 << 20  # bytes of a column that are fetched at once


def contents(file: BinaryIO, archive: str, size: int) -> Contents:
    """List the rows of a Parquet file as images, with the other columns as what is known of them; see `tars`."""
    try:
        opened = pq.ParquetFile(file)
        column, rows, schema = _image_column(opened.schema_arrow), opened.metadata.num_rows, opened.schema_arrow
    except (pa.ArrowException, UnreadableError) as error:
        said = str(error) if isinstance(error, UnreadableError) else "not a Parquet file, damaged or truncated"
        return Contents([(archive, said)], pd.DataFrame())
    paths = [f"{archive}/{row:0{len(str(rows))}}" for row in range(rows)]
    flat = [field.name for field in schema if not pa.types.is_nested(field.type) and not _is_bytes(field.type)]
    try:
        table = opened.read([*flat, *([f"{column}.path"] if _has(schema.field(column).type, "path") else [])])
    except (pa.ArrowException, OSError) as error:
        return Contents([(archive, f"damaged: {str(error).splitlines()[0]}")], pd.DataFrame())
    if column in table.column_names:
        names = table[column].combine_chunks().field("path")
        table = table.drop_columns(column).append_column("file_name", names)
    told = _named(table.to_pandas().drop(columns="path", errors="ignore"), schema)
    return Contents([(path, "") for path in paths], storable(told.assign(path=paths)))


def _named(told: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Put names in the place of class numbers, where Hugging Face's note in the file has them."""
    note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (note.get("info") or {}).get("features") or {}
    classes = {c: f["names"] for c, f in features.items() if isinstance(f, dict) and f.get("names") and c in told}
    for name, names in classes.items():
        told[name] = told[name].map(dict(enumerate(names)))
    return told.assign(label=told[next(iter(classes))]) if len(classes) == 1 and "label" not in told else told


def _image_column(schema: pa.Schema) -> str:
    found = [field.name for field in schema if _is_bytes(field.type) or _has(field.type, "bytes")]
    if not found:
        raise UnreadableError(NO_COLUMN)
    return next((name for name in USUAL if name in found), found[0])


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has(kind: pa.DataType, name: str) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index(name) >= 0


class Rows:
    """The images of a Parquet file, a few batches of rows in memory: quick for who asks nearly in order."""

    def __init__(self, file: BinaryIO):
        self._file = pq.ParquetFile(file, buffer_size=BUFFER)
        self._column = _image_column(self._file.schema_arrow)
        groups = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self._starts = [sum(groups[:number]) for number in range(len(groups))]
        self._lock, self._kept, self._next, self._batches = Lock(), deque(maxlen=BATCHES_KEPT), 0, iter(())

    def image(self, row: int) -> bytes:
        """Return the bytes of one image; UnreadableError if there are none in that row."""
        with self._lock:
            first = self._kept[0][0] if self._kept else self._next
            group = bisect_right(self._starts, row) - 1
            if not self._kept or row < first or self._starts[group] > self._next:
                self._next, self._batches = self._starts[group], self._read(group)
                self._kept.clear()
            try:
                while row >= self._next:
                    batch = next(self._batches)
                    self._kept.append((self._next, batch))
                    self._next += len(batch)
            except (pa.ArrowException, OSError) as error:
                self._kept.clear()  # other groups of rows may be whole: the next row starts at its own
                raise UnreadableError(f"damaged: {str(error).splitlines()[0]}") from error
            data = next(batch[row - start] for start, batch in reversed(self._kept) if start <= row).as_py()
        if not data:
            raise UnreadableError("this row holds no image")
        return data

    def _read(self, group: int) -> Any:
        nested = _has(self._file.schema_arrow.field(self._column).type, "bytes")
        wanted = [f"{self._column}.bytes" if nested else self._column]
        for number in range(group, len(self._starts)):  # one by one: a damaged group spoils no other
            for batch in self._file.iter_batches(BATCH_ROWS, [number], wanted, use_threads=False):
                yield batch.column(0).field("bytes") if nested else batch.column(0)
