import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest

from rectrio_lib.data import synthetic

OBJECTS, VIEWS = 4, 3


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def drawn(request):
    return *synthetic.draw_shapes(OBJECTS, VIEWS, size=24, channels=request.param, seed=7), request.param


def test_same_arguments_draw_the_same_bytes_and_another_seed_does_not(drawn):
    pixels, rows, channels = drawn
    again, same_rows = synthetic.draw_shapes(OBJECTS, VIEWS, size=24, channels=channels, seed=7)
    other, other_rows = synthetic.draw_shapes(OBJECTS, VIEWS, size=24, channels=channels, seed=8)
    assert again.tobytes() == pixels.tobytes()
    pd.testing.assert_frame_equal(rows, same_rows)
    assert not (other == pixels).all(axis=(1, 2, 3)).any()
    assert not other_rows.equals(rows)


@pytest.mark.parametrize(
    ("channels", "size", "digest"),
    [
        (1, 28, "6dab3f209cfb6b6c763789a334afc66a06205420bf05ff6311af6bcd17e6b664"),
        (3, 32, "c570cb3885d10b9ffdb2e2ee48a136ed525d5eed03fc2b62651c31144d5bec88"),
    ],
)
def test_pictures_and_rows_are_those_of_every_other_machine(channels, size, digest):
    pixels, rows = synthetic.draw_shapes(2, views=2, size=size, channels=channels, seed=0)
    told = rows.to_csv(index=False, lineterminator="\n").encode()
    assert hashlib.sha256(pixels.tobytes() + told).hexdigest() == digest


def test_every_class_has_every_object_and_every_view(drawn):
    pixels, rows, channels = drawn
    assert pixels.dtype == np.uint8
    assert pixels.shape == (len(synthetic.SHAPES) * OBJECTS * VIEWS, channels, 24, 24)
    assert list(rows.columns) == ["label", "object", "colour", "texture", "view", "tilt", "caption"]
    assert len(rows) == len(pixels)
    assert set(rows["label"]) == set(synthetic.SHAPES)
    assert (rows.groupby("label")["object"].nunique() == OBJECTS).all()
    assert rows["object"].nunique() == len(synthetic.SHAPES) * OBJECTS
    assert (rows.groupby("object")["view"].apply(sorted).map(tuple) == tuple(range(VIEWS))).all()


def test_object_keeps_colour_and_texture_over_its_views_and_no_two_views_are_equal(drawn):
    pixels, rows, _ = drawn
    assert rows.groupby("object")[["label", "colour", "texture"]].nunique().eq(1).all(axis=None)
    assert len({picture.tobytes() for picture in pixels}) == len(pixels)
    assert len(set(rows["colour"])) > 1
    assert len(set(rows["texture"])) > 1


def test_caption_names_texture_colour_class_and_pose():
    _, rows = synthetic.draw_shapes(3, views=6)
    for row in rows.itertuples():
        pose = "upright" if -15 <= row.tilt <= 15 else f"tilted to the {'left' if row.tilt > 0 else 'right'}"
        assert row.caption == f"a {row.texture} {row.colour} {row.label}, {pose}"
    assert {caption.rpartition(" ")[2] for caption in rows["caption"]} == {"upright", "left", "right"}


def test_tilt_to_the_left_turns_the_picture_counter_clockwise(monkeypatch):
    """The head of a long arrow lies left of the middle when the arrow is tilted to the left."""
    monkeypatch.setitem(synthetic.SHAPES, "arrow", lambda x, y: (abs(x) < 0.3) & (y > 0))
    pixels, rows = synthetic.draw_shapes(20, views=2, size=28, channels=1)
    chosen = (rows["label"] == "arrow") & (rows["tilt"].abs() > 40)
    columns = np.arange(28) - 13.5
    centred = []
    for picture, tilt in zip(pixels[chosen, 0].astype(float), rows["tilt"][chosen], strict=True):
        bright = picture > picture.min() + 40
        lower, upper = np.flatnonzero(bright.any(1))[[-1, 0]]
        lean = columns[bright[upper]].mean() - columns[bright[lower]].mean()
        centred.append(np.sign(lean) == -np.sign(tilt))
    assert len(centred) > 5
    assert np.mean(centred) == 1


def test_different_shapes_cover_different_ground_within_the_unit_circle():
    axis = (np.arange(64) + 0.5) / 32 - 1
    x, y = np.meshgrid(axis, axis)
    inside = {name: np.asarray(shape(x, y), dtype=bool) for name, shape in synthetic.SHAPES.items()}
    for one, other in itertools.combinations(inside, 2):
        overlap = (inside[one] & inside[other]).sum() / (inside[one] | inside[other]).sum()
        assert overlap < 0.9, f"{one} and {other} look alike"
    for name, mask in inside.items():
        assert 0.05 < mask.mean() < 0.8, name
        assert not mask[x**2 + y**2 > 1].any(), f"{name} leaves the unit circle"


def test_colour_pictures_show_the_colour_they_are_said_to_have():
    pixels, rows = synthetic.draw_shapes(10, views=1, size=28, channels=3)
    strongest = {"red": 0, "green": 1, "blue": 2}
    for colour, channel in strongest.items():
        for picture in pixels[(rows["colour"] == colour).to_numpy()].astype(int):
            spread = picture.max(0) - picture.min(0)
            painted = picture[:, spread > 40].mean(1)
            assert painted.argmax() == channel, colour


def test_grey_is_the_luminance_of_the_colour_picture():
    grey, rows = synthetic.draw_shapes(2, views=2, channels=1, seed=3)
    colour, same = synthetic.draw_shapes(2, views=2, channels=3, seed=3)
    pd.testing.assert_frame_equal(rows, same)
    luminance = np.einsum("nchw,c->nhw", colour.astype(float), [0.299, 0.587, 0.114])
    assert np.abs(grey[:, 0] - luminance).max() <= 1


@pytest.mark.parametrize(
    "wrong", [{"channels": 2}, {"objects_per_class": 0}, {"views": 0}, {"size": 0}], ids=lambda w: next(iter(w))
)
def test_impossible_requests_are_refused_with_what_was_asked_for(wrong):
    with pytest.raises(ValueError, match=f"1 or 3 channels.*{next(iter(wrong))}={next(iter(wrong.values()))}"):
        synthetic.draw_shapes(**{"objects_per_class": 1, **wrong})
