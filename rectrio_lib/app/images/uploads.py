"""Uploaded images: checked by their content, made anew without metadata, and kept under the hash of what was sent."""

from __future__ import annotations

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
SECONDS, DECODERS = 20, 4  # that one image may take; images decoded at once
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


def check_image(
    data: bytes, name: str = "", most_bytes: int = MOST_BYTES, most_pixels: int = MOST_PIXELS, seconds: float = SECONDS
) -> CleanImage:
    """Check an uploaded file and make it anew.

    Args:
        data: its bytes, which alone tell what it is.
        name: as its sender calls it, for the reason of a refusal.
        most_bytes: larger files are refused.
        most_pixels: larger images are refused, before they are decoded.
        seconds: that decoding may take, waiting for its turn included.

    Raises:
        UploadError: if it is refused.
    """
    with _told_of(name):
        made, suffix, (width, height) = _in_time(_made_anew, data, most_bytes, most_pixels, seconds)
    return CleanImage(content_id(data), made, suffix, width, height)


def read_query(
    data: bytes,
    size: int,
    channels: int,
    name: str = "",
    most_bytes: int = MOST_BYTES,
    most_pixels: int = MOST_PIXELS,
    seconds: float = SECONDS,
) -> np.ndarray:
    """Check an uploaded file that is not kept, and return its pixels as an encoder takes them.

    Args:
        data: its bytes.
        size: side of the square in pixels.
        channels: 1 for grey, 3 for colour.
        name: see `check_image`, as for what follows.
        most_bytes: larger files are refused.
        most_pixels: larger images are refused.
        seconds: that decoding may take.

    Returns:
        uint8 (channels, size, size), as `decoding.decode` returns them.

    Raises:
        UploadError: if it is refused.
    """
    with _told_of(name):
        read = _in_time(partial(_pixels, size=size, channels=channels), data, most_bytes, most_pixels, seconds)
    return read


def display_name(name: str) -> str:
    """Return a client's file name to show: its last part, on one line, at most 100 characters; never a path."""
    last = PureWindowsPath(name.replace("\0", "")).name or "file"
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C")
    return shown if len(shown) <= 100 else f"{shown[:80]}…{shown[-19:]}"


class Uploads:
    """The files of checked images, below one folder: <first two digits>/<image_id>.jpg or .png."""

    def __init__(self, folder: Path, free_bytes: int = FREE_BYTES) -> None:
        """Take a folder, which is made when the first file comes.

        Args:
            folder: where the files lie.
            free_bytes: that are to stay free on its disk.
        """
        self.folder, self.free_bytes = folder, free_bytes

    def save(self, image: CleanImage) -> Path:
        """Write a file, complete or not at all, and return its path; the same image again replaces itself.

        Raises:
            StorageError: if the disk is full, or would be nearly so, or cannot be written.
        """
        path = self.place(image)
        with renamed(path) as partial_path:
            free = shutil.disk_usage(path.parent).free - len(image.data)
            if free < self.free_bytes:
                raise StorageError(f"{free:,} bytes would be left on the disk of {self.folder}: make room.")
            descriptor = os.open(partial_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(image.data)
                file.flush()
                os.fsync(file.fileno())
        return path

    def place(self, image: CleanImage) -> Path:
        """Return where the file of an image lies, or will."""
        return self._path(image.image_id, image.suffix)

    def find(self, image_id: str) -> Path | None:
        """Return the file of an image, or None; ArgumentError if that is no image_id."""
        return next((path for suffix in SUFFIXES if (path := self._path(image_id, suffix)).is_file()), None)

    def delete(self, image_id: str) -> bool:
        """Delete the file of an image, and tell whether there was one; ArgumentError if that is no image_id."""
        if path := self.find(image_id):
            path.unlink(missing_ok=True)
        return path is not None

    def _path(self, image_id: str, suffix: str) -> Path:
        if not IMAGE_ID.fullmatch(image_id) or suffix not in SUFFIXES:
            raise ArgumentError(f"{image_id!r:.100} is no image_id: it has 16 hexadecimal digits.")
        return self.folder / image_id[:2] / f"{image_id}{suffix}"


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    try:
        yield
    except UploadError as error:
        raise UploadError(error.status, f"{display_name(name)} {error}") from error


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")


def _in_time(work: Callable[[bytes, int], Any], data: bytes, most_bytes: int, most_pixels: int, seconds: float) -> Any:
    """Check a file and do the work on it in a thread, for some seconds at most."""
    if not data:
        raise UploadError(422, "is empty: choose an image.")
    if len(data) > most_bytes:
        raise UploadError(413, f"has {len(data):,} bytes; {most_bytes:,} are allowed: save it smaller.")
    future = _pool().submit(work, data, most_pixels)
    try:
        return future.result(seconds)
    except TooSlowError:
        if future.cancel():
            raise UploadError(503, "had to wait too long for its turn: send it again in a moment.") from None
        raise UploadError(422, f"takes more than {seconds:g} s to decode: save it anew as JPEG or PNG.") from None


def _made_anew(data: bytes, most_pixels: int) -> tuple[bytes, str, tuple[int, int]]:
    with _opened(data, most_pixels) as opened:
        opened.load()
        turn, image = decoding.turn_of(opened), decoding.narrowed(opened)
        clear = image.has_transparency_data and (rgba := image.convert("RGBA")).getchannel("A").getextrema()[0] < 255
        fresh = rgba if clear else image.convert("L" if image.mode in ("1", "L") else "RGB")
        fresh = fresh.transpose(turn) if turn is not None else fresh
    fresh.info.clear()  # such as profiles, comments and EXIF data, which would be written again
    made = BytesIO()
    fresh.save(made, "PNG") if clear else fresh.save(made, "JPEG", quality=QUALITY)
    return made.getvalue(), ".png" if clear else ".jpg", fresh.size


def _pixels(data: bytes, most_pixels: int, size: int, channels: int) -> np.ndarray:
    with _opened(data, most_pixels):  # which checks it
        pass
    read = decoding.decode(BytesIO(data), size, channels)
    if isinstance(read, str):
        raise UploadError(422, f"is damaged ({read}): save it anew.")
    return read[0]


@contextmanager
def _opened(data: bytes, most_pixels: int) -> Iterator[Image.Image]:
    """Open an image that is not too large; raise UploadError for whatever a decoder raises."""
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MOST_SCANS:
        raise UploadError(422, f"is a JPEG of more than {MOST_SCANS} passes: save it anew.")
    try:
        decoding.refuse_large_icon(BytesIO(data), most_pixels)
        with Image.open(BytesIO(data), formats=decoding.formats_read()) as opened:
            decoding.refuse_large(opened.width * opened.height, most_pixels)
            if max(opened.size) > LONGEST_SIDE:
                raise UploadError(413, f"is longer than {LONGEST_SIDE:,} pixels on a side: save it smaller.")
            yield opened
    except UploadError:
        raise
    except (decoding.TooLargeError, Image.DecompressionBombError) as error:
        raise UploadError(413, f"has more than {most_pixels:,} pixels: save it smaller.") from error
    except UnidentifiedImageError as error:
        raise UploadError(415, f"is no image that can be read here: send a {READ} file.") from error
    except Exception as error:
        raise UploadError(422, f"is damaged ({decoding.reason_of(error)}): save it anew.") from error
