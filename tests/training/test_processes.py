"""Training on several processes: as on one, and ended as one."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.networks import pretrained
from makers.sharing import Dropping, Failing, normalize_alone, normalize_shared
from makers.training import CONFIG, Stopper, drawn, photos, raising, train, validate_photos
from torchvision.transforms import v2

from rectrio_lib.core.errors import ArgumentError, ProcessError
from rectrio_lib.encoders.pretrained import ProjectionHead
from rectrio_lib.encoders.registry import fingerprint
from rectrio_lib.training import two_phase
from rectrio_lib.training.config import TrainConfig
from rectrio_lib.training.distributed import processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
    pytest.mark.filterwarnings("ignore::rectrio_lib.training.loop.CollapseWarning"),
    pytest.mark.skipif((torch.cuda.device_count() or os.cpu_count() or 1) < 2, reason="needs two cores, or two GPUs"),
]
ROOT = Path(__file__).resolve().parents[2]
TWO = replace(CONFIG, processes=2)


@pytest.fixture(scope="module", autouse=True)
def ended():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    processes.dismiss()
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"))


def alike(one, other):
    columns = ["step", "loss", "active", "positive_distance", "negative_distance", "learning_rate", "recall_at_1"]
    np.testing.assert_allclose(one.history[columns], other.history[columns], atol=1e-3)
    for (name, weights), others in zip(
        one.encoder.state_dict().items(), other.encoder.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(weights, others, rtol=1e-2, atol=1e-3, msg=name)


# --- the same training


CONFIGS = {
    "as it is": {},
    "shares of unequal size, fifty steps": {"batch_size": 13, "epochs": 9, "learning_rate": 1e-3},
    "accumulated, by class": {"batch_size": 12, "accumulate": 2, "per_class": 4},
    "weights of the loss": {"loss": "normalized-softmax"},
    "drawn triplets, no average": {"miner": "distance-weighted", "average": 0.0},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_two_processes_train_as_one_does(tmp_path, changes):
    config = replace(CONFIG, validate_every=1, **changes)
    runs = [train(tmp_path / str(n), replace(config, processes=n)) for n in (1, 2)]
    alike(*runs)
    assert len(runs[1].history) >= 9
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == ["best.pt", "last.pt"]
    assert not any(path.suffix == ".new" for path in tmp_path.iterdir())


def test_the_environment_says_how_many_and_the_figures_are_validated_once(tmp_path, alone, monkeypatch):
    monkeypatch.setenv("RECTRIO_PROCESSES", "2")
    threads, counted = torch.get_num_threads(), Stopper(0, None)
    alike(train(tmp_path, validation=counted), alone)
    assert counted.calls == 3 and torch.get_num_threads() == threads and "LOCAL_RANK" not in os.environ
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (7, 5)])
def test_batch_norm_and_its_gradients_are_those_of_the_whole_batch(tmp_path, shape):
    with processes.helped(2, normalize_shared, (shape, tmp_path), {}, tmp_path / "scratch"):
        normalize_shared(shape, tmp_path)
    expected = normalize_alone(shape)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    expected_rows = expected.pop("rows")
    torch.testing.assert_close(torch.cat([part.pop("rows") for part in parts]), expected_rows)
    for part in parts:
        torch.testing.assert_close(part, expected)


def seen_by(calls):
    return lambda encoder: {"call": next(calls)}


def test_both_phases_of_fine_tuning_run_on_two_processes(tmp_path, monkeypatch):
    frozen, (images, targets), runs = pretrained(), photos(), []
    config = TrainConfig(2, 7, 1e-3, average=0.5, precision="no", loss="nt-xent", miner="all")
    features, flip = frozen.encode(images), v2.RandomHorizontalFlip()
    for count in (1, 2):
        monkeypatch.setenv("RECTRIO_PROCESSES", str(count))
        folder = tmp_path / str(count)
        given = two_phase.augmented_features(frozen, features, images, flip, 1), targets, config
        watch = seen_by(iter(range(9)))
        head = two_phase.train_head(lambda: ProjectionHead(frozen.dim, 6, 5), *given, watch, folder / "head")
        given = images, targets, config, validate_photos, folder / "blocks", 2, flip
        runs.append((head, two_phase.train_blocks(frozen, head.encoder, *given)))
    for one, other in zip(*runs, strict=True):
        np.testing.assert_allclose(one.history["loss"], other.history["loss"], atol=1e-3)
    vectors = [blocks.encoder.encode(images) for _, blocks in runs]
    np.testing.assert_allclose(*vectors, atol=1e-2)


def test_dropout_differs_between_shares_and_weights_without_a_gradient_are_left_alone(tmp_path):
    first, again = (train(tmp_path / str(i), TWO, make=Dropping) for i in (0, 1))
    assert fingerprint(first.encoder) == fingerprint(again.encoder)
    assert first.encoder.unused.item() == 1


# --- stopped and continued


def test_a_run_stopped_by_ctrl_c_goes_on_with_any_number_of_processes(tmp_path, caplog, alone):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "2", TWO, Stopper(3, raising(KeyboardInterrupt())))
    assert caplog.text.count("Stopped in epoch 3") == 1 and not multiprocessing.active_children()
    shutil.copytree(tmp_path / "2", tmp_path / "1")
    for count in (1, 2):
        alike(train(tmp_path / str(count), replace(CONFIG, processes=count)), alone)
    assert caplog.text.count("Continuing after epoch 2 of 3") == 2


@pytest.mark.parametrize(("how", "told"), [("killed", "signal 9"), ("raised", "ValueError: broken here")])
def test_a_process_that_ends_ends_all_with_its_reason(tmp_path, how, told):
    with pytest.raises(ProcessError, match=f"Process 2 of 2 ended: .*{told}"):
        train(tmp_path, TWO, augmentation=Failing(5, how))
    assert not multiprocessing.active_children()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1
    assert [path.name for path in tmp_path.parent.iterdir() if path.suffix == ".new"] == []


def test_processes_started_from_outside_share_a_training_too(tmp_path, alone):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from makers.training import CONFIG, Stopper, fingerprint, train\n"
        "counted = Stopper(0, None)\n"
        "run = train(sys.argv[1], CONFIG, counted)\n"
        "told = os.environ['RANK'], counted.calls, fingerprint(run.encoder), run.history['loss'].iloc[-1]\n"
        "open(sys.argv[1] + told[0], 'w').write(' '.join(map(str, told)))\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = [(tmp_path / f"run{rank}").read_text().split() for rank in (0, 1)]
    assert [calls for _, calls, *_ in told] == ["3", "0"] and told[0][2:] == told[1][2:]
    assert float(told[0][3]) == pytest.approx(alone.history["loss"].iloc[-1], abs=1e-3)


# --- what is refused


@pytest.mark.parametrize("count", [-1, 1000])
def test_more_processes_than_cores_are_refused(tmp_path, count):
    with pytest.raises(ArgumentError, match=f"processes={count}.* choose 1 to"):
        train(tmp_path, replace(CONFIG, processes=count))


def test_a_setting_that_is_no_number_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTRIO_PROCESSES", "many")
    with pytest.raises(ArgumentError, match="'many'"):
        train(tmp_path)


def test_an_augmentation_that_other_processes_cannot_import_is_refused(tmp_path):
    class Local(torch.nn.Module):
        def forward(self, images):
            return images

    with pytest.raises(ArgumentError, match=r"Local.* torchrun"):
        train(tmp_path, TWO, augmentation=Local())
    assert not any(tmp_path.iterdir())


def test_a_batch_smaller_than_the_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rectrio_lib.training.checkpoint.Accelerator.num_processes", 4)
    with pytest.raises(ArgumentError, match="3 images cannot be shared by 4"):
        train(tmp_path, TrainConfig(batch_size=3), data=drawn(2))
