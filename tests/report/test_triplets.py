import numpy as np
import pytest
from makers.walls import texts, tiles
from matplotlib.offsetbox import AnnotationBbox

from rectrio_lib.report import grids
from rectrio_lib.report.teaching import triplets


def test_zones_begin_where_the_loss_says():
    gaps = np.array([0.1, 0.0, -1e-9, -0.1999, -0.2, -0.5])
    assert list(triplets.zone_of(gaps, 0.2)) == ["hard", "hard", "semi-hard", "semi-hard", "easy", "easy"]


def strokes_of(axis) -> list:
    """Return the negatives: lines of two points, across the circle."""
    return [line for line in axis.lines if line.get_linewidth() == 2]


def test_a_negative_on_the_circle_has_the_colour_of_its_zone_and_lies_at_its_distance():
    figure = triplets.circle(0.8, 0.3, [0.5, 0.9, 1.0, 1.5], "one anchor")
    (axis,) = figure.axes
    strokes = strokes_of(axis)
    hard, semi, easy = triplets.ZONES.values()
    assert [stroke.get_color() for stroke in strokes] == [hard, semi, semi, easy]
    anchor, positive = (line for line in axis.lines if line.get_marker() == "o")
    assert (anchor.get_color(), positive.get_color()) == (grids.QUERY, grids.HIT)
    top = np.array([anchor.get_xdata()[0], anchor.get_ydata()[0]])

    def from_anchor(line) -> float:
        return float(np.linalg.norm(np.array([line.get_xdata(), line.get_ydata()]).mean(1) - top))

    assert [from_anchor(stroke) for stroke in strokes] == pytest.approx([0.5, 0.9, 1.0, 1.5])
    assert from_anchor(positive) == pytest.approx(0.8)
    assert sorted(ring.radius for ring in axis.patches) == pytest.approx([0.8, 1.1])
    assert axis.get_title() == "one anchor" and set(triplets.ZONES) <= set(texts(axis))


def test_a_margin_beyond_the_sphere_leaves_no_easy_negative():
    (axis,) = triplets.circle(1.2, 1.0, [1.9]).axes
    assert "easy" not in texts(axis)
    assert [stroke.get_color() for stroke in strokes_of(axis)] == [triplets.ZONES["semi-hard"]]


def test_similarity_histograms_share_their_bins_and_mark_the_means():
    rng = np.random.default_rng(0)
    panels = {"raw": (rng.uniform(0.5, 1, 500), rng.uniform(-0.2, 0.8, 900)), "trained": (np.ones(5), np.zeros(7))}
    axes = triplets.similarity_histograms(panels).axes
    assert [axis.get_title(loc="left") for axis in axes] == list(panels)
    for axis, pair in zip(axes, panels.values(), strict=True):
        assert [line.get_xdata()[0] for line in axis.lines] == pytest.approx([values.mean() for values in pair])
        for bars, values in zip(axis.containers, pair, strict=True):
            width = bars[0].get_width()
            share = sum(bar.get_height() * width for bar in bars)
            assert share == pytest.approx(1)
            tallest = max(bars, key=lambda bar: bar.get_height()).get_x()
            assert values.min() - width <= tallest <= values.max()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_distance_matrix_has_every_image_on_both_sides(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, channels, 8, 8), dtype=np.uint8)
    distances = np.array([[0, 1, 2], [1, 0, 0.5], [2, 0.5, 0]])
    axis = triplets.distance_matrix(images, distances, "far and near").axes[0]
    assert np.array_equal(axis.images[0].get_array(), distances)
    placed = {box.xy: box.offsetbox.get_data() for box in axis.artists if isinstance(box, AnnotationBbox)}
    assert placed.keys() == {(n, -1) for n in range(3)} | {(-1, n) for n in range(3)}
    for number, image in enumerate(images):
        expected = image.transpose(1, 2, 0).squeeze()
        assert np.array_equal(placed[number, -1], expected) and np.array_equal(placed[-1, number], expected)


def test_a_zone_grid_shows_triplets_of_their_zone_with_their_distances():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(40, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distances, labels = np.linalg.norm(vectors[:, None] - vectors, axis=2), np.arange(40) % 4
    images = np.repeat(np.arange(40, dtype=np.uint8), 64).reshape(40, 1, 8, 8)  # an image tells its number
    grid = tiles(triplets.zone_grid(images, labels, distances, 0.3))
    rows = {}
    for (line, column), tile in sorted(grid.items()):
        rows.setdefault(line, []).append((column, tile))
    assert len(rows) == 3
    for zone, row in zip(triplets.ZONES, rows.values(), strict=True):
        shown = [tile for _, tile in sorted(row, key=lambda place: place[0])]
        assert len(shown) == 9
        for anchor, positive, negative in zip(shown[::3], shown[1::3], shown[2::3], strict=True):
            frames = [tile["frame"] for tile in (anchor, positive, negative)]
            assert frames == [grids.QUERY, grids.HIT, grids.MISS]
            a, p, n = (int(tile["arrays"][0].max()) for tile in (anchor, positive, negative))
            assert labels[a] == labels[p] != labels[n] and a != p
            assert (positive["caption"], negative["caption"]) == (f"{distances[a, p]:.2f}", f"{distances[a, n]:.2f}")
            assert triplets.zone_of(distances[a, p] - distances[a, n], 0.3) == zone
