import numpy as np
import pandas as pd
import pytest
from makers.indexes import unit

from rectrio_lib.evaluation import classes


def table(labels, splits=None):
    ids = [f"p{i}" for i in range(len(labels))]
    return pd.DataFrame({"image_id": ids, "label": labels, "split": splits or [""] * len(labels)})


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
