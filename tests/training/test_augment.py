import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from rectrio_lib.training.augment import PerImage, RandomView, augment

SIZES = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(7, 16))


def noise(shape, low=1):
    count, channels, size = shape
    return torch.randint(low, 256, (count, channels, size, size), dtype=torch.uint8)


@settings(deadline=None, max_examples=40)
@given(SIZES, st.integers(0, 4), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**32))
def test_augmented_images_keep_shape_and_type_and_follow_the_seed(shape, shift, flip, erase, seed):
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
    """The image moved over black, pixel by pixel."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = image[:, y - down, x - right]
    return result


@pytest.mark.parametrize("shift", [1, 2])
def test_shift_moves_each_image_by_up_to_that_many_pixels_over_black(shift):
    torch.manual_seed(0)
    image = noise((1, 3, 7))[0]
    steps = range(-shift, shift + 1)
    places = {moved(image, down, right).numpy().tobytes() for down in steps for right in steps}
    batch = augment(image.expand(400, -1, -1, -1), shift, flip=False)
    assert {image.numpy().tobytes() for image in batch} == places
    assert len(places) == (2 * shift + 1) ** 2


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    torch.manual_seed(0)
    images = noise((400, 1, 8))
    batch = augment(images, shift=0, flip=True)
    mirrored = (batch == images.flip(-1)).flatten(1).all(1)
    assert ((batch == images).flatten(1).all(1) ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_erase_blanks_one_box_of_the_named_size_in_about_the_asked_share_of_the_images(share):
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


# --- one by one, and cached views


class Shade(torch.nn.Module):
    """Adds one random number to a whole image."""

    def forward(self, image):
        return image + torch.randint(1, 100, (), dtype=torch.uint8)


def test_each_image_of_a_batch_is_augmented_independently_and_by_the_seed():
    images = torch.zeros(20, 3, 5, 5, dtype=torch.uint8)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(PerImage(Shade())(images))
    assert (found[0].shape, found[0].dtype) == (images.shape, torch.uint8)
    assert len(found[0].flatten(1).unique(dim=0)) > 10, "one number per image"
    assert all(len(image.unique()) == 1 for image in found[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_per_image_keeps_the_order_of_the_images_and_its_repr_tells_transforms_apart():
    images = noise((6, 3, 8))
    assert torch.equal(PerImage(v2.RandomHorizontalFlip(1.0))(images), images.flip(-1))
    assert repr(PerImage(v2.RandomHorizontalFlip(0.5))) != repr(PerImage(v2.RandomHorizontalFlip(0.6)))


def test_a_random_view_is_any_view_but_always_of_the_right_image():
    views = torch.arange(400)[:, None, None] * 10.0 + torch.arange(4)[:, None] + torch.zeros(400, 4, 3)
    picked = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        picked.append(RandomView()(views))
    assert picked[0].shape == (400, 3)
    assert torch.equal(picked[0][:, 0] // 10, torch.arange(400.0))
    counts = (picked[0][:, 0] % 10).long().bincount()
    assert len(counts) == 4 and counts.min() > 60, "no view is left out"
    assert torch.equal(picked[0], picked[1]) and not torch.equal(picked[0], picked[2])


def test_the_random_view_of_a_single_one_is_that_one_and_draws_no_number():
    views = torch.rand(5, 1, 3)
    before = torch.get_rng_state()
    assert torch.equal(RandomView()(views), views[:, 0])
    assert torch.equal(torch.get_rng_state(), before)
