import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.networks import pictures, small
from makers.processes import Child

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import base
from rectrio_lib.training.augment import PerImage, augment
from rectrio_lib.training.feature_cache import cache_features


class Noise(torch.nn.Module):
    """An augmentation that adds noise to every pixel."""

    def __init__(self, most=60):
        super().__init__()
        self.most = most

    def forward(self, images):
        return augment(images, 2) ^ torch.randint(0, self.most, images.shape, dtype=torch.uint8)

    def extra_repr(self):
        return f"most={self.most}"


class Counted:
    """Counts how many images an encoder is given."""

    def __init__(self, monkeypatch):
        self.images, real = 0, base.Encoder.encode

        def encode(encoder, images, progress=""):
            self.images += len(images)
            return real(encoder, images, progress)

        monkeypatch.setattr(base.Encoder, "encode", encode)


def files():
    return sorted(path.name for path in (Workspace().outputs / "features").iterdir())


def test_features_are_unit_vectors_a_view_each():
    found = cache_features(small(), pictures(9), Noise(), views=3)
    assert (found.shape, found.dtype) == ((9, 3, 10), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-5)
    np.testing.assert_array_equal(cache_features(small(), pictures(9))[:, 0], small().encode(pictures(9)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.abs(found[:, one] - found[:, other]).max(1) > 1e-3).all(), "each image augmented in another way"


@pytest.mark.parametrize("views", [1, 3])
def test_a_second_call_reads_from_disk_what_the_first_one_encoded(monkeypatch, views):
    counted = Counted(monkeypatch)
    first = cache_features(small(), pictures(), Noise(), views)
    assert counted.images == 7 * views
    again = cache_features(small(), pictures(), Noise(), views)
    assert counted.images == 7 * views
    np.testing.assert_array_equal(first, again)
    assert isinstance(again, np.memmap)
    assert len(files()) == 1


PLAIN = {"encoder": small(), "images": pictures(), "augmentation": Noise(), "views": 2, "seed": 0}
CHANGES = {
    "encoder": small(1),
    "images": pictures(seed=1),
    "augmentation": Noise(61),
    "views": 3,
    "seed": 1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_anything_else_is_computed_again(name):
    plain, other = (np.array(cache_features(**asked)) for asked in (PLAIN, {**PLAIN, name: CHANGES[name]}))
    assert len(files()) == 2
    assert not np.array_equal(plain, other)


def test_images_of_the_same_bytes_but_another_shape_are_computed_again():
    encoder = base.RawPixels(1, 12)
    cache_features(encoder, pictures())
    with pytest.raises(ArgumentError, match="12, 12"):
        cache_features(encoder, pictures().reshape(7, 1, 6, 24))


def test_other_images_of_a_memory_map_are_told_apart_and_equal_ones_recognised(tmp_path, monkeypatch):
    np.save(tmp_path / "pixels.npy", pictures())
    cache_features(small(), pictures())
    counted = Counted(monkeypatch)
    cache_features(small(), np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    assert counted.images == 0


def test_augmentations_follow_their_seed_and_leave_the_global_one_alone(monkeypatch):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = np.array(cache_features(**PLAIN))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    (Workspace().outputs / "features" / files()[0]).unlink()
    np.testing.assert_array_equal(cache_features(**PLAIN), first)


def test_every_image_is_encoded_however_they_fall_into_batches(monkeypatch):
    monkeypatch.setattr(base, "BATCH", 3)
    found = cache_features(small(), pictures(), PerImage(torch.nn.Identity()), views=2)
    np.testing.assert_allclose(found[:, 1], cache_features(small(), pictures())[:, 0], atol=0.03)


@pytest.mark.parametrize("arguments", [{"views": 0}, {"views": 2}, {"views": -1, "augmentation": Noise()}])
def test_no_view_or_several_without_an_augmentation_are_refused(arguments):
    with pytest.raises(ArgumentError, match=f"views={arguments['views']}: "):
        cache_features(small(), pictures(), **arguments)
    assert not (Workspace().outputs / "features").exists()


@pytest.mark.parametrize("call", [1, 2])
def test_a_stopped_call_leaves_nothing_that_is_taken_for_whole(monkeypatch, call):
    expected = np.array(cache_features(**PLAIN))
    (name,) = files()
    (Workspace().outputs / "features" / name).unlink()
    calls, real = [], base.Encoder.encode

    def stop(encoder, *arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(encoder, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(base.Encoder, "encode", stop)
        cache_features(**PLAIN)
    assert name not in files()
    np.testing.assert_array_equal(cache_features(**PLAIN), expected)
    assert files() == [name]


def start(function):
    """Start a process that runs a function of this file."""
    return Child(
        "import sys; from importlib.util import *; spec = spec_from_file_location('child', sys.argv[1]); "
        "child = module_from_spec(spec); spec.loader.exec_module(child); getattr(child, sys.argv[2])()",
        __file__,
        function.__name__,
    )


def die_in_the_second_view():
    """Run in another process."""

    class Deadly(Noise):
        def forward(self, images):
            os._exit(9)

    Deadly.__name__ = "Noise"
    cache_features(**{**PLAIN, "augmentation": Deadly()})


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole():
    assert start(die_in_the_second_view).wait() == (9, "")
    (left,) = files()
    assert left.endswith(".part")
    name = f"{left.partition('.')[0]}.npy"
    found = cache_features(**PLAIN)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-5)
    assert files() == sorted([left, name])
    a_week_ago = time.time() - 7 * 24 * 3600
    os.utime(Workspace().outputs / "features" / left, (a_week_ago, a_week_ago))
    (Workspace().outputs / "features" / name).unlink()
    cache_features(**PLAIN)
    assert files() == [name], "what a killed process left goes in time"


def wait_for_the_other():
    """Run in two processes: neither ends a view before both have begun."""
    meeting = Path(os.environ["MEETING"])

    class Patient(Noise):
        def forward(self, images):
            (meeting / str(os.getpid())).touch()
            while len(list(meeting.iterdir())) < 2:
                time.sleep(0.02)
            return super().forward(images)

    Patient.__name__ = "Noise"
    np.save(os.environ["RESULT"] + f"{os.getpid()}.npy", cache_features(**{**PLAIN, "augmentation": Patient()}))


def test_two_processes_that_cache_the_same_features_at_once_do_not_collide(tmp_path, monkeypatch):
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv("MEETING", str(tmp_path / "meeting"))
    monkeypatch.setenv("RESULT", str(tmp_path / "result"))
    children = [start(wait_for_the_other) for _ in range(2)]
    assert [child.wait() for child in children] == [(0, "")] * 2
    results = [np.load(path) for path in tmp_path.glob("result*.npy")]
    assert len(results) == 2 and len(files()) == 1
    for result in results:
        np.testing.assert_array_equal(result, cache_features(**PLAIN))
