"""Training on a folder of one's own, and going from it to a report."""

from pathlib import Path

import pandas as pd
import pytest
from makers.folders import ENCODER, save_classes, save_encoder_of_pixels, save_photographs

from rectrio_lib.chapters import own_images, runner
from rectrio_lib.chapters.chapter import choose_parameters
from rectrio_lib.core.errors import ArgumentError, MissingArtefactError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import dataset
from rectrio_lib.search import building
from rectrio_lib.search.collection import Collection

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calls(monkeypatch):
    """Stand in the place of the runner, and keep its arguments."""
    found = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runner, "run_chapters", lambda *arguments: found.append(arguments))
    return found


@pytest.fixture
def folder(tmp_path):
    save_encoder_of_pixels()
    return save_classes(tmp_path / "pets", each=12)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"size": 224, "resolution": 0, "batch_size": 9, "backbone": building.BACKBONE}),
        ({"backbone": "clip:ViT-B/32", "epochs": 3}, {"size": 224, "resolution": 0, "batch_size": 9, "epochs": 3}),
        ({"size": 64, "batch_size": 8}, {"size": 64, "batch_size": 8}),
    ],
)
def test_training_runs_chapter_3_with_what_the_folder_asks_for(folder, calls, given, expected):
    assert own_images.train(folder, rows=building.embed(folder, ENCODER)[0].select(), **given) == "pets-tuned"
    ((chosen, profile, parameters),) = calls
    assert [chapter.name[:2] for chapter in chosen] == ["03"] and profile is None
    wanted = {"dataset": "pets", "folder": str(folder.resolve()), "encoder": "pets-tuned", **expected}
    assert wanted.items() <= parameters.items()
    assert choose_parameters(chosen, None, parameters)[chosen[0].name] == parameters


def test_batches_hold_what_training_holds_of_distinct_readable_images(tmp_path, calls):
    save_encoder_of_pixels()
    folder = save_classes(tmp_path / "pets", each=12)
    for number in range(30):
        (folder / "cat" / f"copy {number}.png").write_bytes((folder / "cat" / "00.png").read_bytes())
        (folder / "dog" / f"broken {number}.png").write_bytes(b"no picture")
    rows = building.embed(folder, ENCODER)[0].select()
    own_images.train(folder, rows=rows)
    own_images.train(folder, rows=rows.assign(split=["test"] * 4 + ["train"] * 20))
    assert [parameters["batch_size"] for _, _, parameters in calls] == [9, 8]


def test_a_folder_that_cannot_be_trained_on_is_refused_before_the_chapter_runs(tmp_path, calls):
    save_encoder_of_pixels()
    with pytest.raises(ArgumentError, match="class folders"):
        own_images.train(save_photographs(tmp_path / "flat", range(4)), backbone=ENCODER)
    assert not calls


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["", ""], "no class folders"),
        (["cat"] * 20, "one class folder, cat"),
        (["cat"] * 20 + ["dog"], "dog"),
        (["cat"] * 20 + ["dog"] * 9, "1 of the 2 classes"),
        (["cat"] * 10 + ["dog"] * 10 + [""], ""),
    ],
)
def test_why_nothing_can_be_trained(labels, reason):
    found = own_images.why_untrained(pd.DataFrame({"label": labels}))
    assert reason in found and bool(found) == bool(reason)


def test_the_name_of_another_folder_is_refused_before_anything_is_replaced(folder, tmp_path):
    Collection.build(folder, ENCODER)
    other = save_classes(tmp_path / "elsewhere" / "pets", each=12)
    with pytest.raises(ArgumentError, match="pets"):
        own_images.run_folder(other, parameters={"backbone": ENCODER})
    assert not (tmp_path / "outputs" / "embeddings" / f"{ENCODER}--pets-2").exists()
    assert Collection.open().folder == folder.resolve()


@pytest.mark.parametrize(("kept", "said"), [(8, True), (4, False)])
def test_training_that_was_not_better_is_said(folder, monkeypatch, kept, said):
    """The chapter saves the frozen backbone under the trained one's name if validation prefers it."""

    def train(folder, name, rows, **parameters):
        save_encoder_of_pixels(8, "pets-tuned-frozen")
        return save_encoder_of_pixels(kept, "pets-tuned")

    decisions = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(own_images, "train", train)
    monkeypatch.setattr(own_images, "write_page", lambda shop, seen, report, decision: decisions.append(decision))
    data = dataset.prepare("pets", "folder", str(folder), 8, 3)
    dataset.save_dataset(*data)
    own_images.run_folder(folder, parameters={"backbone": ENCODER})
    assert ("not better" in decisions[0]) == said


def test_training_outside_of_a_checkout_is_refused(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkout"):
        own_images.train(folder)


def test_without_chapters_nothing_is_embedded_of_what_would_be_trained_on(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingArtefactError, match="holds no chapters"):
        own_images.run_folder(folder, parameters={"backbone": ENCODER})
    assert not Workspace().cards("embeddings")
