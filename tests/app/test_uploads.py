"""Uploaded files, hostile ones above all: what is made of them, what is refused and why, and how they are kept."""

import asyncio
import errno
import io
import re
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from makers.images import photograph, png_bomb, written
from PIL import Image, ImageCms

from rectrio_lib.app.images import uploads
from rectrio_lib.app.images.uploads import CleanImage, UploadError, Uploads, check_image, display_name, read_query
from rectrio_lib.core.errors import ArgumentError, StorageError
from rectrio_lib.data import decoding, image_files

GPS = {1: "N", 2: (48.0, 51.0, 29.9), 3: "E", 4: (2.0, 17.0, 40.2)}


def opened(clean):
    return Image.open(io.BytesIO(clean.data), formats=["JPEG", "PNG"])


def icon(inner):
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(inner), 22) + inner


def dib(width, height):
    return struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(1000)


def exif_jpeg():
    exif = photograph(1).getexif()
    exif[0x010F], exif[0x9286] = "MAKER-OF-CAMERAS", "SECRET-COMMENT"
    exif.get_ifd(0x8825).update(GPS)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return written(exif=exif, icc_profile=profile, comment=b"COMMENT-IN-JPEG", dpi=(72, 72))


def refusal(data):
    with pytest.raises(UploadError) as refused:
        check_image(data)
    return refused.value.status


# --- what is made of images


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "PCX"]
)
def test_every_format_of_the_library_is_made_anew(kind):
    clean = check_image(written(kind=kind), "x")
    with opened(clean) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        far = np.abs(np.asarray(image, int) - np.asarray(photograph(1), int)).mean()
    assert (clean.suffix, clean.width, clean.height) == (".jpg", 64, 64)
    assert far < (30 if kind == "GIF" else 12)


def test_id_is_that_of_the_same_file_in_a_folder(tmp_path):
    data = exif_jpeg()
    (tmp_path / "any.jpg").write_bytes(data)
    clean = check_image(data, "other.png")
    assert clean.image_id == image_files.read_image(tmp_path, "any.jpg", 32, 3).image_id == image_files.content_id(data)
    assert re.fullmatch("[0-9a-f]{16}", clean.image_id)


def test_the_name_says_nothing():
    data = written(kind="PNG")
    assert (
        len({check_image(data, name) for name in ("x.jpg", "x.exe", "", "../x.tga", "x\0.png", "<b>.svg", "x" * 9000)})
        == 1
    )


def test_metadata_are_gone():
    data = exif_jpeg()
    assert all(
        secret in data for secret in (b"MAKER-OF-CAMERAS", b"SECRET-COMMENT", b"COMMENT-IN-JPEG", b"ICC_PROFILE")
    )
    clean = check_image(data)
    with opened(clean) as image:
        assert (dict(image.getexif()), dict(image.getexif().get_ifd(0x8825))) == ({}, {})
        assert not {"exif", "icc_profile", "comment", "xmp"} & set(image.info)
    for secret in (b"MAKER", b"SECRET", b"COMMENT", b"ICC_PROFILE", b"Exif"):
        assert secret not in clean.data


def test_text_and_profiles_of_a_png_are_gone():
    from PIL.PngImagePlugin import PngInfo

    text, clear = PngInfo(), photograph(1).convert("RGBA")
    clear.putalpha(100)
    text.add_text("Author", "SECRET-NAME")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clean = check_image(
        written(clear, "PNG", pnginfo=text, icc_profile=profile, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    )
    assert not [name for name in (b"tEXt", b"iCCP", b"eXIf", b"SECRET") if name in clean.data]


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied(turn):
    upright = Image.new("RGB", (40, 24), "blue")
    upright.paste("red", (0, 0, 20, 12))  # top left
    turns = {1: None} | decoding.TURNS
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)  # what undoes it
    stored = upright if turn == 1 else upright.transpose(turns[back])
    exif = stored.getexif()
    exif[0x0112] = turn
    clean = check_image(written(stored, exif=exif, quality=95))
    assert (clean.width, clean.height) == (40, 24)
    with opened(clean) as image:
        assert image.size == (40, 24) and not dict(image.getexif())
        assert image.getpixel((5, 5))[0] > 200 and image.getpixel((35, 20))[2] > 200


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_alone_is_kept(kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    clean = check_image(written(frames[0], kind, save_all=True, append_images=frames[1:]))
    with opened(clean) as image:
        assert getattr(image, "n_frames", 1) == 1
        assert image.convert("RGB").getpixel((16, 16))[0] > 240


def clear(mode):
    image = photograph(1).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.quantize(64) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGBA"), ("TIFF", "RGBA")]
)
def test_transparent_images_stay_so(kind, mode):
    clean = check_image(written(clear(mode), kind))
    with opened(clean) as image:
        assert (clean.suffix, image.format, image.mode) == (".png", "PNG", "RGBA")
        assert image.getchannel("A").getextrema()[0] < 20


def test_transparent_colour_counts_and_an_opaque_alpha_does_not():
    keyed = written(Image.new("RGB", (16, 16), "red"), "PNG", transparency=(255, 0, 0))
    assert check_image(keyed).suffix == ".png"
    opaque = photograph(1).convert("RGBA")
    assert check_image(written(opaque, "PNG")).suffix == ".jpg"


ODD = {
    "CMYK": (photograph(1).convert("CMYK"), "JPEG", "RGB"), "grey": (photograph(1).convert("L"), "JPEG", "L"),
    "one bit": (photograph(1).convert("1"), "PNG", "L"), "palette": (photograph(1).quantize(16), "PNG", "RGB"),
    "16 bits": (Image.fromarray(np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)), "PNG", "L"),
    "32 bits": (Image.fromarray(np.linspace(0, 1e9, 4096).reshape(64, 64).astype(np.int32)), "TIFF", "L"),
    "float": (Image.fromarray(np.linspace(0, 1, 4096).reshape(64, 64).astype(np.float32)), "TIFF", "L"),
    "one pixel": (Image.new("RGB", (1, 1), "red"), "PNG", "RGB"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_pixels_become_8_bits(name):
    image, kind, mode = ODD[name]
    data = written(image, kind)
    clean = check_image(data)
    with opened(clean) as made:
        assert (made.mode, made.size) == (mode, image.size)
        ours = np.asarray(made.convert("RGB"), int).transpose(2, 0, 1)
    if image.size == (64, 64):
        assert np.abs(ours - decoding.decode(io.BytesIO(data), 64, 3)[0]).mean() < 12


def test_what_is_made_is_clean_itself():
    for data in (exif_jpeg(), written(clear("RGBA"), "PNG")):
        once = check_image(data)
        twice = check_image(once.data)
        assert (twice.suffix, twice.width, twice.height) == (once.suffix, once.width, once.height)


POLYGLOTS = {
    "PHP after a JPEG": (written() + b"<?php system($_GET['c']); ?>", b"<?php"),
    "PHP in a comment": (written(comment=b"<?php phpinfo(); ?>"), b"<?php"),
    "HTML after a PNG": (written(kind="PNG") + b"<script>alert(1)</script>", b"<script>"),
    "HTML after a GIF": (written(kind="GIF") + b"<script>alert(1)</script>", b"<script>"),
}


@pytest.mark.parametrize("name", POLYGLOTS)
def test_what_hides_in_an_image_is_gone(name):
    data, hidden = POLYGLOTS[name]
    assert hidden in data and hidden not in check_image(data).data


def test_zip_behind_an_image_is_gone():
    packed = io.BytesIO(written())
    packed.seek(0, 2)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("evil.sh", "rm -rf /")
    assert zipfile.is_zipfile(io.BytesIO(packed.getvalue()))
    assert not zipfile.is_zipfile(io.BytesIO(check_image(packed.getvalue()).data))


# --- what is refused


def zipped():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("x.jpg", written())
    return target.getvalue()


NO_IMAGES = {
    "HTML": b"<!DOCTYPE html><script>alert(1)</script>", "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "zip": zipped(), "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file closefile\n",
    "PDF": b"%PDF-1.7\n", "ELF": b"\x7fELF" + bytes(100), "noise": bytes(range(256)) * 8, "zeros": bytes(4096),
    "text": b"an image", "one byte": b"\xff", "TGA": written(kind="TGA"), "WMF": b"\xd7\xcd\xc6\x9a" + bytes(80),
    "PSD": b"8BPS\0\1" + bytes(60), "MVG": b"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 9,9 'url(http://a/)'\n",
    "signature alone": b"\x89PNG\r\n\x1a\n", "JPEG start alone": b"\xff\xd8\xff\xe0",
}  # fmt: skip


@pytest.mark.parametrize("name", NO_IMAGES)
@pytest.mark.parametrize("suffix", ["jpg", "tga"])
def test_what_is_no_image_is_told_by_its_content(name, suffix):
    with pytest.raises(UploadError) as refused:
        check_image(NO_IMAGES[name], f"x.{suffix}")
    assert refused.value.status == 415
    assert str(refused.value).startswith(f"x.{suffix} ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_image_is_refused(kind, share):
    data = written(photograph(2, 256), kind)
    assert refusal(data[: int(len(data) * share)]) in (415, 422)


def test_damaged_and_empty_files_are_refused():
    broken = bytearray(written(photograph(2, 256), "PNG"))
    broken[200:260] = bytes(60)
    not_finite = Image.fromarray(np.full((8, 8), np.nan, np.float32))
    for data in (bytes(broken), b"", written(not_finite, "TIFF")):
        assert refusal(data) == 422


BOMBS = {
    "PNG": png_bomb(30_000, 30_000), "just above": png_bomb(50_000, 1_001), "icon": icon(png_bomb(30_000, 30_000)),
    "icon of a bitmap": icon(dib(30_000, 30_000)), "BMP": written(Image.new("1", (8, 8)), "BMP"),
    "long": png_bomb(1, 70_000), "GIF": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "AVIF-like": png_bomb(2**31 - 1, 1),
}  # fmt: skip
BOMBS["BMP"] = BOMBS["BMP"][:18] + struct.pack("<ii", 40_000, 40_000) + BOMBS["BMP"][26:]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(name, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert refusal(BOMBS[name]) == 413


def test_limits_are_exact(monkeypatch):
    data = written(photograph(1, 100), "PNG")
    for limit, exact in (("MOST_PIXELS", 10_000), ("MOST_BYTES", len(data))):
        monkeypatch.setattr(uploads, limit, exact)
        assert check_image(data).width == 100
        monkeypatch.setattr(uploads, limit, exact - 1)
        assert refusal(data) == 413
        monkeypatch.undo()


def test_jpeg_of_very_many_passes_is_refused_unread():
    plain = written(photograph(1, 64), progressive=True)
    start = plain.index(b"\xff\xda")
    scan = plain[start : start + 12]
    assert refusal(plain[:start] + scan * 5_000 + plain[start:]) == 422
    assert check_image(plain).width == 64


def test_slow_decoding_ends_for_the_caller(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(uploads, "_made_anew", lambda *_: release.wait(20))
    monkeypatch.setattr(uploads, "SECONDS", 0.1)
    data = written()
    try:
        with pytest.raises(UploadError) as slow:
            check_image(data)
        with ThreadPoolExecutor(8) as pool:
            rest = list(pool.map(lambda _: refusal(data), range(8)))
    finally:
        release.set()
    assert slow.value.status == 422
    assert sorted(rest) == [422] * (uploads.DECODERS - 1) + [503] * (9 - uploads.DECODERS)
    monkeypatch.undo()
    assert check_image(data).width == 64


def test_who_waits_for_a_decoder_takes_no_thread_from_others():
    release = threading.Event()

    async def ask():
        waiting = [asyncio.create_task(uploads.apart(release.wait, 60)) for _ in range(40)]
        try:
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "answered"), 30) == "answered"
        finally:
            release.set()
            await asyncio.gather(*waiting)

    asyncio.run(ask())


def test_query_is_read_as_the_library_reads_it_and_checked_as_an_upload():
    data = exif_jpeg()
    pixels = read_query(data, 32, 3)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), np.uint8)
    assert np.array_equal(pixels, decoding.decode(io.BytesIO(data), 32, 3)[0])
    assert read_query(data, 16, 1).shape == (1, 16, 16)
    cut = written(photograph(1, 512))[:3000]
    for bad, status in ((BOMBS["PNG"], 413), (NO_IMAGES["SVG"], 415), (cut, 422), (b"", 422)):
        with pytest.raises(UploadError) as refused:
            read_query(bad, 32, 3)
        assert refused.value.status == status


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a.jpg", "a.jpg"), ("../../etc/passwd", "passwd"), ("C:\\Users\\me\\b.png", "b.png"), ("", "file"), ("..", ".."),
     ("<script>alert(1)</script>.jpg", "script>.jpg"), ("a\0b.jpg", "ab.jpg"), ("a\r\nSet-Cookie: x", "aSet-Cookie: x"),
     ("\u202egpj.exe", "gpj.exe"), ("x" * 300 + ".jpg", "x" * 80 + "…" + "x" * 15 + ".jpg"), ("/", "file")],
)  # fmt: skip
def test_names_are_shown_on_one_line_and_never_as_paths(name, shown):
    assert display_name(name) == shown


def test_many_bad_files_at_once_are_each_refused():
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda n: refusal(NO_IMAGES["SVG"] + bytes(n % 7)), range(1_000)))
    assert statuses == [415] * 1_000


# --- how they are kept


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "FREE_BYTES", 0)
    return Uploads(tmp_path / "uploads")


CLEAN = CleanImage("0123456789abcdef", b"content", ".jpg", 1, 1)


def test_files_lie_under_their_id_for_the_owner_alone(kept):
    path = kept.save(CLEAN)
    assert path == kept.folder / "01" / "0123456789abcdef.jpg"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"content", 0o600)
    for _ in range(2):
        kept.delete(CLEAN.image_id)
    assert [file for file in kept.folder.rglob("*") if file.is_file()] == []


NO_IDS = ["../../etc/passwd", "", "0123456789ABCDEF", "0123456789abcde", "0123456789abcdef\n", "*", "\0" * 16]


@pytest.mark.parametrize("image_id", [*NO_IDS, "01/0123456789abcdef.jpg", "/etc/passwd"])
def test_only_ids_lead_to_files(kept, image_id):
    for call in (kept.delete, lambda name: kept.save(CleanImage(name, b"", ".jpg", 1, 1))):
        with pytest.raises(ArgumentError):
            call(image_id)
    with pytest.raises(ArgumentError):
        kept.save(CleanImage(CLEAN.image_id, b"", "/../x", 1, 1))


def test_fifty_at_once_leave_one_whole_file(kept):
    with ThreadPoolExecutor(16) as pool:
        paths = set(pool.map(lambda _: kept.save(CLEAN), range(50)))
    assert paths == {kept.place(CLEAN.image_id, CLEAN.suffix)}
    assert [file.read_bytes() for file in kept.folder.rglob("*") if file.is_file()] == [b"content"]


def test_room_is_left_on_the_disk(kept, monkeypatch):
    monkeypatch.setattr(uploads, "FREE_BYTES", 1 << 60)
    with pytest.raises(StorageError):
        kept.save(CLEAN)
    assert [file for file in kept.folder.rglob("*") if file.is_file()] == []


def test_full_disk_leaves_nothing_behind(kept, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads.os, "fsync", full)
    with pytest.raises(StorageError):
        kept.save(CLEAN)
    assert [file for file in kept.folder.rglob("*") if file.is_file()] == []
    monkeypatch.undo()
    assert kept.save(CLEAN).is_file()
