"""Dominant colours."""

import numpy as np
import pytest
from makers.indexes import built, named, unit

from rectrio_lib.app import hybrid
from rectrio_lib.app.images import colours
from rectrio_lib.index import live
from rectrio_lib.index.live import LiveIndex
from rectrio_lib.search.ranking.words import bm25


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


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0)])
def test_an_even_background_does_not_count(background):
    image = plain(background, 40).copy()
    image[:, 10:25, 10:25] = np.array([200, 20, 30], np.uint8)[:, None, None]  # 14 % of the image
    assert colours.dominant(image) == "red"
    image[:, 10:25, 10:25] = np.array(background, np.uint8)[:, None, None]
    image[:, 20:22, 20:22] = 128  # a speck
    assert colours.dominant(image) == {255: "white", 0: "black"}[background[0]]


def test_without_an_even_margin_the_most_frequent_colour_counts():
    image = plain((40, 90, 190), 40).copy()
    image[:, :15] = np.array([200, 20, 30], np.uint8)[:, None, None]
    assert colours.dominant(image) == "blue"


def test_lab_agrees_with_known_values():
    known = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.2, 80.1, 67.2), (0, 0, 255): (32.3, 79.2, -107.9)}
    for rgb, lab in known.items():
        np.testing.assert_allclose(colours._lab(np.array([rgb]))[0], lab, atol=0.3)


def test_words_are_counted_again_only_near_images_whose_colour_was_found(monkeypatch):
    index, _ = built(count=10)
    rows = named(0, 10).assign(path=[f"cat {i}" for i in range(10)], colour=None)
    served = LiveIndex(index, rows)
    served.add(unit(np.random.default_rng(1), 2), rows.iloc[:2].assign(image_id=["new", "newer"]).to_dict("records"))
    counted, count = [], hybrid.WordCounts
    monkeypatch.setattr(live, "DERIVED_ROWS", 4)
    monkeypatch.setattr(hybrid, "WordCounts", lambda rows: counted.append(len(rows)) or count(rows))

    def relevant(word):
        del counted[:]
        return np.flatnonzero(bm25(hybrid._counted(served.current), word)).tolist()

    assert (relevant("cat"), counted) == ([*range(12)], [4, 4, 2, 2])
    assert (relevant("red"), counted) == ([], [])
    served.update([{**rows.iloc[at].to_dict(), "colour": "red"} for at in (5, 6)])
    assert (relevant("red"), counted) == ([5, 6], [4])
    served.update([{**rows.iloc[0].to_dict(), "image_id": "new", "colour": "red"}])
    assert (relevant("red"), counted) == ([5, 6, 10], [2])
