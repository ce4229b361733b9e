"""Further processes of this machine that take part in a training, started when first needed."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from tqdm.auto import tqdm

from rectrio_lib.core import files
from rectrio_lib.core.device import best_device
from rectrio_lib.core.errors import ArgumentError, ProcessError
from rectrio_lib.core.workspace import processes

PATIENCE = timedelta(hours=12)  # while the main process validates, the others wait; one that ended is noticed at once
LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe", re.IGNORECASE)
READY, DONE = "ready", "done"
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def to_start(wanted: int) -> int:
    """Return how many processes a training is to start with: 1 in one that torchrun or `accelerate launch` started.

    If 0 are wanted, `RECTRIO_PROCESSES` says how many, or it is 1.

    Raises:
        ArgumentError: if this machine has too few processor cores or GPUs.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    count = wanted or processes()
    check(count)
    return count


def check(count: int) -> None:
    """Refuse a number of processes that this machine cannot serve: ArgumentError."""
    device = best_device()
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, os.cpu_count() or 1)
    if not 1 <= count <= most:
        what = {"cuda": "GPUs", "mps": "GPU that several processes can share"}.get(device, "processor cores")
        raise ArgumentError(f"processes={count}: this machine has {most} {what}, choose 1 to {most}.")


@contextmanager
def helped(count: int, function: Callable, arguments: tuple, arrays: dict[str, np.ndarray], beside: Path) -> Iterator:
    """Make this process and `count` - 1 others one group, in which the others call a function, while the block runs.

    Args:
        count: processes of the group; this is the first.
        function: of a module; called with `arguments` and, as keywords, the arrays.
        arguments: travel to the others: what they are made of must be importable there.
        arrays: written to a file, which the others map.
        beside: path beside which a folder for that is made.

    Raises:
        ArgumentError: if an argument cannot travel.
        ProcessError: if another process ends before its time; its reason is in the message.
    """
    folder, threads = files.scratch_folder(beside), torch.get_num_threads()
    crew = None
    try:
        with files.storage_errors(folder):
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array)
        crew = _crew(count)
        each = max(1, threads // count)
        crew.begin(function, arguments, folder, each)
        torch.set_num_threads(each)
        with _member(0, count, folder):
            yield
        crew.expect(DONE)
    except ProcessError as error:
        raise ProcessError((crew and crew.dismiss(wait=True)) or str(error)) from error
    except BaseException:
        if crew:
            crew.dismiss(wait=False)
        raise
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Tell of a lost connection to another process in words that say so."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and LOST.search(str(error)):
            raise ProcessError("Another process of this training has ended: its own message says why.") from error
        raise


@contextmanager
def _member(rank: int, count: int, folder: Path) -> Iterator[None]:
    """Be one of a group, for accelerate to find, while the block runs."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    told |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": torch.get_num_threads()}
    if sys.platform in LOOPBACK:
        told["GLOO_SOCKET_IFNAME"] = LOOPBACK[sys.platform]
    with patch_environment(**told):
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            device = best_device()
            if device == "cuda":
                torch.cuda.set_device(rank)
            backend, place = "nccl" if device == "cuda" else "gloo", (folder / "meeting").as_uri()
            dist.init_process_group(backend, place, timeout=PATIENCE, rank=rank, world_size=count)
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)


class _Crew:
    """Processes that wait for work: starting one takes seconds, a chapter trains a dozen times."""

    def __init__(self, count: int):
        context, self.members = multiprocessing.get_context("spawn"), []
        with _no_main():
            for rank in range(1, count):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(rank, count, there), daemon=True)
                process.start()
                there.close()
                self.members.append((process, here))

    @property
    def ready(self) -> bool:
        return all(process.is_alive() for process, _ in self.members)

    def begin(self, function: Callable, arguments: tuple, folder: Path, threads: int) -> None:
        for _, pipe in self.members:
            try:
                with _no_main():  # what a notebook or script defines, another process cannot import
                    work = ForkingPickler.dumps((function, arguments, folder, threads))
            except Exception as error:
                problem = f"Network, augmentation or loss cannot be sent to other processes ({error})"
                remedy = "define it in a module that can be imported, or start a script with torchrun"
                raise ArgumentError(f"{problem}: {remedy}.") from error
            with suppress(OSError):  # it has ended, which is noticed below
                pipe.send_bytes(work)
        self.expect(READY)

    def expect(self, answer: str) -> None:
        """Wait until all give an answer; ProcessError if one does not."""
        for rank, (_, pipe) in enumerate(self.members, 1):
            told = ""
            with suppress(EOFError, OSError):
                told = pipe.recv()
            if told != answer:
                raise ProcessError(self._ended(rank, told or "it gave no reason"))

    def _ended(self, rank: int, reason: str) -> str:
        return f"Process {rank + 1} of {len(self.members) + 1} ended: {reason}."

    def dismiss(self, wait: bool) -> str:
        """End all; return why the first one that failed by itself did, if one did."""
        reasons = []
        for rank, (process, pipe) in enumerate(self.members, 1):
            told = ""
            with suppress(EOFError, OSError):
                while wait and pipe.poll(5):
                    told = pipe.recv()
            process.join(0.1 if wait else 0)
            if (process.exitcode or 0) < 0:
                told = f"it was killed by signal {-process.exitcode}, perhaps for want of memory"
            process.kill()
            process.join()
            pipe.close()
            if told not in ("", READY, DONE) and not LOST.search(told):
                reasons.append(self._ended(rank, told.rstrip(".")))
        _CREWS.clear()
        return reasons[0] if reasons else ""


_CREWS: dict[int, _Crew] = {}


def _crew(count: int) -> _Crew:
    if count not in _CREWS or not _CREWS[count].ready:
        dismiss()
        _CREWS[count] = _Crew(count)
    return _CREWS[count]


def dismiss() -> None:
    """End the processes that wait for the next training, and free their memory; this process's end does so too."""
    for crew in list(_CREWS.values()):
        crew.dismiss(wait=False)


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the main module: else a new process would run the script of this one once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(rank: int, count: int, pipe: Any) -> None:
    """Work until the parent goes; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    warnings.simplefilter("ignore")  # the parent tells the same
    tqdm.set_lock(threading.RLock())  # its own would be reported as left behind
    while True:
        try:
            function, arguments, folder, threads = pipe.recv()
            arguments = deepcopy(arguments)  # tensors have come as memory of both processes
            arrays = {path.stem: np.load(path, mmap_mode="c") for path in folder.glob("*.npy")}
            torch.set_num_threads(threads)
            pipe.send(READY)
            with _member(rank, count, folder):
                function(*arguments, **arrays)
            arguments = arrays = None
            pipe.send(DONE)
        except BaseException as error:
            with suppress(OSError):
                pipe.send(f"{type(error).__name__}: {error}")
            os._exit(1)
