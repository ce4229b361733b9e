"""A folder of some two hundred hostile files: each is read or named, no good one is lost, nothing is started."""

import io
import multiprocessing
import os
import re
import resource
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from makers.images import photograph, png_bomb, written
from PIL import Image

from rectrio_lib.data import image_files, readers

GOOD = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif", "AVIF": "avif",
        "JPEG2000": "jp2", "PPM": "ppm", "TGA": "tga", "ICO": "ico", "PCX": "pcx", "QOI": "qoi"}  # fmt: skip
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n(touched) (w) file closefile\n"


def good_files() -> dict[str, bytes]:
    animated = [photograph(n) for n in range(3)]
    ramp = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    alpha = photograph(1).convert("RGBA")
    alpha.putalpha(128)
    files = {f"good{n}.{suffix}": written(kind=kind) for n, (kind, suffix) in enumerate(GOOD.items())}
    files |= {
        f"lying{n}.{suffix}": written(kind="PNG")
        for n, suffix in enumerate(("jpg", "gif", "tif", "bmp", "webp", "tga"))
    }
    return files | {
        "nosuffix": written(kind="JPEG"),
        "cmyk.jpg": written(photograph(1).convert("CMYK"), "JPEG"),
        "palette.png": written(alpha.quantize(16), "PNG"),
        "animated.gif": written(kind="GIF", save_all=True, append_images=animated),
        "animated.webp": written(kind="WEBP", save_all=True, append_images=animated),
        "animated.png": written(kind="PNG", save_all=True, append_images=animated),
        "pages.tif": written(kind="TIFF", save_all=True, append_images=animated),
        "sixteen.png": written(Image.fromarray((ramp * 65535).astype(np.uint16)), "PNG"),
        "float.tif": written(Image.fromarray(ramp.astype(np.float32)), "TIFF"),
        "int.tif": written(Image.fromarray((ramp * 1e9).astype(np.int32)), "TIFF"),
        "bits.png": written(photograph(1).convert("1"), "PNG"),
        "pixel.png": written(Image.new("RGB", (1, 1)), "PNG"),
        "thin.png": written(Image.new("RGB", (5000, 1)), "PNG"),
        "trailing.jpg": written(kind="JPEG") + b"trailing" * 1000,
        "exif.jpg": written(kind="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff damaged"),
    }


def bad_files() -> dict[str, bytes]:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x.jpg", written(kind="JPEG"))
    nan = np.full((64, 64), np.nan, np.float32)
    files = {
        "empty.jpg": b"",
        "empty.png": b"",
        "zeros.png": bytes(5000),
        "nan.tif": written(Image.fromarray(nan), "TIFF"),
    }
    strangers = {"eps": EPS, "html": b"<html>404</html>", "zip": zipped.getvalue(), "svg": b"<svg xmlns='x'/>",
                 "pdf": b"%PDF-1.4", "text": b"hello", "program": b"\x7fELF" + bytes(200),
                 "psd": b"8BPS\0\1" + bytes(60), "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60)}  # fmt: skip
    files |= {f"{name}.{suffix}": content for name, content in strangers.items() for suffix in ("jpg", "tif", "tga")}
    files |= {
        f"raw.{suffix}": b"x" for suffix in ("heic", "heif", "cr2", "nef", "dng", "arw", "svg", "psd", "eps", "ai")
    }
    files |= {
        "bomb.png": png_bomb(60_000, 60_000),
        "wide.png": png_bomb(2**31 - 1, 1),
        "claims.png": png_bomb(3000, 3000),
    }
    files["bomb.gif"] = b"GIF89a" + struct.pack("<HH", 65535, 65535) + written(kind="GIF")[10:]
    files["bomb.bmp"] = written(kind="BMP")[:18] + struct.pack("<ii", 100_000, 100_000) + written(kind="BMP")[26:]
    bomb = png_bomb(60_000, 60_000)  # in an icon that says it is small
    files["bomb.ico"] = struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(bomb), 22) + bomb
    files["bomb.ppm"] = b"P6 90000 90000 255\n" + bytes(100)
    for kind, suffix in GOOD.items():
        whole = written(kind=kind)
        files |= {f"cut{share}.{suffix}": whole[: len(whole) * share // 100] for share in (1, 10)}
    return files


def damaged_files() -> dict[str, bytes]:
    """Some of these can be read: what matters is an answer."""
    rng, files = np.random.default_rng(0), {}
    for kind, suffix in GOOD.items():
        whole = written(kind=kind)
        for n in range(8):
            broken = bytearray(whole)
            start = int(rng.integers(len(whole)))
            broken[start : start + 40] = bytes(b ^ 0xFF for b in broken[start : start + 40])
            files[f"damaged{n}.{suffix}"] = bytes(broken)
        files[f"half.{suffix}"] = whole[: len(whole) // 2]
    return files


def specials(folder: Path) -> list[str]:
    """Make what is not a file, as far as this system has it."""
    made = []
    for name, make in {
        "pipe.jpg": lambda path: os.mkfifo(path),
        "device.png": lambda path: path.symlink_to("/dev/zero"),
        "random.jpg": lambda path: path.symlink_to("/dev/urandom"),
        "dangling.png": lambda path: path.symlink_to("nowhere.png"),
        "itself.gif": lambda path: path.symlink_to("itself.gif"),
        "topipe.png": lambda path: path.symlink_to("pipe.jpg"),
        "name\udcff.png": lambda path: path.write_bytes(written(kind="PNG")),
    }.items():
        try:
            make(folder / name)
        except (OSError, AttributeError):
            continue
        made.append(name.encode("utf-8", "backslashreplace").decode())
    return made


def peak_of_reading(folder: Path, queue) -> None:
    readers.read_folder(folder, 64, 3)
    status = Path("/proc/self/status")  # getrusage counts what the parent held, too
    own = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
    queue.put(int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_hostile_file_is_read_or_named_and_no_good_one_is_lost(tmp_path, monkeypatch):
    good, bad, damaged = good_files(), bad_files(), damaged_files()
    home = tmp_path / "shop" / "things"
    home.mkdir(parents=True)
    for name, content in (good | bad | damaged).items():
        (home / name).write_bytes(content)
    special = specials(home)
    assert len(good) + len(bad) + len(damaged) + len(special) >= 150

    def refuse(*arguments, **options):
        raise AssertionError("a process was started")

    for name in ("system", "posix_spawn", "fork", "execv"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    pixels, frame, ledger = readers.read_folder(tmp_path / "shop", 64, 3)
    read, named = ({path.removeprefix("things/") for path in paths} for paths in (frame["path"], ledger["picture"]))
    assert not read & named and not ledger["picture"].duplicated().any()
    assert read | named == {*good, *bad, *damaged, *special}
    assert not set(good) - read, "good images lost"
    assert not (set(bad) | set(special)) & read, "no images, and yet read"
    assert ledger["reason"].str.len().min() > 5
    assert len(pixels) == len(frame)
    assert (pixels[frame["path"].eq("things/good1.png").to_numpy()].std() > 10).all()

    listed = image_files.list_images(tmp_path / "shop")  # the other road
    fresh = listed.loc[listed["reason"].eq(""), "path"]
    both = list(image_files.read_ahead(tmp_path / "shop", fresh, 64, 3, (), 8))
    assert {file.path.removeprefix("things/") for file in both if not file.reason} == read


@pytest.mark.skipif(os.name == "nt", reason="needs getrusage")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bombs_are_refused_in_little_memory(tmp_path):
    (tmp_path / "a").mkdir()
    for n in range(3):
        (tmp_path / "a" / f"good{n}.png").write_bytes(written(kind="PNG"))
    for name, content in bad_files().items():
        if "bomb" in name or "wide" in name:
            (tmp_path / "a" / name).write_bytes(content)
    queue = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=peak_of_reading, args=(tmp_path, queue))
    process.start()
    peak = queue.get(timeout=120)
    process.join()
    assert peak < 1_500_000, "kilobytes"
