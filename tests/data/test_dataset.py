import hashlib
import json
import subprocess
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.images import photograph, pictures, save_classes, save_photograph

from rectrio_lib.core import errors
from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import catalog, dataset, readers
from rectrio_lib.data.dataset import ImageDataset, make_manifest
from rectrio_lib.data.splits import split_by_group

FRACTIONS = {"test": 1 / 6, "val": 1 / 12}


@pytest.fixture
def toy() -> ImageDataset:
    pixels = pictures(120, channels=3)
    labels = np.random.default_rng(1).choice(["ant", "bee", "cow"], 120)
    manifest = split_by_group(make_manifest(pixels, pd.DataFrame({"label": labels})), FRACTIONS)
    return ImageDataset("toy", manifest, pixels, ("ant", "bee", "cow"), "folder files")


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


TEXTS = st.text("ab|é\U0001f600\uffff", max_size=3)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=9), st.sampled_from([object, str]))
def test_the_hash_is_that_of_the_sorted_lines_however_many_are_hashed_at_once(rows, kind):
    table = pd.DataFrame(rows, columns=["image_id", "label", "split"], dtype=kind)
    expected = hashlib.sha256("\n".join(sorted(map("|".join, rows))).encode()).hexdigest()[:16]
    with pytest.MonkeyPatch.context() as patch:
        for at_once in (1, 2, 99):
            patch.setattr(dataset, "HASHED_LINES", at_once)
            assert dataset.content_hash(table) == expected


def test_saved_data_set_opens_in_a_new_process_with_the_same_hash_pixels_and_card(toy):
    folder = dataset.save_dataset(toy, pd.DataFrame({"picture": ["x.png"], "reason": ["cut off"]}))
    code = (
        "import hashlib; from rectrio_lib import load_dataset; d = load_dataset('toy');"
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
    dataset.save_dataset(toy)
    loaded = dataset.load_dataset("toy")
    assert isinstance(loaded.pixels, np.memmap)
    pd.testing.assert_frame_equal(loaded.manifest, toy.manifest)
    assert (loaded.name, loaded.classes, loaded.hash) == (toy.name, toy.classes, toy.hash)


def test_data_set_that_was_never_prepared_names_its_chapter():
    with pytest.raises(errors.MissingArtefactError, match="--only 01"):
        dataset.load_dataset("nothing")


# --- prepare


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["cat"] * 5, r"\['cat'\]"),
        (["cat", "cat", "dog"], "Class dog"),
        (["ant", "bee", "cat", "cat"], "Class ant, bee"),
    ],
)
def test_classes_that_no_triplet_can_be_made_of_are_refused(tmp_path, labels, sentence):
    save_classes(tmp_path / "pets", labels)
    with pytest.raises(DataError, match=sentence):
        dataset.prepare("pets", folder=str(tmp_path / "pets"), size=6)


def test_class_of_copies_only_is_refused(tmp_path):
    save_classes(tmp_path / "pets", ["cat", "cat", "dog", "dog"], pictures(4)[[0, 1, 2, 2]])
    with pytest.raises(DataError, match="Class dog"):
        dataset.prepare("pets", folder=str(tmp_path / "pets"), size=6)


def test_unknown_source_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="kaggle"):
        dataset.prepare(source="kaggle")


def test_folder_of_other_classes_under_the_name_of_fashion_mnist_keeps_its_own_classes(tmp_path):
    save_classes(tmp_path, ["cat", "dog"] * 10)
    data, _ = dataset.prepare("fashion-mnist", folder=str(tmp_path), size=6)
    assert data.classes == ("cat", "dog")
    assert set(data.targets) == {0, 1}


def test_numbered_folders_of_fashion_mnist_get_its_class_names(tmp_path):
    save_classes(tmp_path, ["0", "9"] * 10)
    data, _ = dataset.prepare("fashion-mnist", folder=str(tmp_path), size=6)
    assert data.classes == catalog.FASHION_CLASSES
    assert set(data.manifest["label"]) == {"T-shirt", "Ankle boot"}


def test_ledger_tells_of_broken_files_and_of_copies(tmp_path):
    save_classes(tmp_path, ["cat", "cat", "dog", "dog", "dog"], pictures(4)[[0, 1, 2, 3, 3]])
    (tmp_path / "cat" / "broken.png").write_bytes(b"broken")
    data, ledger = dataset.prepare("pets", folder=str(tmp_path), size=6, val_fraction=0, test_fraction=0)
    assert len(data) == 4
    assert list(ledger["picture"]) == ["cat/broken.png", "dog/4.png"]
    assert "cannot identify" in ledger["reason"][0]
    assert ledger["reason"][1] == "copy of dog/3.png, labelled dog"


def test_missing_folder_of_ones_own_is_an_error_that_says_where_to_point():
    with pytest.raises(DataError, match="pets"):
        dataset.prepare("pets")


# --- a split of one's own


@pytest.fixture
def pets(tmp_path) -> str:
    save_classes(tmp_path / "pets", ["cat", "dog"] * 20)  # 0.png, 1.png, ...
    return str(tmp_path / "pets")


def splits_of(data: ImageDataset) -> dict[str, str]:
    return dict(zip(data.manifest["path"], data.manifest["split"], strict=True))


def test_files_whose_name_matches_are_test_and_only_validation_is_drawn_from_the_others(pets):
    splits = splits_of(dataset.prepare("pets", folder=pets, size=6, test_pattern=r"^1\d", val_fraction=0.2)[0])
    test = {f"{label}/{n}.png" for n, label in zip(range(10, 20), ["cat", "dog"] * 5, strict=True)}
    assert {path for path, split in splits.items() if split == "test"} == test
    assert sum(split == "val" for split in splits.values()) == 6


def test_split_file_is_followed_and_pictures_it_does_not_name_train(pets, tmp_path):
    (tmp_path / "split.csv").write_text("path,split,note\ncat/0.png,test,a\ndog\\1.png,val,b\n", encoding="utf-8")
    data, _ = dataset.prepare("pets", folder=pets, size=6, split_file=str(tmp_path / "split.csv"))
    splits = splits_of(data)
    assert (splits.pop("cat/0.png"), splits.pop("dog/1.png")) == ("test", "val")
    assert set(splits.values()) == {"train"}


def test_split_file_may_name_a_picture_that_cannot_be_read(pets, tmp_path):
    (tmp_path / "pets" / "cat" / "broken.png").write_bytes(b"broken")
    (tmp_path / "split.csv").write_text("path,split\ncat/broken.png,test\ncat/0.png,test\n", encoding="utf-8")
    data, _ = dataset.prepare("pets", folder=pets, size=6, split_file=str(tmp_path / "split.csv"))
    assert splits_of(data)["cat/0.png"] == "test"


def test_two_ways_to_split_at_once_are_refused(pets):
    with pytest.raises(DataError, match="split_file"):
        dataset.prepare("pets", folder=pets, size=6, test_pattern="1", split_file="split.csv")


@pytest.mark.parametrize("asked", [{"test_pattern": "1"}, {"split_file": "split.csv"}])
def test_split_by_file_name_is_refused_where_there_are_no_files(monkeypatch, asked):
    frame = pd.DataFrame({"label": ["Bag", "Coat"] * 20, "split": ["train"] * 40})
    monkeypatch.setattr(readers, "read_idx", lambda *arguments: (pictures(40), frame, pd.DataFrame()))
    with pytest.raises(DataError, match="idx"):
        dataset.prepare(source="idx", **asked)


@pytest.mark.parametrize("bits", [-1, 17])
def test_hash_distance_that_makes_no_sense_is_refused(bits):
    with pytest.raises(ValueError, match=f"near_copies={bits}"):
        dataset.prepare(near_copies=bits)


def test_near_copies_lie_in_one_split_and_never_touch_the_split_that_the_user_gave(tmp_path):
    for n in range(24):
        save_photograph(tmp_path / "pets" / ("cat", "dog")[n % 2] / f"web_{n:02}.png", seed=n)
    save_photograph(tmp_path / "pets" / "cat" / "query_0.jpg", seed=0)
    save_photograph(tmp_path / "pets" / "cat" / "again_2.jpg", seed=2)
    settings = {
        "folder": str(tmp_path / "pets"),
        "size": 64,
        "channels": 3,
        "test_pattern": "^query",
        "val_fraction": 0.4,
    }
    data, _ = dataset.prepare("pets", **settings)
    splits, groups = splits_of(data), dict(zip(data.manifest["path"], data.manifest["group"], strict=True))
    assert {path for path, split in splits.items() if split == "test"} == {"cat/query_0.jpg"}
    assert groups["cat/again_2.jpg"] == groups["cat/web_02.png"] and data.manifest["group"].nunique() == len(data) - 1
    assert splits["cat/again_2.jpg"] == splits["cat/web_02.png"] == "train"
    assert "2 images in 1 group" in data.notes[1] and "1 likely copy" in data.notes[1]
    apart, _ = dataset.prepare("pets", near_copies=0, **settings)
    assert apart.manifest["group"].nunique() == len(apart) and len(apart.notes) == 1


def test_copies_that_fill_a_class_leave_it_a_test_and_a_validation_split(tmp_path):
    for n in range(40):
        path = tmp_path / "pets" / ("cat", "dog")[n % 2] / f"{n:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(1).save(path, quality=40 + n)
    data, _ = dataset.prepare("pets", folder=str(tmp_path / "pets"), size=32, channels=3, val_fraction=0.2)
    assert pd.crosstab(data.manifest["label"], data.manifest["split"]).to_numpy().min() >= 2
    assert data.manifest["group"].value_counts().max() == 2, "a tenth of a class of 20"
    assert data.manifest.groupby("group")["label"].nunique().max() == 1


def test_an_empty_split_is_a_sentence_with_its_name(tmp_path):
    save_classes(tmp_path / "pets", ["cat", "dog"] * 3)
    with pytest.raises(DataError, match="'val'"):
        dataset.prepare("pets", folder=str(tmp_path / "pets"), size=6)


def test_how_a_folder_was_understood_is_a_note(tmp_path):
    save_classes(tmp_path / "pets", ["Train/cat", "Train/dog", "VALID/cat", "VALID/dog", "Test/cat", "Test/dog"] * 2)
    data, _ = dataset.prepare("pets", folder=str(tmp_path / "pets"), size=6)
    assert data.classes == ("cat", "dog")
    assert data.manifest["split"].value_counts().to_dict() == {"train": 4, "val": 4, "test": 4}
    assert "3 splits (train, val, test), 2 classes" in data.notes[0]


def test_paths_of_a_split_file_are_compared_in_one_normal_form(tmp_path):
    names = [unicodedata.normalize("NFD", f"Mütze/{n}.png") for n in (0, 2, 4, 6)]
    save_classes(tmp_path / "pets", [unicodedata.normalize("NFD", "Mütze"), "dog"] * 4)
    lines = [
        f"{unicodedata.normalize('NFC', name)},{split}" for name, split in zip(names[::2], ["test", "val"], strict=True)
    ]
    (tmp_path / "split.csv").write_text("path,split\n" + "\n".join(lines) + "\n", encoding="utf-8")
    data, _ = dataset.prepare("pets", folder=str(tmp_path / "pets"), size=6, split_file=str(tmp_path / "split.csv"))
    assert splits_of(data)[names[0]] == "test" and splits_of(data)[names[2]] == "val"
    assert data.classes == (unicodedata.normalize("NFC", "Mütze"), "dog")


def test_outputs_inside_of_the_folder_are_not_images_of_it(tmp_path):
    save_classes(tmp_path, ["cat", "dog"] * 20)
    save_classes(tmp_path / "results", ["figures"] * 4, pictures(4, seed=9))
    data, ledger = dataset.prepare(
        "pets", folder=".", size=6, workspace=Workspace(tmp_path, outputs=tmp_path / "results")
    )
    assert data.classes == ("cat", "dog") and ledger.empty
    other, _ = dataset.prepare("pets", folder=".", size=6, workspace=Workspace(tmp_path))
    assert other.classes == ("cat", "dog", "results")


def test_two_workspaces_hold_two_data_sets_of_one_name(tmp_path, toy):
    one, other = (Workspace(tmp_path / name) for name in ("one", "other"))
    dataset.save_dataset(toy, workspace=one)
    dataset.save_dataset(toy.where("train"), workspace=other)
    assert (len(dataset.load_dataset("toy", one)), len(dataset.load_dataset("toy", other))) == (
        120,
        len(toy.where("train")),
    )


@pytest.mark.parametrize("generated", [True, False])
def test_the_card_says_whether_the_images_are_drawn_under_both_keys(toy, generated):
    folder = dataset.save_dataset(replace(toy, generated_images=generated))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["stand_in"] is card["generated_images"] is dataset.load_dataset("toy").stand_in is generated
    del card["generated_images"]  # as older versions wrote it
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    assert dataset.load_dataset("toy").generated_images is generated


CARD = {"name": "toy", "classes": ["ant", "bee", "cow"], "source": "", "stand_in": False}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("card.json", b"[1, 2]"),
        ("card.json", b"{"),
        ("card.json", b"[" * 100_000),
        ("card.json", json.dumps(CARD | {"classes": "ant"}).encode()),
        ("card.json", json.dumps(CARD | {"classes": [1, 2]}).encode()),
        ("card.json", json.dumps(CARD | {"name": None}).encode()),
        ("manifest.parquet", b"PAR1 damaged"),
        ("pixels.npy", b""),
        ("pixels.npy", b"\x93NUMPY damaged"),
    ],
)
def test_damaged_files_of_a_data_set_are_an_error_that_names_it(toy, name, content):
    (dataset.save_dataset(toy) / name).write_bytes(content)
    with pytest.raises(DataError, match="toy"):
        dataset.load_dataset("toy")


def test_a_manifest_without_its_columns_or_pixels_is_refused(toy):
    folder = dataset.save_dataset(toy)
    toy.manifest.drop(columns="image_id").to_parquet(folder / "manifest.parquet")
    with pytest.raises(DataError, match=r"manifest\.parquet"):
        dataset.load_dataset("toy")
    dataset.save_dataset(toy)
    np.save(folder / "pixels.npy", toy.pixels[:3])
    with pytest.raises(DataError, match=r"pixels\.npy"):
        dataset.load_dataset("toy")
