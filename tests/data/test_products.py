"""Product pictures: what their names tell, what is kept, and what `prepare` makes of them."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from makers.images import photograph, pictures, save_photograph
from PIL import Image

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import dataset, synthetic
from rectrio_lib.data.decoding import sketch
from rectrio_lib.data.products import PATTERN, check_pattern, clean_products, read_products, remarks

FOLDERS = r"(?P<product>[^/]+)/(?P<view>[^/]+)"
HALF = {"val_fraction": 0.1, "test_fraction": 0.4}


def save(folder: Path, *names: str) -> Path:
    """Write a picture of its own under each name."""
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, seed=n)[0, 0]).save(path)
    return folder


def read(folder: Path, pattern: str = PATTERN) -> pd.DataFrame:
    return read_products(folder, pattern, 6, 1)[1]


# --- reading


def test_file_names_tell_product_and_view(tmp_path):
    save(tmp_path, "mug_1_front.jpg", "mug_1_back.JPG", "pen_0.png", "shelf/pen_0.webp")
    frame = read(tmp_path)
    told = frame.set_index("path")[["label", "group", "view"]].apply(tuple, axis=1).to_dict()
    assert told == {
        "mug_1_front.jpg": ("mug_1", "mug_1", "front"),
        "mug_1_back.JPG": ("mug_1", "mug_1", "back"),
        "pen_0.png": ("pen", "pen", "0"),
        "shelf/pen_0.webp": ("shelf/pen", "shelf/pen", "0"),
    }
    assert (frame[["width", "height"]] == 6).all(axis=None)


def test_one_folder_a_product_is_another_pattern(tmp_path):
    save(tmp_path, "mug/a.png", "mug/b_2.png", "pen/a.png")
    frame = read(tmp_path, FOLDERS)
    assert frame[["label", "view"]].to_numpy().tolist() == [["mug", "a"], ["mug", "b_2"], ["pen", "a"]]


def test_pixels_follow_the_frame_and_broken_foreign_and_hidden_files_are_left_out(tmp_path):
    save(tmp_path, "mug_0.png", "mug_1.png", "pen_0.png", "cover.png", ".trash/mug_7.png", "_3.png")
    (tmp_path / "mug_0.png").write_bytes(b"broken")
    (tmp_path / "prices.csv").write_text("no picture", encoding="utf-8")
    pixels, frame, ledger = read_products(tmp_path, PATTERN, 6, 1)
    assert frame["path"].tolist() == ["mug_1.png", "pen_0.png"]
    np.testing.assert_array_equal(pixels, np.concatenate([pictures(1, seed=n) for n in (1, 2)]))
    reasons = ledger.set_index("picture")["reason"]
    assert sorted(reasons.index) == ["_3.png", "cover.png", "mug_0.png"]
    assert "cannot identify" in reasons["mug_0.png"]
    assert reasons["cover.png"] == reasons["_3.png"] and PATTERN in reasons["cover.png"]


def test_one_view_in_two_formats_is_read_once_and_the_ledger_names_both(tmp_path):
    save(tmp_path, "mug_0.jpg", "mug_0.png", "mug_1.jpg")
    _, frame, ledger = read_products(tmp_path, PATTERN, 6, 1)
    assert frame["path"].tolist() == ["mug_0.jpg", "mug_1.jpg"]
    assert ledger.to_dict("records") == [
        {"picture": "mug_0.png", "reason": "view 0 of product mug is mug_0.jpg already"}
    ]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["a.png", "b.png", "c.png", "d.png"],
            "4 of 4 .* a.png, b.png, c.png:",
        ),
        (["a.png", "b.png", "c.png", "mug_0.png", "mug_1.png"], "3 of 5"),
        ([], "test_names"),
    ],
)
def test_names_that_mostly_do_not_match_are_refused_with_their_number_and_three_examples(tmp_path, names, sentence):
    with pytest.raises(DataError, match=sentence):
        read(save(tmp_path, *names))


def test_as_many_strangers_as_products_views_are_left_out_quietly(tmp_path):
    assert len(read(save(tmp_path, "a.png", "b.png", "mug_0.png", "mug_1.png"))) == 2


def test_a_folder_of_broken_pictures_is_refused(tmp_path):
    (tmp_path / "mug_0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 unreadable"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(?P<product>.+", "missing )"),
        (".+_.+", "(?P<product>…) and (?P<view>…)"),
        ("(?P<product>.+)_.", "(?P<view>…)"),
    ],
)
def test_pattern_that_cannot_be_used_is_refused_before_anything_is_read(tmp_path, pattern, sentence):
    for attempt in (lambda: check_pattern(pattern), lambda: dataset.prepare("none", folder="none", pattern=pattern)):
        with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
            attempt()
        assert not isinstance(caught.value, DataError)


# --- cleaning


def photographs(*seeds) -> np.ndarray:
    return np.stack([np.asarray(photograph(seed)).transpose(2, 0, 1) for seed in seeds])


def cleaned(pixels, labels, bits=8):
    sketches = [sketch(Image.fromarray(image.transpose(1, 2, 0))).tobytes() for image in pixels]
    paths = [f"{n}.png" for n in range(len(labels))]
    frame = pd.DataFrame({"label": labels, "group": labels, "path": paths, "sketch": sketches})
    return clean_products(dataset.make_manifest(pixels, frame), bits)


def test_a_picture_of_two_products_is_kept_once_and_both_share_a_group_and_are_told():
    kept, ledger = cleaned(photographs(0, 1, 0, 2, 3, 4), ["cup", "cup", "mug", "mug", "pen", "pen"], bits=0)
    assert kept["label"].tolist() == ["cup", "cup", "mug", "pen", "pen"]
    assert kept["group"].tolist() == ["cup"] * 3 + ["pen"] * 2
    assert kept["near_copy_of"].tolist() == ["mug", "mug", "cup", "", ""]
    (left_out,) = ledger.to_dict("records")
    assert left_out == {"picture": "2.png", "reason": "image of product mug, byte-identical to 0.png of product cup"}


def test_near_copies_across_products_join_their_groups_are_reported_and_all_kept():
    pixels = photographs(0, 1, 0, 2, 3, 3)
    pixels[2] = np.clip(pixels[2].astype(int) + 3, 0, 255)
    pixels[5] = np.clip(pixels[5].astype(int) + 3, 0, 255)
    kept, ledger = cleaned(pixels, ["cup", "cup", "mug", "mug", "pen", "pen"])
    assert len(kept) == 6 and ledger.empty
    assert kept["group"].tolist() == ["cup"] * 4 + ["pen"] * 2
    assert kept["near_copy_of"].tolist() == ["mug"] * 2 + ["cup"] * 2 + ["", ""], "views of one product may be alike"
    kept, _ = cleaned(pixels, ["cup", "cup", "mug", "mug", "pen", "pen"], 0)
    assert kept["group"].tolist() == kept["label"].tolist()
    assert set(kept["near_copy_of"]) == {""}


def test_single_views_stay_and_are_spoken_of_as_are_near_copies():
    kept, _ = cleaned(photographs(0, 1, 2, 3, 4, 5, 6), ["a", "a", "b", "c", "d", "e", "e"])
    assert len(kept) == 7
    assert remarks(kept) == ["Products with a single view: 3 (b, c, d). In the gallery, but not queries."]
    shared, _ = cleaned(photographs(0, 1, 0, 2, 3, 4, 5), ["a", "a", "b", "b", "b", "c, d", "c, d"])
    assert remarks(shared) == ["Pairs of products that (nearly) share an image: 1 (a and b). Split as one."]
    lonely = pd.DataFrame({"label": ["a", "a", *"bcdef"]})
    assert remarks(lonely) == ["Products with a single view: 5 (b, c, d, …). In the gallery, but not queries."]
    assert remarks(pd.DataFrame({"label": list("aabb")})) == []


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["mug"] * 3, "mug"),
        (["a", "b", "c"], "3 products"),
    ],
)
def test_products_that_no_triplet_can_be_made_of_are_refused(labels, sentence):
    with pytest.raises(DataError, match=sentence):
        cleaned(photographs(0, 1, 2), labels)


# --- prepared


def test_products_are_prepared_with_every_view_of_one_on_one_side(tmp_path):
    for n in range(40):
        save_photograph(tmp_path / "shop" / f"item{n // 2:02}_{n % 2}.jpg", n)
    save_photograph(tmp_path / "shop" / "lonely_0.jpg", 40)
    settings_ = {"folder": str(tmp_path / "shop"), "size": 32, "channels": 3, **HALF}
    data, ledger = dataset.prepare("shop", pattern=PATTERN, **settings_)
    assert (len(data), len(data.classes), ledger.empty, data.stand_in) == (41, 21, True, False)
    assert data.manifest.groupby("label")["split"].nunique().eq(1).all()
    assert data.manifest.drop_duplicates("label")["split"].value_counts().to_dict() == {
        "train": 11,
        "test": 8,
        "val": 2,
    }
    assert dataset.prepare("shop", pattern=PATTERN, **settings_)[0].hash == data.hash
    assert dataset.prepare("shop", pattern=PATTERN, **settings_, seed=1)[0].hash != data.hash
    dataset.save_dataset(data, ledger)
    pd.testing.assert_frame_equal(dataset.load_dataset("shop").manifest, data.manifest)


def test_the_data_set_called_products_is_found_flat_by_its_name_and_knows_its_pattern(capsys):
    save(Workspace().data / "products", *(f"mug{n}_{view}.png" for n in range(6) for view in range(2)))
    data, _ = dataset.prepare("products", size=6, **HALF)
    assert (data.stand_in, data.source, data.classes) == (False, "folder files", tuple(f"mug{n}" for n in range(6)))
    assert capsys.readouterr().out == ""


def test_another_pattern_takes_the_place_of_the_one_that_goes_with_the_name():
    save(Workspace().data / "products", *(f"mug{n}/front_{view}.png" for n in range(6) for view in range(2)))
    classes = [dataset.prepare("products", size=6, pattern=pattern)[0].classes for pattern in ("", FOLDERS)]
    assert classes == [tuple(f"mug{n}/front" for n in range(6)), tuple(f"mug{n}" for n in range(6))]


@pytest.mark.parametrize("leftover", [None, "products/README.md"])
def test_products_that_are_not_there_are_drawn_with_several_views_and_say_so(monkeypatch, caplog, leftover):
    draw = synthetic.draw_shapes
    monkeypatch.setattr(synthetic, "draw_shapes", lambda count, **options: draw(3, **options))
    if leftover:
        (Workspace().data / "products").mkdir(parents=True)
        (Workspace().data / leftover).touch()
    data, ledger = dataset.prepare("products", size=16, channels=3, **HALF)
    assert data.stand_in and ledger.empty
    (line,) = caplog.messages
    assert line.startswith("STAND-IN: ") and "no product photographs and there is no download of them" in line
    views = data.manifest.groupby("label")["view"]
    assert (views.nunique() == 4).all() and len(views) == 30
    assert data.manifest.groupby("label")["shape"].nunique().eq(1).all()
    assert data.manifest["label"].str.fullmatch(r"[a-z]+\d{4}").all()
    assert data.manifest.drop_duplicates("label")["split"].value_counts().to_dict() == {
        "train": 15,
        "test": 12,
        "val": 3,
    }


def test_test_pattern_gives_whole_products_to_the_test(tmp_path):
    save(tmp_path, *(f"mug{n}_{view}.png" for n in range(6) for view in range(2)))
    data, _ = dataset.prepare(
        "shop", folder=str(tmp_path), size=6, pattern=PATTERN, test_pattern="^mug3_1", val_fraction=0.1
    )
    assert set(data.manifest.loc[data.manifest["split"] == "test", "path"]) == {"mug3_0.png", "mug3_1.png"}


def test_a_pattern_is_refused_where_there_are_no_file_names():
    with pytest.raises(DataError, match="idx"):
        dataset.prepare(source="idx", pattern=PATTERN)


def test_a_missing_folder_of_products_says_where_to_point():
    with pytest.raises(DataError, match="shop"):
        dataset.prepare("shop", pattern=PATTERN)


def test_names_are_compared_in_one_normal_form_and_stay_on_disk_as_they_are(tmp_path):
    names = [unicodedata.normalize(form, f"Mütze_{form}.png") for form in ("NFC", "NFD")]
    frame = read(save(tmp_path, *names))
    assert frame["label"].unique().tolist() == [unicodedata.normalize("NFC", "Mütze")]
    assert set(frame["path"]) == set(names) and all((tmp_path / path).exists() for path in frame["path"])


def test_products_that_differ_in_capitals_only_are_spoken_of(tmp_path):
    frame = read(save(tmp_path, "SHOE1_1.JPG", "shoe1_2.jpg", "pen_0.png", "pen_1.png"))
    (first, *_) = remarks(frame)
    assert "SHOE1 and shoe1" in first
    assert frame.groupby("label")["group"].first().to_dict() == {"SHOE1": "SHOE1", "shoe1": "SHOE1", "pen": "pen"}
    assert not any("shoe1" in line for line in remarks(frame[frame["label"] == "pen"]))
