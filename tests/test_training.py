import errno
import math
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrio_lib import training
from rectrio_lib.encoders import ConvNet, Encoder, fingerprint, load_encoder, save_encoder
from rectrio_lib.losses import MINERS
from rectrio_lib.shapes import draw_shapes
from rectrio_lib.training import CollapseWarning, TrainConfig, augment, fit

ROOT = Path(__file__).resolve().parents[1]
CONFIG = TrainConfig(epochs=3, batch_size=30, learning_rate=0.01, shift=1, erase=0.5, precision="no")


def drawn(objects=9, seed=0):
    """Pictures of 12 x 12 pixels and their class numbers."""
    pixels, frame = draw_shapes(objects, views=1, size=12, seed=seed)
    return pixels, np.unique(frame["label"], return_inverse=True)[1]


def small():
    return ConvNet(1, 12, (8, "M", 8), 6, 0.2, 0.2)


def nearest_hits(encoder, pixels, targets):
    """recall@1, each picture searched among all others."""
    similarity = (vectors := encoder.encode(pixels)) @ vectors.T
    np.fill_diagonal(similarity, -2)
    return float((targets[similarity.argmax(1)] == targets).mean())


def validate(encoder):
    return nearest_hits(encoder, *drawn(4, seed=1))


def train(folder, config=CONFIG, validation=validate, make=small, data=None):
    return fit(make, *(data or drawn()), config, validation, Path(folder))


class Stopper:
    """Validates as usual, except that the given call never returns."""

    def __init__(self, call, stop):
        self.calls, self.call, self.stop = 0, call, stop

    def __call__(self, encoder):
        self.calls += 1
        if self.calls == self.call:
            self.stop()
        return validate(encoder)


def train_until_killed(folder):
    """Run in a process of its own: stops in the second epoch and waits for the end."""

    def wait():
        Path(folder, "waiting").touch()
        time.sleep(600)

    train(folder, validation=Stopper(2, wait))


def raising(error):
    def stop():
        raise error

    return stop


def figures(history):
    return history.drop(columns="seconds")


def same_run(one, other):
    pd.testing.assert_frame_equal(figures(one.history), figures(other.history), check_exact=True)
    assert fingerprint(one.encoder) == fingerprint(other.encoder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


# --- learning


def test_training_makes_unseen_shapes_find_their_class(tmp_path):
    unseen = drawn(20, seed=1)
    config = TrainConfig(epochs=15, batch_size=75, learning_rate=0.01, shift=1, average=0.9, precision="no")

    def make():
        return ConvNet(1, 12, (16, "M", 32, "M", 32), 16, 0.2, 0.2)

    torch.manual_seed(config.seed)
    untrained = nearest_hits(make(), *unseen)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        trained = train(tmp_path, config, lambda e: nearest_hits(e, *unseen), make, drawn(60))
    assert nearest_hits(trained.encoder, *unseen) > untrained + 0.15
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    assert not trained.encoder.training


@pytest.mark.parametrize("miner", MINERS)
def test_the_same_seed_gives_the_same_curves_and_weights_and_another_one_others(tmp_path, miner):
    config = replace(CONFIG, epochs=2, miner=miner)
    first, again, other = (train(tmp_path / str(i), replace(config, seed=s)) for i, s in enumerate((0, 0, 1)))
    same_run(first, again)
    assert fingerprint(first.encoder) != fingerprint(other.encoder)
    assert not figures(first.history).equals(figures(other.history))


def test_curves_hold_every_tenth_step_every_validation_and_what_happened_there(uninterrupted):
    history = uninterrupted.history
    assert history["step"].tolist() == [3, 6, 9]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert len(uninterrupted.validations) == 3
    assert history["active"].between(0, 1).all() and history["recall_at_1"].between(0, 1).all()
    for name in ("loss", "positive_distance", "negative_distance"):
        assert history[name].between(0.01, 2).all()
    assert (np.diff(history["seconds"], append=uninterrupted.seconds) >= 0).all()


def test_long_epochs_are_looked_at_every_ten_steps_and_validated_at_their_end(tmp_path):
    run = train(tmp_path, replace(CONFIG, epochs=2, batch_size=6))
    assert run.history["step"].tolist() == [10, 15, 20, 30]
    assert run.validations["step"].tolist() == [15, 30]


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 6, 8, 9]), (100, [9])])
def test_validation_follows_its_own_rhythm_and_always_the_last_step(tmp_path, every, steps):
    run = train(tmp_path, replace(CONFIG, validate_every=every))
    assert run.validations["step"].tolist() == steps


@pytest.mark.parametrize("average", [0.0, 0.999])
def test_the_encoder_returned_and_best_pt_hold_the_weights_that_validated_best(tmp_path, average):
    seen = []

    def scripted(encoder):
        seen.append({key: value.clone() for key, value in encoder.state_dict().items()})
        return np.float64([0.2, 0.9, 0.4][len(seen) - 1])

    run = train(tmp_path, replace(CONFIG, average=average), scripted)
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    for state in (run.encoder.state_dict(), best):
        for key, value in seen[1].items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0)
    assert not torch.equal(seen[1]["project.0.weight"], seen[2]["project.0.weight"])
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best"] == 0.9


def test_the_average_of_the_weights_is_what_is_kept_unless_it_is_switched_off(tmp_path):
    kept = [train(tmp_path / str(a), replace(CONFIG, average=a)) for a in (0.0, 0.999)]
    assert fingerprint(kept[0].encoder) != fingerprint(kept[1].encoder)
    assert kept[0].history["loss"].equals(kept[1].history["loss"])


@pytest.mark.parametrize("average", [0.0, 0.999])
def test_a_trained_encoder_gives_the_same_vectors_after_saving_and_loading(tmp_path, average):
    trained = train(tmp_path, replace(CONFIG, average=average)).encoder
    save_encoder(trained, "net")
    np.testing.assert_allclose(load_encoder("net").encode(drawn()[0]), trained.encode(drawn()[0]), atol=1e-5)


def test_two_runs_in_one_process_may_have_different_precisions(tmp_path, uninterrupted):
    half = train(tmp_path, replace(CONFIG, precision="bf16"))
    assert half.history["loss"].between(0.01, 2).all()
    assert not half.history["loss"].equals(uninterrupted.history["loss"])


# --- stopped, and continued


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=["interrupt", "exception"])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_never_been_stopped(tmp_path, capsys, uninterrupted, call, error):
    with pytest.raises(type(error)):
        train(tmp_path, validation=Stopper(call, raising(error)))
    said = capsys.readouterr().out
    assert ("Stopped in epoch" in said) is isinstance(error, KeyboardInterrupt)
    counted = Stopper(0, None)
    same_run(train(tmp_path, validation=counted), uninterrupted)
    assert counted.calls == 3 - (call - 1)
    assert (f"Going on after epoch {call - 1} of 3" in capsys.readouterr().out) is (call > 1)


def test_a_run_stopped_twice_between_the_validations_of_an_epoch_goes_on_too(tmp_path):
    config = replace(CONFIG, validate_every=2, miner="distance-weighted")
    for call in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "a", config, Stopper(call, raising(KeyboardInterrupt())))
    same_run(train(tmp_path / "a", config), train(tmp_path / "b", config))


def test_a_killed_process_is_continued_by_another_one(tmp_path, uninterrupted):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    code = "import sys, test_training; test_training.train_until_killed(sys.argv[1])"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    try:
        while not (tmp_path / "waiting").exists():
            assert child.poll() is None, "the training ended by itself"
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
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
        return float(encoder.project[1].num_batches_tracked)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(training.torch, "save", full_disk_at(call))
        train(tmp_path / "a", validation=better_and_better)
    last = tmp_path / "a" / "last.pt"
    assert (torch.load(last, weights_only=True)["epoch"] if last.exists() else None) == whole
    same_run(*(train(tmp_path / name, validation=better_and_better) for name in "ab"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_really_full_is_reported_as_such(tmp_path):
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        train(tmp_path)


def test_checkpoints_hold_no_pickled_objects_and_leave_no_partial_file(tmp_path):
    train(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 3
    assert torch.load(tmp_path / "best.pt", weights_only=True).keys() == small().state_dict().keys()


CHANGES = {
    "configuration": {"config": replace(CONFIG, margin=0.3)},
    "network": {"make": lambda: ConvNet(1, 12, (8, "M", 8), 7, 0.2, 0.2)},
    "pictures": {"data": drawn(seed=5)},
    "targets": {"data": (drawn()[0], drawn()[1][::-1].copy())},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
def test_an_unfinished_run_of_something_else_is_not_continued(tmp_path, capsys, changed):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", validation=Stopper(3, raising(KeyboardInterrupt())))
    run = train(tmp_path / "a", **changed)
    assert "Going on" not in capsys.readouterr().out
    same_run(run, train(tmp_path / "b", **changed))


def test_best_weights_of_another_run_are_never_taken_for_this_ones(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, validation=Stopper(3, raising(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, replace(CONFIG, seed=7, validate_every=1), Stopper(3, raising(KeyboardInterrupt())))
    same_run(train(tmp_path), uninterrupted)


def test_a_finished_run_trains_anew_when_it_is_called_again(tmp_path, capsys, uninterrupted):
    train(tmp_path)
    counted = Stopper(0, None)
    same_run(train(tmp_path, validation=counted), uninterrupted)
    assert counted.calls == 3
    assert "Going on" not in capsys.readouterr().out


# --- collapse


class Point(Encoder):
    """Sends every picture to the same point."""

    kind, dim = "point", 4

    def __init__(self):
        super().__init__(size=12)
        self.place = torch.nn.Parameter(torch.ones(4))

    def forward(self, images):
        return F.normalize(self.place.expand(len(images), -1))


def test_a_collapse_is_reported_with_its_remedy(tmp_path):
    with pytest.warns(CollapseWarning, match=r"Collapse at step \d\d: .* 'all' or 'semihard', a lower learning rate"):
        train(tmp_path, replace(CONFIG, batch_size=6), lambda encoder: 0.1, Point)


def test_healthy_training_and_batches_without_a_negative_raise_no_alarm(tmp_path):
    images, _ = drawn()
    rare = np.zeros(len(images), np.int64)
    rare[0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        train(tmp_path, replace(CONFIG, batch_size=6))
        run = train(tmp_path, replace(CONFIG, batch_size=6), lambda encoder: 0.1, data=(images, rare))
    assert run.history["negative_distance"].isna().any()


# --- what is refused


@pytest.mark.parametrize(
    ("targets", "counted"),
    [([3] * 20, "20 pictures of 1 classes"), (list(range(20)), "20 pictures of 20 classes"), ([], "0 pictures of 0")],
)
def test_targets_that_make_no_triplet_are_refused(tmp_path, targets, counted):
    data = (np.zeros((len(targets), 1, 12, 12), np.uint8), np.array(targets, np.int64))
    with pytest.raises(ValueError, match=f"at least two classes, and two pictures of one.*{counted}"):
        train(tmp_path, replace(CONFIG, batch_size=4), data=data)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 91}, {"batch_size": 2}])
def test_impossible_epochs_and_batch_sizes_are_refused_with_the_bounds_named(tmp_path, change):
    with pytest.raises(ValueError, match="do not fit 90 training pictures: at least one epoch, and batches of 3 to 90"):
        train(tmp_path, replace(CONFIG, **change))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "sentence"), [({"miner": "x"}, "miner='x' is unknown"), ({"margin": 0}, "above 0")])
def test_an_impossible_loss_is_refused_before_anything_is_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path, replace(CONFIG, **change))
    assert not any(tmp_path.iterdir())


# --- augmentation

SIZES = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(7, 16))


def noise(shape, low=1):
    count, channels, size = shape
    return torch.randint(low, 256, (count, channels, size, size), dtype=torch.uint8)


@settings(deadline=None, max_examples=40)
@given(SIZES, st.integers(0, 4), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**32))
def test_augmented_pictures_keep_shape_and_type_and_follow_the_seed(shape, shift, flip, erase, seed):
    images = noise(shape)
    found = []
    for _ in range(2):
        torch.manual_seed(seed)
        found.append(augment(images, shift, flip, erase))
    assert (found[0].shape, found[0].dtype) == (images.shape, torch.uint8)
    assert torch.equal(*found)


def test_augmentation_that_is_switched_off_changes_nothing():
    images = noise((5, 3, 9))
    assert torch.equal(augment(images, shift=0, flip=False, erase=0.0), images)


def moved(image, down, right):
    """The picture moved over black, pixel by pixel."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = image[:, y - down, x - right]
    return result


@pytest.mark.parametrize("shift", [1, 2])
def test_shift_moves_each_picture_by_itself_by_up_to_so_many_pixels_over_black(shift):
    torch.manual_seed(0)
    image = noise((1, 3, 7))[0]
    steps = range(-shift, shift + 1)
    places = {moved(image, down, right).numpy().tobytes() for down in steps for right in steps}
    batch = augment(image.expand(400, -1, -1, -1), shift, flip=False)
    assert {picture.numpy().tobytes() for picture in batch} == places
    assert len(places) == (2 * shift + 1) ** 2


def test_flip_mirrors_about_half_of_the_pictures_and_leaves_the_others():
    torch.manual_seed(0)
    images = noise((400, 1, 8))
    batch = augment(images, shift=0, flip=True)
    mirrored = (batch == images.flip(-1)).flatten(1).all(1)
    assert ((batch == images).flatten(1).all(1) ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_erase_blanks_one_box_of_the_named_size_in_about_the_asked_share_of_the_pictures(share):
    torch.manual_seed(0)
    images = noise((600, 3, 28))
    batch = augment(images, shift=0, flip=False, erase=share)
    blank = (batch == 0).all(1)
    assert torch.equal(batch, images.masked_fill(blank[:, None], 0))
    hit = blank.flatten(1).any(1)
    assert abs(hit.float().mean().item() - share) < 0.06
    sides = []
    for box in blank[hit]:
        tall, wide = box.any(1).nonzero(), box.any(0).nonzero()
        sides.append((int(tall.max() - tall.min()) + 1, int(wide.max() - wide.min()) + 1))
        assert box.sum() == math.prod(sides[-1])
    assert {side for pair in sides for side in pair} == set(range(28 // 7, 3 * 28 // 7 + 1))
    corners = blank[:, 0].any(1).any() and blank[:, -1].any(1).any()
    assert corners and blank[:, :, 0].any() and blank[:, :, -1].any()
