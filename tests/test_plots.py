import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_hex
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image

from rectrio_lib import plots, resources

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def drawn_in_memory():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def channels(request) -> int:
    return request.param


def pictures(*shape: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, channels, 8, 8), dtype=np.uint8)


def assert_shows(axis, picture: np.ndarray) -> None:
    """Compare the colours that an axis really shows with a picture (C, 8, 8), to one step of 255."""
    (image,) = axis.get_images()
    shown = image.to_rgba(image.get_array(), bytes=True)[..., :3].astype(int)
    assert np.abs(shown - picture.transpose(1, 2, 0)).max() <= 1


def frame_of(axis) -> set[str]:
    return {to_hex(side.get_edgecolor()) for side in axis.spines.values() if side.get_visible()}


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_save_figure_writes_a_png_below_outputs(channels):
    figure = plots.example_grid({"ant": pictures(2, channels=channels)})
    plots.save_figure(figure, "05_example")
    with Image.open(resources.outputs_root() / "figures" / "05_example.png") as saved:
        assert saved.format == "PNG"
        assert min(saved.size) > 50
        assert len(set(saved.convert("L").tobytes())) > 10


def test_example_grid_shows_every_picture_in_the_row_of_its_class(channels):
    examples = {"ant": pictures(3, channels=channels), "bee": pictures(2, channels=channels)[::-1]}
    figure = plots.example_grid(examples, "examples")
    grid = np.reshape(figure.axes, (2, 3))
    for row, (label, expected) in zip(grid, examples.items(), strict=True):
        assert texts(row[0]) == [label]
        for axis, picture in zip(row, expected, strict=False):
            assert_shows(axis, picture)
    assert not grid[1, 2].get_images()
    assert figure.get_suptitle() == "examples"


def test_mean_pictures_are_the_means_of_their_classes(channels):
    images = pictures(12, channels=channels)
    labels = ["ant", "bee", "cow"] * 4
    figure = plots.mean_pictures(images, labels, CLASSES)
    for n, label in enumerate(CLASSES):
        assert figure.axes[n].get_title() == label
        assert_shows(figure.axes[n], np.floor(images[n::3].mean(0)))
    assert not figure.axes[3].get_images()


@pytest.mark.filterwarnings("error")
def test_mean_pictures_leave_a_class_without_pictures_empty(channels):
    figure = plots.mean_pictures(pictures(2, channels=channels), ["ant", "cow"], CLASSES)
    assert [bool(axis.get_images()) for axis in figure.axes] == [True, False, True, False]


def test_neighbour_grid_frames_hits_green_misses_red_and_queries_blue(channels):
    queries, neighbours = pictures(2, channels=channels), pictures(2, 3, channels=channels)
    found = np.array([["ant", "bee", "ant"], ["cow", "bee", "bee"]])
    scores = np.array([[0.99, 0.5, 0.25], [0.9, 0.8, 0.7]])
    figure = plots.neighbour_grid(queries, ["ant", "bee"], neighbours, found, scores, "nearest")
    grid = np.reshape(figure.axes, (2, 4))

    blue, green, red = plots.QUERY, plots.HIT, plots.MISS
    assert [[frame_of(axis) for axis in row] for row in grid] == [
        [{blue}, {green}, {red}, {green}],
        [{blue}, {red}, {green}, {green}],
    ]
    assert [[axis.get_title() for axis in row] for row in grid] == [
        ["ant", "0.99", "bee 0.50", "0.25"],
        ["bee", "cow 0.90", "0.80", "0.70"],
    ]
    for q, n in np.ndindex(2, 3):
        assert_shows(grid[q, 0], queries[q])
        assert_shows(grid[q, n + 1], neighbours[q, n])


def test_neighbour_grid_leaves_missing_answers_empty_and_unlabelled_queries_without_verdict(channels):
    queries, neighbours = pictures(2, channels=channels), pictures(2, 2, channels=channels)
    found = np.array([["ant", ""], ["bee", "bee"]], dtype=object)
    scores = np.array([[0.9, np.nan], [0.5, 0.25]])
    figure = plots.neighbour_grid(queries, ["ant", ""], neighbours, found, scores)
    grid = np.reshape(figure.axes, (2, 3))
    assert [frame_of(axis) for axis in (grid[0, 1], *grid[1, 1:])] == [{plots.HIT}, set(), set()]
    assert [[axis.get_title() for axis in row[1:]] for row in grid] == [["0.90", ""], ["bee 0.50", "bee 0.25"]]
    assert not grid[0, 2].axison and not grid[0, 2].get_images()


def test_green_is_green_and_red_is_red():
    for colour, strongest in ((plots.MISS, 0), (plots.HIT, 1), (plots.QUERY, 2)):
        assert np.argmax([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) == strongest


def test_projection_draws_every_point_and_names_each_class_at_its_middle():
    rng = np.random.default_rng(0)
    labels = np.array(["ant", "bee"] * 10)
    middles = {"ant": (0, 0), "bee": (100, 50)}
    points = np.array([middles[label] for label in labels]) + rng.uniform(-1, 1, (20, 2))
    figure = plots.projection({"raw pixels": points, "trained": -points}, labels, CLASSES)
    assert [axis.get_title() for axis in figure.axes] == ["raw pixels", "trained"]
    for axis, sign in zip(figure.axes, (1, -1), strict=True):
        drawn = np.concatenate([dots.get_offsets() for dots in axis.collections])
        assert sorted(map(tuple, drawn)) == sorted(map(tuple, sign * points))
        names = {box.offsetbox.get_text(): box.xy for box in axis.artists if isinstance(box, AnnotationBbox)}
        assert set(names) == {"ant", "bee"}
        for label, place in names.items():
            np.testing.assert_allclose(place, sign * np.array(middles[label]), atol=1)
    first, second = (dots.get_facecolor()[0] for dots in figure.axes[0].collections)
    assert not same_color(first, second)


def test_training_curves_draw_what_was_recorded_and_skip_epochs_without_validation():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "loss": [0.3, 0.2, 0.1],
            "active": [0.9, 0.5, 0.4],
            "positive_distance": [0.6, 0.5, 0.3],
            "negative_distance": [0.7, 1.0, 1.2],
            "validated": [True, False, True],
            "recall_at_1": [0.7, np.nan, 0.9],
            "map_at_r": [0.4, np.nan, 0.6],
        }
    )
    figure = plots.training_curves(history)
    drawn = [[list(line.get_ydata()) for line in axis.lines] for axis in figure.axes]
    assert drawn == [[[0.3, 0.2, 0.1]], [[0.9, 0.5, 0.4]], [[0.6, 0.5, 0.3], [0.7, 1.0, 1.2]], [[0.7, 0.9], [0.4, 0.6]]]
    assert [list(line.get_xdata()) for line in figure.axes[3].lines] == [[1, 3], [1, 3]]
    told = [[text.get_text() for text in figure.axes[n].get_legend().get_texts()] for n in (2, 3)]
    assert told == [["anchor to positive", "anchor to negative"], ["recall@1", "mAP@R"]]


def test_class_bars_have_the_height_of_their_figures():
    per_class = {
        "raw pixels": pd.Series([0.5, 0.25, 0.75], index=CLASSES),
        "trained": pd.Series([0.9, 0.8, 1.0], index=CLASSES),
    }
    (axis,) = plots.class_bars(per_class, ylabel="precision@1").axes
    assert [[bar.get_height() for bar in bars] for bars in axis.containers] == [[0.5, 0.25, 0.75], [0.9, 0.8, 1.0]]
    assert [label.get_text() for label in axis.get_xticklabels()] == list(CLASSES)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["raw pixels", "trained"]
    assert axis.get_ylabel() == "precision@1"


TRUTH = ["ant"] * 4 + ["bee"] * 5
FOUND = ["ant", "ant", "ant", "bee", *["bee"] * 5]


def written(axis) -> dict[tuple[int, int], str]:
    """Return {(row, column): number} of a matrix."""
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axis.texts}


def test_mistaken_classes_write_the_share_of_every_class_found_for_another():
    (axis,) = plots.mistaken_classes(TRUTH, FOUND, CLASSES, "trained").axes
    assert written(axis) == {(0, 0): "75", (0, 1): "25", (1, 1): "100"}
    np.testing.assert_allclose(axis.get_images()[0].get_array() ** 2, [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert [label.get_text() for label in axis.get_yticklabels()] == list(CLASSES)
    assert axis.get_ylabel() == "class of the query"


def test_mistaken_classes_pair_rows_by_place_whatever_their_index():
    truth = pd.Series(TRUTH, index=range(100, 109))
    (axis,) = plots.mistaken_classes(truth, pd.Series(FOUND), CLASSES).axes
    assert written(axis) == {(0, 0): "75", (0, 1): "25", (1, 1): "100"}


def test_recall_against_latency_draws_a_line_a_kind_and_names_every_setting():
    table = pd.DataFrame(
        {
            "kind": ["Flat", "HNSW", "HNSW"],
            "setting": ["exact", "ef 16", "ef 64"],
            "ms": [5.0, 0.1, 0.3],
            "recall_at_10": [1.0, 0.9, 0.99],
        }
    )
    (axis,) = plots.recall_against_latency(table).axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert lines == {"Flat": ([5.0], [1.0]), "HNSW, ef": ([0.1, 0.3], [0.9, 0.99])}
    assert {text.get_text(): text.xy for text in axis.texts} == {
        "exact": (5.0, 1.0),
        "16": (0.1, 0.9),
        "64": (0.3, 0.99),
    }
    assert axis.get_xscale() == "log"


def test_recall_against_latency_shows_percentile_bytes_and_the_task_where_they_were_measured():
    table = pd.DataFrame(
        {"kind": ["hnsw"] * 2, "setting": ["ef 8", "ef 9"], "ms": [0.1, 0.2], "recall_at_10": [0.8, 0.9]}
    )
    table = table.assign(p95_ms=[0.3, 0.5], bytes_per_vector=528.0, task_recall=[0.7, 0.75])
    neighbours, task = plots.recall_against_latency(table).axes
    assert neighbours.get_legend().get_texts()[0].get_text() == "hnsw, ef, 528 bytes a vector"
    assert list(task.lines[0].get_ydata()) == [0.7, 0.75] and "task" in task.get_ylabel()
    (whiskers,) = neighbours.collections
    assert [segment.tolist() for segment in whiskers.get_segments()] == [
        [[0.1, 0.8], [0.3, 0.8]],
        [[0.2, 0.9], [0.5, 0.9]],
    ]


def test_class_similarities_write_every_entry_of_each_panel_in_per_cent():
    panels = {"before": np.full((3, 3), 0.5), "after": np.diag([1.0, 0.9, 0.8])}
    before, after = plots.class_similarities(panels, CLASSES).axes
    assert set(written(before).values()) == {"50"} and len(written(before)) == 9
    assert written(after) == {(0, 0): "100", (1, 1): "90", (2, 2): "80"}
    assert (before.get_title(), after.get_title()) == ("before", "after")


def test_captioned_pictures_fill_rows_and_leave_the_rest_empty(channels):
    shown = pictures(5, channels=channels)
    axes = plots.captioned_pictures(shown, list("abcde"), columns=3).axes
    assert [axis.get_title() for axis in axes] == [*"abcde", ""]
    for axis, picture in zip(axes, shown, strict=False):
        assert_shows(axis, picture)
    assert not axes[5].get_images()


def test_similarity_maps_lie_over_the_whole_picture_whatever_their_size():
    query, nearest = pictures(2, channels=3)
    axes = plots.similarity_maps([(query, nearest)], [(np.eye(2), np.eye(4))]).axes
    assert [len(axis.get_images()) for axis in axes] == [1, 2, 1, 2]
    assert_shows(axes[0], query)
    assert_shows(axes[2], nearest)
    for axis, warmth in ((axes[1], np.eye(2)), (axes[3], np.eye(4))):
        picture, heat = axis.get_images()
        assert heat.get_extent() == picture.get_extent()
        np.testing.assert_array_equal(heat.get_array(), warmth)
