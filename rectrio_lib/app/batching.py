"""Micro-batching: requests that come within a few milliseconds of each other are encoded in one pass."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

WAIT_SECONDS = 0.004  # for more items after the first


class BusyError(Exception):
    """More requests wait than the queue takes: come again in a moment."""


class Batcher:
    """Gathers single items into batches for one function, which runs in threads of its own.

    Args:
        encode: takes a list of items and returns as many rows.
        most: largest batch.
        waiting: items that may wait; one more is refused.
        threads: batches under way at once.
        initializer: called in each thread before its first batch.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Any]], np.ndarray],
        most: int = 32,
        waiting: int = 256,
        threads: int = 1,
        initializer: Callable[[], None] = lambda: None,
    ):
        self.encode, self.most, self.waiting, self.threads = encode, most, waiting, threads
        self._queue: deque[tuple[Any, asyncio.Future]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=initializer)
        self._workers: set[asyncio.Task] = set()  # there are some while something waits

    async def __call__(self, item: Any) -> np.ndarray:
        """Return the row of one item; BusyError if too many wait; what `encode` raises goes to all of its batch."""
        if len(self._queue) >= self.waiting:
            raise BusyError
        answer = asyncio.get_running_loop().create_future()
        self._queue.append((item, answer))
        self._workers = {worker for worker in self._workers if not worker.done()}
        if len(self._workers) < self.threads:
            self._workers.add(asyncio.create_task(self._work()))
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            if len(self._queue) == 1 and self.most > 1:  # more may come with it
                await asyncio.sleep(WAIT_SECONDS)
            batch = [self._queue.popleft() for _ in range(min(self.most, len(self._queue)))]  # none: others were faster
            batch = [(item, answer) for item, answer in batch if not answer.done()]  # its client may have gone
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(self._pool, self.encode, [item for item, _ in batch])
                outcomes = [(answer.set_result, row) for (_, answer), row in zip(batch, rows, strict=True)]
            except Exception as error:
                outcomes = [(answer.set_exception, error) for _, answer in batch]
            for (_, answer), (settle, outcome) in zip(batch, outcomes, strict=True):
                if not answer.done():
                    settle(outcome)
