"""Vectors beyond memory: codes in cells, and the float16 vectors that re-rank them, stay in mapped files."""

from __future__ import annotations

import math
import os
import shutil
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np

from rectrio_lib.core import files, knn
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.index import factory
from rectrio_lib.index.faiss_vectors import EXACT_ROWS, NEARLY_ALL, FaissVectors, Subset, search_faiss
from rectrio_lib.index.large import writing
from rectrio_lib.index.large.writing import NAMES

TAIL_ROWS = 20_000  # what was added since is compared one by one; beyond this it is written into the files
# A page that was looked at counts as this process's memory until it lets go of it. How much comes with one look is the
# system's choice, 4 kB to 2 MB, so memory is measured: after so many vectors; and so many bytes at a time are let go.
LOOK_ROWS, PIECE_BYTES = 1024, 1 << 27


class DiskVectors(FaissVectors):
    """N vectors of length `dim` in files: what is added waits in memory until it is written.

    FAISS finds candidates among codes; their float16 vectors, read from disk, rank them. Those of a cell lie together,
    so that a query reads a few stretches of the file: FAISS counts in places there, callers in positions.
    """

    def __init__(self, kind: str, dim: int):
        super().__init__(kind, dim)
        self._exact, self._tail, self._files = np.empty((0, dim), np.float16), np.empty((0, dim), np.float16), {}
        self._position_at = self._order = self._place_of = np.empty(0, np.int32)
        self._touched, self._gone = 0, 0  # vectors read since memory was measured; where the next pages are let go
        self._ranking: faiss.IndexRefine  # of candidates by `_exact`, which it does not keep alive

    def __len__(self) -> int:
        return len(self._exact) + len(self._tail)

    def __getstate__(self) -> dict[str, Any]:
        self.own()
        kept = {name: _content(file) for name, file in self._files.items()}
        learned = None if kept else faiss.serialize_index(self.faiss)
        return {"kind": self.kind, "dim": self.dim, "limit": self.limit, "files": kept, "learned": learned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["kind"], state["dim"])
        self.limit = state["limit"]
        if state["learned"] is not None:
            self.faiss = faiss.deserialize_index(state["learned"])
            return
        folder = self._scratch()
        for name, content in state["files"].items():
            (folder / name).write_bytes(content)
        self.open(folder)

    def open(self, folder: Path) -> None:
        """Map the files of a folder; RuntimeError, OSError or ValueError if they cannot be read."""
        names = NAMES if (folder / NAMES[2]).exists() else NAMES[:2]  # files of earlier versions are in order
        self.home = self.home or folder.parent
        self._files = {name: (folder / name).open("rb") for name in names}
        self.faiss, self._tail = faiss.read_index(str(folder / NAMES[0]), faiss.IO_FLAG_MMAP), self._tail[:0]
        if isinstance(self.faiss, faiss.IndexIVF):  # else it is refused by who asked
            lists = faiss.downcast_InvertedLists(self.faiss.invlists)
            if isinstance(lists, faiss.OnDiskInvertedLists):
                lists.prefetch_nthread = 0  # starting threads takes longer than what they read ahead
        self._exact, self.mapped = np.load(folder / NAMES[1], mmap_mode="r"), True
        if self._exact.shape != (self.faiss.ntotal, self.dim) or self._exact.dtype != np.float16:
            raise ValueError(f"{folder / NAMES[1]} holds other vectors than {NAMES[0]}")
        count = len(self._exact)
        places = np.load(folder / NAMES[2], mmap_mode="r") if len(names) == 3 else writing.in_order(count)
        if places.shape != (2, count + 1) or places.dtype != np.int32:
            raise ValueError(f"{folder / NAMES[2]} tells other places than {NAMES[1]} has")
        self._position_at, self._place_of = np.asarray(places)  # arrays that are no memmap are indexed faster
        self._order, self._place_of = self._position_at[:-1], self._place_of[:-1]
        if count:
            self._ranking = _ranked_by(self.faiss, self._exact)

    def write(self, folder: Path) -> tuple[str, ...]:
        """Put the files into a folder, as further names of the same content where the disk allows it."""
        self.own()
        if not self._files:
            self._pour((), np.arange(0))
        for name, file in self._files.items():
            try:
                os.link(file.name, folder / name)
                same = os.path.samestat(os.fstat(file.fileno()), (folder / name).stat())
            except OSError:
                same = False
            if not same:  # another disk, or another process has replaced it since
                (folder / name).unlink(missing_ok=True)
                with (folder / name).open("wb") as copy:
                    file.seek(0)
                    shutil.copyfileobj(file, copy, 1 << 24)
        return tuple(self._files)

    def is_few(self, subset: Subset) -> bool:
        """Whether a subset had better be compared vector by vector: each of them is read from disk."""
        return subset.count <= EXACT_ROWS and subset.count < NEARLY_ALL * len(subset.mask)

    def approximate(
        self, queries: np.ndarray, k: int, search_param: int, subset: Subset
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find candidates by their codes, and rank them by their vectors; -1 where there are fewer than k."""
        share, count = subset.count / len(subset.mask), len(self._exact)
        share, best = 1 if share >= NEARLY_ALL else share, min(k, count)  # nearly all: search as it was tuned
        if not best:
            nothing = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
            return self._with_tail(*nothing, queries, k, subset)
        selector = subset.selector_in(self._order)
        parameters = factory.search_parameters(self.kind, search_param, best, share, selector)
        wanted = min(math.ceil(best * parameters.k_factor), count)
        step, parts = max(1, LOOK_ROWS // wanted), []
        for start in range(0, max(1, len(queries)), step):
            part = queries[start : start + step]
            self._let_go(len(part) * wanted)
            parts.append(search_faiss(self._ranking, part, best, parameters))
        scores, found = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        found = self._position_at[found].astype(np.int64)  # the last one is -1, where FAISS found nothing
        return self._with_tail(scores, found, queries, k, subset) if len(self._tail) else (scores, found)

    def _with_tail(
        self, scores: np.ndarray, found: np.ndarray, queries: np.ndarray, k: int, subset: Subset
    ) -> tuple[np.ndarray, np.ndarray]:
        """Merge what was found in the files with what was added since."""
        fresh = np.flatnonzero(subset.mask[len(self._exact) :])
        scores = np.hstack([scores, queries @ self._tail[fresh].astype(np.float32).T])
        found = np.hstack([found, np.broadcast_to(fresh + len(self._exact), (len(queries), len(fresh)))])
        missing = (0, 0), (0, max(0, k - scores.shape[1]))
        scores, found = np.pad(scores, missing, constant_values=-np.inf), np.pad(found, missing, constant_values=-1)
        return knn.best(scores, found, k)

    def exact(self, queries: np.ndarray, k: int, subset: Subset) -> tuple[np.ndarray, np.ndarray]:
        """Compare queries (Q, dim) with every vector of a subset, read from disk in blocks."""
        positions = np.flatnonzero(subset.mask)
        starts = range(0, len(positions), knn.BLOCK_ROWS)
        scores, found = knn.exact_search(queries, (self.at(positions[s : s + knn.BLOCK_ROWS]) for s in starts), k)
        return scores, positions[found]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return vectors float32 (M, dim) at positions (M,), rounded to float16; IndexError if one is not in 0..N-1."""
        if not len(positions):
            return np.empty((0, self.dim), np.float32)
        if not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"Positions {positions.min()} to {positions.max()}, but there are {len(self)} rows.")
        found = np.empty((len(positions), self.dim), np.float32)
        for start in range(0, len(positions), LOOK_ROWS):
            part, into = positions[start : start + LOOK_ROWS], found[start : start + LOOK_ROWS]
            on_disk = part < len(self._exact)
            self._let_go(len(part))
            into[on_disk] = self._exact[self._place_of[part[on_disk]]]
            into[~on_disk] = self._tail[part[~on_disk] - len(self._exact)]
        return found

    def add(self, vectors: np.ndarray, subset: np.ndarray | None = None) -> None:
        """Append vectors float16 or float32 (M, dim): to empty files, else in memory until they are many."""
        if not len(self):
            count = len(vectors) if subset is None else len(subset)
            return self._pour(knn.blocks(vectors, subset), np.arange(count, dtype=np.int32))
        self._tail = np.concatenate([self._tail, *(part.astype(np.float16) for part in knn.blocks(vectors, subset))])
        if len(self._tail) > TAIL_ROWS:
            self.own()

    def keep(self, positions: np.ndarray) -> None:
        """Drop all vectors but some; learned cells and codes stay."""
        places = np.append(self._place_of, np.arange(len(self._exact), len(self)))[positions]
        order = np.argsort(places)  # files are read from their beginning to their end
        starts = range(0, len(order), knn.BLOCK_ROWS)
        self._pour((self.at(positions[order[s : s + knn.BLOCK_ROWS]]) for s in starts), order)

    def own(self) -> None:
        """Write what was added into the files."""
        if len(self._tail):
            self.keep(np.arange(len(self)))

    def _pour(self, parts: Iterable[np.ndarray], positions: np.ndarray) -> None:
        """Write vectors, in float32 blocks, to new files, a few blocks in memory at a time; at these positions (N,)."""
        folder, codes, names = self._scratch(), self._empty(), []
        rows = factory.listed_rows(self.dim)
        exact = np.empty((min(len(positions), rows + knn.BLOCK_ROWS), self.dim), "<f2")
        with files.storage_errors(folder):
            for part in parts:
                exact[codes.ntotal :][: len(part)] = part
                codes.add(part)
                if codes.ntotal >= rows:
                    names.append(writing.flushed(codes, exact, folder / f"{len(names)}.part"))
            names.append(writing.flushed(codes, exact, folder / f"{len(names)}.part"))
            del exact
            writing.join(codes, names, positions, folder)
        self.open(folder)

    def _empty(self) -> faiss.Index:
        """Return what was learned, without any vector."""
        held, count, owned = self.faiss.invlists, self.faiss.ntotal, self.faiss.own_invlists
        lists = faiss.ArrayInvertedLists(self.faiss.nlist, self.faiss.code_size)
        self.faiss.own_invlists = False
        self.faiss.replace_invlists(lists, False)
        try:
            self.faiss.ntotal = 0
            return faiss.deserialize_index(faiss.serialize_index(self.faiss))
        finally:
            self.faiss.replace_invlists(held, owned)
            self.faiss.ntotal = count

    def _let_go(self, count: int) -> None:
        """Before `count` more vectors are read, let go of mapped pages if this process takes more than its limit."""
        self._touched += count
        if self.limit is None or self._touched < LOOK_ROWS:
            return
        self._touched, size = 0, self._exact.nbytes
        for _ in range(0, size, PIECE_BYTES):
            if knn.resident() <= self.limit:
                break
            knn.let_go(self._exact, self._gone, PIECE_BYTES)
            self._gone = self._gone + PIECE_BYTES if self._gone + PIECE_BYTES < size else 0

    def _scratch(self) -> Path:
        folder = files.scratch_folder((self.home or Workspace().outputs / "indexes") / "on-disk")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()  # all: `os.pread` ends at 2 GiB, and Windows has none


def _ranked_by(codes: faiss.Index, exact: np.ndarray) -> faiss.IndexRefine:
    """Let FAISS itself rank what it finds by mapped vectors, float16 (N, dim), where they lie.

    At a million vectors ranking them in NumPy took longer than the search among codes.
    """
    mapped = faiss.IndexScalarQuantizer(exact.shape[1], faiss.ScalarQuantizer.QT_fp16, codes.metric_type)
    place, nobody = faiss.swig_ptr(exact.view(np.uint8)), mapped.codes.owner  # FAISS is not to free it
    mapped.codes = faiss.MaybeOwnedVectorUInt8.create_view(place, exact.nbytes, nobody)
    mapped.ntotal = len(exact)
    return faiss.IndexRefine(codes, mapped)
