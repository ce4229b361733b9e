"""Texts that describe images: of classes, by template, and of drawings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import mode

import numpy as np
import pandas as pd

from rectrio_lib.core.errors import ArgumentError

PARTS = ("train", "val", "test")
PROMPTS = (
    "a photo of a {}.", "a close-up photo of a {}.", "a blurry photo of a {}.", "a black and white photo of a {}.",
    "a small picture of a {}.", "a drawing of a {}.",
)  # fmt: skip
TEMPLATES = {  # for classes that nobody described
    "train": ("{}", "a {}", "a picture of a {}", "one {} and nothing else", "a small {}", "a large {}",
              "a {} in the middle", "a bright {}"),
    "val": ("a picture of one {}",),
    "test": ("a large bright {}", "a small picture of a {}"),
}  # fmt: skip
DRAWN = (
    "{label}", "a {label}", "{colour}", "in {colour}", "something {colour}", "{texture}", "something {texture}",
    "something {pose}", "a {colour} {label}", "a {texture} {label}", "a {label}, {pose}",
    "a {texture} {colour} {label}", "a {texture} {colour} {label}, {pose}",
)  # fmt: skip


@dataclass(frozen=True)
class Captions:
    """Texts, and what each of them describes.

    Attributes:
        texts: (T,), each once.
        fits: whether text t describes images of target c, bool (C, T).

    Raises:
        ValueError: if the two do not fit each other, a text comes twice, or one describes nothing.
    """

    texts: tuple[str, ...]
    fits: np.ndarray

    def __post_init__(self) -> None:
        if self.fits.dtype != bool or self.fits.shape[1:] != (len(self.texts),):
            told = f"{self.fits.dtype} {self.fits.shape}"
            raise ArgumentError(f"fits should be bool (targets, {len(self.texts)}), not {told}.")
        if len(set(self.texts)) < len(self):
            raise ArgumentError(f"{mode(self.texts)!r} comes twice: let it fit all that it describes.")
        if not (self.fits.any(0).all() and self.fits.any(1).all()):
            raise ArgumentError("A text describes nothing, or nothing describes a target.")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def targets(self) -> np.ndarray:
        """The first target that each text describes, int64 (T,): where it describes one only, that."""
        return self.fits.argmax(0)

    def means(self, vectors: np.ndarray) -> np.ndarray:
        """Return a vector for each target: the mean direction of its texts' vectors (T, D), unit length (C, D).

        Source: Radford et al., "Learning transferable visual models", ICML 2021, section 3.1.4 (prompt ensembles).
        """
        totals = self.fits.astype(vectors.dtype) @ vectors
        return totals / np.linalg.norm(totals, axis=1, keepdims=True)


def describe(classes: Sequence[str], part: str = "train") -> Captions:
    """Return descriptions of classes: those of texts/, and templates with the name for classes not in there.

    Args:
        classes: names in the order of their targets.
        part: "train"; "val", other wordings to choose settings with; "test", further ones to report.

    Raises:
        ValueError: if there is no such part.
    """
    if part not in PARTS:
        raise ArgumentError(f"part={part!r} is unknown: choose one of {', '.join(PARTS)}.")
    told = [WRITTEN[name][part] if name in WRITTEN else fill(TEMPLATES[part], name) for name in classes]
    return _captions(told)


def prompts(names: Sequence[str], templates: Sequence[str] = PROMPTS) -> Captions:
    """Return every template filled with every name, for classes that exist by being named."""
    return _captions([fill(templates, name) for name in names])


def fill(templates: Iterable[str], name: str) -> list[str]:
    """Put a name into templates such as "a photo of a {}."; before a vowel "a" becomes "an"."""
    return [with_article(template.format(name)) for template in templates]


def with_article(text: str) -> str:
    """Turn "a" into "an" before a vowel."""
    return re.sub(r"\b([aA]) (?=[aeiouAEIOU])", r"\1n ", text)


def describe_drawings(frame: pd.DataFrame) -> tuple[np.ndarray, Captions]:
    """Describe the rows (N,) of `synthetic.draw_shapes` by shape, colour, texture and pose, alone and together.

    Returns:
        The target of each image, int64 (N,), a number for each combination of the four; and the captions.
    """
    known = frame[["label", "colour", "texture"]].assign(pose=frame["caption"].str.partition(", ")[2])
    things = known.drop_duplicates().reset_index(drop=True)
    targets = known.merge(things.assign(target=things.index), how="left")["target"].to_numpy()
    told = [[with_article(template.format(**thing)) for template in DRAWN] for thing in things.to_dict("records")]
    return targets, _captions(told)


def _captions(told: Sequence[Sequence[str]]) -> Captions:
    """Make captions of the texts of each target; one text may stand under several."""
    texts = tuple(dict.fromkeys(text for line in told for text in line))
    place = {text: number for number, text in enumerate(texts)}
    fits = np.zeros((len(told), len(texts)), bool)
    for target, line in enumerate(told):
        fits[target, [place[text] for text in line]] = True
    return Captions(texts, fits)


def _read_written() -> dict[str, dict[str, list[str]]]:
    """Read texts/*.txt: a line without indentation is a class, each further line describes it, after PART: if any."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in ("fashion", "animals"):
        for line in (files(__package__) / "texts" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                described = found.setdefault(line, {part: [] for part in PARTS})
                continue
            part, colon, text = line.strip().partition(": ")
            described[part if colon else "train"].append(text if colon else part)
    return found


WRITTEN = _read_written()
