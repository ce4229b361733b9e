"""Folders and archives of images behind fsspec: s3://, gs://, https:// …; archives on this machine as well."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import fsspec
import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.data.decoding import UnreadableError, open_regular, reads_heif
from rectrio_lib.data.image_files import FILE_COLUMNS, MOST_WORKERS, NEVER
from rectrio_lib.data.places import archives, naming, parquets, tables, tars
from rectrio_lib.data.places.saying import one_sentence, reason

LOG = logging.getLogger(__name__)
MOST_BYTES = 256 << 20  # of one image
BLOCK = 256 << 10  # bytes that are fetched at once while an archive is listed
STAMPS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "mtime", "updated", "created")
_CONNECTING = Lock()
Info = dict[str, Any]  # what fsspec says of a file: size, and one of STAMPS; or an `error`


class RemotePlace:
    """The images below an address, or in the archives there (.tar, .parquet) if there are no others; see `place.Place`.

    Attributes:
        uri: the address of a folder, of an archive, or of several: s3://shop/photos, s3://shop/set-{000..009}.tar.
    """

    def __init__(self, uri: str):
        self.uri, self._told = uri.rstrip("/"), []
        self._web, self.near = uri.startswith(("http://", "https://")), "://" not in uri
        if not self.near and re.search(r"[?#]|//[^/]*@", uri):
            safe = re.sub(r"//[^/]*@", "//", re.split(r"[?#]", uri)[0])
            raise ArgumentError(f"An address of images ends at its path, and holds no key or password: {safe}.")
        home, _, last = self.uri.rpartition("/")
        several = archives.is_pattern(last)
        self._root, self._pattern = (home, last) if several else (self.uri, "")
        plain = re.split(r"[-_.]*[*{]", re.sub(r"\.\w+$", "", last))[0] if several else last
        self.name = plain or home.rpartition("/")[2]

    def __reduce__(self) -> tuple:
        return RemotePlace, (self.uri,)

    def list(self, exclude: Iterable[Path] = (), known: pd.DataFrame | None = None) -> pd.DataFrame:
        """List the images, or those in the archives; of what has not changed nothing is read."""
        _system.cache_clear()  # the next connection finds today's credentials
        _archive.cache_clear()
        with one_sentence(self.uri):
            found = self._objects()
        packed = {name: info for name, info in found.items() if self._pattern or archives.is_archive(name)}
        rows = [] if self._pattern else self._images({n: info for n, info in found.items() if n not in packed})
        if rows and packed:
            LOG.warning("%s: %s archives are passed over, as images lie beside them.", self.uri, f"{len(packed):,}")
        self._told = [name for name in found if name.rpartition("/")[2] in tables.TABLES] if rows else []
        rows = sorted(rows) or self._inside(packed, known)  # which stay in the order in which they are stored
        if not rows:
            raise DataError(f"{self.uri} is not there, or holds neither an image nor an archive (.tar, .parquet).")
        return pd.DataFrame(rows, columns=FILE_COLUMNS)

    def open(self, path: str) -> BinaryIO:
        """Fetch an image, whole or from its archive; a full path is that of a file of this machine, added later."""
        if Path(path).is_absolute():
            return open_regular(Path(path))
        packed, row = archives.TAR.match(path), archives.PARQUET.match(path)
        try:
            if row:
                data = self._archive(row[1]).image(int(row[2]))
            elif packed:
                data = self._archive(packed[1]).image(int(packed[2]), int(packed[3]))
            else:
                data = self._system().cat_file(self._full(path))
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        except Exception as error:  # each kind of server has errors of its own
            raise UnreadableError(reason(error)) from error
        file = BytesIO(data)
        file.name = path
        return file

    def tables(self, paths: Iterable[str]) -> Iterator[pd.DataFrame]:
        """Yield what metadata.csv and .parquet beside the images say, or else the archives."""
        for told in self._told:
            if isinstance(told, str):
                with one_sentence(f"{self.uri}/{told}"):
                    file = BytesIO(self._system().cat_file(self._full(told)))
                told = tables.read_table(file, f"{self.uri}/{told}", told[: told.rfind("/") + 1])
            yield told

    def there(self) -> bool:
        """Tell whether archives of this machine are there; another machine is asked only when something is read."""
        several = set(self._pattern) & set("*{")
        return not self.near or Path(self._root if several else self.uri).exists()

    def address(self, path: str) -> str:
        """Return the address of an image, or of the archive that holds it."""
        if Path(path).is_absolute():
            return Path(path).as_uri()
        full = self._full(archives.archive_of(pd.Series([path]))[0])
        return Path(full).as_uri() if self.near else full

    def _system(self) -> fsspec.AbstractFileSystem:
        with _CONNECTING:  # of the threads of a new process, one connects
            return _system(self._root, os.getpid())

    def _archive(self, name: str) -> parquets.Rows | tars.Stretches:
        with _CONNECTING:
            return _archive(self._root, self._full(name))

    def _full(self, name: str) -> str:
        return f"{self._root}/{quote(name) if self._web else name}"

    def _objects(self) -> dict[str, Info]:
        """Return the files that lie there, by path below the root."""
        system = self._system()
        if self._pattern:
            patterns = archives.expanded(self._pattern)
            full = [f for one in patterns for f in (system.glob(f"{self._root}/{one}") if "*" in one else [one])]
            names = [name.rpartition("/")[2] for name in full]
        else:
            if self._web:
                system.ls(self._root + "/")  # which says what is wrong; `find` does not
            top = system._strip_protocol(self._root).rstrip("/") + "/"
            found = system.find(self._root, detail=True).items()
            found = {name.removeprefix(top): info for name, info in found if info["type"] == "file"}
            found = {unquote(name) if self._web else name: info for name, info in found.items()}
            names = [name for name in found if not name.endswith("/") and naming.is_shown(name)]
            if not self._web:
                return {name: found[name] for name in names}
            names = [n for n in names if naming.is_silent(n) or n.endswith((*tables.TABLES, *archives.SUFFIXES))]
        return dict(zip(names, _in_threads(self._info, names), strict=True))

    def _info(self, name: str) -> Info:
        try:
            return self._system().info(self._full(name))
        except Exception as error:
            return {"error": reason(error)}

    def _images(self, found: dict[str, Info]) -> list[tuple]:
        refused = {name: naming.refusal(name, reads_heif()) for name in found}
        silent = [n for n in found if naming.is_silent(n) and not naming.may_be_image(n) and not refused[n]]
        begins = dict(zip(silent, _in_threads(self._begins_as_image, silent), strict=True))
        chosen = [n for n in found if begins.get(n, naming.may_be_image(n) or refused[n])]
        return [_row(name, found[name], refused[name], MOST_BYTES) for name in chosen]

    def _begins_as_image(self, name: str) -> bool:
        try:
            head = self._system().cat_file(self._full(name), start=0, end=naming.HEAD)
        except Exception:  # empty, gone, or not to be read
            return False
        return naming.begins_as_image(head[: naming.HEAD], reads_heif())

    def _inside(self, found: dict[str, Info], known: pd.DataFrame | None) -> list[tuple]:
        """Return the images in archives; those that have not changed are not looked into again."""
        before = {} if known is None else dict(iter(known.groupby(archives.archive_of(known["path"]))))
        listed = [_row(name, info, archives.refusal(name)) for name, info in sorted(found.items())]
        fresh = [row for row in listed if not row[4] and not archives.is_unchanged(before.get(row[0]), row)]
        looked = dict(zip((row[0] for row in fresh), _in_threads(self._look, fresh), strict=True))
        self._told, rows = [seen.table for seen in looked.values() if len(seen.table)], []
        for name, size, stamp, _, why in listed:
            spared = [] if why or name in looked else before[name]["path"]
            images = looked[name].images if name in looked else [(path, "") for path in spared] or [(name, why)]
            seen = (size, stamp) if name not in looked or looked[name].lasting else (NEVER, NEVER)
            rows += [(path, *seen, "", said) for path, said in images]
        return rows

    def _look(self, row: tuple) -> archives.Contents:
        name, size = row[:2]
        contents = parquets.contents if name.endswith(".parquet") else tars.contents
        try:
            if size == NEVER:
                raise UnreadableError("the server does not tell how large it is")
            with self._system().open(self._full(name), block_size=BLOCK, cache_type="readahead") as file:
                seen = contents(file, name, size)
        except Exception as error:
            return archives.Contents([(name, reason(error))], pd.DataFrame(), lasting=False)
        return seen if seen.images else seen._replace(images=[(name, "holds no image")])


@lru_cache
def _system(root: str, process: int) -> fsspec.AbstractFileSystem:
    """Connect, once per process: fsspec by itself would do so in each thread."""
    system = fsspec.core.url_to_fs(root, use_listings_cache=False, skip_instance_cache=True)[0]
    if hasattr(system, "max_concurrency"):
        system.max_concurrency = 1  # else s3fs asks for the size of each image before it fetches it
    return system


@lru_cache(4)
def _archive(root: str, full: str) -> parquets.Rows | tars.Stretches:
    system = _system(root, os.getpid())
    if full.endswith(".tar"):
        return tars.Stretches(lambda start, end: system.cat_file(full, start=start, end=end))
    return parquets.Rows(system.open(full, block_size=BLOCK, cache_type="readahead"))


def _row(name: str, info: Info, why: str = "", most: float = float("inf")) -> tuple:
    """Return FILE_COLUMNS of a file; the time is a number that changes with it, NEVER if there is no telling."""
    size, seen = info.get("size"), next((info[key] for key in STAMPS if info.get(key)), None)
    why = why or info.get("error", "")
    if why or size is None:
        return name, NEVER, NEVER, "", why
    stamp = NEVER if seen is None else int.from_bytes(hashlib.blake2b(str(seen).encode(), digest_size=7).digest())
    return name, size, stamp, "", f"{size:,} bytes are above the limit of {most:,}" if size > most else ""


def _in_threads(function: Callable, items: Iterable) -> list:
    with ThreadPoolExecutor(MOST_WORKERS) as pool:
        return list(pool.map(function, items))
