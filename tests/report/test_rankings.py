"""Figures of rankings, read back from their artists."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from rectrio_lib.evaluation.evaluation import threshold_curve
from rectrio_lib.report import grids
from rectrio_lib.report.teaching import rankings


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def frames(figure):
    patches = [patch for axis in figure.axes for patch in axis.patches if isinstance(patch, Rectangle)]
    colours = {grids.HIT: "hit", grids.MISS: "miss", grids.QUERY: "query"}
    named = {tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)): name for code, name in colours.items()}
    return [(named[patch.get_edgecolor()[:3]], patch.get_linestyle()) for patch in patches]


def test_a_ranking_is_worked_term_by_term_and_nothing_counts_beyond_r():
    right = np.array([True, False, True, True])
    figure = rankings.worked_ranking(images(1)[0], images(4), right, relevant=3)
    assert figure.axes[0].get_title() == f"AP@R of one query, R = 3: (1 + 0.667) / 3 = {(1 + 2 / 3) / 3:.3f}"
    captions = [text for text in texts(figure) if text[0].isdigit()]
    assert captions == ["1: right\nprecision 1/1", "2: wrong\n", "3: right\nprecision 2/3", "4: right\nbeyond R"]
    assert [name for name, _ in frames(figure)] == ["query", "hit", "miss", "hit", "hit"]
    styles = dict(frames(figure))
    assert styles["miss"] != styles["hit"]


def test_a_ranking_without_a_right_image_is_worth_nothing():
    figure = rankings.worked_ranking(images(1)[0], images(2), np.array([False, False]), relevant=2)
    assert figure.axes[0].get_title().endswith("(0) / 2 = 0.000")


def test_ranks_are_counted_in_their_bars_and_queries_without_an_answer_are_not():
    ranks = {"frozen": np.array([1, 2, 5, 40]), "phase 2": np.array([1, 1, 1, 1, 3, 10, 11, 30, np.nan, 4])}
    figure = rankings.first_right({name: found.astype(float) for name, found in ranks.items()})
    frozen, ours = ([bar.get_height() for bar in bars] for bars in figure.axes[0].containers)
    np.testing.assert_allclose(frozen, [1 / 4, 1 / 4, 0, 1 / 4, 0, 0, 1 / 4])
    np.testing.assert_allclose(ours, [4 / 9, 0, 1 / 9, 1 / 9, 1 / 9, 2 / 9, 0])
    title = figure.axes[0].get_title()
    assert title.startswith("Phase 2") and "44%" in title and "67%" in title


def test_thresholds_lie_on_their_curves_below_the_ideal_and_the_axis_starts_at_0():
    rng = np.random.default_rng(0)
    scores, right = rng.random(40), rng.random(40) < 0.5
    curve = threshold_curve(scores, right)
    point = {"answered": float(curve["answered"].iloc[7]), "right": float(curve["precision"].iloc[7])}
    none = {"answered": 0.0, "right": None}
    figure = rankings.answered({"frozen": curve, "phase 2": curve}, {"frozen": none, "phase 2": point}, 0.5, "it")
    axis = figure.axes[0]
    ideal, *lines = axis.get_lines()
    assert (axis.get_ylim()[0], axis.get_title()) == (0, "it")
    assert ideal.get_linestyle() == "--"
    np.testing.assert_allclose(np.interp([0.25, 0.5, 0.8, 1], *ideal.get_data()), [1, 1, 0.625, 0.5], atol=1e-2)
    (mark,) = [line for line in lines if len(line.get_xdata()) == 1]
    assert mark.get_xydata().tolist() == [[point["answered"], point["right"]]]
    assert mark.get_label().startswith("phase 2")


def test_mistaken_pairs_stand_side_by_side_with_their_count():
    cases = pd.DataFrame(
        {"label": list("abcde"), "taken_for": list("vwxyz"), "times": [9, 5, 2, 1, 1], "query": range(5), "result": 5}
    )
    figure = rankings.mistaken_pairs(images(6), cases, "pairs")
    assert [t for t in texts(figure) if t] == [
        t for a, b, n in zip("abcde", "vwxyz", (9, 5, 2, 1, 1), strict=True) for t in (a, f"{n} × taken for\n{b}")
    ]
    assert [name for name, _ in frames(figure)] == ["query", "miss"] * 5
    lefts = [patch.get_x() for patch in figure.axes[0].patches]
    assert lefts[:8] == sorted(lefts[:8]) and lefts[8] == lefts[0]  # the fifth pair begins a new line
    assert not rankings.mistaken_pairs(images(1), cases[:0]).axes[0].patches


def test_angles_are_drawn_from_the_origin_for_the_labels_that_are_shown():
    points = np.array([[1.0, 0.1], [0.9, -0.2], [0.8, 0.3]])
    figure = rankings.angles({"before": points, "after": 2 * points}, np.array(["a", "b", "b"]), ["b"])
    for axis, factor in zip(figure.axes, (1, 2), strict=True):
        rays = [line.get_xydata() for line in axis.get_lines() if len(line.get_xdata()) == 2]
        ends = [ray[1].tolist() for ray in rays if ray[0].tolist() == [0, 0] and ray[1, 1]]  # not the axis itself
        assert ends == (factor * points[1:]).tolist()
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
