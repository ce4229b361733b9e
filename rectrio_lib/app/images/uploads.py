"""Uploaded images: checked by their content, made anew without metadata, and kept under the hash of what was sent."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlowError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rectrio_lib.core.errors import ArgumentError, StorageError
from rectrio_lib.core.files import renamed
from rectrio_lib.data import decoding
from rectrio_lib.data.image_files import content_id

MOST_BYTES, MOST_PIXELS, LONGEST_SIDE = 32 << 20, 50_000_000, 65_500  # of one image; a JPEG cannot be longer
MOST_SCANS = 100  # of a JPEG: a few bytes each, and each takes a pass over all pixels
SECONDS, DECODERS = 20, 4  # that one image may take, waiting for its turn included; images decoded at once
WAITING = 64  # images that wait for that
QUALITY = 90
FREE_BYTES = 256 << 20  # that stay free on the disk
IMAGE_ID = re.compile(r"[0-9a-f]{16}")
SUFFIXES = (".jpg", ".png")
READ = "JPEG, PNG, WebP, GIF, AVIF, TIFF or BMP"


class UploadError(Exception):
    """A file that is refused.

    Attributes:
        status: of HTTP: 413 too large, 415 no image, 422 damaged, 503 too busy.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class CleanImage:
    """An image made anew: its first frame, upright, without metadata.

    Attributes:
        image_id: of the file as it was sent, as the lister of folders would give it.
        data: the new file.
        suffix: of the new file, .jpg or, where the image is transparent, .png.
        width: in pixels, upright.
        height: in pixels, upright.
    """

    image_id: str
    data: bytes
    suffix: str
    width: int
    height: int


def check_image(data: bytes, name: str = "") -> CleanImage:
    """Check an uploaded file and make it anew.

    Args:
        data: its bytes, which alone tell what it is.
        name: as its sender calls it, for the reason of a refusal.

    Raises:
        UploadError: if it is refused.
    """
    made, suffix, (width, height) = _in_time(_made_anew, data, name)
    return CleanImage(content_id(data), made, suffix, width, height)


def read_query(data: bytes, size: int, channels: int) -> np.ndarray:
    """Check an uploaded file that is not kept, and return its pixels uint8 as an encoder takes them, see `decode`.

    Raises:
        UploadError: if it is refused.
    """
    return _in_time(partial(_pixels, size=size, channels=channels), data)


def display_name(name: str) -> str:
    """Return a client's file name to show: its last part, on one line, at most 100 characters; never a path."""
    last = PureWindowsPath(name.replace("\0", "")).name or "file"
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C")
    return shown if len(shown) <= 100 else f"{shown[:80]}…{shown[-19:]}"


class Uploads:
    """The files of checked images, below one folder: <first two digits>/<image_id>.jpg or .png."""

    def __init__(self, folder: Path) -> None:
        """Take a folder, which is made when the first file comes."""
        self.folder = folder

    def save(self, image: CleanImage) -> Path:
        """Write a file, complete or not at all, and return its path; the same image again replaces itself.

        Raises:
            StorageError: if the disk is full, or would be nearly so, or cannot be written.
        """
        path = self.place(image.image_id, image.suffix)
        with renamed(path) as partial_path:
            free = shutil.disk_usage(path.parent).free - len(image.data)
            if free < FREE_BYTES:
                raise StorageError(f"{free:,} bytes would be left on the disk of {self.folder}: make room.")
            descriptor = os.open(partial_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(image.data)
        return path

    def delete(self, image_id: str) -> None:
        """Delete the file of an image, if there is one; ArgumentError if that is no image_id."""
        for suffix in SUFFIXES:
            self.place(image_id, suffix).unlink(missing_ok=True)

    def place(self, image_id: str, suffix: str) -> Path:
        """Return where the file of an image lies, or will."""
        if not IMAGE_ID.fullmatch(image_id) or suffix not in SUFFIXES:
            raise ArgumentError(f"{image_id!r:.100} is no image_id: it has 16 hexadecimal digits.")
        return self.folder / image_id[:2] / f"{image_id}{suffix}"


async def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `check_image` or `read_query` in a thread that nobody else needs: most of them wait for a decoder."""
    return await asyncio.get_running_loop().run_in_executor(_pool("upload", WAITING), function, *arguments)


@cache
def _pool(name: str, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=name)


def _in_time(work: Callable[[bytes], Any], data: bytes, name: str = "") -> Any:
    """Check a file and do the work on it in a thread, for some seconds at most; a refusal names the file."""
    try:
        if not data:
            raise UploadError(422, "is empty: choose an image.")
        if len(data) > MOST_BYTES:
            raise UploadError(413, f"has {len(data):,} bytes; {MOST_BYTES:,} are allowed: save it smaller.")
        future = _pool("decode", DECODERS).submit(work, data)
        try:
            return future.result(SECONDS)
        except TooSlowError:
            if future.cancel():
                raise UploadError(503, "had to wait too long for its turn: send it again in a moment.") from None
            raise UploadError(422, f"takes more than {SECONDS:g} s to decode: save it anew as JPEG or PNG.") from None
    except UploadError as error:
        raise UploadError(error.status, f"{display_name(name)} {error}") from error


def _made_anew(data: bytes) -> tuple[bytes, str, tuple[int, int]]:
    with _opened(data) as opened:
        opened.load()
        turn, image = decoding.turn_of(opened), decoding.narrowed(opened)
        clear = image.has_transparency_data and (rgba := image.convert("RGBA")).getchannel("A").getextrema()[0] < 255
        fresh = rgba if clear else image.convert("L" if image.mode in ("1", "L") else "RGB")
        fresh = fresh.transpose(turn) if turn is not None else fresh
    fresh.info.clear()  # such as profiles, comments and EXIF data, which would be written again
    made = BytesIO()
    fresh.save(made, "PNG") if clear else fresh.save(made, "JPEG", quality=QUALITY)
    return made.getvalue(), ".png" if clear else ".jpg", fresh.size


def _pixels(data: bytes, size: int, channels: int) -> np.ndarray:
    with _opened(data):  # which checks it
        pass
    read = decoding.decode(BytesIO(data), size, channels)
    if isinstance(read, str):
        raise UploadError(422, f"is damaged ({read}): save it anew.")
    return read[0]


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image that is not too large; raise UploadError for whatever a decoder raises."""
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MOST_SCANS:
        raise UploadError(422, f"is a JPEG of more than {MOST_SCANS} passes: save it anew.")
    try:
        decoding.refuse_large_icon(BytesIO(data), MOST_PIXELS)
        with Image.open(BytesIO(data), formats=decoding.formats_read()) as opened:
            decoding.refuse_large(opened.width * opened.height, MOST_PIXELS)
            if max(opened.size) > LONGEST_SIDE:
                raise UploadError(413, f"is longer than {LONGEST_SIDE:,} pixels on a side: save it smaller.")
            yield opened
    except UploadError:
        raise
    except (decoding.TooLargeError, Image.DecompressionBombError) as error:
        raise UploadError(413, f"has more than {MOST_PIXELS:,} pixels: save it smaller.") from error
    except UnidentifiedImageError as error:
        raise UploadError(415, f"is no image that can be read here: send a {READ} file.") from error
    except Exception as error:
        raise UploadError(422, f"is damaged ({decoding.reason_of(error)}): save it anew.") from error
