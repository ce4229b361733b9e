import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rectrio_lib import datasets, readers, resources, shapes
from rectrio_lib.datasets import ImageDataset, make_manifest, remove_copies, split_by_group
from rectrio_lib.readers import BadData

SPLIT_NAMES = {"train", "val", "test"}
FRACTIONS = {"test": 1 / 6, "val": 1 / 12}


def manifest_of(labels, groups=None, splits=None) -> pd.DataFrame:
    """Build a manifest whose n-th picture is called id-n."""
    ids = [f"id-{n}" for n in range(len(labels))]
    columns = {"image_id": ids, "row": range(len(ids)), "label": labels, "split": splits, "group": groups or ids}
    return pd.DataFrame(columns)


def by_id(manifest: pd.DataFrame) -> dict[str, str]:
    return dict(zip(manifest["image_id"], manifest["split"], strict=True))


def pictures(count: int, seed: int = 0, channels: int = 1, side: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def save_classes(folder: Path, labels, pixels=None) -> None:
    """Write one PNG a label to FOLDER/<label>/<n>.png."""
    for n, (label, picture) in enumerate(zip(labels, pictures(len(labels)) if pixels is None else pixels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(folder / label / f"{n}.png")


@pytest.fixture
def few_shapes(monkeypatch):
    """Draw three objects a class where a data set would draw hundreds."""
    draw = shapes.draw_shapes
    monkeypatch.setattr(shapes, "draw_shapes", lambda count, **options: draw(3, **options))


@pytest.fixture
def toy() -> ImageDataset:
    pixels = pictures(120, channels=3)
    labels = np.random.default_rng(1).choice(["ant", "bee", "cow"], 120)
    manifest = split_by_group(make_manifest(pixels, pd.DataFrame({"label": labels})), FRACTIONS)
    return ImageDataset("toy", manifest, pixels, ("ant", "bee", "cow"), "folder files")


# --- splits

MEMBERS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 15)), min_size=1, max_size=120)


def grouped(members) -> pd.DataFrame:
    return manifest_of([label for label, _ in members], [f"{label}{number}" for label, number in members])


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.floats(0, 0.49), st.floats(0, 0.49), st.integers(0, 3))
def test_no_group_lies_on_two_sides_and_every_class_trains(members, test, val, seed):
    manifest = split_by_group(grouped(members), {"test": test, "val": val}, seed)
    assert set(manifest["split"]) <= SPLIT_NAMES
    assert manifest.groupby("group")["split"].nunique().eq(1).all()
    assert set(manifest.loc[manifest["split"] == "train", "label"]) == set(manifest["label"])


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_rows(members, random):
    manifest = grouped(members)
    order = random.sample(range(len(manifest)), len(manifest))
    assert by_id(split_by_group(manifest.iloc[order], FRACTIONS)) == by_id(split_by_group(manifest, FRACTIONS))


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.floats(0, 0.25), st.floats(0, 0.25))
def test_shares_of_every_class_miss_the_wanted_ones_by_half_a_group_at_most(members, test, val):
    manifest = split_by_group(grouped(members), {"test": test, "val": val})
    for _, pictures_of_class in manifest.groupby("label"):
        largest = pictures_of_class["group"].value_counts().max()
        for split, fraction in (("test", test), ("val", val)):
            missed = abs(pictures_of_class["split"].eq(split).sum() - fraction * len(pictures_of_class))
            assert missed <= largest / 2 + 1e-9


@settings(deadline=None, max_examples=50)
@given(MEMBERS, st.data())
def test_official_test_pictures_stay_test_and_only_val_is_drawn_from_the_rest(members, data):
    flags = data.draw(st.lists(st.booleans(), min_size=len(members), max_size=len(members)))
    official = np.array([True, *flags[1:]])
    manifest = grouped(members).assign(split=np.where(official, "test", "train"))
    after = split_by_group(manifest, FRACTIONS)
    assert (after.loc[official, "split"] == "test").all()
    of_test_group = manifest["group"].isin(manifest.loc[official, "group"])
    assert set(after.loc[~of_test_group, "split"]) <= {"train", "val"}
    assert after.groupby("group")["split"].nunique().eq(1).all()


def test_large_set_gets_the_wanted_shares_and_another_seed_another_split():
    manifest = manifest_of(["a", "b"] * 600)
    splits = [split_by_group(manifest, FRACTIONS, seed) for seed in (0, 0, 1)]
    assert by_id(splits[0]) == by_id(splits[1])
    assert by_id(splits[0]) != by_id(splits[2])
    for split in splits:
        assert split.value_counts(["label", "split"]).to_dict() == {
            (label, side): count for label in "ab" for side, count in (("train", 450), ("test", 100), ("val", 50))
        }


def test_split_that_the_source_lacks_is_drawn_and_the_one_it_brings_is_kept():
    manifest = manifest_of(["a"] * 60, splits=["val"] * 12 + ["train"] * 48)
    after = split_by_group(manifest, {"test": 0.25, "val": 0.25})
    assert after["split"].value_counts().to_dict() == {"train": 36, "val": 12, "test": 12}
    assert (after["split"][:12] == "val").all()


def test_group_that_the_source_puts_on_two_sides_goes_to_the_later_one():
    manifest = manifest_of(["a"] * 7, list("xxyyzzw"), ["test", "val", "val", "train", "train", "test", "train"])
    assert list(split_by_group(manifest, FRACTIONS)["split"]) == ["test"] * 2 + ["val"] * 2 + ["test"] * 2 + ["train"]


# --- cleaning


def test_of_equal_pictures_the_test_one_stays_and_the_ledger_names_the_others_and_its_label():
    pixels = pictures(3)[[0, 1, 0, 2, 1, 0]]
    frame = pd.DataFrame({"label": list("abcabd"), "split": ["train", "train", "test", "train", "train", "train"]})
    manifest = make_manifest(pixels, frame)
    kept, ledger = remove_copies(manifest)
    pd.testing.assert_frame_equal(kept, manifest.iloc[[1, 2, 3]].reset_index(drop=True))
    assert ledger.to_dict("records") == [
        {"picture": "0", "reason": "copy of a picture labelled c"},
        {"picture": "4", "reason": "copy of a picture labelled b"},
        {"picture": "5", "reason": "copy of a picture labelled c"},
    ]


def test_copies_among_files_are_named_by_their_path():
    frame = pd.DataFrame({"label": ["cat", "dog"], "path": ["cat/1.png", "dog/2.png"]})
    kept, ledger = remove_copies(make_manifest(pictures(1)[[0, 0]], frame))
    assert list(kept["path"]) == ["cat/1.png"]
    assert ledger.to_dict("records") == [{"picture": "dog/2.png", "reason": "copy of a picture labelled cat"}]


def test_which_copy_stays_does_not_depend_on_the_order_of_rows():
    frame = pd.DataFrame({"label": ["b", "a", "c"]})
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        kept, _ = remove_copies(make_manifest(pictures(1)[[0, 0, 0]], frame.iloc[order].reset_index(drop=True)))
        assert list(kept["label"]) == ["a"]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["cat"] * 5, r"Only one class, \['cat'\]: a triplet needs a negative from another"),
        (["cat", "cat", "dog"], "Class dog has a single picture: a triplet needs an anchor and a positive"),
        (["ant", "bee", "cat", "cat"], "Class ant, bee has a single picture"),
    ],
)
def test_classes_that_no_triplet_can_be_made_of_are_refused(tmp_path, labels, sentence):
    save_classes(tmp_path / "pets", labels)
    with pytest.raises(BadData, match=sentence):
        datasets.prepare("pets", folder=str(tmp_path / "pets"), size=6)


def test_class_of_copies_only_is_refused(tmp_path):
    save_classes(tmp_path / "pets", ["cat", "cat", "dog", "dog"], pictures(4)[[0, 1, 2, 2]])
    with pytest.raises(BadData, match="Class dog has a single picture"):
        datasets.prepare("pets", folder=str(tmp_path / "pets"), size=6)


# --- the manifest and the data set


def test_manifest_has_the_promised_columns_first_and_keeps_what_the_reader_knows():
    frame = pd.DataFrame({"label": ["a", "b"], "width": [640, 320], "height": [480, 240], "colour": ["red", "blue"]})
    manifest = make_manifest(pictures(2), frame)
    promised = ["image_id", "row", "label", "split", "group", "width", "height"]
    assert list(manifest.columns) == [*promised, "colour"]
    assert list(manifest["row"]) == [0, 1]
    assert list(manifest["width"]) == [640, 320]
    assert list(manifest["group"]) == list(manifest["image_id"])


def test_manifest_takes_sizes_from_the_pixels_where_the_reader_knows_none_and_keeps_its_groups():
    pixels = np.zeros((2, 1, 5, 9), np.uint8)
    manifest = make_manifest(pixels, pd.DataFrame({"label": ["a", "b"], "group": ["x", "x"], "split": ["val", "val"]}))
    assert manifest[["width", "height", "group", "split"]].to_numpy().tolist() == [[9, 5, "x", "val"]] * 2


def test_image_id_follows_from_the_content_alone():
    pixels = pictures(3)
    ids = make_manifest(pixels, pd.DataFrame({"label": list("abc")}))["image_id"]
    again = make_manifest(pixels[[2, 0, 0]], pd.DataFrame({"label": list("zzz")}))["image_id"]
    assert list(again) == [ids[2], ids[0], ids[0]]
    assert ids.str.fullmatch("[0-9a-f]{16}").all()
    assert ids.nunique() == 3
    reshaped = make_manifest(pixels.reshape(3, 1, 4, 9), pd.DataFrame({"label": list("abc")}))["image_id"]
    assert not set(reshaped) & set(ids)


def test_targets_and_images_follow_the_manifest(toy):
    chosen = ImageDataset("toy", toy.manifest.iloc[[5, 2, 9]], toy.pixels, ("cow", "ant", "bee"), "")
    assert len(chosen) == 3
    assert [chosen.classes[n] for n in chosen.targets] == list(toy.manifest["label"][[5, 2, 9]])
    assert chosen.targets.dtype == np.int64
    np.testing.assert_array_equal(chosen.images, toy.pixels[[5, 2, 9]])


def test_where_takes_the_named_splits_and_keeps_rows_pointing_at_their_pixels(toy):
    held_out = toy.where("val", "test")
    assert set(held_out.manifest["split"]) == {"val", "test"}
    assert len(held_out) + len(toy.where("train")) == len(toy)
    assert list(held_out.manifest.index) == list(range(len(held_out)))
    assert list(held_out.manifest.columns) == list(toy.manifest.columns)
    expected = toy.pixels[toy.manifest["split"].ne("train").to_numpy()]
    np.testing.assert_array_equal(held_out.images, expected)


def test_hash_sees_pictures_labels_and_splits_but_not_their_order(toy):
    def hash_of(manifest: pd.DataFrame) -> str:
        return ImageDataset("toy", manifest, toy.pixels, toy.classes, "").hash

    table = toy.manifest
    first = table.index == 0
    assert hash_of(table.sample(frac=1, random_state=0)) == toy.hash
    other = {"image_id": "0" * 16, "label": "another", "split": "another"}
    changed = [hash_of(table.assign(**{column: table[column].mask(first, value)})) for column, value in other.items()]
    assert len({toy.hash, hash_of(table[~first]), *changed}) == 5


def test_saved_data_set_opens_in_a_new_process_with_the_same_hash_pixels_and_card(toy):
    folder = datasets.save_dataset(toy, pd.DataFrame({"picture": ["x.png"], "reason": ["cut off"]}))
    code = (
        "import hashlib; from rectrio_lib.datasets import load_dataset; d = load_dataset('toy');"
        "digest = hashlib.sha256(d.images.tobytes()).hexdigest();"
        "print(d.hash, digest, d.targets.tolist(), d.classes, d.source, d.stand_in)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    digest = hashlib.sha256(toy.images.tobytes()).hexdigest()
    assert done.stdout.strip() == f"{toy.hash} {digest} {toy.targets.tolist()} {toy.classes} {toy.source} False", (
        done.stderr
    )
    assert {path.name for path in folder.iterdir()} == {"manifest.parquet", "pixels.npy", "card.json", "ledger.csv"}
    assert pd.read_csv(folder / "ledger.csv").to_dict("records") == [{"picture": "x.png", "reason": "cut off"}]


def test_loaded_data_set_is_the_saved_one_with_pixels_left_on_disk(toy):
    datasets.save_dataset(toy)
    loaded = datasets.load_dataset("toy")
    assert isinstance(loaded.pixels, np.memmap)
    pd.testing.assert_frame_equal(loaded.manifest, toy.manifest)
    assert (loaded.name, loaded.classes, loaded.hash) == (toy.name, toy.classes, toy.hash)


def test_data_set_that_was_never_prepared_names_its_chapter():
    with pytest.raises(
        resources.MissingArtefact, match="Chapter 01_prepare_data makes it: run `rectrio run --only 01`"
    ):
        datasets.load_dataset("nothing")


# --- prepare


def test_unknown_source_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="source='kaggle' is unknown: choose one of auto, idx, csv, folder, stand-in"):
        datasets.prepare(source="kaggle")


def test_stand_in_says_what_it_is_and_keeps_an_object_in_one_split(few_shapes):
    data, ledger = datasets.prepare(source="stand-in", size=20, channels=3, seed=4)
    assert data.stand_in
    assert data.source.startswith("STAND-IN")
    assert data.classes == tuple(shapes.SHAPES)
    assert data.pixels.shape == (120, 3, 20, 20)
    assert data.manifest.groupby("group")["split"].nunique().eq(1).all()
    assert (data.manifest.groupby("group").size() == 4).all()
    assert data.targets.min() == 0
    assert ledger.empty
    assert data.hash == datasets.prepare(source="stand-in", size=20, channels=3, seed=4)[0].hash
    assert data.hash != datasets.prepare(source="stand-in", size=20, channels=3, seed=5)[0].hash


def test_auto_without_data_and_offline_announces_the_stand_in_in_one_line(few_shapes, monkeypatch, capsys):
    monkeypatch.setattr(resources, "download_fashion_mnist", lambda folder: pytest.fail("downloads although offline"))
    assert datasets.prepare()[0].stand_in
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("STAND-IN: ")
    assert "RECTRIO_OFFLINE=1" in line


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("has another checksum")])
def test_auto_falls_to_the_stand_in_when_the_download_fails_and_says_why_in_one_line(
    few_shapes, monkeypatch, capsys, error
):
    def fail(folder):
        raise error

    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    monkeypatch.setattr(resources, "download_fashion_mnist", fail)
    assert datasets.prepare()[0].stand_in
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("STAND-IN: ")
    assert f"the download failed ({error})" in line


def test_auto_reads_what_it_downloads(monkeypatch):
    read_from = []

    def read_idx(folder, classes, md5):
        read_from.append((folder, md5))
        return pictures(40), pd.DataFrame({"label": ["Bag", "Coat"] * 20, "split": ["train"] * 40}), pd.DataFrame()

    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    monkeypatch.setattr(resources, "download_fashion_mnist", lambda folder: None)
    monkeypatch.setattr(readers, "read_idx", read_idx)
    data, _ = datasets.prepare()
    assert read_from == [(resources.data_root() / "fashion_mnist", readers.official_md5())]
    assert not data.stand_in
    assert data.classes == readers.FASHION_CLASSES


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("train-images-idx3-ubyte.gz", r"train-images-idx3-ubyte\.gz is truncated"),
        ("t10k-labels-idx1-ubyte.gz", r"train-images-idx3-ubyte\.gz is missing"),
        ("fashion-mnist_train.csv", r"fashion-mnist_train\.csv cannot be read as CSV"),
        ("fashion-mnist_test.csv", r"fashion-mnist_train\.csv is missing"),
    ],
)
@pytest.mark.parametrize("place", datasets.FASHION_FOLDERS)
def test_damaged_or_half_present_files_are_an_error_and_never_a_stand_in(capsys, place, name, sentence):
    home = resources.data_root() / place
    home.mkdir(parents=True)
    (home / name).write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(BadData, match=sentence):
        datasets.prepare()
    assert capsys.readouterr().out == ""


def test_picture_folder_of_ones_own_is_found_below_the_data_folder_by_its_name():
    save_classes(resources.data_root() / "pets", ["cat", "dog"] * 30)
    data, ledger = datasets.prepare("pets", size=6)
    assert (data.name, data.source, data.classes, data.stand_in) == ("pets", "folder files", ("cat", "dog"), False)
    assert set(data.manifest["split"]) == SPLIT_NAMES
    assert set(data.targets) == {0, 1}
    assert ledger.empty


def test_folder_of_other_classes_under_the_name_of_fashion_mnist_keeps_its_own_classes(tmp_path):
    save_classes(tmp_path, ["cat", "dog"] * 10)
    data, _ = datasets.prepare("fashion-mnist", folder=str(tmp_path), size=6)
    assert data.classes == ("cat", "dog")
    assert set(data.targets) == {0, 1}


def test_numbered_folders_of_fashion_mnist_get_its_class_names(tmp_path):
    save_classes(tmp_path, ["0", "9"] * 10)
    data, _ = datasets.prepare("fashion-mnist", folder=str(tmp_path), size=6)
    assert data.classes == readers.FASHION_CLASSES
    assert set(data.manifest["label"]) == {"T-shirt", "Ankle boot"}


def test_ledger_tells_of_broken_files_and_of_copies(tmp_path):
    save_classes(tmp_path, ["cat", "cat", "dog", "dog", "dog"], pictures(4)[[0, 1, 2, 3, 3]])
    (tmp_path / "cat" / "broken.png").write_bytes(b"broken")
    data, ledger = datasets.prepare("pets", folder=str(tmp_path), size=6)
    assert len(data) == 4
    assert list(ledger["picture"]) == ["cat/broken.png", "dog/4.png"]
    assert "cannot identify" in ledger["reason"][0]
    assert ledger["reason"][1] == "copy of a picture labelled dog"


def test_missing_folder_of_ones_own_is_an_error_that_says_where_to_point():
    with pytest.raises(BadData, match="pets holds no pictures in class folders: point `folder` at yours"):
        datasets.prepare("pets")
