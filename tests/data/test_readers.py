import gzip
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rectrio_lib.core.errors import DataError
from rectrio_lib.data import catalog, dataset, readers

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
    data, _ = dataset.prepare("digits", "idx", str(idx), val_fraction=0)
    assert data.classes == ("0", "1", "2")
    assert list(data.manifest["label"]) == [str(n) for split in ("train", "test") for n in LABELS[split]]
    with pytest.raises(DataError, match="checksum"):
        dataset.prepare("fashion-mnist", "idx", str(idx))


@pytest.mark.parametrize(
    "name", [f"{p}-{k}-ubyte.gz" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
)
def test_missing_idx_file_is_named(idx, name):
    (idx / name).unlink()
    with pytest.raises(DataError, match=name):
        readers.read_idx(idx, CLASSES)


@pytest.mark.parametrize("name", ["{}-ubyte", "{}-ubyte with a dot"])
def test_unpacked_idx_files_are_found_and_read(idx, name):
    for path in list(idx.iterdir()):
        unpacked = path.stem.replace("-idx", ".idx") if "dot" in name else path.stem
        (idx / unpacked).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    np.testing.assert_array_equal(readers.read_idx(idx, CLASSES)[0], PIXELS)
    assert catalog.find_source("digits", idx) == "idx"


WHOLE = idx_bytes(PICTURES["train"])
DAMAGES = {
    "cut gzip": (pack(WHOLE)[:-30], "gzip"),
    "empty file": (b"", "gzip|0 bytes"),
    "garbage inside gzip": (pack(WHOLE)[:60] + b"\xff" * 40 + pack(WHOLE)[100:], "gzip"),
    "web page": (b"<html>404</html>", "16 bytes"),
    "cut content": (pack(WHOLE[:-7]), f"{len(WHOLE) - 7} bytes"),
    "cut header": (pack(WHOLE[:9]), "3 dimensions"),
    "surplus": (pack(WHOLE + b"x"), f"{len(WHOLE) + 1} bytes"),
    "labels as pictures": (pack(idx_bytes(LABELS["train"])), "3 dimensions"),
    "floats": (pack(b"\0\0\x0d\3" + WHOLE[4:]), "3 dimensions"),
}


@pytest.mark.parametrize(("content", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_idx_file_is_named_with_what_is_wrong(idx, content, sentence):
    (idx / TRAIN_IMAGES).write_bytes(content)
    with pytest.raises(DataError, match=f"{TRAIN_IMAGES}.*{sentence}"):
        readers.read_idx(idx, CLASSES)


def test_idx_with_another_checksum_is_refused_with_the_published_one(idx):
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in idx.iterdir()}
    readers.read_idx(idx, CLASSES, md5)
    (idx / TRAIN_LABELS).write_bytes(pack(idx_bytes(LABELS["train"][::-1])))
    with pytest.raises(DataError, match=md5[TRAIN_LABELS]):
        readers.read_idx(idx, CLASSES, md5)


def test_idx_with_fewer_labels_than_pictures_is_refused_with_both_counts(idx):
    (idx / TRAIN_LABELS).write_bytes(pack(idx_bytes(LABELS["train"][:-1])))
    with pytest.raises(DataError, match=r"9 train .* 8 labels"):
        readers.read_idx(idx, CLASSES)


def test_label_without_a_class_is_refused(idx):
    with pytest.raises(DataError, match="label 2"):
        readers.read_idx(idx, CLASSES[:2])


def test_the_official_files_are_byte_for_byte_what_they_should_be(real_data):
    homes = [real_data / place for place in catalog.FASHION_FOLDERS if (real_data / place / TRAIN_IMAGES).exists()]
    if not homes:
        pytest.skip("the official Fashion-MNIST files are not in the data folder")
    pixels, frame, _ = readers.read_idx(homes[0], catalog.FASHION_CLASSES, catalog.official_md5())
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
    with pytest.raises(DataError, match=rf"fashion-mnist_{split}\.csv"):
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
    with pytest.raises(DataError, match=r"fashion-mnist_train\.csv"):
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
    with pytest.raises(DataError, match=rf"fashion-mnist_train\.csv: line {number + 1}"):
        readers.read_csv(csv, CLASSES, counts=None)


@pytest.mark.parametrize(
    "content", [b"", b"label,pixel1\n1,2,3,4\n", b"\xff\xfe\x00\x01"], ids=["empty", "ragged", "binary"]
)
def test_file_that_is_no_csv_is_named(csv, train_csv, content):
    replace_line(train_csv, 3, lambda line: line + ",1,2")
    if not content.startswith(b"label"):
        train_csv.write_bytes(content)
    with pytest.raises(DataError, match=r"fashion-mnist_train\.csv"):
        readers.read_csv(csv, CLASSES, counts=None)


def test_csv_with_too_few_lines_is_refused_with_both_counts(csv, train_csv):
    lines = train_csv.read_text(encoding="utf-8").splitlines()
    train_csv.write_text("\n".join(lines[:-2]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.csv .* 7 .* 9"):
        readers.read_csv(csv, CLASSES, counts={"train": 9, "test": 4})


def test_csv_is_expected_to_hold_all_of_fashion_mnist_unless_told_otherwise(csv):
    with pytest.raises(DataError, match=r"9 .* 60,000"):
        catalog.read_source("fashion-mnist", "csv", csv, 28, 1, 0)
