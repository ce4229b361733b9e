from dataclasses import replace

import numpy as np
import pytest
from makers.training import CONFIG, train

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.training.config import check


@pytest.mark.parametrize(
    ("targets", "counted"),
    [
        ([3] * 20, "images: 20, classes: 1[.]"),
        (list(range(20)), "images: 20, classes: 20"),
        ([], "images: 0, classes: 0"),
    ],
)
def test_targets_that_make_no_triplet_are_refused(tmp_path, targets, counted):
    data = (np.zeros((len(targets), 1, 12, 12), np.uint8), np.array(targets, np.int64))
    with pytest.raises(ArgumentError, match=counted):
        train(tmp_path, replace(CONFIG, batch_size=4), data=data)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 91}, {"batch_size": 2}])
def test_impossible_epochs_and_batch_sizes_are_refused_with_the_bounds_named(tmp_path, change):
    with pytest.raises(ArgumentError, match=r"90 images: .* 3 to 90"):
        train(tmp_path, replace(CONFIG, **change))
    assert not any(tmp_path.iterdir())


def sizes(*counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(("accumulate", "most"), [(0, 3), (4, 3), (-1, 3)])
def test_more_accumulated_batches_than_an_epoch_has_are_refused_with_the_range_named(accumulate, most):
    with pytest.raises(ArgumentError, match=f"accumulate={accumulate}: .* 1 to {most}"):
        check(sizes(50, 45), replace(CONFIG, accumulate=accumulate))


@pytest.mark.parametrize(
    ("per_class", "batch_size"),
    [(1, 30), (-2, 30), (7, 30), (30, 30), (20, 30), (6, 30)],
    ids=["one of each", "negative", "a remainder", "one class", "one and a half", "more classes than there are"],
)
def test_a_batch_that_cannot_hold_per_class_images_of_two_classes_is_refused(per_class, batch_size):
    with pytest.raises(ArgumentError, match=f"per_class={per_class} .* batch_size={batch_size}: .* 2 to 4 classes"):
        check(sizes(20, 20, 20, 20), replace(CONFIG, per_class=per_class, batch_size=batch_size))


def test_a_batch_of_more_classes_than_there_are_is_told_with_their_number():
    with pytest.raises(ArgumentError, match=r"2 to 4 classes; these numbers ask for 6 of 5\.$"):
        check(sizes(20, 20, 20, 20), replace(CONFIG, per_class=6, batch_size=30))


@pytest.mark.parametrize(
    "change",
    [{}, {"per_class": 15}, {"per_class": 10}, {"accumulate": 2}, {"batch_size": 3}, {"batch_size": 80}],
)
def test_what_fits_is_let_pass(change):
    check(sizes(20, 20, 20, 20), replace(CONFIG, **change))


def test_classes_of_one_image_are_accepted_as_long_as_another_has_two():
    check(sizes(2, 1, 1), replace(CONFIG, batch_size=4))
