"""Words of a query found in the metadata (BM25), mixed with the neighbours found by vectors."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd

FREQUENT, LENGTH = 1.2, 0.75  # the usual k1 and b of BM25: how repetition and long texts count
FUSED = 60  # the usual constant of reciprocal rank fusion
NOT_TEXT = ("image_id", "split")
WORD = r"(?u)[^\W_]+"  # letters and digits, so that "red_shoe.jpg" holds three words


class WordCounts:
    """How often each word occurs in the texts of each row: labels, tags, file names and other columns of text.

    It is exact, and the same whatever database holds the rows; 100,000 rows take about a second.

    Args:
        rows: metadata (N).
    """

    def __init__(self, rows: pd.DataFrame):
        from sklearn.feature_extraction.text import CountVectorizer

        texts = pd.Series("", index=range(len(rows)))
        for name, values in rows.items():
            if name not in NOT_TEXT and values.dtype in (object, "string"):
                texts = texts + " " + values.map(_text).to_numpy(object)
        vectorizer = CountVectorizer(preprocessor=plain, token_pattern=WORD)
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError:  # there is no word
            self.lengths, self._columns, self._counts = np.zeros(len(rows)), {}, None
            return
        self.lengths, self._columns = np.asarray(counts.sum(1)).ravel(), vectorizer.vocabulary_
        self._counts = counts.tocsc()

    def of(self, word: str) -> np.ndarray:
        """Return how often a word occurs in each row (N,)."""
        column = self._columns.get(word)
        return np.zeros(len(self.lengths)) if column is None else self._counts[:, [column]].toarray()[:, 0]


def bm25(parts: Sequence[WordCounts], query: str) -> np.ndarray:
    """Score rows by the words of a query: the rarer a word, and the oftener it occurs in a short text, the more.

    Args:
        parts: of a table, one after the other; together N rows.
        query: words; their order, case and accents do not matter.

    Returns:
        Scores float64 (N,), 0 where no word occurs.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
    """
    lengths = np.concatenate([part.lengths for part in parts])
    scores, mean = np.zeros(len(lengths)), max(lengths.mean(), 1e-9) if len(lengths) else 1
    for word in words_of(query):
        counts = np.concatenate([part.of(word) for part in parts])
        rows = np.flatnonzero(counts)
        counts = counts[rows]
        rarity = np.log(1 + (len(lengths) - len(rows) + 0.5) / (len(rows) + 0.5))
        saturated = counts + FREQUENT * (1 - LENGTH + LENGTH * lengths[rows] / mean)
        scores[rows] += rarity * counts * (FREQUENT + 1) / saturated
    return scores


def fuse(*rankings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join rankings: each row gets the sum of 1 / (60 + rank) over the rankings it occurs in.

    Args:
        *rankings: positions, best first, each without repetition.

    Returns:
        Sums float64 (n,), best first, and positions int64 (n,); of equal sums the smaller position is first.

    Source: Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet", SIGIR 2009.
    """
    every = np.concatenate(rankings).astype(np.int64)
    shares = np.concatenate([1 / (FUSED + 1 + np.arange(len(ranking))) for ranking in rankings])
    positions, places = np.unique(every, return_inverse=True)
    sums = np.bincount(places, shares, len(positions))
    order = np.argsort(-sums, kind="stable")
    return sums[order], positions[order]


def words_of(query: str) -> list[str]:
    """Return the different words of a query, as they are looked up."""
    return list(dict.fromkeys(re.findall(WORD, plain(query))))


def plain(text: str) -> str:
    """Return a text without capitals and accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return " ".join(map(str, value)) if isinstance(value, list | tuple | np.ndarray) else ""
