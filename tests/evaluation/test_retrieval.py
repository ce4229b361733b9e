import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation import retrieval
from rectrio_lib.evaluation.retrieval import evaluate, recall_at_k


def clustered(rng, size, classes=4, dim=16, spread=0.6):
    """Unit vectors around class centres that overlap, and their labels."""
    labels = rng.integers(classes, size=size)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    vectors = centres[labels] + spread * dim**0.5 * rng.normal(size=(size, dim)) / 2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def tied(rng, size, classes):
    """Unit vectors of four halves among five places: every inner product is exact, and many are equal."""
    signs = rng.choice([-0.5, 0.5], size=(size, 5))
    signs[np.arange(size), rng.integers(5, size=size)] = 0
    return signs.astype(np.float32), rng.integers(classes, size=size)


def naive(queries, query_labels, gallery, gallery_labels, ks, knn):
    """One query and one rank at a time, by the definitions; gallery None is leave-one-out."""
    rows = []
    for i, (vector, label) in enumerate(zip(queries, query_labels, strict=True)):
        pool = [j for j in range(len(queries)) if j != i] if gallery is None else range(len(gallery))
        vectors, labels = (queries, query_labels) if gallery is None else (gallery, gallery_labels)
        score = {j: float(np.dot(vector.astype(np.float64), vectors[j].astype(np.float64))) for j in pool}
        ranked = [labels[j] for j in sorted(pool, key=lambda j: (-score[j], j))]
        R = ranked.count(label)
        if R == 0:
            rows.append({})
            continue
        row = {f"recall_at_{k}": float(label in ranked[:k]) for k in ks}
        row["precision_at_1"] = float(ranked[0] == label)
        row["r_precision"] = ranked[:R].count(label) / R
        row["map_at_r"] = sum(ranked[:r].count(label) / r for r in range(1, R + 1) if ranked[r - 1] == label) / R
        row["mrr"] = 1 / (ranked.index(label) + 1)
        row["average_precision"] = np.mean(
            [ranked[:r].count(label) / r for r, at in enumerate(ranked, 1) if at == label]
        )
        most = max(ranked[:knn].count(name) for name in ranked[:knn])
        winner = next(name for name in ranked[:knn] if ranked[:knn].count(name) == most)
        row["knn_accuracy"] = float(winner == label)
        rows.append(row)
    return pd.DataFrame(rows)


def same_scores(scores, table):
    assert scores.keys() <= set(table.columns)
    for name, values in scores.items():
        np.testing.assert_allclose(values, table[name].to_numpy(float), rtol=0, atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(st.integers(1, 12), st.integers(3, 150)), alone=st.booleans())
def test_every_figure_equals_the_naive_loop_with_ties_copies_and_lone_classes(seed, sizes, alone):
    rng = np.random.default_rng(seed)
    classes = rng.integers(1, 7)
    gallery = tied(rng, sizes[1], classes)
    data = (*gallery, None, None) if alone else (*tied(rng, sizes[0], classes + 1), *gallery)
    knn, *ks = rng.integers(1, sizes[1] - alone, size=3, endpoint=True)
    expected = naive(*data, ks, knn)
    assume("mrr" in expected)
    figures = evaluate(*data, ks, knn, average_precision=True)
    same_scores(figures.scores, expected)
    assert expected.columns.symmetric_difference(list(figures.scores)).empty
    assert figures.skipped == expected["mrr"].isna().sum()
    usual, near = (evaluate(*data, ks, knn, nearest_only=flag) for flag in (False, True))
    assert figures.scores.keys() - usual.scores.keys() == {"average_precision"}
    assert usual.scores.keys() - near.scores.keys() == {"r_precision", "map_at_r", "mrr"}
    for fewer in (usual, near):
        same_scores(fewer.scores, expected)


def test_equal_scores_rank_in_gallery_order_and_the_relevant_one_is_not_favoured():
    query, gallery = np.float32([[1, 0]]), np.float32([[0, 1]] + [[1, 0]] * 200)
    labels = np.array([0] + [1] * 150 + [0] * 50)  # of 200 copies of the query the last 50 are relevant
    for nearest_only in (True, False):
        figures = evaluate(query, [0], gallery, labels, ks=(1, 150, 151), knn=3, nearest_only=nearest_only).means()
        assert figures["recall_at_150"] == 0 and figures["recall_at_151"] == 1
    assert figures["mrr"] == pytest.approx(1 / 151)
    turned = evaluate(query, [0], gallery[::-1], labels[::-1], ks=(1,), knn=1, nearest_only=True)
    assert turned.means()["recall_at_1"] == 1


def test_the_nearest_are_found_when_each_lies_among_far_ones():
    angles = np.full(6 * retrieval.GROUP, 1.5)
    angles[:: retrieval.GROUP] = np.arange(6) / 10
    labels = angles == 0.5  # only the sixth nearest is relevant
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    figures = evaluate([[1, 0]], [True], gallery, labels, ks=(5, 6), knn=6, nearest_only=True).means()
    assert figures["recall_at_5"] == 0 and figures["recall_at_6"] == 1


def test_a_tied_vote_goes_to_the_class_of_the_nearest():
    gallery, labels = [[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], ["cat", "dog", "dog", "cat"]
    for knn, correct in {1: 1, 2: 1, 3: 0, 4: 1}.items():
        assert evaluate([[1, 0]], ["cat"], gallery, labels, ks=(1,), knn=knn).means()["knn_accuracy"] == correct


def test_leave_one_out_leaves_out_the_picture_itself_but_not_its_copies():
    vectors = np.float32([[1, 0], [1, 0], [0, 1], [0.6, 0.8]])
    figures = evaluate(vectors, ["a", "b", "a", "b"], ks=(1, 2), knn=1)
    # 0 and 1 are copies with different labels, so each finds the wrong label first: the other, not itself.
    assert figures.scores["recall_at_1"].tolist() == [0, 0, 0, 0]
    assert figures.scores["recall_at_2"].tolist() == [0, 1, 1, 0]
    copies = evaluate(np.repeat(vectors[[0, 2]], 2, axis=0), ["a", "a", "b", "b"], ks=(1,), knn=1)
    assert copies.means() == dict.fromkeys(copies.scores, 1.0)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("nearest_only", [True, False])
def test_the_block_size_changes_nothing(alone, nearest_only, monkeypatch):
    rng = np.random.default_rng(2)
    data = (*tied(rng, 70, 5), *((None, None) if alone else tied(rng, 130, 4)))
    whole = evaluate(*data, nearest_only=nearest_only).scores
    for entries in (1, 700, 2_900, 10_000, 10**6):  # from one query at once to all
        monkeypatch.setattr(retrieval, "BLOCK_ENTRIES", entries)
        for name, values in evaluate(*data, nearest_only=nearest_only).scores.items():
            np.testing.assert_allclose(values, whole[name], rtol=0, atol=1e-15, err_msg=f"{name}, {entries} entries")


def test_no_block_holds_more_scores_than_the_bound(monkeypatch):
    rows, one = [], retrieval._of_all
    monkeypatch.setattr(retrieval, "_of_all", lambda keys, *rest: rows.append(keys.shape) or one(keys, *rest))
    monkeypatch.setattr(retrieval, "BLOCK_ENTRIES", 2_000)
    evaluate(*clustered(np.random.default_rng(3), 150))
    assert sum(b for b, _ in rows) == 150 and max(b * n for b, n in rows) <= 2_000


@pytest.mark.parametrize("alone", [True, False])
def test_figures_equal_pytorch_metric_learning(alone):
    rng = np.random.default_rng(4)
    vectors, labels = clustered(rng, 250, classes=5)
    gallery = () if alone else clustered(rng, 400, classes=4)  # lacks the fifth class of the queries
    labels[0] = 77 if alone else labels[0]  # a class of one
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"),
        k=249 if alone else 400,  # the reciprocal rank there ends at k
        knn_func=CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    )
    theirs = calculator.get_accuracy(*map(torch.tensor, (vectors, labels, *gallery)))
    figures = evaluate(vectors, labels, *gallery)
    assert figures.skipped == (1 if alone else (labels == 4).sum()) > 0
    renamed = {"mean_average_precision_at_r": "map_at_r", "mean_reciprocal_rank": "mrr"}
    for name, value in theirs.items():
        assert figures.means()[renamed.get(name, name)] == pytest.approx(value, abs=1e-6)


def test_knn_accuracy_equals_scikit_learn_where_no_vote_is_tied():
    rng = np.random.default_rng(5)
    (vectors, labels), gallery = clustered(rng, 200, classes=2), clustered(rng, 300, classes=2)
    for knn in (1, 5, 21):
        theirs = KNeighborsClassifier(knn, metric="cosine", algorithm="brute").fit(*gallery)
        figures = evaluate(vectors, labels, *gallery, knn=knn).scores["knn_accuracy"]
        np.testing.assert_array_equal(figures, theirs.predict(vectors) == labels)
        assert 0.5 < figures.mean() < 1


def test_map_at_r_equals_scikit_learn_once_relevant_pictures_beyond_rank_r_count_as_missed():
    rng = np.random.default_rng(6)
    (vectors, labels), (gallery, gallery_labels) = (clustered(rng, size, spread=0.9) for size in (40, 160))
    figures = evaluate(vectors, labels, gallery, gallery_labels).scores["map_at_r"]
    for ours, vector, label in zip(figures, vectors, labels, strict=True):
        score, relevant = gallery @ vector, gallery_labels == label
        early = relevant & (score >= np.sort(score)[-relevant.sum()])
        theirs = average_precision_score(early, score)  # a mean over the early ones only
        assert ours == pytest.approx(theirs * early.sum() / relevant.sum(), abs=1e-9)
    assert 0.1 < figures.mean() < 0.9


def test_average_precision_equals_scikit_learn_without_ties_and_skips_queries_of_absent_products():
    rng = np.random.default_rng(8)
    vectors, products = clustered(rng, 150, classes=60, spread=0.9)  # some have one view, some none
    for gallery in ((), clustered(rng, 90, classes=40, spread=0.9)):
        figures = evaluate(vectors, products, *gallery, average_precision=True)
        others, others_products = gallery or (vectors, products)
        for i, ours in enumerate(figures.scores["average_precision"]):
            pool = np.arange(len(others)) != (-1 if gallery else i)
            relevant = others_products[pool] == products[i]
            if relevant.any():
                assert ours == pytest.approx(average_precision_score(relevant, (others @ vectors[i])[pool]), abs=1e-9)
            else:
                assert all(np.isnan(values[i]) for values in figures.scores.values()), "never a hit, nor a miss"
        assert 0 < figures.skipped < len(vectors)


def test_numpy_torch_half_precision_memory_mapped_and_text_labels_give_the_same(tmp_path):
    rng = np.random.default_rng(7)
    vectors, labels = tied(rng, 60, 3)  # exact in float16 too
    gallery, gallery_labels = tied(rng, 90, 3)
    kept, expected = vectors.copy(), evaluate(vectors, labels, gallery, gallery_labels)
    np.save(tmp_path / "gallery.npy", gallery.astype(np.float16))
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    names = np.array(["boot", "bag", "coat"])
    variants = [
        (vectors.astype(np.float16), labels, mapped, gallery_labels),
        (vectors.astype(np.float64), labels.tolist(), gallery[:, ::-1][:, ::-1], gallery_labels.astype(np.uint8)),
        (torch.tensor(vectors, requires_grad=True), labels, torch.tensor(gallery).half(), torch.tensor(gallery_labels)),
        (vectors, names[labels], gallery, pd.Series(names[gallery_labels], index=range(5, 95))),
        (vectors, names[labels].astype(object), gallery, pd.Categorical(names[gallery_labels])),
    ]
    for variant in variants:
        figures = evaluate(*variant)
        for name, values in expected.scores.items():
            np.testing.assert_array_equal(figures.scores[name], values)
    assert np.array_equal(vectors, kept)
    assert sorted(figures.per_class().index) == ["bag", "boot", "coat"]


def test_recall_of_a_search_result():
    neighbours = np.array([["a", "b", "b"], ["a", "a", "b"], ["c", "c", "c"]])
    assert recall_at_k(neighbours, ["a", "b", "a"], ks=(1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 2 / 3})
    rng = np.random.default_rng(14)
    (vectors, labels), (gallery, gallery_labels) = clustered(rng, 50), clustered(rng, 90)
    order = np.argsort(-vectors @ gallery.T, axis=1)[:, :10]
    figures = evaluate(vectors, labels, gallery, gallery_labels).means()
    for k, recall in recall_at_k(torch.tensor(gallery_labels[order]), labels, (1, 5, 10)).items():
        assert recall == pytest.approx(figures[f"recall_at_{k}"])


X = np.eye(8, dtype=np.float32)  # eight images, no two alike
Y = np.array([0, 0, 1, 1, 2, 2, 3, 3])
HOLED = np.where(np.arange(64).reshape(8, 8) == 19, np.nan, X)


@pytest.mark.parametrize(
    ("change", "token"),
    [
        ({"knn": 1}, "k=10 but the gallery holds 7"),
        ({"gallery": X[:7], "gallery_labels": Y[:7]}, "k=10 but the gallery holds 7"),
        ({"ks": (1,)}, "knn=20 but the gallery holds 7"),
        ({"ks": (0,), "knn": 1}, "k=0 but"),
        ({"ks": (), "knn": 1}, "ks is empty"),
        ({"average_precision": True, "nearest_only": True}, "nearest_only"),
        ({"query_labels": Y[:5]}, "shape (5,) for 8 queries"),
        ({"query_labels": Y[:, None]}, "Labels of shape (8, 1) for 8 queries"),
        ({"query_labels": [*"abcdefg", None]}, "Label 7 of 8 queries is missing"),
        ({"gallery": X, "gallery_labels": Y[:3]}, "Labels of shape (3,) for 8 gallery rows"),
        ({"queries": HOLED}, "queries: row 2 holds NaN or infinity"),
        ({"gallery": HOLED, "gallery_labels": Y}, "gallery: row 2 holds NaN or infinity"),
        ({"queries": X * 3}, "queries: row 0 has length 3"),
        ({"queries": X[0]}, "queries: shape (8,)"),
        ({"queries": X[:0], "query_labels": []}, "queries: shape (0, 8)"),
        ({"gallery": X[:0], "gallery_labels": []}, "gallery: shape (0, 8)"),
        ({"gallery": np.eye(4), "gallery_labels": Y[:4]}, "8 dimensions, the gallery 4"),
        ({"gallery": X}, "gallery_labels"),
        ({"gallery_labels": Y}, "gallery_labels"),
        ({"query_labels": range(8), "ks": (1,), "knn": 1}, "label occurs once"),
        ({"gallery": X, "gallery_labels": Y.astype(str), "ks": (1,), "knn": 1}, "such as 0, the gallery such as '0'"),
    ],
)
def test_bad_input_is_refused(change, token):
    with pytest.raises(ArgumentError, match=re.escape(token)):
        evaluate(**{"queries": X, "query_labels": Y} | change)


def test_bad_arguments_of_recall_at_k_are_refused():
    table = np.zeros((2, 3))
    for neighbours, labels, ks, token in [
        (table, [0, 1], (1, 5), "k=5"),
        (table, [0, 1], (0,), "k=0"),
        (table, [0, 1, 2], (1,), "shape (3,) for 2"),
        (table[0], [0], (1,), "shape (3,)"),
        (table[:0], [], (1,), "shape (0, 3)"),
    ]:
        with pytest.raises(ArgumentError, match=re.escape(token)):
            recall_at_k(neighbours, labels, ks)
