"""Texts found among millions of others, without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array

TEXT = pa.large_string()
FRESH = 1 << 16  # that are Python objects at once


def positions(wanted: Iterable[str], texts: Iterable[str]) -> np.ndarray:
    """Return where each of the `wanted` (N,) lies among `texts`, all different: integers (N,); -1 where it does not."""
    wanted, texts = _column(wanted), _column(texts)
    if not len(wanted) or wanted.equals(texts):  # as of a complete store and its data set: no hashes are needed
        return np.arange(len(wanted))
    return np.asarray(pc.fill_null(pc.index_in(wanted, value_set=texts), -1))


def all_differ(texts: pd.Series) -> bool:
    """Tell whether no text is there twice: certain where no two have one 64-bit hash, else they are compared."""
    hashes = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), FRESH):
        part = slice(start, start + FRESH)
        hashes[part] = hash_array(texts.iloc[part].to_numpy(object), categorize=False)
    hashes.sort()
    return not (hashes[1:] == hashes[:-1]).any() or texts.is_unique


def _column(texts: Iterable[str]) -> pa.ChunkedArray:
    found = pa.array(texts, TEXT)
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


class IdSet:
    """A growing set of image ids of up to 16 characters, which take 16 bytes each: most lie in one sorted array."""

    def __init__(self, ids: Iterable[str] = ()):
        self._sorted, self._fresh = np.sort(_packed(ids)), set()

    def __contains__(self, image_id: str) -> bool:
        if image_id in self._fresh:
            return True
        at = np.searchsorted(self._sorted, packed := image_id.encode())
        return bool(at < len(self._sorted) and self._sorted[at] == packed)

    def add(self, image_id: str) -> None:
        """Take one more id; threads may look others up meanwhile."""
        self._fresh.add(image_id)
        if len(self._fresh) == FRESH:
            self._sorted = np.sort(np.concatenate([self._sorted, _packed(self._fresh)]))
            self._fresh = set()


def _packed(ids: Iterable[str]) -> np.ndarray:
    return np.fromiter((image_id.encode() for image_id in ids), "S16")
