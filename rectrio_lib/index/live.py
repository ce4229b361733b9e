"""An index that changes while it is searched: a saved one that never changes, and a tail of what came since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.knn import Mapped, best
from rectrio_lib.index import conditions
from rectrio_lib.index.base import VectorIndex, Where, already_there, check_encoder, check_k, check_mask, unit_vectors

CACHED_MASKS = 32  # conditions whose rows are remembered until something changes
TAIL_ROWS = 20_000  # compared one by one: a millisecond or two
DERIVED_ROWS = 4096  # of which something is derived at once: when a row changes, that of the others stays


@dataclass(frozen=True)
class Snapshot:
    """What can be searched at one moment; it stays as it is, whatever is added or removed meanwhile.

    Positions count through the rows of `main`, then through the tail.

    Attributes:
        main: the saved index; what it has removed is in `removed` as well.
        main_rows: metadata of its vectors, one row each; may say more than the index does.
        tail: vectors that came since, float32 (T, dim).
        tail_rows: their metadata; the first T count.
        removed: which vectors are no longer there, bool (N,).
        places: position of each image_id, the latest if it was removed and came again; shared, and grows.
        derived: what others make of rows and want to find again until these change, by a name and which DERIVED_ROWS of
            `main_rows` they are, counted from 0, or -1 for the tail.
    """

    main: VectorIndex
    main_rows: pd.DataFrame
    tail: np.ndarray
    tail_rows: list[dict[str, Any]]
    removed: np.ndarray
    places: dict[str, int]
    derived: dict[tuple[str, int], Any] = field(default_factory=dict)
    _columns: dict[str, np.ndarray] = field(default_factory=dict)
    _masks: dict[str, np.ndarray] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return self.count()

    @property
    def encoder_hash(self) -> str:
        """Fingerprint of the encoder that made the vectors."""
        return self.main.encoder_hash

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row a vector."""
        if not len(self.tail):
            return self.main_rows
        tail = pd.DataFrame(self.tail_rows[: len(self.tail)], columns=self.main_rows.columns)
        if not len(self.main_rows):
            return tail
        return pd.concat([self.main_rows, tail.astype(self.main_rows.dtypes)], ignore_index=True)

    def allowed(self, where: Where = None) -> np.ndarray:
        """Return which rows may be results, bool (N,): not removed, and meeting a condition or mask."""
        if where is None:
            return ~self.removed
        if not isinstance(where, str):
            return check_mask(where, len(self.removed)) & ~self.removed
        mask = self._masks.get(where)
        if mask is None:
            if len(self._masks) >= CACHED_MASKS:
                self._masks.clear()
            mask = self._masks[where] = conditions.matching(self.rows, where) & ~self.removed
        return mask

    def count(self, where: Where = None) -> int:
        """Count the images that may be results."""
        return int(np.count_nonzero(self.allowed(where)))

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, where: Where = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query; see `Index.search`."""
        check_encoder(self, encoder_hash)
        allowed = self.allowed(where)
        k = check_k(k, int(np.count_nonzero(allowed)))
        size = len(self.main_rows)
        inside, parts = allowed[:size], []
        if count := int(np.count_nonzero(inside)):
            there, chosen = ~self.main.removed, inside
            if len(there) > size:  # on a server others may have added some since
                chosen = np.concatenate([inside, np.zeros(len(there) - size, bool)])
            everything = count == len(there) or np.array_equal(chosen, there)
            parts.append(self.main.search(vectors, min(k, count), where=None if everything else chosen))
        fresh = np.flatnonzero(allowed[size:])
        if len(fresh):
            scores = unit_vectors(vectors, self.main.dim) @ self.tail[fresh].T
            parts.append((scores, np.broadcast_to(size + fresh, scores.shape)))
        scores, positions = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
        return best(scores, positions, k)

    def vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the stored vectors at positions of any shape, float32 (..., dim)."""
        positions = np.asarray(positions)
        flat, size = positions.ravel(), len(self.main_rows)
        found, late = np.empty((len(flat), self.main.dim), np.float32), flat >= size
        found[~late], found[late] = self.main.vectors_at(flat[~late]), self.tail[flat[late] - size]
        return found.reshape(*positions.shape, self.main.dim)

    def mapped(self, positions: np.ndarray) -> Mapped:
        """Return the vectors at positions (N,), read when asked for: an index of any size is built from them."""
        return Mapped(len(positions), self.main.dim, lambda places: self.vectors_at(positions[places]))

    def positions(self, image_ids: Sequence[str]) -> dict[str, int]:
        """Return where images lie; those that are not there, or no longer, are left out."""
        found = {name: self.places[name] for name in image_ids if name in self.places}
        return {name: at for name, at in found.items() if at < len(self.removed) and not self.removed[at]}

    def records(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return the metadata at some positions; None where a value is missing."""
        size = len(self.main_rows)
        return [self._main_record(at) if at < size else self.tail_rows[at - size] for at in positions]

    def _main_record(self, position: int) -> dict[str, Any]:
        if not self._columns:
            self._columns.update({name: plain(values) for name, values in self.main_rows.items()})
        return {name: values[position] for name, values in self._columns.items()}


class LiveIndex:
    """A saved index with a tail: an image is added or removed in microseconds, and searches never wait.

    Args:
        main: as loaded; it is never changed.
        rows: metadata of its vectors, in its order; None: its own.
        removed: which of them are no longer there, bool (N,); None: those that it has removed.

    Attributes:
        current: what can be searched now.
    """

    def __init__(self, main: VectorIndex, rows: pd.DataFrame | None = None, removed: np.ndarray | None = None):
        rows = main.rows if rows is None else rows
        removed = (main.removed if removed is None else removed).copy()
        places = dict(zip(rows["image_id"].tolist(), range(len(rows)), strict=True))
        self._vectors, self._lock = np.empty((64, main.dim), np.float32), Lock()
        self.current = Snapshot(main, rows, self._vectors[:0], [], removed, places)

    @property
    def tail_is_full(self) -> bool:
        """Whether the index had better be built anew."""
        return len(self.current.tail) >= TAIL_ROWS

    def add(self, vectors: np.ndarray, records: Sequence[dict[str, Any]]) -> None:
        """Add unit vectors (M, dim) with their metadata, `image_id` among it.

        Raises:
            ArgumentError: if they do not fit, or an image_id is there already.
        """
        vectors = unit_vectors(vectors, self.current.main.dim)
        if len(vectors) != len(records):
            raise ArgumentError(f"{len(vectors)} vectors but {len(records)} rows.")
        with self._lock:
            before, names = self.current, [record["image_id"] for record in records]
            if known := [*before.positions(names)] or [name for name, times in Counter(names).items() if times > 1]:
                raise already_there(known)
            start, count = len(before.tail), len(before.tail) + len(vectors)
            while len(self._vectors) < count:  # older snapshots keep the array that they look into
                self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
            self._vectors[start:count] = vectors
            before.tail_rows.extend(records)
            removed = np.concatenate([before.removed, np.zeros(len(vectors), bool)])
            self.current = replace(before, tail=self._vectors[:count], removed=removed)
            before.places.update(zip(names, range(len(removed) - len(names), len(removed)), strict=True))

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take images out; names that are not there are ignored."""
        with self._lock:
            removed = self.current.removed.copy()
            removed[[*self.current.positions(image_ids).values()]] = True
            self.current = replace(self.current, removed=removed)

    def update(self, records: Sequence[dict[str, Any]]) -> None:
        """Replace the metadata of images by `image_id`; those that are not there are ignored."""
        with self._lock:
            before, size = self.current, len(self.current.main_rows)
            rows, tail_rows, columns = before.main_rows, before.tail_rows, before._columns
            places = before.positions([record["image_id"] for record in records])
            inside = {at: record for record in records if (at := places.get(record["image_id"], size)) < size}
            if inside:
                rows, columns = rows.copy(), {name: values.copy() for name, values in columns.items()}
                for name in rows.columns:
                    values = pd.Series([record[name] for record in inside.values()], dtype=rows[name].dtype)
                    rows.iloc[[*inside], rows.columns.get_loc(name)] = values.to_numpy()
                    if columns:
                        columns[name][[*inside]] = plain(values)
            if len(inside) < len(places):
                tail_rows = tail_rows.copy()
                for record in records:
                    if (at := places.get(record["image_id"], -1)) >= size:
                        tail_rows[at - size] = record
            changed = {at // DERIVED_ROWS if at < size else -1 for at in places.values()}
            derived = {key: made for key, made in before.derived.copy().items() if key[1] not in changed}
            self.current = replace(before, main_rows=rows, tail_rows=tail_rows, _columns=columns, derived=derived)


def plain(values: pd.Series) -> np.ndarray:
    """Return a column as Python's own objects, None where a value is missing."""
    objects = values.astype(object)
    return objects.where(objects.notna(), None).to_numpy()
