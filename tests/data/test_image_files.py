import os
import sys
import types
import unicodedata
import weakref
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
import pytest
from makers.images import photograph, save_photograph
from PIL import Image

from rectrio_lib.core.errors import DataError
from rectrio_lib.data import decoding, image_files
from rectrio_lib.data.image_files import NEVER, describe, list_images, match_known, read_ahead, read_image
from rectrio_lib.data.layout import understood

whole_decode = image_files.decode


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())


def link(target, path, folder=False):
    try:
        path.symlink_to(target, target_is_directory=folder)
    except OSError:
        pytest.skip("links are not allowed here")


# --- found


def test_pictures_are_listed_in_order_with_size_and_time_and_nothing_else_is(tmp_path):
    touch(tmp_path, "dog/b.JPG", "cat/deep/ä.png", "a.webp", "notes.txt", "jpg", ".hidden/x.png", "cat/Thumbs.db")
    found = list_images(tmp_path)
    assert found["path"].tolist() == ["a.webp", "cat/deep/ä.png", "dog/b.JPG"]
    assert found["size"].tolist() == [len(path.encode()) for path in found["path"]]
    assert found["mtime_ns"].tolist() == [(tmp_path / path).stat().st_mtime_ns for path in found["path"]]
    assert found["reason"].eq("").all() and found["image_id"].eq("").all()


def test_very_long_and_foreign_names_are_listed(tmp_path):
    names = ["猫" * 60 + ".png", "l" * 200 + ".jpg", "a b'\"c.gif" if os.name != "nt" else "a b.gif"]
    touch(tmp_path, *names)
    assert list_images(tmp_path)["path"].tolist() == sorted(names)


def test_links_that_run_in_circles_end_and_links_to_files_count(tmp_path):
    touch(tmp_path, "cat/a.png")
    link(tmp_path / "cat" / "a.png", tmp_path / "linked.png")
    link(tmp_path, tmp_path / "cat" / "up", folder=True)
    link(tmp_path / "cat", tmp_path / "cat.png", folder=True)
    link("self.png", tmp_path / "self.png")
    link("nowhere.png", tmp_path / "broken.png")
    found = list_images(tmp_path).set_index("path")
    assert found.index.tolist() == ["broken.png", "cat/a.png", "linked.png", "self.png"]
    assert found["reason"].ne("").tolist() == [True, False, False, True]
    assert found["reason"]["broken.png"].startswith("FileNotFoundError: ")
    assert found["mtime_ns"]["self.png"] == NEVER


def test_hidden_and_service_folders_and_excluded_ones_are_passed_over_at_any_depth(tmp_path):
    service = (".git", "@eaDir", "__MACOSX", "#recycle", "lost+found", ".thumbnails", ".ipynb_checkpoints")
    touch(
        tmp_path, "cat/a.png", "outputs/x.png", *(f"{n}/x.png" for n in service), *(f"cat/{n}/x.png" for n in service)
    )
    assert list_images(tmp_path, [tmp_path / "outputs"])["path"].tolist() == ["cat/a.png"]
    assert list_images(tmp_path)["path"].tolist() == ["cat/a.png", "outputs/x.png"]
    assert list_images(tmp_path / "outputs", [tmp_path / "outputs"])["path"].tolist() == ["x.png"], "asked for by name"


def test_linked_folders_are_read_once_under_the_name_of_the_link(tmp_path):
    touch(tmp_path, "pets/zebra/a.png", "elsewhere/deep/b.png")
    for name, target in {"dog": "elsewhere", "pup": "elsewhere", "again": "pets/zebra"}.items():
        link(tmp_path / target, tmp_path / "pets" / name, folder=True)
    assert list_images(tmp_path / "pets")["path"].tolist() == ["dog/deep/b.png", "zebra/a.png"]


def test_a_link_that_leads_above_the_folder_is_named_and_not_followed(tmp_path):
    touch(tmp_path, "pets/a.png", "secret.png")
    link(tmp_path, tmp_path / "pets" / "up", folder=True)
    found = list_images(tmp_path / "pets").set_index("path")["reason"]
    assert found.index.tolist() == ["a.png", "up"] and found["up"] and not found["a.png"]


def test_files_are_told_by_their_first_bytes_where_the_suffix_says_nothing(tmp_path):
    formats = {"a": "PNG", "b.jpg_large": "JPEG", "c.1": "GIF", "d": "BMP", "e": "TIFF", "f": "WEBP", "g": "AVIF",
               "h": "JPEG2000", "i": "PPM", "j": "QOI"}  # fmt: skip
    for name, kind in formats.items():
        photograph(1).save(tmp_path / name, kind)
    touch(tmp_path, "README", "Makefile", "notes.text", "Thumbs.db", "BMW", "P5", "data.bin")
    (tmp_path / "labels.csv").write_bytes((tmp_path / "a").read_bytes())
    assert list_images(tmp_path)["path"].tolist() == sorted(formats)
    assert all(read_image(tmp_path, name, 8, 3).reason == "" for name in formats)


@pytest.mark.parametrize("suffix", ["jpg", "jpe", "jfif", "png", "gif", "bmp", "dib", "webp", "tif", "tiff", "avif",
                                    "jp2", "ppm", "pgm", "pbm", "tga", "ico", "pcx", "qoi"])  # fmt: skip
def test_every_suffix_that_is_listed_is_read(tmp_path, suffix):
    image = photograph(1).convert({"pgm": "L", "pbm": "1"}.get(suffix, "RGB"))
    image.save(tmp_path / f"x.{suffix.upper()}", {"jfif": "JPEG", "jpe": "JPEG"}.get(suffix))
    assert list_images(tmp_path)["path"].tolist() == [f"x.{suffix.upper()}"]
    assert read_image(tmp_path, f"x.{suffix.upper()}", 8, 3).reason == ""


@pytest.mark.parametrize(
    "name", ["a.HEIC", "b.heif", "c.cr2", "d.nef", "e.dng", "f.arw", "g.svg", "h.psd", "i.eps", "j.ai"]
)
def test_images_of_formats_that_are_not_read_are_named_with_what_to_do(tmp_path, name):
    touch(tmp_path, name)
    found = list_images(tmp_path)
    assert found["path"].tolist() == [name] and found["mtime_ns"].tolist() == [NEVER]
    assert ("rectrio[heic]" if name[0] in "ab" else "export") in found["reason"][0]


def test_heic_files_are_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    registered = []
    module = types.SimpleNamespace(register_heif_opener=lambda: registered.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(image_files, "reads_heif", decoding.reads_heif.__wrapped__)
    touch(tmp_path, "a.heic")
    assert list_images(tmp_path)["reason"].tolist() == [""] and registered


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path)["reason"].tolist() == ["not a regular file"]


@pytest.mark.skipif(os.name == "nt", reason="there every name is Unicode")
def test_a_name_that_is_no_unicode_is_told_and_not_read(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"\xff.png")).touch()
    except OSError:
        pytest.skip("this file system takes Unicode only")
    found = list_images(tmp_path)
    assert (found["path"][0], found["reason"][0]) == ("x\\udcff.png", "its name is not Unicode")


def test_a_folder_that_cannot_be_listed_is_told_and_the_others_are_listed(tmp_path, monkeypatch):
    touch(tmp_path, "cat/a.png", "dog/b.png")
    scan = os.scandir

    def refuse(folder):
        if Path(folder).name == "dog":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(image_files.os, "scandir", refuse)
    found = list_images(tmp_path)
    assert found["path"].tolist() == ["cat/a.png", "dog"]
    assert found["reason"].tolist() == ["", "PermissionError: Permission denied"]


def test_no_folder_and_no_picture_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"\.bmp"):
        list_images(tmp_path)


# --- recognised and described


def listed(*rows):
    return pd.DataFrame(rows, columns=image_files.FILE_COLUMNS)


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (("a.png", 5, 7, "id", ""), ("id", "")),
        (("a.png", 5, 7, "id", "broken"), ("id", "broken")),
        (("b.png", 5, 7, "id", ""), ("", "")),
        (("a.png", 6, 7, "id", ""), ("", "")),
        (("a.png", 5, 8, "id", "broken"), ("", "")),
        (("a.png", 5, 7, "lost", ""), ("", "")),
    ],
    ids=["unchanged", "unchanged and broken", "other path", "other size", "other time", "never embedded"],
)
def test_a_file_is_recognised_by_path_size_and_time_if_its_vector_is_there(then, expected):
    now = match_known(listed(("a.png", 5, 7, "", ""), ("z.png", 1, 1, "", "not a regular file")), listed(then), ["id"])
    assert (now["image_id"][0], now["reason"][0]) == expected
    assert (now["path"][1], now["image_id"][1], now["reason"][1]) == ("z.png", "", "not a regular file")


def test_a_file_that_could_not_be_opened_is_tried_again():
    unlucky = listed(("a.png", NEVER, NEVER, "", "PermissionError: Permission denied"))
    assert match_known(listed(("a.png", 5, 7, "", "")), unlucky, [])["reason"].tolist() == [""]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.png", "b.png"], [("", ""), ("", "")]),
        (["cat/a.png", "dog/deep/b.png", "c.png"], [("cat", ""), ("dog", ""), ("", "")]),
        (["train/cat/a.png", "test/dog/deep/b.png"], [("cat", "train"), ("dog", "test")]),
        (["train/cat/a.png", "test/b.png", "other/c.png"], [("train", ""), ("test", ""), ("other", "")]),
        (["train/cat/a.png", "test/b.png", "c.png"], [("cat", "train"), ("", "test"), ("", "")]),
        (["train/a.png", "bus/b.png"], [("train", ""), ("bus", "")]),
        (["train/wagon/a.png", "bus/b.png"], [("train", ""), ("bus", "")]),
        (["Train/cat/a.png", "VALID/cat/b.png", "Testing/cat/c.png"], [("cat", x) for x in ("train", "val", "test")]),
        (
            ["training/cat/a.png", "validation/cat/b.png", "dev/cat/c.png"],
            [("cat", x) for x in ("train", "val", "val")],
        ),
        (["test/cat/a.png", "val/cat/b.png"], [("test", ""), ("val", "")]),
        ([unicodedata.normalize("NFD", "Mütze/ä.png")], [(unicodedata.normalize("NFC", "Mütze"), "")]),
    ],
    ids=[
        "flat",
        "classes",
        "splits",
        "another folder beside",
        "unlabelled test",
        "a class called train",
        "a class called train with folders",
        "any case",
        "other names",
        "no training",
        "normal form",
    ],
)
def test_folders_tell_label_and_split(paths, expected):
    assert list(describe(paths).itertuples(index=False, name=None)) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.png", "b.png"], "no class folders"),
        (["cat/a.png", "dog/b.png"], "2 classes"),
        (["cat/a.png", "a.png"], "1 class, 1 image in no class folder"),
        (["Fruit/Apple/a.png", "Fruit/Pear/b.png"], "1 class, 2 images deeper: the first folder is the class"),
        (
            ["train/cat/a.png", "valid/cat/x/b.png"],
            "2 splits (train, val), 1 class, 1 image deeper: the first folder below the split is the class",
        ),
    ],
)
def test_how_a_folder_was_understood_is_one_phrase_with_numbers(paths, expected):
    assert understood(paths) == expected


# --- read


def test_equal_bytes_have_equal_ids_whatever_they_are_called(tmp_path):
    for name, seed in (("a.png", 0), ("b.jpeg", 0), ("c.png", 1)):
        photograph(seed).save(tmp_path / name, "png")
    a, b, c = (read_image(tmp_path, name, 8, 3) for name in ("a.png", "b.jpeg", "c.png"))
    assert a.image_id == b.image_id != c.image_id
    assert len(a.image_id) == 16
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert (a.pixels.shape, a.shape, a.reason) == ((3, 8, 8), (64, 64), "")
    assert (a.size, a.mtime_ns) == ((tmp_path / "a.png").stat().st_size, (tmp_path / "a.png").stat().st_mtime_ns)


def test_known_content_is_not_decoded(tmp_path, monkeypatch):
    save_photograph(tmp_path / "a.png", 0)
    image_id = read_image(tmp_path, "a.png", 8, 3).image_id
    monkeypatch.setattr(image_files, "decode", None)
    assert read_image(tmp_path, "a.png", 8, 3, {image_id})[3:7] == (image_id, "", None, (0, 0))


def test_broken_and_missing_files_are_a_reason_without_the_folder_of_this_machine(tmp_path):
    save_photograph(tmp_path / "cut.jpg", 0)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-60])
    (tmp_path / "page.png").write_text("<html>", encoding="utf-8")
    read = {name: read_image(tmp_path, name, 8, 3) for name in ("cut.jpg", "page.png", "gone.png")}
    assert "truncated" in read["cut.jpg"].reason and read["cut.jpg"].image_id
    assert read["page.png"].reason == "UnidentifiedImageError: cannot identify image file 'page.png'"
    assert read["gone.png"].reason == "FileNotFoundError: No such file or directory"
    assert (read["gone.png"].mtime_ns, read["gone.png"].image_id) == (NEVER, "")
    assert all(one.pixels is None for one in read.values())


def test_a_file_that_grows_while_it_is_read_is_not_taken(tmp_path, monkeypatch):
    def decode_and_grow(file, *arguments, **options):
        with (tmp_path / "a.png").open("ab") as other:
            other.write(b"more")
        return whole_decode(file, *arguments, **options)

    save_photograph(tmp_path / "a.png", 0)
    monkeypatch.setattr(image_files, "decode", decode_and_grow)
    read = read_image(tmp_path, "a.png", 8, 3)
    assert (read.reason, read.mtime_ns, read.pixels) == ("changed while it was read", NEVER, None)


def test_pictures_come_in_order_and_only_so_many_are_in_memory(tmp_path, monkeypatch):
    alive, peak, guard = 0, 0, Lock()

    def count(change):
        nonlocal alive, peak
        with guard:
            alive += change
            peak = max(peak, alive)

    def counted(*arguments, **options):
        pixels, shape = whole_decode(*arguments, **options)
        count(1)
        weakref.finalize(pixels, count, -1)
        return pixels, shape

    names = [f"{n:02}.png" for n in range(40)]
    for n, name in enumerate(names):
        Image.new("L", (4, 4), n).save(tmp_path / name)
    monkeypatch.setattr(image_files, "decode", counted)
    read = None
    for n, read in enumerate(read_ahead(tmp_path, names, 4, 1, set(), ahead=5)):
        assert (read.path, int(read.pixels[0, 0, 0])) == (names[n], n)
    assert n == 39
    assert 1 <= peak <= 5 + 2  # those ahead, the one just handed out, and the one before it
    del read
    assert alive == 0


def test_who_stops_half_way_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(image_files, "read_image", lambda folder, path, *rest: asked.append(path))
    reader = read_ahead(tmp_path, map(str, range(10_000)), 4, 1, set(), ahead=3)
    next(reader)
    reader.close()
    assert len(asked) <= 4
