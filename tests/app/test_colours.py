"""Dominant colours."""

import numpy as np
import pytest

from rectrio_lib.app.images import colours


def plain(rgb, side=20):
    return np.broadcast_to(np.array(rgb, np.uint8)[:, None, None], (3, side, side))


@pytest.mark.parametrize("name", colours.NAMES)
def test_every_colour_is_its_own_name(name):
    assert colours.dominant(plain(colours.NAMES[name])) == name


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((255, 0, 0), "red"), ((0, 0, 255), "blue"), ((255, 255, 0), "yellow"), ((0, 0, 0), "black"),
     ((255, 255, 255), "white"), ((0, 200, 0), "green"), ((160, 160, 160), "grey"), ((90, 50, 20), "brown")],
)  # fmt: skip
def test_usual_colours_get_their_usual_names(rgb, name):
    assert colours.dominant(plain(rgb)) == name


def test_the_middle_counts_more_than_the_background():
    image = plain((255, 255, 255), 40).copy()
    image[:, 8:32, 8:32] = np.array([200, 20, 30], np.uint8)[:, None, None]  # 36 % of the image
    assert colours.dominant(image) == "red"


def test_lab_agrees_with_known_values():
    known = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.2, 80.1, 67.2), (0, 0, 255): (32.3, 79.2, -107.9)}
    for rgb, lab in known.items():
        np.testing.assert_allclose(colours._lab(np.array([rgb]))[0], lab, atol=0.3)
