"""Writing the files of an index on disk: in parts that fit into memory, which are then joined cell by cell."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import faiss
import numpy as np

from rectrio_lib.core import knn

# Cells and codes; what re-ranks, in the order of the cells; which position lies at each place, and where each lies.
NAMES = ("vectors.faiss", "vectors.npy", "vectors.places.npy")
WRITTEN_BYTES = 1 << 24  # at once: systems keep what is written together in large pages, which are quicker to search
EMPTY_LISTS = 32  # bytes that FAISS writes for inverted lists that hold nothing


def in_order(count: int) -> np.ndarray:
    """Return the position at each place and the place of each position, int32 (2, N + 1), where both are the same.

    The last column is -1, so that -1, FAISS's word for nothing found, stands for itself.
    """
    return np.tile(np.append(np.arange(count), -1).astype(np.int32), (2, 1))


def flushed(codes: faiss.Index, exact: np.ndarray, path: Path) -> Path:
    """Write codes, and their vectors float16 (N or more, dim) cell by cell, to two files; return the first, emptied."""
    lists = faiss.downcast_InvertedLists(codes.invlists)
    order = np.concatenate([_ids(lists, cell) for cell in range(codes.nlist)])
    faiss.write_index(codes, str(path))
    with path.with_suffix(".npy").open("wb") as file:
        for start in range(0, len(order), knn.BLOCK_ROWS):
            file.write(exact[order[start : start + knn.BLOCK_ROWS]].tobytes())
    codes.reset()
    return path


def join(empty: faiss.Index, names: list[Path], positions: np.ndarray, folder: Path) -> None:
    """Join the parts that `flushed` wrote, list by list, and remove them; FAISS itself would print while it does so.

    Args:
        empty: what was learned.
        names: of the parts.
        positions: of all vectors, in the order in which they were added (N,).
        folder: for the files of NAMES.
    """
    parts = [faiss.read_index(str(name), faiss.IO_FLAG_MMAP) for name in names]
    lists = [faiss.downcast_InvertedLists(part.invlists) for part in parts]
    sizes = np.array([[held.list_size(cell) for held in lists] for cell in range(empty.nlist)], np.uint64)
    given = np.split(positions, np.cumsum(sizes.sum(0))[:-1].astype(np.int64))
    places, start = in_order(len(positions)), 0
    with ExitStack() as stack:
        file, exact = (stack.enter_context((folder / name).open("wb", WRITTEN_BYTES)) for name in NAMES[:2])
        read = [stack.enter_context(name.with_suffix(".npy").open("rb")) for name in names]
        file.write(_head(empty, sizes))
        shape = {"descr": "<f2", "fortran_order": False, "shape": (len(positions), empty.d)}
        np.lib.format.write_array_header_1_0(exact, shape)
        for cell, held in enumerate(sizes.tolist()):
            first = start
            for part, vectors, theirs, size in zip(lists, read, given, held, strict=True):
                if size:
                    file.write(faiss.rev_swig_ptr(part.get_codes(cell), size * empty.code_size))
                    exact.write(vectors.read(size * 2 * empty.d))
                    places[0, start : start + size] = theirs[_ids(part, cell)]
                    start += size
            file.write(np.arange(first, start).tobytes())
    places[1, places[0, :-1]] = np.arange(len(positions))
    np.save(folder / NAMES[2], places)
    for name in names:
        name.unlink()
        name.with_suffix(".npy").unlink()


def _head(empty: faiss.Index, sizes: np.ndarray) -> bytes:
    """Return what FAISS writes before the lists of an index, of which `sizes` (cells, parts) lie in each."""
    empty.ntotal = int(sizes.sum())
    head, shape = faiss.serialize_index(empty).tobytes()[:-EMPTY_LISTS], [empty.nlist, empty.code_size]
    empty.ntotal = 0
    counts = np.array([empty.nlist, *sizes.sum(1)], np.uint64)
    return head + b"ilar" + np.array(shape, np.uint64).tobytes() + b"full" + counts.tobytes()


def _ids(lists: faiss.InvertedLists, cell: int) -> np.ndarray:
    size = lists.list_size(cell)
    return faiss.rev_swig_ptr(lists.get_ids(cell), size) if size else np.empty(0, np.int64)
