"""One decoder for everybody: the same pixels, every pixel type, limits, and no foreign program."""

import io
import warnings

import numpy as np
import pytest
from makers.images import photograph
from PIL import Image, ImageOps

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.data import decoding, image_files
from rectrio_lib.data.decoding import decode, pixel_limit, sketch


def saved(path, array):
    Image.fromarray(array).save(path)
    return path


# --- large files


@pytest.mark.parametrize(
    ("side", "reduced"), [(16, (100, 75)), (37, (100, 75)), (38, (200, 150)), (100, (400, 300)), (151, (800, 600))]
)
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_by_all_alike(tmp_path, side, reduced):
    path, sizes = tmp_path / "x.jpg", []
    photograph(1, 800).crop((0, 0, 800, 600)).save(path, quality=95)
    pixels, shape = decode(path, side, 3, inspect=lambda image: sizes.append(image.size))
    assert (sizes, shape) == ([reduced], (800, 600))
    stored = image_files.read_image(tmp_path, "x.jpg", side, 3)
    np.testing.assert_array_equal(stored.pixels, pixels)
    np.testing.assert_array_equal(decode(io.BytesIO(path.read_bytes()), side, 3)[0], pixels)
    whole = Image.open(path, formats=["JPEG"]).crop((100, 0, 700, 600)).resize((side, side), Image.Resampling.BICUBIC)
    assert np.abs(pixels.astype(int) - np.asarray(whole).transpose(2, 0, 1)).mean() < 2


def test_a_reduced_jpeg_is_upright_and_knows_its_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = photograph(1, 800).crop((0, 0, 800, 600))
    lying.save(tmp_path / "x.jpg", quality=95, exif=exif)
    lying.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    (pixels, shape), (expected, same) = (decode(tmp_path / name, 16, 3) for name in ("x.jpg", "upright.png"))
    assert shape == same == (600, 800)
    assert np.abs(pixels.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_orientation_is_turned_upright_once(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photograph(3, 64).crop((0, 0, 64, 40))
    image.save(tmp_path / f"x.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    ImageOps.exif_transpose(Image.open(tmp_path / f"x.{suffix}")).save(tmp_path / "expected.png")
    pixels, shape = decode(tmp_path / f"x.{suffix}", 16, 3)
    expected, same = decode(tmp_path / "expected.png", 16, 3)
    assert shape == same
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_images_above_the_limit_are_refused_with_it_and_a_jpeg_counts_as_it_is_decoded(tmp_path, monkeypatch):
    photograph(1, 800).save(tmp_path / "x.jpg")
    photograph(1, 800).save(tmp_path / "x.png")
    monkeypatch.setenv("RECTRIO_MAX_PIXELS", "100000")
    assert "640,000" in decode(tmp_path / "x.png", 16, 3)
    assert isinstance(decode(tmp_path / "x.jpg", 16, 3), tuple)
    monkeypatch.setenv("RECTRIO_MAX_PIXELS", "640000")
    assert isinstance(decode(tmp_path / "x.png", 16, 3), tuple)
    monkeypatch.setenv("RECTRIO_MAX_PIXELS", "1000")
    assert "RECTRIO_MAX_PIXELS" in decode(tmp_path / "x.png", 16, 3)
    refused = image_files.read_image(tmp_path, "x.png", 16, 3)
    assert refused.mtime_ns == image_files.NEVER, "tried again when the limit is raised"
    monkeypatch.setenv("RECTRIO_MAX_PIXELS", "many")
    with pytest.raises(ArgumentError, match="many"):
        pixel_limit()


def test_no_size_makes_pillow_warn_and_a_reduced_image_looks_the_same(tmp_path, monkeypatch):
    image = photograph(1, 400).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((400, 400)))
    image.save(tmp_path / "x.png")
    whole, shape = decode(tmp_path / "x.png", 16, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduced, same = decode(tmp_path / "x.png", 16, 3)
    assert same == shape
    assert np.abs(reduced.astype(int) - whole).mean() < 8, "of 255: averaged first, it is a little softer"


# --- wide pixel types

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
EIGHT = (RAMP * 255).round()


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        ((RAMP * 255).astype(np.uint16), "png"),
        ((RAMP * 4095).astype(np.uint16), "png"),
        ((RAMP * 65535).astype(np.uint16), "png"),
        ((RAMP * 4095).astype(np.uint16), "tif"),
        ((RAMP * 65535).astype(np.int32), "tif"),
        ((RAMP * 2**31 * 0.99).astype(np.int32), "tif"),
        ((RAMP * 2000 - 1000).astype(np.int32), "tif"),
        (RAMP.astype(np.float32), "tif"),
        ((RAMP * 12 + 3).astype(np.float32), "tif"),
        ((RAMP * 1e20 - 5e19).astype(np.float32), "tif"),
    ],
    ids=["8 in 16", "12 in 16", "16", "12 tif", "16 in 32", "31", "signed", "0..1", "metres", "huge"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_wide_pixels_keep_their_shades(tmp_path, values, suffix, channels):
    pixels, _ = decode(saved(tmp_path / f"x.{suffix}", values), 8, channels)
    assert pixels.shape == (channels, 8, 8)
    assert np.abs(pixels.astype(int) - EIGHT).max() <= 2


@pytest.mark.parametrize("value", [0, 5, 100_000, -3])
def test_an_image_of_one_value_is_read(tmp_path, value):
    pixels, _ = decode(saved(tmp_path / "x.tif", np.full((8, 8), value, np.int32)), 8, 1)
    assert np.ptp(pixels) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_a_reason(tmp_path, value):
    values = RAMP.astype(np.float32)
    values[3, 3] = value
    assert "finite" in decode(saved(tmp_path / "x.tif", values), 8, 1)


# --- whatever goes wrong


@pytest.mark.parametrize(
    "error",
    [RuntimeError("codec"), MemoryError(), NotImplementedError(), TypeError("x"), AttributeError("x"), KeyError(1)],
)
def test_any_exception_of_a_decoder_is_the_reason_of_the_file(tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    photograph(1).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    reason = decode(tmp_path / "x.png", 8, 3)
    assert isinstance(reason, str) and type(error).__name__ in reason
    assert image_files.read_image(tmp_path, "x.png", 8, 3).reason == reason


@pytest.mark.parametrize("name", ["gone.png", "folder", "bad\0name.png"])
def test_what_cannot_be_opened_is_a_reason(tmp_path, name):
    (tmp_path / "folder").mkdir()
    reason = decode(tmp_path / name, 8, 3)
    assert isinstance(reason, str) and str(tmp_path) not in reason
    assert image_files.read_image(tmp_path, name, 8, 3).image_id == ""


# --- sketches


def test_a_sketch_shows_the_whole_image_without_its_border():
    whole = photograph(1, 300).crop((0, 0, 300, 200))
    framed = Image.new("RGB", (340, 240), "black")
    framed.paste(whole, (20, 20))
    assert sketch(whole).shape == (32, 32) and sketch(whole).dtype == np.uint8
    assert np.abs(sketch(framed).astype(int) - sketch(whole)).mean() < 4
    assert np.abs(sketch(whole.resize((150, 200))).astype(int) - sketch(whole)).mean() < 3


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_images_of_any_shape_have_a_sketch(size):
    assert sketch(Image.new("RGB", size, "red")).shape == (32, 32)


def test_content_without_a_name_is_refused_without_one():
    assert decode(io.BytesIO(b"abc"), 8, 3) == "UnidentifiedImageError: cannot identify image file"
