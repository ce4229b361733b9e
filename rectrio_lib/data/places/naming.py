"""What a name and the first bytes tell of a file: whether it is an image, and of a format that is read."""

from __future__ import annotations

from pathlib import PurePosixPath

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff",
    ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga",
    ".ico", ".qoi", ".pcx",
}  # fmt: skip
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
HEIF_REASON = "HEIC files need pillow-heif: pip install 'rectrio[heic]'"
RAW = (".cr2", ".cr3", ".nef", ".dng", ".arw", ".orf", ".rw2", ".raf", ".srw", ".pef")
DRAWN = (".svg", ".psd", ".eps", ".ps", ".ai", ".wmf", ".emf", ".xcf", ".jxl")
FOREIGN = dict.fromkeys(RAW, "camera raw files are not read: export it as JPEG")
FOREIGN |= dict.fromkeys(DRAWN, "files of this kind are not read: export it as PNG")
PASSED_OVER = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".html", ".py", ".npy", ".parquet", ".pdf"}
SERVICE_FOLDERS = {"@eaDir", "__MACOSX", "#recycle", "lost+found"}  # and all that begin with a dot
SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"qoif",
)  # fmt: skip
HEAD = 16  # bytes that tell an image


def is_service(name: str) -> bool:
    """Tell whether a folder is hidden, or one that file managers and disk stations make."""
    return name.startswith(".") or name in SERVICE_FOLDERS


def is_shown(path: str) -> bool:
    """Tell whether a file lies below a folder, and in no hidden or service folder there."""
    return bool(path) and not any(home in ("", "..") or is_service(home) for home in path.split("/")[:-1])


def refusal(name: str, heif: bool) -> str:
    """Return why images of this kind are not read; empty if they are; `heif` tells whether pillow-heif is there."""
    suffix = _suffix(name)
    return HEIF_REASON if suffix in HEIF_SUFFIXES and not heif else FOREIGN.get(suffix, "")


def may_be_image(name: str) -> bool:
    """Tell whether the suffix is one of images."""
    return _suffix(name) in IMAGE_SUFFIXES | HEIF_SUFFIXES


def is_silent(name: str) -> bool:
    """Tell whether the suffix says nothing, so that the first bytes have to."""
    return _suffix(name) not in PASSED_OVER


def begins_as_image(head: bytes, heif: bool) -> bool:
    """Tell whether a file that begins with these bytes, HEAD of them, is an image."""
    boxed = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", *[b"heic", b"heix", b"mif1"] * heif)
    webp, bitmap = head[:4] == b"RIFF" and head[8:12] == b"WEBP", head[:2] == b"BM" and head[6:10] == bytes(4)
    netpbm = head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace()
    return head.startswith(SIGNATURES) or boxed or webp or bitmap or netpbm


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
