import json
from pathlib import Path

import pandas as pd
import pytest
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels, save_photographs
from safetensors.torch import save_file
from torchvision import models

from rectrio_lib.chapters import own_images, runner
from rectrio_lib.chapters.chapter import choose_parameters
from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.pretrained import load_pretrained
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.search import collection

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    save_encoder_of_pixels()
    return save_classes(tmp_path / "pets")


def build(folder, **options):
    return collection.build(folder, ENCODER, **options)


def index_file(name="pets"):
    return Workspace().outputs / "indexes" / name / "vectors.faiss"


def paths(results):
    return results.frame()["path"].tolist()


def test_a_folder_becomes_an_index_called_like_it_which_knows_encoder_and_folder(folder):
    gallery, report = build(folder)
    assert (gallery.name, gallery.encoder, gallery.folder) == ("pets", ENCODER, folder.resolve())
    assert (len(gallery.index), report.embedded, gallery.stand_in) == (12, 12, False)
    assert gallery.index.rows["label"].value_counts().to_dict() == {"cat": 6, "dog": 6}
    assert "indexing" in str(report)


def test_a_second_call_embeds_nothing_and_leaves_the_index_alone(folder):
    build(folder)
    before = index_file().stat().st_mtime_ns, index_file().stat().st_ino
    gallery, report = build(folder)
    assert report.embedded == 0 and len(gallery.index) == 12
    assert (index_file().stat().st_mtime_ns, index_file().stat().st_ino) == before


def test_new_files_are_embedded_and_found_and_deleted_ones_are_answers_no_more(folder):
    build(folder)
    save_photographs(folder, range(100, 110), "bird")
    for number in (50, 51):
        (folder / "dog" / f"{number}.png").unlink()
    gallery, report = build(folder)
    assert (report.embedded, len(gallery.index)) == (10, 20)
    found = set(paths(collection.search("bird/100.png", k=100)))
    assert "bird/109.png" in found and len(found) == 19
    assert not found & {"dog/50.png", "dog/51.png"}


def test_if_no_encoder_is_named_an_index_keeps_its_own(folder):
    build(folder)
    gallery, report = collection.build(folder)
    assert (gallery.encoder, report.embedded) == (ENCODER, 0)


@pytest.mark.parametrize("change", [{"kind": "hnsw"}, {"encoder": "larger"}])
def test_another_kind_or_encoder_builds_the_index_anew(folder, change):
    save_encoder_of_pixels(10, "larger")
    first, _ = build(folder)
    second, _ = collection.build(folder, **{"encoder": ENCODER, **change})
    assert (second.index.kind, second.encoder) == (change.get("kind", "flat"), change.get("encoder", ENCODER))
    assert (second.index.kind, second.index.encoder_hash) != (first.index.kind, first.index.encoder_hash)


def test_an_index_of_an_older_format_is_built_anew(folder):
    build(folder)
    card = index_file().with_name("card.json")
    card.write_text(json.dumps({**json.loads(card.read_text(encoding="utf-8")), "format": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match="is of format 1"):
        collection.search("cat/00.png")
    gallery, report = build(folder)
    assert report.embedded == 0 and len(gallery.index) == 12
    assert paths(collection.search("cat/00.png", k=1))


def test_a_file_finds_itself_and_a_picture_of_the_index_does_not(folder):
    gallery, _ = build(folder)
    by_file = collection.search(folder / "cat" / "03.png", k=2)
    image_id = gallery.row("cat/03.png")["image_id"]
    by_path, by_id = (collection.search([asked], k=11) for asked in ("cat/03.png", image_id))
    assert paths(by_file)[0] == "cat/03.png"
    assert by_file.scores[0, 0] == pytest.approx(1, abs=1e-3)
    assert paths(by_path) == paths(by_id) and len(paths(by_path)) == 11
    assert "cat/03.png" not in paths(by_path)
    assert paths(by_file)[1] == paths(by_path)[0]
    assert (list(by_file.query_ids), list(by_path.query_ids)) == ([str(folder / "cat" / "03.png")], ["cat/03.png"])


def test_options_are_passed_on(folder):
    build(folder)
    found = collection.search(["cat/00.png", "cat/01.png"], k=20, where="label == 'dog'", combine=True)
    assert sorted(paths(found)) == [f"dog/{n}.png" for n in range(50, 56)]
    assert list(found.query_ids) == ["cat/00.png + cat/01.png"]
    with pytest.raises(ValueError, match="there is no column 'colour'"):
        collection.search("cat/00.png", where="colour == 1")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ([], "Nothing was asked"),
        (["cat/77.png"], r"cat/77\.png is no file, and no image_id or path of a picture in index pets"),
        (["{folder}/cat/00.png", "dog/50.png"], r"dog/50\.png is no file, but .*00\.png is"),
        (["{folder}/note.txt"], r"note\.txt cannot be read as a picture"),
    ],
)
def test_what_cannot_be_asked_is_told(folder, asked, problem):
    build(folder)
    (folder / "note.txt").write_text("no picture", encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        collection.search([one.format(folder=folder) for one in asked])


def test_the_index_must_be_named_if_there_are_several_and_be_there(folder, tmp_path):
    with pytest.raises(ValueError, match="There is no index yet: build one with `rectrio index FOLDER`"):
        collection.search("cat/00.png")
    build(folder)
    build(save_classes(tmp_path / "more"))
    with pytest.raises(ValueError, match="several indexes, and none was named: choose one of more, pets"):
        collection.search("cat/00.png")
    with pytest.raises(ValueError, match="There is no index 'cars': choose one of more, pets"):
        collection.search("cat/00.png", "cars")
    assert paths(collection.search("cat/00.png", "more", k=3))


def test_an_index_whose_encoder_has_changed_refuses_files_and_still_answers_for_its_own_pictures(folder):
    build(folder)
    save_encoder_of_pixels(9)
    with pytest.raises(ValueError, match="gone or was trained anew: build the index again"):
        collection.search(folder / "cat" / "00.png")
    assert len(paths(collection.search("cat/00.png", k=3))) == 3


def test_the_name_of_other_pictures_is_refused(folder, tmp_path):
    build(folder)
    other = save_classes(tmp_path / "elsewhere" / "pets")
    save_encoder_of_pixels(10, "larger")
    for encoder in (ENCODER, "larger"):
        with pytest.raises(ValueError, match=r"is of the pictures in .*another name"):
            collection.build(other, encoder)
    assert collection.build(other, ENCODER, "others")[0].name == "others"
    assert collection.open_collection("pets").folder == folder.resolve()


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "x.old", "x.lock", "a:b", "end ", "n" * 101])
def test_a_name_that_no_folder_can_have_is_refused(folder, name):
    with pytest.raises(ValueError, match="cannot be the name of an index"):
        build(folder, name=name)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "tree"}, "kind='tree' is unknown"),
        ({"recall": 1.5}, "recall=1.5 should be"),
        ({"encoder": "missing"}, "There is no encoder 'missing': there are pixels"),
        ({"encoder": "torchvision:nothing"}, "backbone='torchvision:nothing' is unknown"),
    ],
)
def test_what_cannot_be_built_is_told_before_anything_is_embedded(folder, options, problem):
    with pytest.raises(ValueError, match=problem):
        collection.build(folder, **{"encoder": ENCODER, **options})
    assert not Workspace().cards("embeddings")


def test_a_folder_without_a_readable_picture_is_told_with_the_first_reason(tmp_path):
    save_encoder_of_pixels()
    with pytest.raises(DataError, match="is no folder"):
        build(tmp_path / "missing")
    (tmp_path / "bad").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        build(tmp_path / "bad")
    (tmp_path / "bad" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"holds no readable picture: broken\.jpg: Unidentified.*ledger\.csv"):
        build(tmp_path / "bad")


def test_what_was_left_out_is_listed_beside_the_vectors(folder):
    (folder / "cat" / "broken.jpg").write_bytes(b"no picture")
    (folder / "dog" / "twin.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    store, report = collection.embed(folder, ENCODER)
    ledger = pd.read_csv(store.folder / "ledger.csv")
    assert ledger["picture"].tolist() == ["cat/broken.jpg", "dog/twin.png"]
    assert (report.bad, report.copies) == (1, 1)


def test_without_weights_a_backbone_is_a_stand_in_until_they_come(tmp_path, caplog):
    folder = save_photographs(tmp_path / "few", range(3))
    gallery, _ = collection.build(folder)
    assert gallery.stand_in and gallery.encoder == "torchvision-squeezenet1_0"
    assert "STAND-IN" in caplog.text
    caplog.clear()
    Workspace().weights.mkdir(parents=True)
    save_file(models.squeezenet1_0().state_dict(), Workspace().weights / "squeezenet1_0-test.safetensors")
    real, report = collection.build(folder)
    assert (real.stand_in, report.embedded) == (False, 3)
    assert "STAND-IN" not in caplog.text
    before = Workspace().outputs / "encoders" / real.encoder / "weights.safetensors"
    written = before.stat().st_mtime_ns
    collection.build(folder)
    assert before.stat().st_mtime_ns == written


def test_an_index_made_with_clip_is_asked_in_words_with_and_without_a_picture(tmp_path):
    gallery, _ = collection.build(save_photographs(tmp_path / "few", range(4)), "clip:ViT-B/32")
    texts = gallery.search_words([], ["a photo of a cat", "a dog"], [], k=2)
    assert texts.query_ids == ["a photo of a cat", "a dog"] and (texts.positions >= 0).all()
    file = str(gallery.folder / "02.png")
    mixed = gallery.search_words([file], ["a cat"], ["snow"], k=4, where="path != '01.png'")
    assert mixed.query_ids == ["+1 02.png +1 'a cat' -0.5 'snow'"]
    assert sorted(mixed.frame()["path"]) == ["00.png", "02.png", "03.png"]


def test_a_clip_that_was_saved_without_its_text_tower_is_saved_again_with_it(tmp_path):
    save_encoder(load_pretrained("clip:ViT-B/32"), "clip-ViT-B-32")
    path = Workspace().outputs / "encoders" / "clip-ViT-B-32" / "encoder.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    assert not card["texts"]
    path.write_text(json.dumps({**card, "stand_in": False}), encoding="utf-8")  # as if its weights were real
    gallery, _ = collection.build(save_photographs(tmp_path / "few", range(3)), "clip:ViT-B/32")
    assert gallery.search_words([], ["a dog"], [], k=2).query_ids == ["a dog"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"size": 128, "resolution": 128, "batch_size": 4, "backbone": collection.BACKBONE}),
        ({"backbone": "clip:ViT-B/32", "epochs": 3}, {"size": 224, "resolution": 0, "batch_size": 4, "epochs": 3}),
        ({"size": 64, "batch_size": 8}, {"size": 64, "batch_size": 8}),
    ],
)
def test_training_asks_chapter_3_for_what_it_knows(folder, monkeypatch, given, expected):
    asked = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runner, "run_chapters", lambda *arguments: asked.append(arguments))
    assert own_images.train(folder, **given) == "pets-tuned"
    ((chosen, profile, parameters),) = asked
    assert [chapter.name[:2] for chapter in chosen] == ["03"] and profile is None
    wanted = {"dataset": "pets", "folder": str(folder.resolve()), "encoder": "pets-tuned", **expected}
    assert wanted.items() <= parameters.items()
    assert choose_parameters(chosen, None, parameters)[chosen[0].name] == parameters


def test_training_outside_of_a_checkout_is_refused(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="inside a checkout"):
        own_images.train(folder)
