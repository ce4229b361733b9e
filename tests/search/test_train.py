"""Training on a collection's own classes: used if it is better, and said if not."""

import logging

import pytest
from makers.folders import ENCODER, save_classes, save_photographs

from rectrio_lib.core.errors import DataError, MissingArtefactError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.search import changes
from rectrio_lib.search.collection import Collection
from rectrio_lib.training import fine_tuning
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.two_phase import preferred

BACKBONE = "torchvision:squeezenet1_0"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Random weights in small: what is trained means nothing here, what becomes of it does."""
    monkeypatch.setattr(changes, "TRAINED_SIDE", 32)
    monkeypatch.setattr(fine_tuning, "HEAD", TrainConfig(2, 8, 0.003, loss="nt-xent", average=0.5))
    monkeypatch.setattr(fine_tuning, "BLOCKS", TrainConfig(1, 8, 1e-4, loss="nt-xent", average=0.5))
    folder = save_classes(tmp_path / "pets", each=16)
    return Collection.build(folder, BACKBONE, allow_random_weights=True)


def wins(name):
    return lambda figures, baseline: name


def test_a_better_encoder_is_saved_and_the_index_is_built_again(shop, monkeypatch):
    monkeypatch.setattr("rectrio_lib.training.two_phase.preferred", wins("phase 1"))
    before, file = shop.index.encoder_hash, shop.folder / "cat" / "00.png"
    shop.search(file)
    shop.calibrate()
    run = shop.train(epochs=1, blocks=1)
    assert shop.search(file, k=3).frame()["path"].tolist() == shop.search("cat/00.png", k=3).frame()["path"].tolist()
    assert shop.calibration is None
    assert run.best == "phase 1" and run.figures.keys() == {"frozen backbone", "phase 1", "phase 2"}
    assert (shop.encoder_name, shop.index.dim, len(shop.index)) == ("pets-tuned", fine_tuning.DIM, 32)
    assert shop.index.encoder_hash != before
    assert set(shop.index.rows["split"]) == {"train", "val", "test"}
    assert set(Workspace().cards("encoders")) >= {"pets-tuned", "pets-tuned-frozen"}
    assert Workspace().cards("encoders")["pets-tuned"]["trained_on"] == run.data.hash
    again = Collection.open("pets")
    found = again.search("cat/00.png", k=3)
    assert again.encoder_name == "pets-tuned" and found.frame().equals(shop.search("cat/00.png", k=3).frame())
    assert again.search(shop.folder / "cat" / "00.png", k=3).frame()["path"].tolist() == found.frame()["path"].tolist()


def test_kind_and_recall_that_were_asked_for_outlast_a_training(shop, monkeypatch):
    monkeypatch.setattr("rectrio_lib.training.two_phase.preferred", wins("phase 1"))
    shop = Collection.build(shop.folder, BACKBONE, kind="hnsw", recall=0.9, allow_random_weights=True)
    shop.train(epochs=1, blocks=1)
    assert (shop.index.kind, shop.encoder_name) == ("hnsw", "pets-tuned")
    assert shop.index.made_from["asked"] == {"kind": "hnsw", "recall": 0.9}


def test_a_collection_on_a_server_is_trained_there(shop, monkeypatch):
    pytest.importorskip("qdrant_client")
    monkeypatch.setattr("rectrio_lib.training.two_phase.preferred", wins("phase 1"))
    shop = Collection.build(shop.folder, BACKBONE, allow_random_weights=True, vectors="qdrant::memory:")
    shop.train(epochs=1, blocks=1)
    assert (shop.index.kind, shop.encoder_name, shop.index.dim) == ("qdrant", "pets-tuned", fine_tuning.DIM)


def test_an_encoder_that_is_not_better_is_not_used_and_that_is_said(shop, monkeypatch, caplog):
    monkeypatch.setattr("rectrio_lib.training.two_phase.preferred", wins("frozen backbone"))
    caplog.set_level(logging.INFO, "rectrio_lib")
    before = shop.index.encoder_hash
    assert shop.train(epochs=1, blocks=1).best == "frozen backbone"
    assert (shop.encoder_name, shop.index.encoder_hash) == ("torchvision-squeezenet1_0", before)
    assert "not better" in caplog.text and "pets-tuned" not in Workspace().cards("encoders")
    assert Collection.open("pets").index.encoder_hash == before


def test_what_cannot_be_trained_on_is_refused(folder, tmp_path):
    with pytest.raises(MissingArtefactError, match=BACKBONE):  # its weights; random ones stand in for nothing here
        Collection.build(folder, ENCODER).train(BACKBONE)
    flat = Collection.build(save_photographs(tmp_path / "flat", range(4)), BACKBONE, allow_random_weights=True)
    with pytest.raises(DataError, match="class folders"):
        flat.train()


def test_the_choice_is_that_of_chapter_3():
    figures = {
        "frozen backbone": {"map_at_r": 0.5, "recall_at_1": 0.8},
        "phase 1": {"map_at_r": 0.9, "recall_at_1": 0.7},
        "phase 2": {"map_at_r": 0.6, "recall_at_1": 0.8},
    }
    assert preferred(figures, fine_tuning.FROZEN) == "phase 2"
