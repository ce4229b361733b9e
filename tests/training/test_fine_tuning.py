"""Both phases in one call, and the choice between them."""

import numpy as np
import pandas as pd
import pytest
import torch
from makers.networks import SQUEEZENET, pretrained
from makers.training import photos

from rectrio_lib.core import device as device_module
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data.dataset import ImageDataset, make_manifest
from rectrio_lib.evaluation.retrieval import evaluate
from rectrio_lib.training import cut, fine_tuning, two_phase
from rectrio_lib.training.config import TrainConfig


@pytest.fixture(autouse=True)
def small_runs(monkeypatch):
    monkeypatch.setattr(device_module, "best_precision", lambda device: "no")
    monkeypatch.setattr(fine_tuning, "HEAD", TrainConfig(3, 8, 0.003, loss="nt-xent", temperature=0.25, average=0.5))
    monkeypatch.setattr(fine_tuning, "BLOCKS", TrainConfig(1, 8, 1e-4, backbone_rate=1.0, loss="nt-xent", average=0.5))


def colours(count=32):
    images, targets = photos(count)
    splits = np.resize(["train"] * 8 + ["val"] * 4 + ["test"] * 4, count)
    frame = pd.DataFrame({"label": [f"c{target}" for target in targets], "split": splits})
    return ImageDataset("colours", make_manifest(images, frame), images, ("c0", "c1", "c2", "c3"), "drawn")


def test_both_phases_run_and_their_figures_are_those_of_the_validation_images(tmp_path, monkeypatch):
    monkeypatch.setattr(cut.Lower, "stored", np.float32)  # 16 bits decide between neighbours as near as here
    frozen, data, workspace = pretrained(SQUEEZENET, stand_in=True), colours(), Workspace(tmp_path / "mine")
    run = fine_tuning.fine_tune(frozen, data, tmp_path / "runs", epochs=1, blocks=2, workspace=workspace)
    assert list(run.encoders) == list(run.figures) == ["frozen backbone", "phase 1", "phase 2"]
    assert run.best == two_phase.preferred(run.figures, "frozen backbone")
    assert run.encoders["frozen backbone"] is frozen and run.encoders["phase 2"].dim == fine_tuning.DIM
    val, train = data.where("val"), data.where("train")
    for name, encoder in run.encoders.items():
        vectors = encoder.encode(val.images), val.targets, encoder.encode(train.images), train.targets
        means = evaluate(*vectors, ks=(1,), knn=1).means()
        assert run.figures[name] == pytest.approx({key: means[key] for key in ("map_at_r", "recall_at_1")}, abs=1e-4)
    assert (workspace.outputs / "features").is_dir() and not (Workspace().outputs / "features").exists()
    again = fine_tuning.fine_tune(frozen, data, tmp_path / "again", epochs=1, blocks=2, workspace=workspace)
    assert again.figures == run.figures


def test_likely_copies_come_to_one_side_before_training(tmp_path, monkeypatch):
    data, workspace = colours(), Workspace(tmp_path)
    pair = [np.flatnonzero(data.manifest["split"] == split)[0] for split in ("train", "val")]
    monkeypatch.setattr(fine_tuning, "similar_pairs", lambda features: np.array([pair]))
    run = fine_tuning.fine_tune(pretrained(), data, tmp_path / "runs", epochs=1, blocks=99, workspace=workspace)
    assert data.manifest["split"].iloc[pair].tolist() == ["train", "val"]
    assert run.data.manifest["split"].iloc[pair].tolist() == ["train", "train"]
    assert run.data.manifest["group"].iloc[pair[0]] == run.data.manifest["group"].iloc[pair[1]]


def test_augmentation_changes_images_and_keeps_their_shape():
    image = photos(1)[0][0]
    changed = fine_tuning.augmentation(32)(torch.as_tensor(image))
    assert changed.shape == (3, 32, 32) and changed.dtype == torch.uint8
    assert not np.array_equal(changed.numpy(), image)
