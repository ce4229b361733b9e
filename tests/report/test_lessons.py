import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.report import charts, grids
from rectrio_lib.report.teaching import diagrams, lessons, toy_index


@pytest.fixture(autouse=True)
def drawn_in_memory():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def test_a_walk_with_many_candidates_finds_the_nearest_and_looks_at_a_part_only():
    points = toy_index.toy_points()
    for query in np.random.default_rng(0).uniform(0.1, 0.9, (20, 2)).astype(np.float32):
        compared, hops, edges = toy_index.graph_walk(points, query, ef=40)
        distances = ((points - query) ** 2).sum(1)
        assert compared[-1] == distances.argmin() and len(compared) == len(set(compared)) < len(points)
        assert all(distances[end] < distances[start] or (start, end) in edges for start, end in hops)
        assert len(toy_index.graph_walk(points, query, ef=1)[0]) < len(compared)


def test_the_panels_say_how_many_points_each_index_compared():
    points, query = toy_index.toy_points(), np.array([0.5, 0.4], np.float32)
    titles = [axis.get_title() for axis in toy_index.four_indexes(points, query, ef=2, nprobe=16).axes]
    assert f"all {len(points)} compared" in titles[0]
    assert f": {len(toy_index.graph_walk(points, query, 2)[0])} compared" in titles[1]
    assert f"16 + {len(points)} compared" in titles[2]  # all cells lit


def test_a_strip_writes_the_precision_at_every_hit():
    images = np.zeros((3, 1, 4, 4), np.uint8)
    (axis,) = lessons.worked_strip(images[0], images, np.array([True, False, True]), "AP").axes
    assert [text.get_text() for text in axis.texts] == [
        "query",
        "rank 1\n1/1 = 1.00",
        "rank 2\n0",
        "rank 3\n2/3 = 0.67",
    ]
    assert [
        same_color(p.get_edgecolor(), c)
        for p, c in zip(axis.patches[1:], [grids.HIT, grids.MISS, grids.HIT], strict=True)
    ] == [True] * 3


def test_classes_are_sorted_by_what_the_last_encoder_gains():
    first = pd.DataFrame({"mean": [0.5, 0.5, 0.5], "low": 0.4, "high": 0.6}, index=["ant", "bee", "cow"])
    last = first.assign(mean=[0.6, 0.4, 0.9])
    (axis,) = lessons.class_dots({"raw pixels": first, "trained": last}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["bee", "ant", "cow"]
    assert [list(line.get_xdata()) for line in axis.lines] == [[0.5] * 3, [0.4, 0.6, 0.9]]
    assert same_color(axis.lines[0].get_color(), charts.ENCODERS["pixels"])


def test_score_histograms_show_shares_of_hits_and_of_misses():
    scores, hits = np.linspace(0.5, 1, 40), np.arange(40) % 4 > 0
    (axis,) = lessons.score_histograms({"trained": (scores, hits, 0.5)}).axes
    assert axis.get_title() == "trained: AUROC 0.50"
    assert sum(patch.get_height() for patch in axis.containers[0]) == pytest.approx(1)


def test_recall_curves_draw_each_cut_once():
    (axis,) = lessons.recall_curves({"trained": {1: 0.5, 10: 0.9}}).axes
    assert (list(axis.lines[0].get_xdata()), list(axis.lines[0].get_ydata())) == ([1, 10], [0.5, 0.9])


def test_arrows_join_boxes_that_are_there():
    boxes = {"a": (0, 0, "A\nfirst"), "b": (1, 0, "B")}
    (axis,) = diagrams.flow(boxes, [("a", "b", "then")], "title").axes
    assert {"A", "first", "B", "then"} <= {text.get_text() for text in axis.texts}
    with pytest.raises(ArgumentError, match="c"):
        diagrams.flow(boxes, [("a", "c", "")])
