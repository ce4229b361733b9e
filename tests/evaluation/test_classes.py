import numpy as np
import pandas as pd
import pytest
from makers.indexes import unit

from rectrio_lib.data import duplicates
from rectrio_lib.evaluation import classes
from rectrio_lib.report import contents, projection


def table(labels, splits=None):
    ids = [f"p{i}" for i in range(len(labels))]
    return pd.DataFrame({"image_id": ids, "label": labels, "split": splits or [""] * len(labels)})


def test_near_copies_are_joined_across_a_chain_and_others_are_not():
    rng = np.random.default_rng(0)
    vectors = unit(rng, 40, 32)
    vectors[5] = vectors[20] + 0.02 * rng.normal(size=32)
    vectors[30] = vectors[5] + 0.02 * rng.normal(size=32)
    vectors[2] = vectors[3]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = duplicates.near_copy_groups(vectors, table([""] * 40))
    assert [members.tolist() for members in groups] == [[5, 20, 30], [2, 3]]


def test_near_copies_are_told_by_what_pictures_do_not_have_in_common():
    shared = 5 * unit(np.random.default_rng(1), 1, 32)
    vectors = shared + unit(np.random.default_rng(0), 30, 32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors @ vectors.T).min() > 0.9
    assert duplicates.near_copy_groups(vectors.astype(np.float32), table([""] * 30)) == []


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_pictures_have_no_near_copies(count):
    assert duplicates.near_copy_groups(unit(np.random.default_rng(0), count), table([""] * count)) == []


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


def nearest_share(vectors, labels, queries, others):
    hits = []
    for q in queries:
        among = [i for i in others if i != q]
        best = max(among, key=lambda i: vectors[q] @ vectors[i])
        hits.append(labels[best] == labels[q])
    return np.mean(hits)


def test_quality_leaves_one_out_and_pictures_without_a_label():
    vectors = unit(np.random.default_rng(0), 30)
    labels = ["cat"] * 12 + ["dog"] * 12 + [""] * 6
    figures = classes.quality({"a": vectors, "b": -vectors}, table(labels), tested=False)
    assert list(figures) == ["a", "b"]
    assert figures["a"].means()["recall_at_1"] == pytest.approx(nearest_share(vectors, labels, range(24), range(24)))
    assert len(figures["a"].labels) == 24


def test_quality_of_a_trained_encoder_asks_test_pictures_among_those_of_a_split():
    vectors = unit(np.random.default_rng(0), 30)
    labels = ["cat", "dog"] * 15
    splits = ["test"] * 6 + ["val"] * 4 + ["train"] * 14 + [""] * 6
    figures = classes.quality({"a": vectors}, table(labels, splits), tested=True)["a"]
    assert figures.means()["recall_at_1"] == pytest.approx(nearest_share(vectors, labels, range(6), range(6, 24)))
    assert len(figures.labels) == 6


@pytest.mark.parametrize("labels", [[""] * 9, ["cat"] * 9, ["cat", "cat", "dog", "dog", ""], list("abcdefghi")])
def test_nothing_is_measured_where_there_is_nothing_to_measure(labels):
    assert classes.quality({"a": unit(np.random.default_rng(0), len(labels))}, table(labels), tested=False) == {}


def test_class_similarity_is_the_mean_over_pairs_of_different_pictures():
    vectors, labels = unit(np.random.default_rng(0), 9), np.array(["a"] * 4 + ["b"] * 3 + ["c", ""])
    similarity = classes.class_similarity(vectors, labels, ["a", "b", "c"])
    products = vectors @ vectors.T
    a, b = slice(0, 4), slice(4, 7)
    assert similarity[0, 1] == pytest.approx(products[a, b].mean())
    assert similarity[0, 0] == pytest.approx(products[a, a][np.triu_indices(4, 1)].mean(), abs=1e-6)
    assert similarity[2, 2] == 1
    np.testing.assert_allclose(similarity, similarity.T)


def test_a_sample_keeps_the_order():
    rows = table(["x"] * 50)
    assert contents.sample(rows, 50) is rows
    few = contents.sample(rows, 10)
    assert len(few) == 10 and few.index.is_monotonic_increasing
