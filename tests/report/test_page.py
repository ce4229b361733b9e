import os
import shutil
from pathlib import Path

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
from rectrio_lib.search import building
from rectrio_lib.search.collection import Collection


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Take pixels for the pretrained backbone."""
    save_encoder_of_pixels(24)
    monkeypatch.setattr(building, "BACKBONE", ENCODER)


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
    assert "42 different images" in page.text["contents"] and "41 png, 3 jpg" in page.text["contents"]
    assert "median 64 × 64" in page.text["contents"]
    assert "1 file could not" in page.text["left-out"] and "1 file is a byte-identical copy" in page.text["left-out"]
    assert "broken & gone.jpg UnidentifiedImageError" in page.text["left-out"]
    assert "twin.png copy of 05.png" in page.text["left-out"]
    groups = [sorted(path for path, _ in strip) for strip in page.strips_of("copies")]
    assert groups == [["03.png", "again 3.jpg"], ["04.png", "again 4.jpg"]]
    assert len(page.strips_of("neighbours")) == 12
    for strip in page.strips_of("neighbours"):
        assert [kind for _, kind in strip] == ["query"] + [""] * 8
        assert len({path for path, _ in strip}) == 9
    assert "42 images laid out" in page.text["map"] and 20 < len(page.figures["map"]) <= 42
    assert "quality" not in page.text
    assert "rectrio search IMAGE --index holiday" in page.text["search"]
    assert "STAND-IN" not in page.text["top"]
    printed = caplog.text
    assert "42 of 44 embedded" in printed and "Nothing was trained" in printed


def test_few_pictures_in_class_folders_are_measured_leaving_one_out(tmp_path):
    folder = save_classes(tmp_path / "pets", each=6)
    photograph(7).save(folder / "stray.png")
    page = survey(folder)
    assert "because only 0 of the 2 classes have 10 images" in page.text["contents"]
    assert "cat 6" in page.text["contents"] and "1 image lies in no class folder" in page.text["contents"]
    assert "Leave-one-out: each of 12 images" in page.text["quality"]
    assert f"encoder recall@1 recall@5 mAP@R {ENCODER} " in page.text["quality"]
    kinds = {kind for strip in page.strips_of("neighbours") for _, kind in strip}
    assert kinds == {"query", "hit", "miss", ""}
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
    assert f"{len(test)} test images, not trained on" in page.text["quality"]
    assert page.text["quality"].index(f" {ENCODER} 0") < page.text["quality"].index(" pets-tuned 0")
    assert {path.partition(" (")[0] for path in (strip[0][0] for strip in page.strips_of("neighbours"))} == test
    assert set(page.figures["map"][:-1]) <= test, "the map shows what was trained on"
    assert "8 images of the test split" in page.text["map"]
    assert "likely" in page.text["copies"].lower()


def test_a_trained_encoder_is_compared_with_the_backbone_at_the_size_that_it_was_trained_with(tmp_path, asked):
    save_encoder_of_pixels(16, "pets-tuned-frozen")
    page = survey(save_classes(tmp_path / "pets", each=12))
    assert " pets-tuned-frozen 0" in page.text["quality"] and f" {ENCODER} 0" not in page.text["quality"]
    assert "Training did not make the first result better" in page.text["quality"], "both encoders are the same"


def test_every_image_links_to_its_file_and_shows_its_full_name(tmp_path):
    folder = save_classes(tmp_path / "pets", each=6)
    page = survey(folder)
    paths = {p.relative_to(folder).as_posix() for p in folder.rglob("*.png")}
    assert len(page.links) > 12 and set(page.links) <= {(folder / path).as_uri() for path in paths}
    names = {title.partition(" (")[0] for strip in page.strips_of("neighbours") for title, _ in strip}
    assert names <= paths


def test_numbers_are_right_in_singular_and_plural(tmp_path):
    folder = save_photographs(tmp_path / "holiday", range(4))
    for name in "ab":
        (folder / f"{name}.jpg").write_bytes(b"no image")
        shutil.copy(folder / "00.png", folder / f"{name}.png")
    page = survey(folder)
    assert "2 files could not be read; 2 files are byte-identical copies" in page.text["left-out"]
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "00.png", tmp_path / "one")
    assert "1 different image," in survey(tmp_path / "one").text["contents"]


MEANS = {"recall_at_1": 0.5, "recall_at_5": 0.9, "map_at_r": 0.3}


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"recall_at_1": 0.6, "recall_at_5": 0.9}, []),
        ({"recall_at_1": 0.6, "recall_at_5": 0.85}, ["0.850"]),
        ({"recall_at_1": 0.5, "recall_at_5": 0.95}, ["0.500"]),
        ({"recall_at_1": 0.4, "recall_at_5": 0.8}, ["0.400", "0.800"]),
    ],
)
def test_what_training_lost_is_said(after, words):
    remarks = contents._remarks([MEANS, {**MEANS, **after}])
    assert len(remarks) == len(words) and all(word in remark for word, remark in zip(words, remarks, strict=True))
    assert contents._remarks([MEANS]) == []


def test_recall_at_random_is_the_share_of_the_own_class_among_those_searched():
    vectors = np.eye(12, dtype=np.float32)
    rows = pd.DataFrame({"label": list("aaaaaaaabbbb"), "split": ["train"] * 6 + ["test"] * 2 + ["train"] * 4})
    facts = contents.class_quality({"x": vectors}, rows, tested=True)
    assert facts["at_random"] == pytest.approx(0.6) and facts["queries"] == 2


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
    assert ("There is no other image." in page.text["neighbours"]) == (count == 1)


def test_a_stand_in_is_told_on_top(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "BACKBONE", "torchvision:squeezenet1_0")
    path = own_images.run_folder(save_photographs(tmp_path / "few", range(4)), allow_random_weights=True)
    page = Page(path.read_text(encoding="utf-8"))
    assert "STAND-IN: pretrained weights were unavailable" in page.text["top"]


def test_a_large_folder_is_looked_at_in_part_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MOST_COMPARED", 20)
    page = survey(save_photographs(tmp_path / "many", range(30)))
    assert "are of 20 images drawn at random" in page.text["contents"]
    assert "20 images laid out" in page.text["map"]


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


def test_labels_that_look_wrong_are_shown_with_the_class_they_resemble(tmp_path):
    folder = save_classes(tmp_path / "pets", each=6)
    for number in range(6):  # seven views of one scene, one of them in the wrong folder
        photograph(90).save(folder / "cat" / f"scene {number}.jpg", quality=70 + 4 * number)
    photograph(90).point(lambda value: 255 - (255 - value) * 9 // 10).save(folder / "dog" / "scene.png")
    page = survey(folder)
    ((first, *_),) = page.strips_of("labels")
    assert first[0] == "dog/scene.png (dog)"
    assert "dog: cat?" in page.text["labels"] and "closer to another class" in page.text["labels"]
