import itertools

import numpy as np
import pandas as pd
import pytest
from makers.networks import VIT, pretrained
from makers.texts import COLOURS, SHAPES, Toys, dual, toy
from PIL import Image

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.registry import fingerprint, save_encoder
from rectrio_lib.index.index import Index
from rectrio_lib.search.searcher import Searcher, encode_texts, search_vectors
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
    results = Searcher(*toys).search(text=["red", "blue heart", "HEART, blue!"], k=9)
    assert (results.column("colour")[0] == "red").all()
    assert results.frame().query("query == 'blue heart'")["image_id"][9:12].str.startswith("blue-heart").all()
    np.testing.assert_array_equal(results.positions[1], results.positions[2])
    assert results.query_ids == ["red", "blue heart", "HEART, blue!"]


def test_the_options_of_every_search_hold_for_words(toys):
    results = Searcher(*toys).search(text=["red"], k=4, where="label == 'star'", minimum=0.5)
    assert found(results)[:3] == [("red", "star")] * 3 and results.positions[0, 3] == -1


def test_a_text_that_is_cut_is_named_and_one_that_fits_is_not(toys, caplog):
    searcher = Searcher(*toys)
    searcher.search(text=["red", "red star", "red nosuchword", "nosuchword red"])
    assert not caplog.messages
    searcher.search(text=["red star blue", "heart"])
    assert len(caplog.messages) == 1 and "red star blue" in caplog.messages[0]


@pytest.mark.parametrize(
    ("text", "cut"), [("猫" * 20, False), ("猫" * 90, True), ("a cat " * 30, False), ("cat " * 90, True)]
)
def test_clip_says_what_it_does_not_read_to_the_end_with_or_without_blanks(caplog, text, cut):
    encode_texts(pretrained(VIT, texts=True), [text])
    assert sum("reads the first" in line for line in caplog.messages) == cut


def test_words_that_the_encoder_of_another_index_read_are_refused(toys):
    index, _ = toys
    with pytest.raises(ValueError, match="The index was built with encoder"):
        Searcher(index, dual(dim=6)).search(text=["red"])


def test_an_encoder_without_a_text_tower_names_the_saved_ones_that_have_one():
    pixels = RawPixels(1, 6)
    index = Index.build(
        "flat", np.eye(36, dtype=np.float32)[:2], pd.DataFrame({"image_id": ["a", "b"]}), fingerprint(pixels)
    )
    with pytest.raises(ValueError, match=r"raw-pixels.* none can"):
        Searcher(index, pixels).search(text=["red"])
    for name, encoder in (("with-words", dual()), ("more-words", dual(1)), ("without", RawPixels())):
        save_encoder(encoder, name)
    with pytest.raises(ValueError, match="more-words, with-words can"):
        Searcher(index, pixels).search(text=["red"])


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["red", ""], "Text 2 of 2 is empty"),
        ([], "at least one text"),
        (["мяч"], "'мяч' holds no word that this encoder knows"),
        (["🔴"], "'🔴' holds no word that this encoder knows"),
    ],
)
def test_texts_that_say_nothing_are_refused(toys, texts, sentence):
    with pytest.raises(ValueError, match=sentence):
        Searcher(*toys).search(text=texts)


def test_of_ten_thousand_words_the_first_are_read_and_the_user_is_warned(toys, caplog):
    results = Searcher(*toys).search(text=["red star " + "blue " * 10_000], k=3)
    assert found(results) == [("red", "star")] * 3
    assert "red star" in caplog.text
    caplog.clear()
    Searcher(*toys).search(text=["red star"], k=3)
    assert not caplog.text


# --- mixed


def test_like_this_one_but_in_another_colour(toys):
    for colour, shape in TOYS:
        for other in set(COLOURS) - {colour}:
            results = Searcher(*toys).search(toy(colour, shape), other, k=3)
            assert found(results) == [(other, shape)] * 3


def test_without_turns_away_from_what_the_words_say(toys):
    results = Searcher(*toys).search(text="star", without="red", k=6)
    assert {label for _, label in found(results)} == {"star"} and "red" not in {c for c, _ in found(results)}
    assert "red" in {c for c, _ in found(Searcher(*toys).search(text="star", weights=[1], k=9))}


def test_the_question_is_the_weighted_mean_of_its_parts(toys):
    index, encoder = toys
    total = 2 * encoder.encode(toy("red", "ring")[None])[0] + [0, 0, 1, 0, 0, -0.5]
    expected = search_vectors(index, (total / np.linalg.norm(total))[None].astype(np.float32), 5)
    results = Searcher(index, encoder).search([toy("red", "ring")], "blue", "heart", k=5, weights=[2, 1])
    np.testing.assert_array_equal(results.positions, expected.positions)
    np.testing.assert_allclose(results.scores, expected.scores, atol=1e-6)
    assert results.query_ids == ["+2 image 0 +1 'blue' -0.5 'heart'"]


def test_only_the_ratio_of_the_weights_counts(toys):
    one, other = (Searcher(*toys).search(text=["red", "star"], k=9, weights=[w, 3 * w]) for w in (1e-4, 1e4))
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_files_are_parts_too(toys, tmp_path):
    path = tmp_path / "my ring.png"
    Image.fromarray(toy("green", "ring")[0]).save(path)
    results = Searcher(*toys).search(path, "blue", k=3)
    assert found(results) == [("blue", "ring")] * 3
    assert results.query_ids == ["+1 my ring.png +1 'blue'"]
    with pytest.raises(ArgumentError, match=r"gone\.png"):
        Searcher(*toys).search(tmp_path / "gone.png", "blue")


def test_pictures_alone_need_no_text_tower():
    encoder = RawPixels(1, 6)
    vectors = encoder.encode(np.stack([toy(*pair) for pair in TOYS]))
    index = Index.build("flat", vectors, pd.DataFrame({"image_id": map("-".join, TOYS)}), fingerprint(encoder))
    results = Searcher(index, encoder).search(
        np.stack([toy("red", "star"), toy("blue", "star")]), weights=[1, -1 / 3], k=1
    )
    assert results.column("image_id").tolist() == [["red-star"]]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, -2.0), (1.0, np.nan), (np.inf, 1.0)])
def test_weights_that_say_nothing_are_refused(toys, weights):
    with pytest.raises(ValueError, match=f"{weights[0]:g}, {weights[1]:g}|weights=nan"):
        Searcher(*toys).search(text=["red", "red"], weights=weights)


def test_parts_that_cancel_each_other_are_refused(toys):
    with pytest.raises(ValueError, match="cancel"):
        Searcher(*toys).search(text=["red", "RED"], weights=[1, -1])


# --- pictures ask for words


def test_a_picture_finds_the_words_that_fit_it_best(toys):
    _, encoder = toys
    texts = [" ".join(pair) for pair in TOYS]
    index = index_texts(encoder, texts, labels=[shape for _, shape in TOYS])
    results = Searcher(index, encoder).search(np.stack([toy(*pair) for pair in TOYS]), k=2)
    assert results.column("image_id")[:, 0].tolist() == texts
    assert results.column("label")[:, 0].tolist() == [shape for _, shape in TOYS]


def test_new_classes_exist_by_being_named(toys):
    _, encoder = toys
    index = index_texts(encoder, ["heart", "ring"])
    assert Searcher(index, encoder).search(toy("red", "ring")[None], k=1).column("image_id").tolist() == [["ring"]]


def test_a_text_that_comes_twice_is_refused(toys):
    with pytest.raises(ValueError, match="come twice: 'ring'"):
        index_texts(toys[1], ["ring", "star", "ring"])


def test_pictures_and_texts_lie_in_one_index(toys):
    _, encoder = toys
    words = [*COLOURS, *SHAPES]
    vectors = np.concatenate([encoder.encode(np.stack([toy(*pair) for pair in TOYS])), encoder.encode_texts(words)])
    rows = pd.DataFrame({"image_id": ["-".join(pair) for pair in TOYS] + words})
    both = Index.build("flat", vectors, rows, fingerprint(encoder))
    results = Searcher(both, encoder).search(toy("red", "star")[None], k=3)
    assert results.column("image_id")[0, 0] == "red-star" and set(results.column("image_id")[0, 1:]) == {"red", "star"}
    asked = Searcher(both, encoder).search(text=["blue"], k=4).column("image_id")[0]
    assert asked[0] == "blue" and set(asked[1:]) == {"blue-star", "blue-ring", "blue-heart"}
    assert len(both) == len(TOYS) + len(words)
