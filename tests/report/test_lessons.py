import numpy as np
import pytest

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.report.teaching import diagrams, rankings, toy_index


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
    assert f":\n{len(toy_index.graph_walk(points, query, 2)[0])} compared" in titles[1]
    assert f"16 + {len(points)} compared" in titles[2]  # all cells lit


def test_score_histograms_show_shares_of_hits_and_of_misses():
    scores, hits = np.linspace(0.5, 1, 40), np.arange(40) % 4 > 0
    (axis,) = rankings.score_histograms({"trained": (scores, hits, 0.5)}).axes
    assert axis.get_title() == "trained: AUROC 0.50"
    assert sum(patch.get_height() for patch in axis.containers[0]) == pytest.approx(1)


def test_recall_curves_draw_each_cut_once():
    (axis,) = rankings.recall_curves({"trained": {1: 0.5, 10: 0.9}}).axes
    assert (list(axis.lines[0].get_xdata()), list(axis.lines[0].get_ydata())) == ([1, 10], [0.5, 0.9])


def test_arrows_join_boxes_that_are_there():
    boxes = {"a": (0, 0, "A\nfirst"), "b": (1, 0, "B")}
    (axis,) = diagrams.flow(boxes, [("a", "b", "then")], "title").axes
    assert {"A", "first", "B", "then"} <= {text.get_text() for text in axis.texts}
    with pytest.raises(ArgumentError, match="c"):
        diagrams.flow(boxes, [("a", "c", "")])
