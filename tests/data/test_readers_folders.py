import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rectrio_lib.core.errors import DataError
from rectrio_lib.data import dataset, duplicates, image_files, readers, splits

CLASSES = ("boat", "car", "tram")
NUMBERED = {"0": "boat", "1": "car", "2": "tram"}


def save(path: Path, array, mode: str | None = None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array, np.uint8))
    (picture.convert(mode) if mode else picture).save(path, **options)


def flat(value, size: int = 6) -> np.ndarray:
    return np.full((size, size, *np.shape(value)), value, np.uint8)


def test_class_folders_give_labels_paths_and_sizes(tmp_path):
    save(tmp_path / "cat" / "b.png", flat(20))
    save(tmp_path / "cat" / "deep" / "a.PNG", np.zeros((4, 10), np.uint8))
    save(tmp_path / "dog" / "c.png", flat(30))
    (tmp_path / "cat" / "notes.txt").write_text("no picture", encoding="utf-8")
    save(tmp_path / "stray.png", flat(1))
    pixels, frame, ledger = readers.read_folder(tmp_path, size=6)
    assert list(frame["path"]) == ["cat/b.png", "cat/deep/a.PNG", "dog/c.png"]
    assert list(frame["label"]) == ["cat", "cat", "dog"]
    assert "split" not in frame
    assert list(zip(frame["width"], frame["height"], strict=True)) == [(6, 6), (10, 4), (6, 6)]
    assert pixels.shape == (3, 1, 6, 6)
    assert pixels.mean((1, 2, 3)).tolist() == [20, 0, 30]
    assert ledger.to_dict("records") == [{"picture": "stray.png", "reason": "in no class folder"}]


def test_train_val_and_test_folders_give_splits(tmp_path):
    for value, split in enumerate(("train", "val", "test")):
        save(tmp_path / split / "cat" / "x.png", flat(value))
    pixels, frame, _ = readers.read_folder(tmp_path, size=6)
    assert dict(zip(frame["split"], pixels[:, 0, 0, 0], strict=True)) == {"train": 0, "val": 1, "test": 2}
    assert set(frame["label"]) == {"cat"}


def test_numbered_folders_get_class_names_and_others_keep_theirs(tmp_path):
    for n, name in enumerate(("0", "2", "7", "bicycle")):
        save(tmp_path / name / "x.png", flat(n))
    assert list(readers.read_folder(tmp_path, 6, names=NUMBERED)[1]["label"]) == ["boat", "tram", "7", "bicycle"]
    assert list(readers.read_folder(tmp_path, 6)[1]["label"]) == ["0", "2", "7", "bicycle"]


def test_broken_pictures_go_to_the_ledger_with_a_reason_and_no_good_one_is_lost(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    save(tmp_path / "cat" / "good.png", noise)
    save(tmp_path / "cat" / "cut.jpg", noise)
    whole = (tmp_path / "cat" / "cut.jpg").read_bytes()
    (tmp_path / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "empty.png").touch()
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "page.jpeg").write_text("<html>", encoding="utf-8")
    save(tmp_path / "dog" / "good.jpg", noise)
    pixels, frame, ledger = readers.read_folder(tmp_path, channels=3)
    assert list(frame["path"]) == ["cat/good.png", "dog/good.jpg"]
    assert len(pixels) == 2
    assert list(ledger["picture"]) == ["cat/cut.jpg", "cat/empty.png", "dog/page.jpeg"]
    assert ledger["reason"].str.contains("truncated|cannot identify").all()


def test_damaged_exif_does_not_lose_the_image(tmp_path, monkeypatch):
    def complain(image):
        raise struct.error("required argument is not an integer")

    save(tmp_path / "x.png", flat(1))
    monkeypatch.setattr(Image.Image, "getexif", complain)
    np.testing.assert_array_equal(image_files.decode(tmp_path / "x.png", 6, 1)[0][0], flat(1))


def test_other_proportions_are_cropped_at_the_centre(tmp_path):
    wide = np.zeros((6, 18), np.uint8)
    wide[:, 6:12] = 200
    save(tmp_path / "x.png", wide)
    cropped, shape = image_files.decode(tmp_path / "x.png", 6, 1)
    assert shape == (18, 6)
    np.testing.assert_array_equal(cropped, np.full((1, 6, 6), 200))


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_transparent_ground_becomes_white(tmp_path, suffix):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (250, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    picture, _ = image_files.decode(tmp_path / f"x.{suffix}", 8, 3)
    assert (picture[:, 4:] == 255).all()
    assert picture[:, 0, 0].tolist() == pytest.approx([250, 0, 0], abs=3)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "jpg"), ("RGBA", "png"), ("RGB", "bmp")]
)
def test_every_kind_of_picture_gives_one_or_three_channels(tmp_path, mode, suffix):
    save(tmp_path / f"x.{suffix}", flat((200, 40, 80)), mode)
    colour, _ = image_files.decode(tmp_path / f"x.{suffix}", 6, 3)
    grey, _ = image_files.decode(tmp_path / f"x.{suffix}", 6, 1)
    assert (colour.shape, grey.shape, colour.dtype) == ((3, 6, 6), (1, 6, 6), np.uint8)
    assert colour[:, 2, 2].tolist() == pytest.approx([200, 40, 80], abs=30)
    assert grey[0, 2, 2] == pytest.approx(0.299 * 200 + 0.587 * 40 + 0.114 * 80, abs=20)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_pictures_fill_three_equal_channels(tmp_path, mode):
    save(tmp_path / "x.png", flat(255), mode)
    picture, _ = image_files.decode(tmp_path / "x.png", 6, 3)
    np.testing.assert_array_equal(picture, np.full((3, 6, 6), 255))


def test_names_in_any_script_are_read(tmp_path):
    save(tmp_path / "Mützen" / "größe 1.png", flat(5))
    save(tmp_path / "猫" / "写真.png", flat(6))
    _, frame, ledger = readers.read_folder(tmp_path, size=6)
    assert ledger.empty
    assert dict(zip(frame["label"], frame["path"], strict=True)) == {
        "Mützen": "Mützen/größe 1.png",
        "猫": "猫/写真.png",
    }


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], r"holds no image"),
        (["stray.png"], r"0 unreadable"),
        (["cat/broken.png", "dog/broken.png"], r"2 unreadable"),
    ],
    ids=["empty", "no class folder", "all broken"],
)
def test_folder_without_a_readable_picture_is_refused(tmp_path, files, sentence):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=sentence):
        readers.read_folder(tmp_path)


def test_class_folder_without_a_picture_is_in_the_ledger_and_hidden_folders_are_no_classes(tmp_path):
    save(tmp_path / "cat" / "x.png", flat(1))
    (tmp_path / "dog" / "deep").mkdir(parents=True)
    (tmp_path / "dog" / "notes.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / ".checkpoints").mkdir()
    _, frame, ledger = readers.read_folder(tmp_path, size=6)
    assert set(frame["label"]) == {"cat"}
    assert ledger.to_dict("records") == [{"picture": "dog", "reason": "folder without any image"}]


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("symbolic links cannot be made here")


def test_links_that_lead_back_or_nowhere_neither_hang_nor_bring_pictures_twice(tmp_path):
    save(tmp_path / "cat" / "x.png", flat(1))
    save(tmp_path / "dog" / "y.png", flat(2))
    link(tmp_path / "all", tmp_path)
    link(tmp_path / "cat" / "up", tmp_path)
    link(tmp_path / "dog" / "itself.png", tmp_path / "dog" / "itself.png")
    link(tmp_path / "dog" / "nowhere.png", tmp_path / "gone.png")
    _, frame, ledger = readers.read_folder(tmp_path, size=6)
    assert list(frame["path"]) == ["cat/x.png", "dog/y.png"]
    assert list(ledger["picture"]) == ["all", "dog/itself.png", "dog/nowhere.png"]


def test_single_pixel_fills_the_square(tmp_path):
    save(tmp_path / "x.png", [[[200, 40, 80]]])
    picture, shape = image_files.decode(tmp_path / "x.png", 6, 3)
    assert shape == (1, 1)
    np.testing.assert_array_equal(picture, flat((200, 40, 80)).transpose(2, 0, 1))


def test_transparent_colour_of_a_palette_becomes_white(tmp_path):
    picture = Image.fromarray(np.repeat([[0], [1]], 4, 1).repeat(2, 0).astype(np.uint8))
    picture.putpalette([250, 0, 0, 0, 0, 250])
    picture.save(tmp_path / "x.png", transparency=1)
    upper, lower = image_files.decode(tmp_path / "x.png", 4, 3)[0][:, [0, 3], 0].T.tolist()
    assert (upper, lower) == ([250, 0, 0], [255, 255, 255])


def test_all_pictures_are_in_memory_once_also_when_some_are_left_out(tmp_path):
    for n in range(150):
        save(tmp_path / "cat" / f"{n:03}.png", flat(n, size=4))
    (tmp_path / "cat" / "000.png").write_bytes(b"broken")
    tracemalloc.start()
    pixels, _, ledger = readers.read_folder(tmp_path, size=224)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(ledger) == 1
    assert pixels.mean((1, 2, 3)).tolist() == list(range(1, 150))
    assert peak < 1.6 * pixels.nbytes


def test_image_ids_are_those_of_the_bytes_whatever_the_size_and_byte_identical_copies_are_named(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(4):
        save(tmp_path / "cat" / f"{n}.png", rng.integers(0, 256, (40, 40, 3)))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "copy.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes())
    ids = [
        readers.read_folder(tmp_path, size, channels)[1]["image_id"].tolist() for size, channels in ((6, 1), (32, 3))
    ]
    assert ids[0] == ids[1] and ids[0][4] == ids[0][1] and len(set(ids[0])) == 4
    pixels, frame, _ = readers.read_folder(tmp_path)
    assert ids[0] == [image_files.read_image(tmp_path, path, 6, 1).image_id for path in frame["path"]]
    manifest, ledger = duplicates.remove_copies(dataset.make_manifest(pixels, frame))
    assert manifest["image_id"].tolist() == ids[0][:4]
    assert ledger["picture"].tolist() == ["dog/copy.png"] and "cat/1.png" in ledger["reason"][0]


@pytest.mark.skipif(os.name == "nt", reason="there every name is Unicode")
def test_names_that_are_not_utf_8_are_in_the_ledger_and_the_others_are_read(tmp_path):
    save(tmp_path / "cat" / "x.png", flat(1))
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "cat" / "y") + b"\xff.png")).touch()
        Path(os.fsdecode(os.fsencode(tmp_path / "dog") + b"\xff")).mkdir()
    except OSError:
        pytest.skip("this file system takes Unicode only")
    _, frame, ledger = readers.read_folder(tmp_path, size=6)
    assert frame["path"].tolist() == ["cat/x.png"]
    assert ledger["picture"].tolist() == ["cat/y\\udcff.png", "dog\\udcff"]


# --- export


@pytest.mark.parametrize("channels", [1, 3])
def test_exported_images_come_back_with_the_same_pixels_labels_and_splits(tmp_path, channels):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, channels, 28, 28), dtype=np.uint8)
    frame = pd.DataFrame({"label": rng.choice(CLASSES, 60), "split": ["train"] * 45 + ["test"] * 15})
    manifest = splits.split_by_group(dataset.make_manifest(pixels, frame), {"val": 0.25})
    manifest = manifest.sample(frac=1, random_state=1)

    assert readers.export_png(pixels, manifest, CLASSES, tmp_path / "png") == 60
    assert {path.name for path in (tmp_path / "png").iterdir()} == {"train", "test", "split.csv"}
    assert {path.name for path in (tmp_path / "png" / "train").iterdir()} == {"0", "1", "2"}

    back, found, ledger = readers.read_folder(tmp_path / "png", channels=channels, names=NUMBERED)
    again = splits.split_by_file(found, tmp_path / "png" / "split.csv")
    assert ledger.empty
    assert set(manifest["split"]) == {"train", "val", "test"}
    rows = again["path"].str.extract(r"(\d+)\.png")[0].astype(int).to_numpy()
    expected = manifest.set_index("row").loc[rows]
    assert (
        again["label"].tolist() == expected["label"].tolist() and again["split"].tolist() == expected["split"].tolist()
    )
    np.testing.assert_array_equal(back, pixels[rows])


def test_a_second_export_replaces_the_first_and_foreign_files_are_left_alone(tmp_path):
    rng, target = np.random.default_rng(0), tmp_path / "png"
    pixels = rng.integers(0, 256, (60, 1, 6, 6), dtype=np.uint8)
    manifest = dataset.make_manifest(pixels, pd.DataFrame({"label": rng.choice(CLASSES, 60)}))
    for seed in (0, 1):
        readers.export_png(pixels, splits.split_by_group(manifest, {"test": 0.25}, seed), CLASSES, target)
    assert sum(1 for _ in target.rglob("*.png")) == 60
    assert not {p.name for p in target.glob("train/*/*")} & {p.name for p in target.glob("test/*/*")}
    (target / "train" / "0" / "mine.png").touch()
    with pytest.raises(DataError, match=r"mine\.png"):
        readers.export_png(pixels, manifest.assign(split="train"), CLASSES, target)
    assert (target / "train" / "0" / "mine.png").exists()
