"""WebDataset shards: tar archives in which name.jpg lies beside name.json, name.cls and name.txt."""

from __future__ import annotations

import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby
from threading import Lock
from typing import Any, BinaryIO

import pandas as pd

from rectrio_lib.data.decoding import UnreadableError, reads_heif
from rectrio_lib.data.places import naming
from rectrio_lib.data.places.archives import Contents
from rectrio_lib.data.places.saying import NO_PARTS
from rectrio_lib.data.places.tables import storable

STRETCH, STRETCHES_KEPT = 4 << 20, 3  # bytes fetched at once, of an archive that is read in order
MOST_SIDECAR = 1 << 20  # bytes of a text beside an image
TOLD = {"cls": "label", "txt": "text"}


def contents(file: BinaryIO, archive: str, size: int) -> Contents:
    """List the images of an archive of `size` bytes; what follows a damaged place is left out, and its name says so.

    Of large members only the headers are read.
    """
    images, rows = [], []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for _, members in groupby(_files(tar, size), key=lambda member: _key(member.name)):
                shots, told = [], {}
                for member in members:
                    path = f"{archive}:{member.offset_data}+{member.size}/{naming.unicode(member.name)}"
                    if naming.may_be_image(member.name) or naming.refusal(member.name, True):
                        images.append((path, naming.refusal(member.name, reads_heif())))
                        shots.append(path)
                    else:
                        try:
                            told |= _told(tar, member)
                        except (ValueError, RecursionError) as error:
                            images.append((path, f"cannot be read as metadata: {error}"))
                rows += [{"path": path, **told} for path in shots if told]
            file.seek(tar.offset)  # where `tarfile` stopped: without a word at a header that is cut off or damaged
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"nothing can be read from byte {tar.offset:,} on")
    except (tarfile.TarError, EOFError) as error:
        images.append((archive, f"damaged or truncated, what comes before is read: {error}"))
    return Contents(images, storable(pd.DataFrame(rows, dtype=object)))


class Stretches:
    """The images of a tar archive: fetched many at once for who reads them in order, else one by one.

    `fetch` returns the bytes from one place in the archive to another.
    """

    def __init__(self, fetch: Callable[[int, int], bytes]):
        self._fetch, self._lock, self._kept, self._end = fetch, Lock(), deque(maxlen=STRETCHES_KEPT), 0

    def image(self, start: int, count: int) -> bytes:
        """Return the bytes of one image; UnreadableError if the server does not send parts of files."""
        if count > STRETCH // 8:  # large ones are fetched side by side
            return self._part(start, count)
        with self._lock:
            for first, data in self._kept:
                if first <= start and start + count <= first + len(data):
                    return data[start - first : start - first + count]
            ahead = start - self._end
            if 0 <= ahead < STRETCH:
                self._kept.append((start, self._part(start, STRETCH)))
                self._end = start + STRETCH
                return self._kept[-1][1][:count]
            self._end = self._end if -STRETCH < ahead < 0 else start + count  # one thread may be late
        return self._part(start, count)

    def _part(self, start: int, count: int) -> bytes:
        data = self._fetch(start, start + count)
        if len(data) > count:
            raise UnreadableError(NO_PARTS)
        return data


def _files(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        if member.isfile() and not member.issparse() and not member.name.rpartition("/")[2].startswith("."):
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"{member.name} is cut off")
            yield member
        tar.members = []  # which would grow with the archive


def _key(name: str) -> str:
    """Return what the files of one sample have in common: the name to the first dot."""
    home, slash, name = name.rpartition("/")
    return home + slash + name.partition(".")[0]


def _told(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    kind = member.name.rpartition(".")[2].lower()
    if kind not in (*TOLD, "json"):
        return {}
    if member.size > MOST_SIDECAR:
        raise ValueError(f"{member.size:,} bytes, at most {MOST_SIDECAR:,} are read")
    text = tar.extractfile(member).read().decode()
    if kind != "json":
        return {TOLD[kind]: text.strip()}
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return {naming.unicode(key): value for key, value in found.items() if key != "path"}
