import re

import pytest
import torch

from rectrio_lib.core.tables import shortened
from rectrio_lib.encoders.base import validate_texts
from rectrio_lib.encoders.dual import FIRST, PAD, UNKNOWN, token_ids, vocabulary, words

KNOWN = ["a", "coat", "t-shirt", "warm"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A warm, WARM coat.", ["a", "warm", "warm", "coat"]),
        ("the T-Shirt -- 2 of them", ["the", "t-shirt", "2", "of", "them"]),
        ("shepherd's flock; woman’s", ["shepherd's", "flock", "woman’s"]),
        ("snake_case under__", ["snake", "case", "under"]),
        ("Ｃｏａｔ Straße", ["coat", "strasse"]),
        ("пальто と コート 🧥", ["пальто", "と", "コート"]),
        ("🧥 !? —", []),
    ],
)
def test_words_are_found_in_any_script_without_case_and_punctuation(text, expected):
    assert words(text) == expected


def test_a_vocabulary_holds_every_word_once_by_alphabet():
    assert vocabulary(["a warm coat", "A T-shirt, warm"]) == KNOWN


def test_words_become_their_numbers_unknown_ones_one_number_and_the_rest_is_padding():
    numbers = token_ids(["warm coat", "a blue T-shirt"], KNOWN, 5)
    number = {word: FIRST + place for place, word in enumerate(KNOWN)}
    expected = [
        [number["warm"], number["coat"], PAD, PAD, PAD],
        [number["a"], UNKNOWN, number["t-shirt"], PAD, PAD],
    ]
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == expected


def test_ten_thousand_words_are_cut_off():
    assert torch.equal(token_ids(["warm coat " * 5000], KNOWN, 6), token_ids(["warm coat " * 3], KNOWN, 6))


@pytest.mark.parametrize("text", ["zebra crossing", "🧥🧥", "пальто", "... !", "zebra " * 9 + "coat"])
def test_a_text_of_unknown_words_is_refused_with_known_ones_named(text):
    with pytest.raises(ValueError, match="first 4: use some of the 4"):
        token_ids(["a coat", text], KNOWN, 4)


def test_only_the_beginning_of_a_long_text_is_repeated_in_an_error():
    with pytest.raises(ValueError, match="holds no word") as caught:
        token_ids(["zebra " * 10_000], KNOWN, 4)
    assert len(str(caught.value)) < 300
    assert shortened("x" * 60) == "x" * 60 and shortened("x" * 61) == "x" * 59 + "…"


@pytest.mark.parametrize(
    ("texts", "token"),
    [
        ("a coat", "'a coat'"),
        ([], "[]"),
        (["a", " \n\t"], "Text 2 of 2"),
        ([3], "int"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts, token):
    with pytest.raises(ValueError, match=re.escape(token)):
        validate_texts(texts)


def test_texts_are_passed_on_as_they_are():
    assert validate_texts(("A coat ", "b")) == ["A coat ", "b"]
