"""Training runs that are interrupted, killed or run out of disk, and what their next call makes of them."""

import errno
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from makers.processes import Child
from makers.training import CONFIG, Stopper, drawn, raising, same_run, small, train

from rectrio_lib.core.errors import StorageError
from rectrio_lib.encoders.convnet import ConvNet

TRAIN_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from makers.training import Stopper, train

def wait():
    Path(sys.argv[1], "waiting").touch()
    time.sleep(600)

train(sys.argv[1], validation=Stopper(2, wait))
"""  # stops in the second epoch


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=["interrupt", "exception"])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_never_been_stopped(tmp_path, caplog, uninterrupted, call, error):
    with pytest.raises(type(error)):
        train(tmp_path, validation=Stopper(call, raising(error)))
    said = caplog.text
    assert ("Stopped in epoch" in said) is isinstance(error, KeyboardInterrupt)
    counted = Stopper(0, None)
    same_run(train(tmp_path, validation=counted), uninterrupted)
    assert counted.calls == 3 - (call - 1)
    assert (f"Continuing after epoch {call - 1} of 3" in caplog.text) is (call > 1)


def test_a_run_stopped_twice_between_the_validations_of_an_epoch_goes_on_too(tmp_path):
    config = replace(CONFIG, validate_every=2, miner="distance-weighted")
    for call in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "a", config, Stopper(call, raising(KeyboardInterrupt())))
    same_run(train(tmp_path / "a", config), train(tmp_path / "b", config))


def test_a_killed_process_is_continued_by_another_one(tmp_path, uninterrupted):
    child = Child(TRAIN_UNTIL_KILLED, tmp_path)
    child.wait_until((tmp_path / "waiting").exists)
    child.kill()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1
    counted = Stopper(0, None)
    same_run(train(tmp_path, validation=counted), uninterrupted)
    assert counted.calls == 2


def full_disk_at(call):
    """A torch.save that leaves half a file and fails from the given call on."""
    calls = []

    def save(content, file):
        calls.append(1)
        if len(calls) >= call:
            file.write(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, file)

    real = torch.save
    return save


@pytest.mark.parametrize(("call", "whole"), [(1, None), (2, None), (3, 1), (4, 1), (6, 2)])
def test_a_full_disk_keeps_the_last_checkpoint_whole_and_the_run_goes_on_from_it(tmp_path, monkeypatch, call, whole):
    def better_and_better(encoder):  # so that each epoch writes best.pt, then last.pt
        return {"steps": float(encoder.project[1].num_batches_tracked)}

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(torch, "save", full_disk_at(call))
        train(tmp_path / "a", validation=better_and_better)
    last = tmp_path / "a" / "last.pt"
    assert (torch.load(last, weights_only=True)["epoch"] if last.exists() else None) == whole
    same_run(*(train(tmp_path / name, validation=better_and_better) for name in "ab"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_really_full_is_reported_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "0")  # part of the temporary name
    monkeypatch.setattr("rectrio_lib.core.files.STALE_SECONDS", math.inf)  # the device may be older than a day
    (tmp_path / "last.pt.0.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        train(tmp_path)


def test_checkpoints_hold_no_pickled_objects_and_leave_no_partial_file(tmp_path):
    train(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 3
    assert torch.load(tmp_path / "best.pt", weights_only=True).keys() == small().state_dict().keys()


CHANGES = {
    "configuration": {"config": replace(CONFIG, margin=0.3)},
    "network": {"make": lambda: ConvNet(1, 12, (8, "M", 8), 7, 0.2, 0.2)},
    "images": {"data": drawn(seed=5)},
    "targets": {"data": (drawn()[0], drawn()[1][::-1].copy())},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
def test_an_unfinished_run_of_something_else_is_not_continued(tmp_path, caplog, changed):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", validation=Stopper(3, raising(KeyboardInterrupt())))
    run = train(tmp_path / "a", **changed)
    assert "Continuing" not in caplog.text
    same_run(run, train(tmp_path / "b", **changed))


def test_best_weights_of_another_run_are_never_taken_for_this_ones(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, validation=Stopper(3, raising(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, replace(CONFIG, seed=7, validate_every=1), Stopper(3, raising(KeyboardInterrupt())))
    same_run(train(tmp_path), uninterrupted)


def test_a_finished_run_trains_again_when_it_is_called_again(tmp_path, caplog, uninterrupted):
    train(tmp_path)
    counted = Stopper(0, None)
    same_run(train(tmp_path, validation=counted), uninterrupted)
    assert counted.calls == 3
    assert "Continuing" not in caplog.text
