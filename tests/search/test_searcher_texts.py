import itertools
import re

import numpy as np
import pandas as pd
import pytest
from makers.texts import COLOURS, SHAPES, Toys, dual, toy
from PIL import Image

from rectrio_lib.core.errors import DataError
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import fingerprint, save_encoder
from rectrio_lib.index.index import Index
from rectrio_lib.search.searcher import search_images, search_mixed, search_texts, search_vectors
from rectrio_lib.search.zero_shot import index_texts

TOYS = list(itertools.product(COLOURS, SHAPES))


@pytest.fixture(scope="module")
def toys():
    """An index of three pictures of each colour and shape, and its encoder."""
    encoder = Toys()
    rows = pd.DataFrame([{"colour": c, "label": s, "image_id": f"{c}-{s}-{n}"} for n in range(3) for c, s in TOYS])
    vectors = encoder.encode(np.stack([toy(*pair) for pair in TOYS] * 3))
    return Index.build("flat", vectors, rows, fingerprint(encoder)), encoder


def found(results):
    return list(zip(results.column("colour")[0], results.column("label")[0], strict=True))


# --- texts


def test_words_find_the_pictures_that_they_describe(toys):
    results = search_texts(*toys, ["red", "blue heart", "HEART, blue!"], k=9)
    assert (results.column("colour")[0] == "red").all()
    assert results.frame().query("query == 'blue heart'")["image_id"][9:12].str.startswith("blue-heart").all()
    np.testing.assert_array_equal(results.positions[1], results.positions[2])
    assert results.query_ids == ["red", "blue heart", "HEART, blue!"]


def test_the_options_of_every_search_hold_for_words(toys):
    results = search_texts(*toys, ["red"], k=4, where="label == 'star'", minimum=0.5)
    assert found(results)[:3] == [("red", "star")] * 3 and results.positions[0, 3] == -1


def test_words_that_the_encoder_of_another_index_read_are_refused(toys):
    index, _ = toys
    with pytest.raises(ValueError, match="The index was built with encoder"):
        search_texts(index, dual(dim=6), ["red"])


def test_an_encoder_without_a_text_tower_names_the_saved_ones_that_have_one(toys):
    with pytest.raises(ValueError, match=r"of kind 'raw-pixels', has no text tower .* encoders, none can"):
        search_texts(toys[0], RawPixels(1, 6), ["red"])
    for name, encoder in (("with-words", dual()), ("more-words", dual(1)), ("without", RawPixels())):
        save_encoder(encoder, name)
    with pytest.raises(ValueError, match=r"Of the saved encoders, more-words, with-words can; `rectrio index"):
        search_texts(toys[0], RawPixels(1, 6), ["red"])


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["red", ""], "Text 2 of 2 is empty"),
        ([], "at least one text"),
        ("red", "Expected a list"),
        (["мяч"], "'мяч' holds no word that this encoder knows"),
        (["🔴"], "'🔴' holds no word that this encoder knows"),
    ],
)
def test_texts_that_say_nothing_are_refused(toys, texts, sentence):
    with pytest.raises(ValueError, match=sentence):
        search_texts(*toys, texts)


def test_ten_thousand_words_are_a_question_like_any_other(toys):
    results = search_texts(*toys, ["red star " + "blue " * 10_000], k=3)
    assert found(results) == [("red", "star")] * 3


# --- mixed


def test_like_this_one_but_in_another_colour(toys):
    for colour, shape in TOYS:
        for other in set(COLOURS) - {colour}:
            results = search_mixed(*toys, [(toy(colour, shape), 1.0), (other, 1.0)], k=3)
            assert found(results) == [(other, shape)] * 3


def test_without_turns_away_from_what_the_words_say(toys):
    results = search_mixed(*toys, [("star", 1.0), ("red", -0.5)], k=6)
    assert {label for _, label in found(results)} == {"star"} and "red" not in {c for c, _ in found(results)}
    assert "red" in {c for c, _ in found(search_mixed(*toys, [("star", 1.0)], k=9))}


def test_the_question_is_the_weighted_mean_of_its_parts(toys):
    index, encoder = toys
    parts = [(toy("red", "ring"), 2.0), ("blue", 1.0), ("heart", -0.5)]
    total = 2 * encoder.encode(toy("red", "ring")[None])[0] + [0, 0, 1, 0, 0, -0.5]
    expected = search_vectors(index, (total / np.linalg.norm(total))[None].astype(np.float32), 5)
    results = search_mixed(index, encoder, parts, 5)
    np.testing.assert_array_equal(results.positions, expected.positions)
    np.testing.assert_allclose(results.scores, expected.scores, atol=1e-6)
    assert results.query_ids == ["+2 picture +1 'blue' -0.5 'heart'"]


def test_only_the_ratio_of_the_weights_counts(toys):
    one, other = (search_mixed(*toys, [("red", w), ("star", 3 * w)], 9) for w in (1e-4, 1e4))
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_files_are_parts_too(toys, tmp_path):
    path = tmp_path / "my ring.png"
    Image.fromarray(toy("green", "ring")[0]).save(path)
    results = search_mixed(*toys, [(path, 1.0), ("blue", 1.0)], k=3)
    assert found(results) == [("blue", "ring")] * 3
    assert results.query_ids == ["+1 my ring.png +1 'blue'"]
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        search_mixed(*toys, [(tmp_path / "gone.png", 1.0)])


def test_pictures_alone_need_no_text_tower():
    encoder = RawPixels(1, 6)
    vectors = encoder.encode(np.stack([toy(*pair) for pair in TOYS]))
    index = Index.build("flat", vectors, pd.DataFrame({"image_id": map("-".join, TOYS)}), fingerprint(encoder))
    results = search_mixed(index, encoder, [(toy("red", "star"), 1.0), (toy("blue", "star"), -1 / 3)], k=1)
    assert results.column("image_id").tolist() == [["red-star"]]


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (-1.0, -2.0), (1.0, np.nan), (np.inf, 1.0)])
def test_weights_that_say_nothing_are_refused(toys, weights):
    told = ", ".join(f"{weight:g}" for weight in weights) or "none"
    with pytest.raises(ValueError, match=re.escape(f"one of them positive, to say what to look for, not {told}.")):
        search_mixed(*toys, [("red", weight) for weight in weights])


def test_parts_that_cancel_each_other_are_refused(toys):
    with pytest.raises(ValueError, match="cancel each other"):
        search_mixed(*toys, [("red", 1.0), ("RED", -1.0)])


# --- pictures ask for words


def test_a_picture_finds_the_words_that_fit_it_best(toys):
    _, encoder = toys
    texts = [" ".join(pair) for pair in TOYS]
    index = index_texts(encoder, texts, labels=[shape for _, shape in TOYS])
    results = search_images(index, encoder, np.stack([toy(*pair) for pair in TOYS]), k=2)
    assert results.column("image_id")[:, 0].tolist() == texts
    assert results.column("label")[:, 0].tolist() == [shape for _, shape in TOYS]


def test_new_classes_exist_by_being_named(toys):
    _, encoder = toys
    index = index_texts(encoder, ["heart", "ring"])
    assert search_images(index, encoder, toy("red", "ring")[None], 1).column("image_id").tolist() == [["ring"]]


def test_a_text_that_comes_twice_is_refused(toys):
    with pytest.raises(ValueError, match="come twice: 'ring'"):
        index_texts(toys[1], ["ring", "star", "ring"])


def test_pictures_and_texts_lie_in_one_index(toys):
    _, encoder = toys
    words = [*COLOURS, *SHAPES]
    vectors = np.concatenate([encoder.encode(np.stack([toy(*pair) for pair in TOYS])), encoder.encode_texts(words)])
    rows = pd.DataFrame({"image_id": ["-".join(pair) for pair in TOYS] + words})
    both = Index.build("flat", vectors, rows, fingerprint(encoder))
    results = search_images(both, encoder, toy("red", "star")[None], k=3)
    assert results.column("image_id")[0, 0] == "red-star" and set(results.column("image_id")[0, 1:]) == {"red", "star"}
    asked = search_texts(both, encoder, ["blue"], k=4).column("image_id")[0]
    assert asked[0] == "blue" and set(asked[1:]) == {"blue-star", "blue-ring", "blue-heart"}
    assert len(both) == len(TOYS) + len(words)
