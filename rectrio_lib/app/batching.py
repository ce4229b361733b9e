"""Micro-batching: requests that come within a few milliseconds of each other are encoded in one pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class BusyError(Exception):
    """More requests wait than the queue takes: come again in a moment."""


class Batcher:
    """Gathers single items into batches for one function, which runs in a thread of its own.

    Args:
        encode: takes a list of items and returns as many rows.
        most: largest batch.
        wait: seconds to wait for more items after the first.
        waiting: items that may wait; one more is refused.
    """

    def __init__(
        self, encode: Callable[[Sequence[Any]], np.ndarray], most: int = 32, wait: float = 0.004, waiting: int = 256
    ):
        self.encode, self.most, self.wait = encode, most, wait
        self._queue: asyncio.Queue = asyncio.Queue(waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._worker: asyncio.Task | None = None

    async def __call__(self, item: Any) -> np.ndarray:
        """Return the row of one item; BusyError if too many wait; what `encode` raises goes to all of its batch."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        answer = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, answer))
        except asyncio.QueueFull:
            raise BusyError from None
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            batch = [(item, answer) for item, answer in batch if not answer.done()]  # its client may have gone
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(self._thread, self.encode, [item for item, _ in batch])
                outcomes = [(answer.set_result, row) for (_, answer), row in zip(batch, rows, strict=True)]
            except Exception as error:
                outcomes = [(answer.set_exception, error) for _, answer in batch]
            for (_, answer), (settle, outcome) in zip(batch, outcomes, strict=True):
                if not answer.done():
                    settle(outcome)

    async def _gather(self) -> list[tuple[Any, asyncio.Future]]:
        """Wait for one item, then for a moment for more."""
        batch = [await self._queue.get()]
        if self.most > 1 and self._queue.empty():
            await asyncio.sleep(self.wait)
        while len(batch) < self.most and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    async def close(self) -> None:
        """Stop working."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False)
