"""The one decoder: an image file becomes a square of pixels, the same whoever asks, or a reason why it cannot."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, ExifTags, IcoImagePlugin, Image, ImageOps, PngImagePlugin

from rectrio_lib.core.errors import ArgumentError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "PCX")
MAX_PIXELS = 200_000_000  # of one image as it is decoded; RECTRIO_MAX_PIXELS overrides it
LARGE_PIXELS = 40_000_000  # from here on one image at a time is decoded, and reduced before it is converted
DEPTHS = (8, 12, 16)  # bits that wide integers may hold
SKETCH_SIDE = 32
FIGURE = "RecTrio figure"  # in the PNG files that `report.grids.save_image` writes
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ONE_LARGE = Lock()


class UnreadableError(Exception):
    """A file that is refused; the message is its reason in the ledger."""


class TooLargeError(UnreadableError):
    """An image has more pixels than the limit."""


def decode(
    file: Path | BinaryIO, size: int, channels: int, inspect: Callable[[Image.Image], None] | None = None
) -> tuple[np.ndarray, tuple[int, int]] | str:
    """Read an image file as uint8 (C, size, size), with its upright (width, height); or say why it cannot be read.

    The first frame is turned upright (EXIF), laid on white where transparent, and fitted to a square by a centre crop.
    A JPEG of four times the side or more is decoded at a half, a quarter or an eighth, to twice the side or more.
    Wide pixel types are brought to 8 bits as a viewer does: integers by the least of 8, 12 or 16 bits that holds them,
    else by their own range; floats as 0..1, or by their own range.

    Args:
        file: its path, or the file opened for reading.
        size: side of the square in pixels.
        channels: 1 for grey, 3 for colour.
        inspect: gets the upright image before the crop.
    """
    limit = pixel_limit()
    name = Path(getattr(file, "name", "")).name
    try:
        with open_regular(file) if isinstance(file, Path) else nullcontext(file) as stream:
            try:
                return _decode(stream, name, size, channels, limit, inspect)
            except Exception as error:  # whatever a decoder raises belongs to this file
                return reason_of(error, stream, name)
    except (OSError, ValueError, UnreadableError) as error:
        return reason_of(error, file, name)


def reason_of(error: Exception, file: object = "", name: str = "") -> str:
    """Return what the ledger says of an error: without the path, which it names anyway."""
    if isinstance(error, UnreadableError):
        return str(error)
    named = f" {name!r}" if name else ""
    said = (isinstance(error, OSError) and error.strerror) or str(error).replace(f" {file!r}", named)
    return f"{type(error).__name__}: {said or 'cannot be decoded'}"


def pixel_limit() -> int:
    """Return how many pixels a decoded image may have; raise ArgumentError if RECTRIO_MAX_PIXELS is no such number."""
    given = os.environ.get("RECTRIO_MAX_PIXELS", "") or str(MAX_PIXELS)
    if not given.isdecimal() or int(given) < 1:
        raise ArgumentError(f"RECTRIO_MAX_PIXELS={given!r}: give a positive whole number, such as {MAX_PIXELS}.")
    return int(given)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; raise UnreadableError for a pipe, device or socket: these may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableError("not a regular file")
    wait_not = getattr(os, "O_NONBLOCK", 0)  # should a pipe have come since
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | wait_not))


@cache
def reads_heif() -> bool:
    """Tell whether pillow-heif is installed, and let it read HEIC and HEIF files."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def formats_read() -> list[str]:
    """Return the formats that are told by their content and read: Pillow's own, and HEIF where pillow-heif is there."""
    return [*FORMATS, *["HEIF"] * reads_heif()]


def refuse_large_icon(file: BinaryIO, limit: int) -> None:
    """Raise TooLargeError for an icon with an image above the limit in it: Pillow decodes these as it opens them."""
    start = file.tell()
    if file.read(4) == b"\0\0\1\0":
        file.seek(start)
        for entry in IcoImagePlugin.IcoFile(file).entry:
            file.seek(entry.offset)
            is_png = file.read(8) == b"\x89PNG\r\n\x1a\n"
            file.seek(entry.offset)
            inner = (PngImagePlugin.PngImageFile if is_png else BmpImagePlugin.DibImageFile)(file)
            refuse_large(inner.width * inner.height // (1 if is_png else 2), limit)  # a bitmap counts its mask too
    file.seek(start)


def refuse_large(pixels: int, limit: int) -> None:
    """Raise TooLargeError if an image has more pixels than the limit."""
    if pixels > limit:
        raise TooLargeError(f"{pixels:,} pixels are above the limit of {limit:,}: RECTRIO_MAX_PIXELS raises it")


def turn_of(opened: Image.Image) -> Image.Transpose | None:
    """Return what turns an image upright, as its EXIF data say."""
    with suppress(Exception):  # damaged EXIF data make no damaged image
        return TURNS.get(opened.getexif().get(ExifTags.Base.Orientation))
    return None


def narrowed(image: Image.Image) -> Image.Image:
    """Bring wide pixel types, 16 bits or more, to 8 bits of grey; leave others alone."""
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return Image.fromarray(_stretch(np.asarray(image))) if wide else image


def _decode(
    file: BinaryIO, name: str, size: int, channels: int, limit: int, inspect: Callable | None
) -> tuple[np.ndarray, tuple[int, int]]:
    Image.MAX_IMAGE_PIXELS = None  # Pillow counts before it reduces; the limit below takes the place of its own
    formats = [*formats_read(), *["TGA"] * name.lower().endswith(".tga")]  # TGA has no signature
    refuse_large_icon(file, limit)
    with Image.open(file, formats=formats) as opened:
        if opened.info.get("Software") == FIGURE:
            raise UnreadableError("a figure that RecTrio drew")
        whole = opened.size
        opened.draft(None, (2 * size, 2 * size))
        pixels, drafted = opened.width * opened.height, opened.size != whole
        refuse_large(pixels, limit)
        with _ONE_LARGE if pixels > LARGE_PIXELS else nullcontext():
            opened.load()
            shape, turn = whole if drafted else opened.size, turn_of(opened)
            step = min(opened.size) // (2 * size) if pixels > LARGE_PIXELS else 1
            image = opened.reduce(step) if step > 1 and opened.mode in ("L", "RGB", "RGBA", "CMYK") else opened
            image = _to_bytes(image, "L" if channels == 1 else "RGB")
            image = image.transpose(turn) if turn is not None else image
            if inspect:
                inspect(image)
            fits = image.size == (size, size)
            square = image if fits else ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    turned = turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
    return np.atleast_3d(np.asarray(square)).transpose(2, 0, 1), shape[::-1] if turned else shape


def _to_bytes(image: Image.Image, mode: str) -> Image.Image:
    """Bring any pixel type to 8 bits of grey or colour."""
    image = narrowed(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _stretch(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UnreadableError("holds values that are not finite numbers")
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    bits = next((b for b in DEPTHS if low >= 0 and high < 2**b), None) if whole else None
    if bits:
        return (values.astype(np.uint32) >> (bits - 8)).astype(np.uint8)
    low, high = (0, 1) if not whole and low >= 0 and high <= 1 else (float(low), float(high))
    return ((values.astype(np.float64) - low) * (255 / (high - low or 1))).round().astype(np.uint8)


BORDER_RANGE, BORDER_SHARE = 24, 0.2  # grey levels within a line of a border; how much of a side it may take


def sketch(image: Image.Image) -> np.ndarray:
    """Return a whole image, but for an even border, in grey and squeezed to a square: uint8 (32, 32)."""
    grey = image.convert("L")
    grey = grey.reduce(step) if (step := min(grey.size) // (4 * SKETCH_SIDE)) > 1 else grey
    pixels, edges = np.asarray(grey), []
    for axis in (0, 1):  # columns, then lines
        even = np.ptp(pixels, axis=axis) <= BORDER_RANGE
        most = int(len(even) * BORDER_SHARE)
        edges += [(np.append(even[:most], False).argmin(), len(even) - np.append(even[::-1][:most], False).argmin())]
    (left, right), (top, bottom) = edges
    shape = (SKETCH_SIDE, SKETCH_SIDE)
    return np.asarray(grey.resize(shape, Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
