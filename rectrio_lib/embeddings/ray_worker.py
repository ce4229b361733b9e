"""What runs on the nodes of Ray: read, decode and encode a block of images; see `embeddings.ray`."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from threading import Semaphore
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from rectrio_lib.core.errors import ClusterError, DataError
from rectrio_lib.data import image_files
from rectrio_lib.data.image_files import ImageFile
from rectrio_lib.data.places.place import Place
from rectrio_lib.embeddings.from_folder import frame_of
from rectrio_lib.encoders.registry import fingerprint

PACKAGES = ("rectrio", "torch", "torchvision", "pillow")  # of which another version may give other vectors


class Worker:
    """A process on a node of Ray, with the encoder."""

    def start(self, encoder: list, made_by: str, expected: dict[str, str], cores: int) -> None:
        """Fetch the encoder, a reference in a list; ClusterError if this node could not give the same vectors."""
        here, node = versions(), platform.node()
        other = [
            f"{name} {here[name]} instead of {wanted}" for name, wanted in expected.items() if here[name] != wanted
        ]
        if other:
            raise ClusterError(f"The node {node} has {', '.join(other)}: install the same versions on all nodes.")
        try:
            self.encoder, self.cores, self.free = ray.get(encoder[0]), cores, Semaphore()
        except Exception as error:  # whatever opening it raises
            said = str(error).partition("\n")[0]
            raise ClusterError(f"The node {node} cannot open the encoder ({said}): install what it needs.") from None
        if fingerprint(self.encoder) != made_by:
            raise ClusterError(f"The encoder has other weights on the node {node}: install the same versions there.")

    def embed(self, block: Files | np.ndarray) -> Embedded:
        """Read and decode a block of files, or take images uint8 (B, C, H, W) as they are, and encode them.

        The next block is read meanwhile, but not encoded before `received`: so a death costs one encoded block.
        """
        started = time.perf_counter()
        reads, images = ([], block) if isinstance(block, np.ndarray) else block.load()
        read = time.perf_counter()
        self.free.acquire()
        alone = time.perf_counter()
        torch.set_num_threads(self.cores)  # of each thread of this process
        vectors = self.encoder.encode(images) if len(images) else np.empty((0, self.encoder.dim), np.float32)
        return Embedded(reads, vectors, read - started, time.perf_counter() - alone)

    def received(self) -> None:
        """Note that the vectors of a block are in the journal."""
        self.free.release()


@dataclass(frozen=True)
class Embedded:
    """What a worker made of a block."""

    reads: list[ImageFile]  # `pixels` are the number of the image's vector
    vectors: np.ndarray  # float32 (B, dim)
    reading: float  # seconds
    encoding: float

    def rows(self) -> pd.DataFrame:
        """Return the rows of vectors that belong to files."""
        return frame_of([(read.image_id, read.path, *read.shape) for read in self.reads if read.pixels is not None])


@dataclass(frozen=True)
class Files:
    """A block of image files; arguments as for `image_files.read_ahead`, `known` a reference to an IdSet."""

    place: Place
    files: tuple[tuple[str, tuple[int, int]], ...]  # path, and what was listed
    size: int
    channels: int
    known: Any

    def load(self) -> tuple[list[ImageFile], np.ndarray]:
        """Return the files, with the number of its image in place of the pixels, and the images; each content once."""
        paths, listed = zip(*self.files, strict=True)
        reads, images, seen = [], [], set()
        ahead = image_files.read_ahead(
            self.place, paths, self.size, self.channels, ray.get(self.known), len(paths), listed
        )
        for read in ahead:
            if read.reason.startswith("FileNotFoundError") and not self.place.there():
                where = f"{self.place.uri} is not there on the node {platform.node()}"
                raise DataError(f"{where}: mount it on all nodes under this path, or use object storage.")
            if read.pixels is not None and read.image_id not in seen:
                seen.add(read.image_id)
                images.append(read.pixels)
                read = read._replace(pixels=len(images) - 1)
            else:
                read = read._replace(pixels=None)
            reads.append(read)
        return reads, np.stack(images) if images else np.empty(0, np.uint8)


def versions() -> dict[str, str]:
    """Return the versions of PACKAGES."""
    return {package: version(package) for package in PACKAGES}
