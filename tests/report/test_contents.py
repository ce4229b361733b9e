import numpy as np
import pandas as pd
import pytest

from rectrio_lib.report import contents, projection


def table(labels):
    return pd.DataFrame({"image_id": [f"p{i}" for i in range(len(labels))], "label": labels, "split": ""})


def test_examples_are_of_all_classes_before_any_comes_twice_and_of_the_test_split():
    rows = table(["cat"] * 30 + ["dog"] * 3 + ["cow"] * 2)
    assert sorted(contents.examples(rows, 3)["label"]) == ["cat", "cow", "dog"]
    assert contents.examples(rows, 12)["label"].value_counts().to_dict() == {"cat": 7, "dog": 3, "cow": 2}
    rows.loc[[4, 31], "split"] = "test"
    assert sorted(contents.examples(rows, 12)["image_id"]) == ["p31", "p4"]


@pytest.mark.parametrize(("count", "method"), [(3, "PCA"), (29, "PCA"), (60, "t-SNE")])
def test_a_projection_keeps_two_clusters_apart(count, method):
    vectors = np.random.default_rng(0).normal(size=(count, 8)) * 0.05
    vectors[: count // 2, 0] += 3
    chosen, points = projection.project(vectors.astype(np.float32))
    assert chosen == method and points.shape == (count, 2)
    left, right = points[: count // 2], points[count // 2 :]
    assert np.linalg.norm(left.mean(0) - right.mean(0)) > 2 * max(left.std(0).max(), right.std(0).max())


def test_a_cell_holds_one_point_and_every_occupied_cell_has_one():
    points = np.random.default_rng(0).uniform(-3, 7, (200, 2))
    first, places = projection.cells(points, 6, 4)
    assert len(np.unique(first)) == len(first) == len(np.unique(places, axis=0)) == 24
    assert places.min(0).tolist() == [0, 0] and places.max(0).tolist() == [5, 3]
    for point, (column, line) in zip(points[first], places, strict=True):
        low, high = points.min(0), points.max(0)
        assert column <= (point[0] - low[0]) / (high - low)[0] * 6 <= column + 1
        assert line <= (point[1] - low[1]) / (high - low)[1] * 4 <= line + 1


def test_points_on_one_spot_share_a_cell():
    first, places = projection.cells(np.ones((5, 2)), 6, 4)
    assert (len(first), places.tolist()) == (1, [[0, 0]])


def test_a_sample_keeps_the_order():
    rows = table(["x"] * 50)
    assert contents.sample(rows, 50) is rows
    few = contents.sample(rows, 10)
    assert len(few) == 10 and few.index.is_monotonic_increasing
