import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels, save_photographs
from makers.images import photograph
from makers.pages import Page

from rectrio_lib.chapters import own_images
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import dataset
from rectrio_lib.report import contents
from rectrio_lib.search import collection
from rectrio_lib.search.collection import Collection


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Take pixels for the pretrained backbone."""
    plt.switch_backend("Agg")
    save_encoder_of_pixels(24)
    monkeypatch.setattr(collection, "BACKBONE", ENCODER)


def survey(folder, **parameters):
    path = own_images.run_folder(folder, parameters=parameters)
    return Page(path.read_text(encoding="utf-8"))


def test_a_flat_folder_is_searched_by_the_pretrained_backbone_and_reported(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = save_photographs(tmp_path / "holiday", range(40))
    for number in (3, 4):
        photograph(number).save(folder / f"again {number}.jpg", quality=85)
    shutil.copy(folder / "05.png", folder / "twin.png")
    (folder / "broken & gone.jpg").write_bytes(b"no picture")
    page = survey(folder)
    assert "Nothing was trained, because the images lie in no class folders" in page.text["contents"]
    assert "42 different pictures" in page.text["contents"] and "41 png, 3 jpg" in page.text["contents"]
    assert "median 64 × 64" in page.text["contents"]
    assert "1 files could not be read, 1 are equal" in page.text["left-out"]
    assert "broken & gone.jpg UnidentifiedImageError" in page.text["left-out"]
    assert "twin.png copy of 05.png" in page.text["left-out"]
    groups = [sorted(path for path, _ in strip) for strip in page.strips_of("copies")]
    assert groups == [["03.png", "again 3.jpg"], ["04.png", "again 4.jpg"]]
    assert len(page.strips_of("neighbours")) == 12
    for strip in page.strips_of("neighbours"):
        assert [kind for _, kind in strip] == ["asked"] + [""] * 8
        assert len({path for path, _ in strip}) == 9
    assert "42 pictures laid out" in page.text["map"] and 20 < len(page.figures["map"]) <= 42
    assert "quality" not in page.text
    assert "rectrio search PICTURE --index holiday" in page.text["search"]
    assert "STAND-IN" not in page.text["top"]
    printed = caplog.text
    assert "42 of 44 embedded" in printed and "Nothing was trained" in printed


def test_few_pictures_in_class_folders_are_measured_leaving_one_out(tmp_path):
    folder = save_classes(tmp_path / "pets", each=6)
    photograph(7).save(folder / "stray.png")
    page = survey(folder)
    assert "because only 0 of the 2 classes have 10 images" in page.text["contents"]
    assert "cat 6" in page.text["contents"] and "1 pictures lie in no class folder" in page.text["contents"]
    assert "Leave-one-out: each of 12 pictures" in page.text["quality"]
    assert f"encoder recall@1 recall@5 mAP@R {ENCODER} " in page.text["quality"]
    kinds = {kind for strip in page.strips_of("neighbours") for _, kind in strip}
    assert kinds == {"asked", "hit", "miss", ""}
    assert len(page.figures["quality"]) == 1


@pytest.fixture
def asked(monkeypatch):
    """Stand in the place of chapter 03: leave an encoder and a split behind, and keep the parameters."""

    def train(folder, name, rows, **parameters):
        data, _ = dataset.prepare(name, folder=str(folder), size=32, channels=3, test_fraction=0.3)
        dataset.save_dataset(data)
        calls.append(parameters)
        return save_encoder_of_pixels(16, f"{name}-tuned")

    calls = []
    monkeypatch.setattr(own_images, "train", train)
    return calls


def test_class_folders_are_trained_on_and_measured_on_test_pictures_against_the_backbone(tmp_path, asked):
    page = survey(save_classes(tmp_path / "pets", each=12), epochs=3)
    assert asked == [{"epochs": 3}]
    gallery = Collection.open("pets")
    assert gallery.encoder_name == "pets-tuned"
    test = set(gallery.index.rows["path"][gallery.index.rows["split"] == "test"])
    assert len(test) == 8
    assert f"chapter 03 trained {ENCODER} on them" in page.text["contents"]
    assert f"{len(test)} test pictures, which were not trained on" in page.text["quality"]
    assert page.text["quality"].index(f" {ENCODER} 0") < page.text["quality"].index(" pets-tuned 0")
    assert {strip[0][0] for strip in page.strips_of("neighbours")} == test


def test_parameters_without_anything_to_train_on_are_refused(tmp_path):
    folder = save_photographs(tmp_path / "holiday", range(3))
    with pytest.raises(ValueError, match="epochs"):
        own_images.run_folder(folder, parameters={"epochs": 3})
    with pytest.raises(ValueError, match="dataset, folder"):
        own_images.run_folder(folder, parameters={"folder": "elsewhere", "dataset": "x"})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_pictures_make_a_report(tmp_path, count):
    page = survey(save_photographs(tmp_path / "few", range(count)))
    assert [len(strip) for strip in page.strips_of("neighbours")] == [count] * count
    assert ("map" in page.text) == (count > 2)
    assert ("There is no other picture." in page.text["neighbours"]) == (count == 1)


def test_a_stand_in_is_told_on_top(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "BACKBONE", "torchvision:squeezenet1_0")
    path = own_images.run_folder(save_photographs(tmp_path / "few", range(4)), allow_random_weights=True)
    page = Page(path.read_text(encoding="utf-8"))
    assert "STAND-IN: the pretrained weights were not to be had" in page.text["top"]


def test_a_large_folder_is_looked_at_in_part_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MOST_COMPARED", 20)
    page = survey(save_photographs(tmp_path / "many", range(30)))
    assert "are of 20 pictures drawn by chance" in page.text["contents"]
    assert "20 pictures laid out" in page.text["map"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_look_like_html_stay_text(tmp_path):
    folder = save_photographs(tmp_path / "odd", range(3))
    save_photographs(folder, range(3, 6), "<script>alert(1)<")
    path = own_images.run_folder(folder)
    text = path.read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;" in text
    assert path == Workspace().outputs / "reports" / "odd" / "index.html"


def test_nothing_in_the_page_is_fetched_from_elsewhere():
    for word in ("http:", "https:", "<script", "@import", "url("):
        assert word not in (Path(contents.__file__).parent / "page.html").read_text(encoding="utf-8")


def test_figures_have_intervals_around_them():
    vectors = np.eye(12, dtype=np.float32)
    vectors[1::2] = vectors[::2]
    rows = pd.DataFrame({"label": list("aabbccddeeff"), "split": ""})
    (line,) = contents.class_quality({"x": vectors}, rows, tested=False)["quality"]
    assert line == {"encoder": "x", **dict.fromkeys(("recall@1", "recall@5", "mAP@R"), "1.000 (1.000 to 1.000)")}
