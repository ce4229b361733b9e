import gzip
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rectrio_lib import datasets, readers
from rectrio_lib.readers import BadData

CLASSES = ("boat", "car", "tram")
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
PICTURES = {
    split: np.random.default_rng(n).integers(0, 256, (n, 5, 5), dtype=np.uint8)
    for split, n in (("train", 9), ("test", 4))
}
LABELS = {split: np.arange(len(pictures), dtype=np.uint8) % 3 for split, pictures in PICTURES.items()}
PIXELS = np.concatenate([PICTURES["train"], PICTURES["test"]])[:, None]
NAMES = [CLASSES[n] for split in ("train", "test") for n in LABELS[split]]
SPLITS = ["train"] * 9 + ["test"] * 4


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def pack(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@pytest.fixture
def idx(tmp_path) -> Path:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in (("images-idx3", PICTURES[split]), ("labels-idx1", LABELS[split])):
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(pack(idx_bytes(array)))
    return tmp_path


# --- idx


def test_idx_gives_pixels_class_names_and_official_splits(idx):
    pixels, frame, ledger = readers.read_idx(idx, CLASSES)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert list(frame["label"]) == NAMES
    assert list(frame["split"]) == SPLITS
    assert list(ledger.columns) == ["picture", "reason"]
    assert ledger.empty


def test_idx_files_of_another_set_pass_without_published_checksums_and_classes_are_numbers(idx):
    data, _ = datasets.prepare("digits", "idx", str(idx))
    assert data.classes == ("0", "1", "2")
    assert list(data.manifest["label"]) == [str(n) for split in ("train", "test") for n in LABELS[split]]
    with pytest.raises(BadData, match="checksum"):
        datasets.prepare("fashion-mnist", "idx", str(idx))


@pytest.mark.parametrize(
    "name", [f"{p}-{k}-ubyte.gz" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
)
def test_missing_idx_file_is_named(idx, name):
    (idx / name).unlink()
    with pytest.raises(BadData, match=rf"{name} is missing: the folder should hold {name} and its three companions"):
        readers.read_idx(idx, CLASSES)


WHOLE = idx_bytes(PICTURES["train"])
DAMAGES = {
    "cut gzip": (pack(WHOLE)[:-30], r"is truncated or no gzip file \(\d+ bytes\)"),
    "empty file": (b"", r"is no idx file of 3 dimensions and unsigned bytes \(0 bytes\)"),
    "garbage inside gzip": (pack(WHOLE)[:60] + b"\xff" * 40 + pack(WHOLE)[100:], "is truncated or no gzip file"),
    "web page": (b"<html>404</html>", r"is truncated or no gzip file \(16 bytes\)"),
    "cut content": (pack(WHOLE[:-7]), rf"is truncated: {len(WHOLE) - 7} bytes where its header promises {len(WHOLE)}"),
    "cut header": (pack(WHOLE[:9]), "is no idx file of 3 dimensions"),
    "surplus": (pack(WHOLE + b"x"), rf"{len(WHOLE) + 1} bytes where its header promises {len(WHOLE)}"),
    "labels as pictures": (pack(idx_bytes(LABELS["train"])), "is no idx file of 3 dimensions and unsigned bytes"),
    "floats": (pack(b"\0\0\x0d\3" + WHOLE[4:]), "is no idx file of 3 dimensions and unsigned bytes"),
}


@pytest.mark.parametrize(("content", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_idx_file_is_named_with_what_is_wrong(idx, content, sentence):
    (idx / TRAIN_IMAGES).write_bytes(content)
    with pytest.raises(BadData, match=f"{TRAIN_IMAGES}.*{sentence}"):
        readers.read_idx(idx, CLASSES)


def test_idx_with_another_checksum_is_refused_with_the_published_one(idx):
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in idx.iterdir()}
    readers.read_idx(idx, CLASSES, md5)
    (idx / TRAIN_LABELS).write_bytes(pack(idx_bytes(LABELS["train"][::-1])))
    with pytest.raises(BadData, match=rf"{TRAIN_LABELS} has another checksum than the published {md5[TRAIN_LABELS]}"):
        readers.read_idx(idx, CLASSES, md5)


def test_idx_with_fewer_labels_than_pictures_is_refused_with_both_counts(idx):
    (idx / TRAIN_LABELS).write_bytes(pack(idx_bytes(LABELS["train"][:-1])))
    with pytest.raises(BadData, match="9 train pictures but 8 labels"):
        readers.read_idx(idx, CLASSES)


def test_label_without_a_class_is_refused(idx):
    with pytest.raises(BadData, match="label 2, but there are only 2 classes"):
        readers.read_idx(idx, CLASSES[:2])


def test_the_official_files_are_byte_for_byte_what_they_should_be(real_data):
    homes = [real_data / place for place in datasets.FASHION_FOLDERS if (real_data / place / TRAIN_IMAGES).exists()]
    if not homes:
        pytest.skip("the official Fashion-MNIST files are not in the data folder")
    pixels, frame, _ = readers.read_idx(homes[0], md5=readers.official_md5())
    assert pixels.shape == (70_000, 1, 28, 28)
    assert frame["split"].value_counts().to_dict() == {"train": 60_000, "test": 10_000}
    assert set(frame.value_counts(["split", "label"])) == {6_000, 1_000}
    assert f"{pixels[:60_000].mean() / 255:.4f}" == "0.2860"
    assert list(frame["label"][:3]) == ["Ankle boot", "T-shirt", "T-shirt"]


# --- CSV


@pytest.fixture
def csv(tmp_path) -> Path:
    for split, pictures in PICTURES.items():
        table = pd.DataFrame(pictures.reshape(len(pictures), -1), columns=[f"pixel{n}" for n in range(1, 26)])
        table.insert(0, "label", LABELS[split])
        table.to_csv(tmp_path / f"fashion-mnist_{split}.csv", index=False)
    return tmp_path


@pytest.fixture
def train_csv(csv) -> Path:
    return csv / "fashion-mnist_train.csv"


def replace_line(path: Path, number: int, change) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number] = change(lines[number])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_csv_gives_what_idx_gives(csv, idx):
    from_csv, frame, ledger = readers.read_csv(csv, CLASSES, counts={"train": 9, "test": 4})
    from_idx, same_frame, _ = readers.read_idx(idx, CLASSES)
    np.testing.assert_array_equal(from_csv, from_idx)
    assert from_csv.dtype == np.uint8
    pd.testing.assert_frame_equal(frame, same_frame)
    assert ledger.empty


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_csv_is_named(csv, split):
    (csv / f"fashion-mnist_{split}.csv").unlink()
    with pytest.raises(BadData, match=rf"fashion-mnist_{split}\.csv is missing: expected fashion-mnist_train\.csv and"):
        readers.read_csv(csv, CLASSES, counts=None)


@pytest.mark.parametrize(
    "header",
    [
        lambda line: line.replace("label", "class"),
        lambda line: line.replace("pixel2,", "pixel99,"),
        lambda line: line.removesuffix(",pixel25"),
        lambda line: "label",
    ],
    ids=["no label", "columns in disorder", "no square", "no pixels"],
)
def test_csv_with_another_header_is_refused_with_the_expected_one(csv, train_csv, header):
    table = pd.read_csv(train_csv, header=None, skiprows=1)
    columns = header(train_csv.read_text(encoding="utf-8").splitlines()[0]).split(",")
    table.iloc[:, : len(columns)].to_csv(train_csv, index=False, header=columns)
    with pytest.raises(BadData, match=r"fashion-mnist_train\.csv: the header should be label,pixel1\.\.pixel784"):
        readers.read_csv(csv, CLASSES, counts=None)


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (9, lambda line: line[: len(line) // 2]),
        (4, lambda line: line.rpartition(",")[0] + ",abc"),
        (4, lambda line: line.rpartition(",")[0] + ",256"),
        (4, lambda line: line.rpartition(",")[0] + ",-1"),
        (4, lambda line: line.rpartition(",")[0] + ",12.5"),
        (4, lambda line: line.rpartition(",")[0] + ","),
    ],
    ids=["cut off", "a word", "too large", "negative", "a fraction", "empty"],
)
def test_broken_csv_line_is_refused_with_its_number(csv, train_csv, number, change):
    replace_line(train_csv, number, change)
    with pytest.raises(
        BadData, match=rf"fashion-mnist_train\.csv: line {number + 1} is cut off or holds something else"
    ):
        readers.read_csv(csv, CLASSES, counts=None)


@pytest.mark.parametrize(
    "content", [b"", b"label,pixel1\n1,2,3,4\n", b"\xff\xfe\x00\x01"], ids=["empty", "ragged", "binary"]
)
def test_file_that_is_no_csv_is_named(csv, train_csv, content):
    replace_line(train_csv, 3, lambda line: line + ",1,2")
    if not content.startswith(b"label"):
        train_csv.write_bytes(content)
    with pytest.raises(BadData, match=r"fashion-mnist_train\.csv cannot be read as CSV: "):
        readers.read_csv(csv, CLASSES, counts=None)


def test_csv_with_too_few_lines_is_refused_with_both_counts(csv, train_csv):
    lines = train_csv.read_text(encoding="utf-8").splitlines()
    train_csv.write_text("\n".join(lines[:-2]) + "\n", encoding="utf-8")
    with pytest.raises(BadData, match=r"fashion-mnist_train\.csv is truncated: 7 pictures, expected 9\."):
        readers.read_csv(csv, CLASSES, counts={"train": 9, "test": 4})


def test_csv_is_expected_to_hold_all_of_fashion_mnist_unless_told_otherwise(csv):
    with pytest.raises(BadData, match="9 pictures, expected 60,000"):
        readers.read_csv(csv, CLASSES)


# --- folders


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
    assert ledger.empty


def test_train_val_and_test_folders_give_splits(tmp_path):
    for value, split in enumerate(("train", "val", "test")):
        save(tmp_path / split / "cat" / "x.png", flat(value))
    pixels, frame, _ = readers.read_folder(tmp_path, size=6)
    assert dict(zip(frame["split"], pixels[:, 0, 0, 0], strict=True)) == {"train": 0, "val": 1, "test": 2}
    assert set(frame["label"]) == {"cat"}


def test_class_called_train_is_a_class(tmp_path):
    save(tmp_path / "train" / "x.png", flat(1))
    save(tmp_path / "bus" / "y.png", flat(2))
    _, frame, _ = readers.read_folder(tmp_path, size=6)
    assert list(frame["label"]) == ["bus", "train"]


def test_numbered_folders_get_class_names_and_others_keep_theirs(tmp_path):
    for n, name in enumerate(("0", "2", "7", "bicycle")):
        save(tmp_path / name / "x.png", flat(n))
    assert list(readers.read_folder(tmp_path, 6, classes=CLASSES)[1]["label"]) == ["boat", "tram", "7", "bicycle"]
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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_is_wrong_with_a_file_the_others_are_read(tmp_path):
    rng = np.random.default_rng(0)
    save(tmp_path / "cat" / "good.png", flat(9))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    for suffix, options in (("webp", {"exif": exif}), ("jpg", {"exif": exif}), ("png", {}), ("gif", {}), ("bmp", {})):
        path = tmp_path / "cat" / f"whole.{suffix}"
        save(path, rng.integers(0, 256, (12, 12, 3)), **options)
        whole = path.read_bytes()
        for n in range(60):
            broken = bytearray(whole)
            broken[rng.integers(len(whole))] = rng.integers(256)
            path.with_name(f"broken{n}.{suffix}").write_bytes(broken[: rng.integers(len(whole)) if n % 3 else None])
    _, frame, ledger = readers.read_folder(tmp_path, size=6)
    assert len(frame) + len(ledger) == 1 + 5 * 61
    assert {"cat/good.png", "cat/whole.webp", "cat/whole.jpg", "cat/whole.gif"} <= set(frame["path"])
    assert len(ledger) > 100
    assert ledger["reason"].str.len().min() > 10


def test_unwritable_exif_is_a_reason_and_no_crash(tmp_path, monkeypatch):
    def complain(picture):
        raise readers.struct.error("required argument is not an integer")

    save(tmp_path / "x.png", flat(1))
    monkeypatch.setattr(readers.ImageOps, "exif_transpose", complain)
    assert readers.decode(tmp_path / "x.png", 6, 1) == "error: required argument is not an integer"


def test_pictures_are_turned_upright_as_exif_says(tmp_path):
    lying = np.zeros((8, 16, 3), np.uint8)
    lying[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the right side of the file is the bottom of the picture
    save(tmp_path / "x.png", lying, exif=exif)
    upright, shape = readers.decode(tmp_path / "x.png", 8, 1)
    assert shape == (8, 16)
    assert upright[0, 0].max() == 0
    assert upright[0, -1].min() == 255


def test_other_proportions_are_cropped_at_the_centre(tmp_path):
    wide = np.zeros((6, 18), np.uint8)
    wide[:, 6:12] = 200
    save(tmp_path / "x.png", wide)
    cropped, shape = readers.decode(tmp_path / "x.png", 6, 1)
    assert shape == (18, 6)
    np.testing.assert_array_equal(cropped, np.full((1, 6, 6), 200))


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_transparent_ground_becomes_white(tmp_path, suffix):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (250, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    picture, _ = readers.decode(tmp_path / f"x.{suffix}", 8, 3)
    assert (picture[:, 4:] == 255).all()
    assert picture[:, 0, 0].tolist() == pytest.approx([250, 0, 0], abs=3)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "jpg"), ("RGBA", "png"), ("RGB", "bmp")]
)
def test_every_kind_of_picture_gives_one_or_three_channels(tmp_path, mode, suffix):
    save(tmp_path / f"x.{suffix}", flat((200, 40, 80)), mode)
    colour, _ = readers.decode(tmp_path / f"x.{suffix}", 6, 3)
    grey, _ = readers.decode(tmp_path / f"x.{suffix}", 6, 1)
    assert (colour.shape, grey.shape, colour.dtype) == ((3, 6, 6), (1, 6, 6), np.uint8)
    assert colour[:, 2, 2].tolist() == pytest.approx([200, 40, 80], abs=30)
    assert grey[0, 2, 2] == pytest.approx(0.299 * 200 + 0.587 * 40 + 0.114 * 80, abs=20)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_pictures_fill_three_equal_channels(tmp_path, mode):
    save(tmp_path / "x.png", flat(255), mode)
    picture, _ = readers.decode(tmp_path / "x.png", 6, 3)
    np.testing.assert_array_equal(picture, np.full((3, 6, 6), 255))


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    shades = np.linspace(0, 65535, 36).reshape(6, 6).astype(np.uint16)
    Image.fromarray(shades).save(tmp_path / "x.png")
    for channels in (1, 3):
        picture, _ = readers.decode(tmp_path / "x.png", 6, channels)
        np.testing.assert_array_equal(picture, np.stack([shades >> 8] * channels))


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
        ([], r"holds no readable picture in class folders \(0 unreadable\)"),
        (["stray.png"], r"holds no readable picture in class folders \(0 unreadable\)"),
        (["cat/broken.png", "dog/broken.png"], r"holds no readable picture in class folders \(2 unreadable\)"),
    ],
    ids=["empty", "no class folder", "all broken"],
)
def test_folder_without_a_readable_picture_is_refused(tmp_path, files, sentence):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(BadData, match=sentence):
        readers.read_folder(tmp_path)


def test_missing_folder_is_refused_with_what_it_should_hold(tmp_path):
    with pytest.raises(
        BadData, match=r"nowhere is no folder\. It should hold one sub-folder of pictures for each class"
    ):
        readers.read_folder(tmp_path / "nowhere")


# --- export


@pytest.mark.parametrize("channels", [1, 3])
def test_exported_pictures_come_back_with_the_same_ids_labels_and_splits(tmp_path, channels):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, channels, 28, 28), dtype=np.uint8)
    frame = pd.DataFrame({"label": rng.choice(CLASSES, 60), "split": ["train"] * 45 + ["test"] * 15})
    manifest = datasets.split_by_group(datasets.make_manifest(pixels, frame), {"val": 0.25})
    manifest = manifest.sample(frac=1, random_state=1)

    assert readers.export_png(pixels, manifest, CLASSES, tmp_path / "png") == 60
    assert {path.name for path in (tmp_path / "png").iterdir()} == {"train", "test"}
    assert {path.name for path in (tmp_path / "png" / "train").iterdir()} == {"0", "1", "2"}

    back, found, ledger = readers.read_folder(tmp_path / "png", channels=channels, classes=CLASSES)
    again = datasets.split_by_group(datasets.make_manifest(back, found), {"val": 0.25})
    assert ledger.empty
    assert set(manifest["split"]) == {"train", "val", "test"}
    told = ["image_id", "label", "split"]
    pd.testing.assert_frame_equal(
        again[told].sort_values("image_id", ignore_index=True),
        manifest[told].sort_values("image_id", ignore_index=True),
    )
