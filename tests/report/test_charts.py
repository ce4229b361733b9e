import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from makers.walls import texts, tiles
from matplotlib.colors import same_color
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.text import Text
from PIL import Image

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.evaluation.evaluation import Evaluation
from rectrio_lib.report import charts, grids, lettering
from rectrio_lib.report.projection import apart
from rectrio_lib.report.teaching import rankings

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def channels(request) -> int:
    return request.param


def pictures(*shape: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, channels, 8, 8), dtype=np.uint8)


def assert_shows(tile: dict, picture: np.ndarray) -> None:
    """Compare the colours that a tile really shows with a picture (C, 8, 8), to one step of 255."""
    assert np.abs(tile["images"][0] - picture.transpose(1, 2, 0)).max() <= 1


def test_save_figure_writes_a_png_below_outputs(channels):
    figure = grids.example_grid({"ant": pictures(2, channels=channels)})
    grids.save_figure(figure, "05_example")
    with Image.open(Workspace().outputs / "figures" / "05_example.png") as saved:
        assert saved.format == "PNG"
        assert min(saved.size) > 50
        assert len(set(saved.convert("L").tobytes())) > 10


def test_example_grid_shows_every_picture_in_the_row_of_its_class(channels):
    examples = {"ant": pictures(3, channels=channels), 2: pictures(2, channels=channels)[::-1]}
    figure = grids.example_grid(examples, "examples")
    grid = tiles(figure)
    assert texts(figure.axes[0]) == ["ant", "2"] and figure.axes[0].get_title() == "examples"
    assert grid.keys() == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}
    for line, expected in enumerate(examples.values()):
        for column, picture in enumerate(expected):
            assert_shows(grid[line, column], picture)


def test_neighbour_grid_frames_hits_misses_and_queries(channels):
    queries, neighbours = pictures(2, channels=channels), pictures(2, 3, channels=channels)
    found = np.array([["ant", "bee", "ant"], ["cow", "bee", "bee"]])
    scores = np.array([[0.99, 0.5, 0.25], [0.9, 0.8, 0.7]])
    figure = grids.neighbour_grid(queries, ["ant", "bee"], neighbours, found, scores, "nearest")
    grid = tiles(figure)

    query, hit, miss = grids.QUERY, grids.HIT, grids.MISS
    assert [[grid[line, column]["frame"] for column in range(4)] for line in range(2)] == [
        [query, hit, miss, hit],
        [query, miss, hit, hit],
    ]
    assert [[grid[line, column]["caption"] for column in range(4)] for line in range(2)] == [
        ["ant", "0.99", "bee 0.50", "0.25"],
        ["bee", "cow 0.90", "0.80", "0.70"],
    ]
    assert figure.axes[0].get_title() == "nearest"
    for q, n in np.ndindex(2, 3):
        assert_shows(grid[q, 0], queries[q])
        assert_shows(grid[q, n + 1], neighbours[q, n])


def test_long_ids_lose_their_middle_and_keep_the_ends_that_tell_them_apart():
    assert lettering.fitted("dvd076") == "dvd076" and lettering.fitted("ukbench-0073") == "ukbench-0073"
    assert lettering.fitted("ukbench-left-0073") == "ukben…t-0073"
    assert len(lettering.fitted("x" * 40, 16)) == 16
    found, scores = np.array([["cornflakes-box-0041"]]), np.ones((1, 1))
    figure = grids.neighbour_grid(pictures(1, channels=3), ["ant"], pictures(1, 1, channels=3), found, scores)
    assert tiles(figure)[0, 1]["caption"] == "cornf…x-0041 1.0000"


def test_result_lines_frame_what_was_wished_and_set_the_query_apart(channels):
    images, query = pictures(2, 3, channels=channels), pictures(1, channels=channels)[0]
    lines = {"like this": (images[0], [True, False, True]), "but red": (images[1, :2], [False, True])}
    figure = grids.result_lines(lines, "found", query)
    grid = tiles(figure)
    assert {place: tile["frame"] for place, tile in grid.items()} == {
        (0, 0): grids.QUERY, (0, 1): grids.HIT, (0, 2): grids.MISS, (0, 3): grids.HIT,
        (1, 1): grids.MISS, (1, 2): grids.HIT,
    }  # fmt: skip
    assert_shows(grid[0, 0], query)
    assert_shows(grid[1, 2], images[1, 1])
    assert texts(figure.axes[0]) == ["like this", "but red"] and figure.axes[0].get_title() == "found"
    assert min(column for _, column in tiles(grids.result_lines(lines))) == 0


def test_neighbour_grid_leaves_missing_answers_empty_and_unlabelled_queries_without_verdict(channels):
    queries, neighbours = pictures(2, channels=channels), pictures(2, 2, channels=channels)
    found = np.array([["ant", ""], ["bee", "bee"]], dtype=object)
    scores = np.array([[0.9, np.nan], [0.5, 0.25]])
    grid = tiles(grids.neighbour_grid(queries, ["ant", ""], neighbours, found, scores))
    answers = {place: (tile["frame"], tile["caption"]) for place, tile in grid.items() if place[1]}
    assert answers == {(0, 1): (grids.HIT, "0.90"), (1, 1): (None, "bee 0.50"), (1, 2): (None, "bee 0.25")}


def seen_by_deuteranopes(colour: str) -> np.ndarray:
    """Linear colours as people without green cones see them (Machado, Oliveira and Fernandes, 2009)."""
    matrix = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    levels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return matrix @ np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def test_hit_miss_and_query_differ_for_the_colour_blind_and_misses_are_dashed_besides():
    colours = [seen_by_deuteranopes(colour) for colour in (grids.HIT, grids.MISS, grids.QUERY)]
    gaps = [np.abs(colours[a] - colours[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))]
    old = np.abs(seen_by_deuteranopes("#2a9d5c") - seen_by_deuteranopes("#d1495b")).max()
    assert min(gaps) > 0.1 and gaps[0] > 1.5 * old
    (axis,) = grids.neighbour_grid(
        pictures(1, channels=3), ["ant"], pictures(1, 2, channels=3), np.array([["ant", "bee"]]), np.ones((1, 2))
    ).axes
    assert [patch.get_linestyle() == "-" for patch in axis.patches] == [True, True, False]


NAMES = ("$5 & $6", "고양이", "犬", "🐶 puppy", "naïve")


def test_names_are_drawn_as_they_are_written_or_spelled_out_and_never_as_formulas():
    labels, right = list(NAMES), {"recall_at_1": np.ones(len(NAMES))}
    figures = [
        grids.example_grid({name: pictures(1, channels=3) for name in NAMES}, "a $ b $"),
        grids.captioned_images(pictures(len(NAMES), channels=3), NAMES),
        grids.neighbour_grid(
            pictures(1, channels=1),
            ["$x$"],
            pictures(1, 1, channels=1),
            np.array([["$y_1$"]]),
            np.ones((1, 1)),
            "$\\frac$",
        ),
        charts.projection({"$t$": np.random.default_rng(0).normal(size=(len(NAMES), 2))}, labels, NAMES),
        charts.class_dots({"$": Evaluation(np.array(labels), right)}, title="$t$"),
        charts.class_similarities({"$z$": np.eye(len(NAMES))}, NAMES),
    ]
    letters = lettering._letters()
    for figure in figures:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns of a letter that no font has
            figure.canvas.draw()
        shown = [text for text in figure.findobj(Text) if text.get_text()]
        assert all(set(map(ord, text.get_text())) <= letters | {10} for text in shown)
        assert not any(text.get_parse_math() and "$" in text.get_text() for text in shown)


def test_letters_that_no_font_has_are_spelled(monkeypatch):
    monkeypatch.setattr(lettering, "_letters", lambda: frozenset(map(ord, "abcdefghijklmnopqrstuvwxyz \n")))
    assert lettering.readable("고양이 a") == "goyangi a"
    assert lettering.readable("犬") == "[U+72AC]" and lettering.readable("🐶") == "[dog face]"


def test_an_encoder_has_one_colour_in_every_figure():
    names = [
        "raw pixels",
        "fashion-triplet-pixels",
        "fashion-triplet-untrained",
        "frozen backbone",
        "phase 1",
        "x-phase1",
    ]
    saved = ("fashion-triplet-pixels", "fashion-triplet-untrained", "animals-phase1", "animals-frozen", "my-animals")
    plain = list(map(charts.name_of, saved))
    assert plain == ["raw pixels", "untrained", "phase 1", "frozen backbone", "trained"]
    assert list(map(charts.colour_of, plain)) == list(map(charts.colour_of, saved))
    grey, yellow, blue = (charts.ENCODERS[word] for word in ("pixels", "untrained", "phase 1"))
    assert list(map(charts.colour_of, names)) == [grey, grey, yellow, yellow, blue, blue]
    assert {charts.colour_of(name) for name in ("fashion-triplet", "phase 2", "trained")} == {charts.TRAINED}
    assert len({grey, yellow, blue, charts.TRAINED}) == 4


def test_projection_draws_every_point_and_names_each_class_at_its_middle():
    rng = np.random.default_rng(0)
    labels = np.array(["ant", "bee"] * 10)
    middles = {"ant": (0, 0), "bee": (100, 50)}
    points = np.array([middles[label] for label in labels]) + rng.uniform(-1, 1, (20, 2))
    figure = charts.projection({"raw pixels": points, "trained": -points}, labels, CLASSES)
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


def test_names_of_classes_move_only_where_they_would_cover_each_other():
    points, places = np.array([[0.0, 0.0], [10.0, 10.0]]), np.array([[5.0, 5.0], [5.5, 5.1], [5.2, 4.9], [9.0, 5.0]])
    moved = apart(places, points)
    assert moved[[1, 3]].tolist() == places[[1, 3]].tolist() and (moved[:, 0] == places[:, 0]).all()
    assert moved[1, 1] - moved[0, 1] > 0.5 and moved[0, 1] - moved[2, 1] > 0.5


def test_training_curves_draw_what_was_recorded_and_skip_epochs_without_validation():
    epochs = np.arange(1, 13)
    history = pd.DataFrame({"epoch": epochs, "loss": 1 / epochs, "active": 0.9 / epochs, "validated": epochs % 6 == 0})
    history = history.assign(positive_distance=0.6 / epochs, negative_distance=0.1 * epochs)
    history = history.assign(map_at_r=np.where(history["validated"], epochs / 20, np.nan), recall_at_1=0.9)
    baselines = {"raw pixels": {"recall_at_1": 0.65, "map_at_r": 0.25, "knn_accuracy": 0.8}}
    figure = charts.training_curves(history, baselines, margin=0.3)
    loss, active, distance, validation = figure.axes
    drawn = [[list(line.get_ydata()) for line in axis.lines] for axis in (loss, active)]
    assert drawn == [[list(history["loss"])], [list(history["active"])]]
    assert active.get_title() == "Triplets with a gap above −0.3"
    assert {line.get_label(): list(line.get_ydata()) for line in distance.lines} == {
        "anchor to positive": list(history["positive_distance"]),
        "anchor to negative": list(history["negative_distance"]),
        "orthogonal": [2**0.5] * 2,
    }
    lines = {line.get_label(): line for line in validation.lines}
    assert {name: list(line.get_ydata()) for name, line in lines.items()} == {
        "recall@1": [0.9, 0.9],
        "mAP@R": [0.3, 0.6],
        "raw pixels, recall@1": [0.65, 0.65],
        "raw pixels, mAP@R": [0.25, 0.25],
    }
    assert list(lines["recall@1"].get_xdata()) == [6, 12]
    of_pixels = [lines[f"raw pixels, {metric}"] for metric in ("recall@1", "mAP@R")]
    assert [line.get_color() for line in of_pixels] == [charts.ENCODERS["pixels"]] * 2
    assert of_pixels[0].get_linestyle() != of_pixels[1].get_linestyle()
    assert all(axis.get_ylabel() and axis.get_xlabel() for axis in figure.axes)
    assert figure.get_suptitle() == "Validation mAP@R: first 0.300, best 0.600, raw pixels 0.250"


def test_training_curves_leave_out_what_there_is_no_margin_or_too_little_for():
    few = pd.DataFrame({"epoch": [1, 2], "validated": True, "recall_at_1": [0.5, 0.4]})
    (validation,) = charts.training_curves(few).axes
    assert [list(line.get_ydata()) for line in validation.lines] == [[0.5, 0.4]]
    many = pd.concat([few] * 6).assign(loss=1.0, active=0.5, positive_distance=0.5, negative_distance=1.0)
    titles = [axis.get_title() for axis in charts.training_curves(many).axes]
    assert titles == ["Loss", "Mean distances in a batch", "Validation"]


def test_class_dots_show_every_class_with_its_interval_most_gained_on_top():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 200)
    chances = {"raw pixels": (0.5, 0.2, 0.4), "trained": (0.6, 0.95, 0.8)}
    right = {name: (rng.random(600) < np.array(shares)[labels]).astype(float) for name, shares in chances.items()}
    given = {name: Evaluation(labels, {"recall_at_1": r, "precision_at_1": r}) for name, r in right.items()}
    (axis,) = charts.class_dots(given, CLASSES).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ant", "cow", "bee"]
    for name, evaluation in given.items():
        mine = [line for line in axis.lines if same_color(line.get_color(), charts.colour_of(name))]
        dots = [line for line in mine if line.get_marker() in "os"]
        bars = [line for line in mine if line.get_marker() not in "os"]
        figures = evaluation.per_class()["recall_at_1"]
        assert [dot.get_xdata()[0] for dot in dots] == pytest.approx(list(figures[[0, 2, 1]]))
        for dot, bar in zip(dots, bars, strict=True):
            (low, high), share = bar.get_xdata(), dot.get_xdata()[0]
            assert low < share < high
            assert (high - low) / 2 == pytest.approx(1.96 * (share * (1 - share) / 200) ** 0.5, rel=0.3)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(given)


def test_class_dots_of_groups_resample_their_labels_together():
    labels, groups = np.repeat(np.arange(40), 5), np.repeat(["book", "cup"], 100)
    scores = np.repeat(np.arange(40) % 2, 5).astype(float)  # five queries succeed and fail together
    (axis,) = charts.class_dots(
        {"trained": Evaluation(labels, {"map_at_r": scores})}, score="map_at_r", groups=groups
    ).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["book", "cup"]
    assert axis.get_xlabel().startswith("mAP@R")
    for bar, dot in zip(axis.lines[::2], axis.lines[1::2], strict=True):
        assert dot.get_xdata()[0] == 0.5
        assert np.ptp(bar.get_xdata()) / 2 == pytest.approx(1.96 * (0.25 / 20) ** 0.5, rel=0.3)


def written(axis) -> dict[tuple[int, int], str]:
    """Return {(row, column): number} of a matrix."""
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axis.texts}


def test_recall_against_latency_draws_a_line_a_kind_and_names_every_setting():
    table = pd.DataFrame(
        {
            "kind": ["Flat", "HNSW", "HNSW"],
            "setting": ["exact", "ef 16", "ef 64"],
            "ms": [5.0, 0.1, 0.3],
            "recall_at_10": [1.0, 0.9, 0.99],
        }
    )
    (axis,) = charts.recall_against_latency(table).axes
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
    neighbours, task = charts.recall_against_latency(table).axes
    assert neighbours.get_legend().get_texts()[0].get_text() == "hnsw, ef, 528 bytes per vector"
    assert list(task.lines[0].get_ydata()) == [0.7, 0.75] and "task" in task.get_ylabel()
    (whiskers,) = neighbours.collections
    assert [segment.tolist() for segment in whiskers.get_segments()] == [
        [[0.1, 0.8], [0.3, 0.8]],
        [[0.2, 0.9], [0.5, 0.9]],
    ]


def test_class_similarities_write_every_entry_of_each_panel_in_per_cent():
    panels = {"before": np.full((3, 3), 0.5), "after": np.diag([1.0, 0.9, 0.8])}
    before, after = charts.class_similarities(panels, CLASSES).axes
    assert set(written(before).values()) == {"50"} and len(written(before)) == 9
    assert written(after) == {(0, 0): "100", (1, 1): "90", (2, 2): "80"}
    assert (before.get_title(), after.get_title()) == ("before", "after")
    shades = [axis.get_images()[0].get_array() for axis in (before, after)]
    np.testing.assert_allclose(shades, [np.full((3, 3), 0.5), np.diag([1.0, 0.9, 0.8])])


def test_class_similarities_are_shaded_from_the_lowest_to_the_highest():
    (axis,) = charts.class_similarities({"": np.array([[0.99, 0.98], [0.98, 1.0]])}, CLASSES[:2]).axes
    np.testing.assert_allclose(axis.get_images()[0].get_array(), [[0.5, 0], [0, 1]], atol=1e-9)


def test_captioned_pictures_fill_rows_and_leave_the_rest_empty(channels):
    shown = pictures(5, channels=channels)
    grid = tiles(grids.captioned_images(shown, list("abcde"), columns=3))
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert {place: tile["caption"] for place, tile in grid.items()} == dict(zip(places, "abcde", strict=True))
    for place, picture in zip(places, shown, strict=True):
        assert_shows(grid[place], picture)
    assert {tile["frame"] for tile in grid.values()} == {None}
    judged = tiles(grids.captioned_images(shown[:2], ["a", "b"], right=[True, False]))
    assert [tile["frame"] for tile in judged.values()] == [grids.HIT, grids.MISS]


def test_class_similarities_below_0_are_blue_and_those_above_red_on_one_scale():
    before, after = np.array([[0.5, 0.0], [0.1, 0.5]]), np.array([[1.0, -0.2], [-0.5, 1.0]])
    axes = charts.class_similarities({"a": before, "b": after}, CLASSES[:2]).axes
    for matrix, axis in zip((before, after), axes, strict=True):
        (painted,) = axis.images
        for entry, shade in zip(matrix.flat, np.asarray(painted.get_array()).flat, strict=True):
            red, _, blue, _ = painted.to_rgba(shade)
            assert shade == pytest.approx((1 + entry) / 2)
            assert np.sign(round(red - blue, 1)) == np.sign(entry)


def test_label_efficiency_has_a_line_per_method_and_one_for_chance():
    table = pd.DataFrame({"raw pixels": [0.1, 0.2], "frozen backbone": [0.7, 0.8], "linear probe": [0.6, 0.9]}, [5, 80])
    (axis,) = charts.label_efficiency(table, 0.15).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert {name: lines[name] for name in table} == {name: list(shares) for name, shares in table.items()}
    assert set(lines["always the largest class"]) == {0.15}
    assert "0.70" in axis.get_title() and "0.20" in axis.get_title()


def test_bars_of_right_ones_among_the_nearest_say_how_many_are_mixed():
    shares = {"frozen backbone": np.array([0.1, 0.3, 0.6]), "phase 1": np.array([0.2, 0.05, 0.75])}
    (axis,) = rankings.right_among_nearest(shares).axes
    assert [bar.get_height() for bar in axis.patches] == [0.1, 0.3, 0.6, 0.2, 0.05, 0.75]
    assert "30%" in axis.get_title() and "5%" in axis.get_title()


def test_what_a_notebook_switches_on_with_its_first_figure_stays_on():
    def draw():
        plt.ion()  # as the backend of notebooks does when the first figure loads it: without, no later one is shown
        return plt.figure()

    try:
        lettering.lettered(draw)()
        assert plt.isinteractive()
    finally:
        plt.ioff()
