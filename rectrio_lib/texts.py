"""Texts on their way to an encoder: checked, split into words, and turned into numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import torch

PAD, UNKNOWN, FIRST = 0, 1, 2  # numbers of what is no word, of words never seen, and of the first word
SHOWN = 60  # letters of a text that an error repeats


def words(text: str) -> list[str]:
    """Split a text into words without case; a hyphen or an apostrophe stays inside: t-shirt is one word."""
    return re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", unicodedata.normalize("NFKC", text).casefold())


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Return all words of some texts, each once, by alphabet."""
    return sorted({word for text in texts for word in words(text)})


def checked(texts: Sequence[str]) -> list[str]:
    """Return texts as a list, if they are texts.

    Raises:
        ValueError: if there is none, one is empty or no text, or a text stands where a list of texts should.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"Expected a list of at least one text, not {shortened(repr(texts))}.")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ValueError(f"Text {number} of {len(texts)} is no text but a {type(text).__name__}.")
        if not text.strip():
            raise ValueError(f"Text {number} of {len(texts)} is empty: say in words what to look for.")
    return list(texts)


def shortened(text: str) -> str:
    """Return a text as an error or a figure can show it."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def numbered(texts: Sequence[str], known: Sequence[str], length: int) -> torch.Tensor:
    """Turn texts into numbers of words.

    Args:
        texts: what to read (N,).
        known: the vocabulary; its words are numbered from FIRST.
        length: L, words that are read of a text; the rest is cut off.

    Returns:
        int64 (N, L): UNKNOWN for words that are not in the vocabulary, PAD after the last one.

    Raises:
        ValueError: as `checked`, or if none of the words that are read of a text is in the vocabulary.
    """
    texts, number_of = checked(texts), {word: number for number, word in enumerate(known, FIRST)}
    numbers = torch.full((len(texts), length), PAD)
    for row, text in zip(numbers, texts, strict=True):
        found = [number_of.get(word, UNKNOWN) for word in words(text)[:length]]
        if all(number == UNKNOWN for number in found):
            raise ValueError(
                f"{shortened(text)!r} holds no word that this encoder knows among the first {length}: use some of its "
                f"{len(known)} words, such as {', '.join(known[:: max(1, len(known) // 6)][:6])}."
            )
        row[: len(found)] = torch.tensor(found)
    return numbers
