"""Embedding on Ray: workers on any number of machines read, decode and encode; this process alone writes the store.

Plain actors rather than Ray Data, for three reasons. This process puts the vectors of a block into the journal as soon
as they are there, so a death, of a node or its own, costs only blocks that are being encoded; Ray Data leaves finished
blocks on the node and would embed them again. Blocks come back in the order of the images, so the store is
byte-identical to that of a single process. And the number of blocks in flight is fixed, so memory does not grow.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.errors import ArgumentError, ClusterError, needing
from rectrio_lib.data import image_files
from rectrio_lib.data.image_files import ImageFile
from rectrio_lib.data.places.place import Place
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint

with needing("engine='ray'", "ray"):
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rectrio_lib.embeddings.from_folder import Batches
from rectrio_lib.embeddings.ray_worker import Embedded, Files, Worker, versions

LOG = logging.getLogger(__name__)
MOST_WORKERS = 8  # on a node without GPU; each takes about a gigabyte, and several threads beyond that
AT_ONCE = 2  # blocks that a worker holds: one is read while the other one is encoded
AHEAD = 2  # blocks per worker that may wait besides
MOST_DEATHS = 3  # of workers over one block
CONNECT_SECONDS, PATIENCE_SECONDS, LIMIT = 5, 60, "RECTRIO_MAX_PIXELS"
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4" + bytes(5)  # HTTP/2, which Ray speaks: settings, none


@dataclass(eq=False)
class _Job:
    key: Any
    block: Files | np.ndarray
    result: Embedded | None = None
    deaths: int = 0


@dataclass(eq=False)
class _Hand:
    actor: Any
    slot: tuple[str, int]  # node and number
    ready: bool = False
    jobs: int = 0


class Workers:
    """The workers on a Ray that this process is connected to: one per GPU; on nodes without, per core or group of them.

    A worker that dies is replaced, its blocks are given to others first. Their failures show as ClusterError.
    """

    def __init__(self, encoder: Encoder, seconds: dict[str, float], keep: Callable[[pd.DataFrame, np.ndarray], Any]):
        try:
            self._encoder = ray.put(encoder.cpu())
        except Exception as error:  # whatever pickling it raises
            raise ArgumentError(f"An encoder of kind {encoder.kind!r} cannot be sent to workers: {error}") from error
        self._made_by, self._seconds, self._spent, self._waited = fingerprint(encoder), seconds, np.zeros(2), 0.0
        self._keep = keep
        self._hands: dict[tuple[str, int], _Hand | None] = {}  # by slot; None if it could not be started
        self._running: dict[Any, tuple[_Hand, _Job | None]] = {}  # by the reference to what is awaited
        self._queue: deque[_Job] = deque()

    def start(self) -> None:
        """Start workers wherever there is room, and wait for the first one."""
        self._hire()
        if not self._hands:
            raise ClusterError("This Ray has neither processor cores nor GPUs: start it with some.")
        while not self._ready():
            self._wait()
        self._waited = 0.0

    def encode(self, batches: Batches) -> Batches:
        """Send images to workers; yield the same rows, with vectors."""
        for rows, done in self._map((rows, images.numpy()) for rows, images in batches):
            yield rows, torch.tensor(done.vectors)

    def read_ahead(
        self,
        place: Place,
        paths: Iterable[str],
        size: int,
        channels: int,
        known: Container[str],
        ahead: int,
        listed: Iterable[tuple[int, int]] = repeat(image_files.UNLISTED),
    ) -> Iterator[ImageFile]:
        """Let workers read and encode files, half of `ahead` in a block: as `image_files.read_ahead`, with vectors."""
        ids = ray.put(known)
        files, count = zip(paths, listed, strict=False), max(1, ahead // 2)
        blocks = iter(lambda: tuple(islice(files, count)), ())
        for _, done in self._map((None, Files(place, block, size, channels, ids)) for block in blocks):
            for read in done.reads:
                yield read if read.pixels is None else read._replace(pixels=done.vectors[read.pixels])

    def _map(self, blocks: Iterable[tuple[Any, Files | np.ndarray]]) -> Iterator[tuple[Any, Embedded]]:
        """Yield keys of blocks, and what became of them, in their order, a bounded number of them in flight."""
        left, window = iter(blocks), deque()
        while True:
            while len(window) < (AT_ONCE + AHEAD) * len(self._hands) and (block := next(left, None)) is not None:
                window.append(_Job(*block))
                self._queue.append(window[-1])
            self._hand_out()
            if not window:
                return
            if self._running:
                self._wait(0)  # no worker waits while the caller writes what others made
            while window[0].result is None:
                self._wait()
                self._hand_out()
            yield window[0].key, window.popleft().result

    def _hire(self) -> None:
        """Start a worker wherever there is none."""
        for node in ray.nodes():
            cores, gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
            count = (gpus or min(cores, MOST_WORKERS)) if node["Alive"] else 0
            for slot in ((node["NodeID"], number) for number in range(count)):
                if slot not in self._hands:
                    each = max(1, cores // count)
                    options = {"num_cpus": min(each, cores), "num_gpus": int(gpus > 0), "max_concurrency": AT_ONCE + 1}
                    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    if LIMIT in os.environ:  # so that nodes refuse what this machine would refuse
                        options["runtime_env"] = {"env_vars": {LIMIT: os.environ[LIMIT]}}
                    actor = ray.remote(Worker).options(**options).remote()
                    started = actor.start.remote([self._encoder], self._made_by, versions(), each)
                    self._hands[slot] = hand = _Hand(actor, slot)
                    self._running[started] = hand, None

    def _hand_out(self) -> None:
        """Give blocks to the workers that have least to do."""
        while self._queue and (free := [hand for hand in self._ready() if hand.jobs < AT_ONCE]):
            hand, job = min(free, key=lambda hand: hand.jobs), self._queue.popleft()
            hand.jobs += 1
            self._running[hand.actor.embed.remote(job.block)] = hand, job

    def _ready(self) -> list[_Hand]:
        return [hand for hand in self._hands.values() if hand and hand.ready]

    def _wait(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Take what is finished next, and account for the time that it was waited for."""
        began = time.perf_counter()
        finished, _ = ray.wait([*self._running], timeout=seconds)
        if not finished and seconds and not self._ready():
            LOG.warning("no worker has started for %s s: are the cores of this Ray taken?", PATIENCE_SECONDS)
        for reference in finished:
            hand, job = self._running.pop(reference)
            try:
                result = ray.get(reference)
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                self._lost(hand, job, error)
                continue
            hand.ready = True
            if job is not None:
                self._keep(result.rows() if job.key is None else job.key, result.vectors)
                hand.actor.received.remote()
                hand.jobs, job.result = hand.jobs - 1, result
                self._spent += result.reading, result.encoding
        self._waited += time.perf_counter() - began
        if self._spent.any():
            shares = self._waited * self._spent / self._spent.sum()
            self._seconds.update(zip(("reading", "encoding"), map(float, shares), strict=True))

    def _lost(self, hand: _Hand, job: _Job | None, error: RayError) -> None:
        """Replace a worker that died, and let others embed its block."""
        said = str(error).strip().partition("\n")[0]
        if job is None:
            self._hands[hand.slot] = None
            LOG.warning("a worker could not be started: %s", said)
        else:
            hand.jobs -= 1
            job.deaths += 1
            self._queue.appendleft(job)
            if job.deaths == MOST_DEATHS:
                of = "" if isinstance(job.block, np.ndarray) else f", which begins with {job.block.files[0][0]}"
                raise ClusterError(
                    f"{MOST_DEATHS} workers died over the same block of images{of} ({said}): too little memory?"
                )
            if isinstance(error, RayActorError) and self._hands.get(hand.slot) is hand:
                del self._hands[hand.slot]
                LOG.warning("a worker died, its images go to others: %s", said)
                ray.kill(hand.actor)  # should it only be out of reach
                self._hire()
        if not any(self._hands.values()):
            raise ClusterError(f"No worker is left ({said}). What was embedded before is kept: call again.")

    def dismiss(self) -> None:
        """End all workers."""
        for hand in filter(None, self._hands.values()):
            ray.kill(hand.actor)


def encoded(
    source: Any, encoder: Encoder, step: int, report: Any, keep: Any, address: str
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Yield rows and vectors as `embed.encoded_here`, made by workers on a Ray."""
    started = time.perf_counter()
    with _connected(address):
        workers = Workers(encoder, report.seconds, keep)
        try:
            workers.start()
            report.seconds["starting"] = time.perf_counter() - started
            with closing(source.spread(step, workers)) as batches:
                for rows, vectors in batches:
                    yield rows, vectors.numpy()
        finally:
            workers.dismiss()


def checked_address(address: str | None) -> str:
    """Return where Ray runs, "local" if it is to be started here; ClusterError at once if nobody answers there."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address in ("local", "auto"):
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ArgumentError(f"address={address!r} should be HOST:PORT of a running Ray, 'auto' or 'local'.")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS) as probe:
            probe.sendall(HELLO)
            if probe.recv(4)[3:] != b"\4":  # Ray would wait for minutes
                raise ConnectionError("something else does")
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"No Ray answers at {address} ({error}): start one, `ray start --head`, and give the address it names."
        ) from error
    return address


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Use the Ray that this process is connected to, else that of an address, for as long as the block lasts."""
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in ("local", "auto", here):
            raise ArgumentError(f"This process is connected to the Ray at {here}, not {address}: call ray.shutdown().")
        yield
        return
    options = {"num_cpus": image_files.cores(), "include_dashboard": False} if address == "local" else {}
    try:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # of no common kind
            raise ClusterError(f"The Ray at {address} cannot be used: {error}") from error
        yield
    finally:
        ray.shutdown()
