"""Several indexes searched as one: each is built by itself, where and when it suits, and can be replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.core.knn import best
from rectrio_lib.core.workspace import MADE_FROM, Workspace, read_card
from rectrio_lib.index.base import Where, check_encoder, check_k, check_mask, check_rows, not_there
from rectrio_lib.index.conditions import matching
from rectrio_lib.index.index import Index
from rectrio_lib.index.storage import carry_over, folder_of

KIND, NAME = "shards", "shard-{:04d}"
SCHEMA = {"kind": str, "dim": int, "encoder_hash": str, "shards": int, "made_from": MADE_FROM, "count": int}


class Shards:
    """Indexes of one encoder; fulfils `base.VectorIndex`. What is added goes to the last one.

    Args:
        indexes: of vectors of one length, made by one encoder, with no image in two of them.
        made_from: see `base.VectorIndex`; None: that of the first.

    Raises:
        ArgumentError: if there is none, or they do not belong together; the message names the shard.
    """

    kind = KIND

    def __init__(self, indexes: Sequence[Index], made_from: dict[str, Any] | None = None):
        self.indexes = list(indexes)
        if not self.indexes:
            raise ArgumentError("Shards need at least one index.")
        self.dim, self.encoder_hash = self.indexes[0].dim, self.indexes[0].encoder_hash
        self.made_from = made_from or self.indexes[0].made_from
        for number, index in enumerate(self.indexes):
            self._check(index, number)
        self._refuse_twice()

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    @property
    def recall(self) -> float | None:
        """The lowest that was measured in a shard; None if one was not measured."""
        recalls = [index.recall for index in self.indexes]
        return None if None in recalls else min(recalls)

    @property
    def rows(self) -> pd.DataFrame:
        """One row a vector, shard after shard."""
        return pd.concat([index.rows for index in self.indexes], ignore_index=True)

    @property
    def removed(self) -> np.ndarray:
        """Which rows are removed, bool (N,), read-only."""
        removed = np.concatenate([index.removed for index in self.indexes])
        removed.flags.writeable = False
        return removed

    def info(self) -> str:
        """Describe the index in one line."""
        kinds = ", ".join(sorted({index.kind for index in self.indexes}))
        found = "recall not measured" if self.recall is None else f"recall {self.recall:.3f}"
        return f"{len(self.indexes)} shards ({kinds}), {len(self):,} images, {found}"

    __repr__ = info

    def count(self, where: Where = None) -> int:
        """Count the rows that may be results."""
        return sum(index.count(part) for index, part in zip(self.indexes, self._parts(where), strict=True))

    def search(
        self, vectors: np.ndarray, k: int, encoder_hash: str | None = None, where: Where = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k most similar images of each query in all shards; see `Index.search`."""
        check_encoder(self, encoder_hash)
        parts = self._parts(where)
        counts = [index.count(part) for index, part in zip(self.indexes, parts, strict=True)]
        k = check_k(k, sum(counts))
        asked = [number for number, count in enumerate(counts) if count]

        def one(number: int) -> tuple[np.ndarray, np.ndarray]:
            return self.indexes[number].search(vectors, min(k, counts[number]), where=parts[number])

        with ThreadPoolExecutor(min(len(asked), os.cpu_count() or 1)) as pool:
            found = list(pool.map(one, asked))
        starts = self._starts()
        scores = np.concatenate([part[0] for part in found], axis=1)
        positions = np.concatenate([part[1] + starts[n] for n, part in zip(asked, found, strict=True)], axis=1)
        return best(scores, positions, k)

    def vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """Return vectors at positions of any shape, float32 (..., dim); IndexError if one is not there."""
        positions, starts = np.asarray(positions), self._starts()
        flat = positions.ravel()
        if len(flat) and not 0 <= flat.min() <= flat.max() < starts[-1]:
            raise IndexError(f"Positions {flat.min()} to {flat.max()}, but there are {starts[-1]} rows.")
        owner, found = np.searchsorted(starts, flat, "right") - 1, np.empty((len(flat), self.dim), np.float32)
        for number in np.unique(owner):
            chosen = owner == number
            found[chosen] = self.indexes[number].vectors_at(flat[chosen] - starts[number])
        return found.reshape(*positions.shape, self.dim)

    def add(self, vectors: np.ndarray, rows: pd.DataFrame) -> None:
        """Add unit vectors (N, dim) with their rows to the last shard; see `Index.add`."""
        check_rows(rows, len(vectors), pd.concat(self._image_ids()))
        self.indexes[-1].add(vectors, rows)

    def remove(self, image_ids: Sequence[str]) -> None:
        """Take images out; ArgumentError, and none is removed, if one of them is in no shard."""
        wanted = pd.Series(list(dict.fromkeys(image_ids)), dtype=str)
        there = [wanted[wanted.isin(known)].tolist() for known in self._image_ids()]
        if absent := wanted[~wanted.isin([name for names in there for name in names])].tolist():
            raise not_there(absent, len(wanted))
        for index, names in zip(self.indexes, there, strict=True):
            if names:
                index.remove(names)

    def replace(self, number: int, index: Index) -> None:
        """Put another index in the place of shard `number`; ArgumentError, and nothing changes, if it does not fit."""
        if not 0 <= number < len(self.indexes):
            raise ArgumentError(f"There is no shard {number}: they count 0 to {len(self.indexes) - 1}.")
        self._check(index, number)
        old, self.indexes[number] = self.indexes[number], index
        try:
            self._refuse_twice()
        except ArgumentError:
            self.indexes[number] = old
            raise

    def save(self, name: str, workspace: Workspace | None = None) -> Path:
        """Save all shards under a name below outputs/indexes/, each in a folder of its own, complete or not at all."""
        folder = (workspace or Workspace()).path("indexes", name)
        card = {"kind": KIND, "dim": self.dim, "encoder_hash": self.encoder_hash, "made_from": self.made_from}
        with files.replaced_folder(folder) as fresh:
            place = Workspace(fresh, outputs=fresh)
            for number, index in enumerate(self.indexes):
                shutil.move(index.save(NAME.format(number), place), fresh / NAME.format(number))
            (fresh / "indexes").rmdir()
            files.write_json(fresh / "card.json", {**card, "shards": len(self.indexes), "count": len(self)})
            carry_over(folder, fresh, self.encoder_hash)
        return folder

    @classmethod
    def load(cls, name: str | Path, workspace: Workspace | None = None) -> Shards:
        """Open what `save` wrote.

        Raises:
            MissingArtefactError: if there is none of that name, or one of its shards is gone.
            DataError: if a file is damaged, or a shard is of another encoder.
        """
        folder = folder_of(name, workspace)
        card = read_card(folder / "card.json", SCHEMA)
        homes = [folder / NAME.format(number) for number in range(card["shards"])]
        if gone := [home for home in homes if not (home / "card.json").is_file()]:
            told = f"{len(gone)} of {len(homes)} shards of {folder} are missing, such as {gone[0].name}"
            raise MissingArtefactError(f"{told}: put it back, or build it again and `replace` it.")
        try:
            shards = cls([Index.load(home) for home in homes], card["made_from"])
        except ArgumentError as error:
            raise DataError(f"{folder}: {error}") from error
        for index in shards.indexes:
            index._vectors.home = folder.parent  # not in the folder, which goes when it is saved again
        if (shards.encoder_hash, len(shards)) != (card["encoder_hash"], card["count"]):
            raise DataError(f"{folder}: its shards and card.json do not belong together: save it again.")
        return shards

    def _check(self, index: Index, number: int) -> None:
        if (index.dim, index.encoder_hash) != (self.dim, self.encoder_hash):
            told = f"Shard {number} holds vectors of length {index.dim} by encoder {index.encoder_hash}"
            raise ArgumentError(f"{told}, the others of length {self.dim} by {self.encoder_hash}: build it again.")

    def _refuse_twice(self) -> None:
        ids = pd.concat(self._image_ids())
        if again := ids[ids.duplicated()].tolist():
            raise ArgumentError(f"{len(again)} images are in two shards, such as {again[0]!r}: each belongs into one.")

    def _image_ids(self) -> list[pd.Series]:
        """Return what each shard holds and has not removed."""
        return [index.rows["image_id"][~index.removed] for index in self.indexes]

    def _starts(self) -> np.ndarray:
        """Where each shard's rows begin, and their number."""
        return np.cumsum([0, *(len(index.removed) for index in self.indexes)])

    def _parts(self, where: Where) -> list[Where]:
        """Return what each shard is to be asked: conditions that look at all rows have to be read as one."""
        if where is None:
            return [None] * len(self.indexes)
        starts = self._starts()
        mask = matching(self.rows, where) if isinstance(where, str) else check_mask(where, starts[-1])
        return np.split(mask, starts[1:-1])
