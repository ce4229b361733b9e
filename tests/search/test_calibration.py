"""What scores mean: against naive counts, on worlds where the truth is known, and on collections on disk."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.indexes import unit
from makers.served import build_collection, copied
from sklearn.isotonic import IsotonicRegression

from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import save_encoder
from rectrio_lib.index.index import Index
from rectrio_lib.index.storage import CALIBRATION
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.options import Options
from rectrio_lib.search.ranking import calibration as module
from rectrio_lib.search.ranking.calibration import Calibration
from rectrio_lib.search.searcher import Searcher, search_vectors

DIM = 16


def world(seed, count=1500, classes=30, spread=0.8, named=range(30)):
    """Vectors around the centres of some classes, the same for every seed."""
    centres = np.random.default_rng(7).normal(size=(classes, DIM))
    rng = np.random.default_rng(seed)
    of = rng.choice(list(named), count)
    vectors = centres[of] + spread * rng.normal(size=(count, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rows = pd.DataFrame({"image_id": [f"{seed}-{i}" for i in range(count)], "label": [f"class {c}" for c in of]})
    return Index.build("flat", vectors, rows, "abc"), vectors, rows["label"].to_numpy()


def test_probabilities_are_the_isotonic_regression_and_shares_a_naive_count():
    rng = np.random.default_rng(0)
    scores = rng.random(2000)
    right, weights = rng.random(2000) < scores**2, 1 + rng.random(2000)
    fitted = module.fit(scores, right, weights, "labels", "abc")
    naive = IsotonicRegression(y_min=0, y_max=1).fit(scores, right, sample_weight=weights)
    np.testing.assert_allclose(fitted.probability(fitted.scores), naive.predict(fitted.scores), atol=1e-9)
    for score in np.quantile(scores, [0.1, 0.5, 0.9]):
        above = scores >= score
        share = (naive.predict(scores[above]) * weights[above]).sum() / weights[above].sum()
        assert np.interp(score, fitted.scores, fitted.shares) == pytest.approx(share, abs=0.01)
        assert share == pytest.approx(np.average(right[above], weights=weights[above]), abs=0.03)
    assert (fitted.source, fitted.encoder_hash, fitted.pairs) == ("labels", "abc", 2000)
    assert fitted.probability(np.array([0.9])) == pytest.approx([0.81], abs=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_probabilities_never_fall_and_minimum_is_their_inverse(seed, sure, probability):
    rng = np.random.default_rng(seed)
    scores = rng.random(300).round(2)
    fitted = module.fit(scores, rng.random(300) < 0.5 * scores + 0.25, np.ones(300), "labels", "abc")
    grid = np.linspace(-1, 1, 101)
    predicted = fitted.probability(grid)
    assert (np.diff(predicted) >= 0).all() and predicted.min() >= 0 and predicted.max() <= 1
    least = fitted.minimum(sure, probability)
    if np.isfinite(least):
        assert fitted.probability(np.array([least]))[0] >= probability - 1e-9
        assert np.interp(least, fitted.scores, fitted.shares) >= sure - 1e-9
    else:
        assert fitted.probabilities[-1] < probability or fitted.shares[-1] < sure


@pytest.mark.parametrize("absent", [0.0, 0.2])
def test_of_answers_that_are_nine_tenths_sure_nine_of_ten_are_right(absent):
    index, gallery, labels = world(0)
    found = module.by_labels(index)
    _, queries, own = world(1)
    scores = queries @ gallery.T
    right = labels[None, :] == own[:, None]
    gone = np.random.default_rng(2).random(len(queries)) < absent  # these classes are not there
    scores[gone[:, None] & right] = -1
    shown = scores >= found.minimum(sure=0.9)
    assert shown.sum() > 5000
    assert 0.87 <= right[shown].mean() <= 0.93
    near = abs(found.probability(scores) - 0.9) < 0.03
    assert right[near].mean() == pytest.approx(0.9, abs=0.06)


def test_queries_are_images_that_nothing_was_trained_on_if_that_is_known():
    index, vectors, labels = world(0)
    splits = np.where(np.arange(1500) % 2, "train", "val")
    tight = vectors.copy()
    for label in set(labels):  # what was trained on lies closer together than what comes later
        own = (labels == label) & (splits == "train")
        tight[own] = tight[own] * 0.3 + tight[own].mean(0)
    tight /= np.linalg.norm(tight, axis=1, keepdims=True)
    rows = index.rows.assign(split=splits)
    fresh = module.by_labels(Index.build("flat", tight, rows, "abc"))
    blind = module.by_labels(Index.build("flat", tight, rows.drop(columns="split"), "abc"))
    held = splits == "val"
    scores = np.where(np.eye(1500, dtype=bool), -1, tight @ tight.T)[held]
    right = (labels[None, :] == labels[:, None])[held]
    assert abs(right[scores >= fresh.minimum(sure=0.9)].mean() - 0.9) < 0.05
    assert fresh.minimum(sure=0.9) != blind.minimum(sure=0.9)


def test_without_labels_altered_copies_are_right_and_random_images_wrong():
    index, vectors, _ = world(0)
    rng = np.random.default_rng(3)
    copies = vectors[:400] + 0.1 * unit(rng, 400, DIM)
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    found = module.by_copies(index, copies, np.arange(400))
    assert (found.source, found.pairs) == ("copies", 800)
    assert found.probability(np.array([0.999, 0.0])) == pytest.approx([1, 0], abs=0.1)


@pytest.mark.parametrize("labels", [None, ["same"] * 40, [f"own {i}" for i in range(40)], [""] * 40])
def test_too_little_to_learn_from_is_refused(labels):
    rows = pd.DataFrame({"image_id": [f"p{i}" for i in range(40)]} | ({} if labels is None else {"label": labels}))
    with pytest.raises(ArgumentError):
        module.by_labels(Index.build("flat", unit(np.random.default_rng(0), 40), rows, "abc"))


def test_removed_images_are_not_learned_from():
    index, _, _ = world(0, 600)
    index.remove(index.rows["image_id"][index.rows["label"] == "class 3"].tolist()[:5])
    assert module.by_labels(index).pairs == len(index) * module.ANSWERS


# --- collections


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return build_collection(tmp_path_factory.mktemp("template"), each=20).workspace.root


@pytest.fixture
def shop(template, tmp_path):
    return copied(template, tmp_path)


def test_results_have_probabilities_once_they_were_learned_and_end_where_wanted(shop):
    assert "probability" not in shop.search("cat/00.png").frame()
    with pytest.raises(ArgumentError):
        shop.search("cat/00.png", sure=0.9)
    learned = shop.calibrate()
    again = Collection.open("photos", shop.folder, shop.workspace)
    frame = again.search("cat/00.png", k=30).frame()
    np.testing.assert_allclose(frame["probability"], learned.probability(frame["score"]), atol=1e-5)
    for options in ({"sure": 0.6}, {"minimum_probability": 0.5}, {"sure": 0.6, "minimum": 0.99}):
        least = max(
            learned.minimum(options.get("sure"), options.get("minimum_probability")), options.get("minimum", -1)
        )
        expected = frame[frame["score"] >= least]["image_id"].tolist()
        assert again.search("cat/00.png", k=30, **options).frame()["image_id"].tolist() == expected


def test_a_calibration_goes_with_its_index(shop):
    shop.calibrate()
    file = shop.workspace.path("indexes", "photos") / CALIBRATION
    card = json.loads(file.read_text())
    assert card["source"] == "labels"
    changes = [{"scores": [1]}, {"shares": ["x"] * len(card["scores"])}, {"scores": card["scores"][::-1]}]
    changes += [{"encoder_hash": "other"}]
    for wrong in ("{", "[]", *(json.dumps(card | change) for change in changes)):
        file.write_text(wrong)
        assert module.saved(shop) is None
    with pytest.raises(DataError):
        Calibration.load(file.parent / "nowhere")


def test_a_calibration_outlasts_every_change_but_that_of_the_encoder(tmp_path):
    shop = build_collection(tmp_path, each=20)
    shop.calibrate()
    save_encoder(RawPixels(3, 10), "finer", workspace=shop.workspace)
    file = shop.workspace.path("indexes", "photos") / CALIBRATION
    learned = file.read_bytes()
    shop.remove("cat/00.png")
    assert file.read_bytes() == learned
    shop = Collection.build(shop.folder, workspace=shop.workspace, kind="hnsw")
    assert file.read_bytes() == learned
    Index.shards([shop.index]).save("photos", shop.workspace)
    shop = Collection.open("photos", workspace=shop.workspace)
    assert file.read_bytes() == learned and shop.calibration.source == "labels"
    Collection.build(shop.folder, "finer", workspace=shop.workspace)
    assert not file.exists()
    shop.remove("cat/02.png")  # by an object that knew the old one
    assert shop.calibration is None
    file.write_text("{")
    Collection.open("photos", workspace=shop.workspace).remove("cat/01.png")
    assert not file.exists()


def test_a_calibration_outlasts_changes_on_a_server(tmp_path):
    pytest.importorskip("qdrant_client")
    shop = build_collection(tmp_path, each=20)
    shop = Collection.build(shop.folder, workspace=shop.workspace, vectors="qdrant::memory:")
    scores = shop.calibrate().scores
    shop.remove("cat/00.png")
    np.testing.assert_allclose(
        Collection.open("photos", workspace=shop.workspace).calibration.scores, scores, atol=1e-6
    )


def test_a_collection_without_labels_learns_from_altered_copies(tmp_path):
    shop = build_collection(tmp_path, each=40)
    flat = shop.folder.parent / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(shop.folder.rglob("*.png"))):
        path.rename(flat / f"{number}.png")
    shop = Collection.build(flat, "pixels", "flat", workspace=shop.workspace)
    assert set(shop.index.rows["label"]) == {""}
    assert shop.calibrate().source == "copies"


@pytest.mark.parametrize("options", [{"sure": 1.5}, {"minimum_probability": -1}, {"sure": "very"}])
def test_wrong_shares_are_refused(options):
    with pytest.raises(ArgumentError):
        Options(**options)


def test_without_a_calibration_or_with_words_nothing_is_sure():
    index, vectors, _ = world(0, 100)
    for ask in (lambda: search_vectors(index, vectors[:2], sure=0.9), lambda: Searcher(index).search("0-1", sure=0.9)):
        with pytest.raises(ArgumentError):
            ask()
