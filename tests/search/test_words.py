"""Words in the metadata against a naive count, and rankings that are joined."""

import re
from math import log

import numpy as np
import pandas as pd
import pytest

from rectrio_lib.search.ranking.words import WordCounts, bm25, fuse, words_of

ROWS = pd.DataFrame({
    "image_id": ["red", "b", "c", "d", "e"],
    "path": ["shoes/red_shoe.jpg", "shoes/IMG_2.jpg", "coats/warm-coat.jpg", "x.png", "y.png"],
    "label": ["shoe", "shoe", "coat", None, "Éclair"],
    "tags": [["red", "sale"], [], ["red red red wool", "warm"], None, ["crème brûlée"]],
    "price": [1.0, 2, 3, 4, 5],
    "split": ["train"] * 5,
})  # fmt: skip
TEXTS = ["shoes red shoe jpg shoe red sale", "shoes img 2 jpg shoe", "coats warm coat jpg coat red red red wool warm",
         "x png", "y png eclair creme brulee"]  # fmt: skip


def naive(query):
    texts, scores = [text.split() for text in TEXTS], []
    mean = sum(map(len, texts)) / len(texts)
    for text in texts:
        score = 0
        for word in set(re.findall(r"\w+", query.lower())):
            count, holding = text.count(word), sum(word in other for other in texts)
            rarity = log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            score += rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(text) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["red", "red shoe", "warm coat wool", "jpg png", "nothing", "2", "train"])
def test_scores_are_bm25_and_the_same_for_one_part_or_several(query):
    scores = bm25([WordCounts(ROWS)], query)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, naive(query), atol=1e-12)
    parts = [WordCounts(ROWS[:2]), WordCounts(ROWS[2:3]), WordCounts(ROWS[3:]), WordCounts(ROWS[:0])]
    np.testing.assert_allclose(bm25(parts, query), scores, atol=1e-12)


def test_case_and_accents_do_not_matter_and_identifiers_are_no_text():
    assert np.flatnonzero(bm25([WordCounts(ROWS)], "CREME Brulée")).tolist() == [4]
    assert np.flatnonzero(bm25([WordCounts(ROWS)], "éclair")).tolist() == [4]
    assert bm25([WordCounts(ROWS)], "b c d e train").tolist() == [0] * 5
    assert words_of("Red, RED & Schuh-größe!") == ["red", "schuh", "grosse"]


@pytest.mark.parametrize("rows", [ROWS[:0], ROWS[["image_id", "price"]]])
def test_without_texts_nothing_is_found(rows):
    assert bm25([WordCounts(rows)], "red").tolist() == [0] * len(rows)


def test_joined_rankings_are_sums_of_reciprocal_ranks():
    first, second = np.array([7, 3, 5]), np.array([3, 9])
    sums, positions = fuse(first, second)
    naive = {7: 1 / 61, 3: 1 / 62 + 1 / 61, 5: 1 / 63, 9: 1 / 62}
    assert positions.tolist() == [3, 7, 9, 5]
    np.testing.assert_allclose(sums, [naive[at] for at in positions])
    assert [len(part) for part in fuse(np.empty(0, np.int64), np.empty(0, np.int64))] == [0, 0]
