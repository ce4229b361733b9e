"""Which results count, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.index import Index
from rectrio_lib.search.filters import matching


@dataclass(frozen=True)
class Options:
    """Which answers count, and in which order; each of these is a keyword of the search functions.

    Attributes:
        combine: ask one question instead of Q: the mean of the queries.
        where: only rows that meet this condition, see `filters.matching`; or a mask, bool (N,), over the rows.
        minimum: only answers of at least this score.
        expand: move the query towards its `expand` best answers and search again, see `rerank.expand_queries`.
        alpha: how much more the nearest of these weigh.
        reciprocal: order by shared neighbours, with this k1, see `rerank.k_reciprocal`; about as many pictures as
            belong together. With a pool of the whole index it is the paper's method, with a smaller one its estimate.
        distinct: only answers whose cosine similarity to each one before is at most this, such as 0.98; others fill up.
        mmr: weigh relevance (1) against variety (0), see `rerank.mmr`.
        pool: how many of the best `reciprocal` and `mmr` choose from, at least k.

    Raises:
        ValueError: if a number is out of its range, or `reciprocal` and `mmr` contradict each other.
    """

    combine: bool = False
    where: str | np.ndarray | None = None
    minimum: float | None = None
    expand: int = 0
    alpha: float = 3.0
    reciprocal: int | None = None
    distinct: float | None = None
    mmr: float | None = None
    pool: int = 100

    def __post_init__(self) -> None:
        ranges = {"expand": (0, inf), "alpha": (0, inf), "reciprocal": (1, inf), "mmr": (0, 1), "pool": (1, inf)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ArgumentError(f"{name}={value}: expected {low} {'or more' if high == inf else f'to {high}'}.")
        if self.reciprocal is not None and self.mmr is not None:
            raise ArgumentError("reciprocal and mmr each choose an order of their own: ask for one of them.")

    def mask(self, index: Index) -> np.ndarray | None:
        """Return which rows may be answers, bool (N,); None if all.

        Raises:
            ValueError: if the condition or the mask does not fit the rows.
        """
        if self.where is None:
            return None
        if isinstance(self.where, str):
            return matching(index.rows, self.where)
        if self.where.shape != index.removed.shape or self.where.dtype != bool:
            told = f"{self.where.dtype} {self.where.shape}"
            raise ArgumentError(f"where is an array {told}; expected bool {index.removed.shape}, one for each row.")
        return self.where
