"""From a similarity to a probability: how often answers that similar were right, in this very collection."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError, DataError, StorageError
from rectrio_lib.core.workspace import check_card, read_card
from rectrio_lib.data import image_files
from rectrio_lib.embeddings.writer import writing
from rectrio_lib.index import storage
from rectrio_lib.index.base import VectorIndex

if TYPE_CHECKING:
    from rectrio_lib.search.collection import Collection

LISTS, FACTS = ("scores", "probabilities", "shares"), {"source": str, "encoder_hash": str, "pairs": int}
QUERIES, ANSWERS = 2000, 50  # images that stand for queries, and how many answers of each are looked at
FEWEST = 30  # right and wrong answers that a fit needs
ABSENT = 0.2  # share of the queries that is expected to be for something the collection does not hold
KNOTS, COPIED = 200, 300  # points of the curve; images that are altered where there are no labels


@dataclass(frozen=True)
class Calibration:
    """What scores mean.

    Attributes:
        scores: cosine similarities, ascending (K,).
        probabilities: that an answer of this score is right, not descending (K,).
        shares: of right ones among the answers of at least this score, not descending (K,).
        source: "labels": right means of the same label; "copies": an altered copy of the same image.
        encoder_hash: of the index.
        pairs: how many answers were looked at.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray
    source: str
    encoder_hash: str
    pairs: int

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability that answers of some scores are right; NaN where a score is NaN."""
        return np.interp(scores, self.scores, self.probabilities)

    def minimum(self, sure: float | None = None, probability: float | None = None) -> float:
        """Return the least score of answers of which a share `sure` is right, and each with this probability.

        It is above 1 if no answer would do.
        """
        least = -1.0
        for wanted, known in ((sure, self.shares), (probability, self.probabilities)):
            if wanted is not None:
                enough = np.flatnonzero(known >= wanted)
                least = max(least, self._between(enough[0], wanted, known) if len(enough) else np.inf)
        return least

    def _between(self, place: int, wanted: float, known: np.ndarray) -> float:
        if place == 0:
            return -1.0
        part = (wanted - known[place - 1]) / (known[place] - known[place - 1])
        return float(self.scores[place - 1] + part * (self.scores[place] - self.scores[place - 1]))

    def save(self, folder: Path) -> None:
        """Write it into the folder of its index, complete or not at all."""
        card = {name: getattr(self, name) for name in FACTS}
        lists = {name: getattr(self, name).round(6).tolist() for name in LISTS}
        files.write_json(folder / storage.CALIBRATION, card | lists)

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """Read what `save` wrote; DataError if it is not there or damaged."""
        card = read_card(folder / storage.CALIBRATION)
        check_card(card, dict.fromkeys(LISTS, list) | FACTS, folder / storage.CALIBRATION)
        try:
            lists = {name: np.array(card[name], float) for name in LISTS}
            curves = np.stack([*lists.values()])
        except (TypeError, ValueError):
            curves = np.empty(0)
        if not (curves.ndim == 2 and curves.size and np.isfinite(curves).all() and (np.diff(curves) >= 0).all()):
            raise DataError(f"{folder / storage.CALIBRATION} is damaged: delete it, and it is made again.")
        return cls(**lists, **{name: card[name] for name in FACTS})


def fit(scores: np.ndarray, right: np.ndarray, weights: np.ndarray, source: str, encoder_hash: str) -> Calibration:
    """Fit probabilities that do not fall as scores rise (isotonic regression).

    Args:
        scores: of answers (N,).
        right: whether they are, bool (N,).
        weights: how much each counts (N,).
        source: see `Calibration`, as for `encoder_hash`.
        encoder_hash: of the index.

    Raises:
        ArgumentError: if too few are right, or wrong.

    Source: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD
        2002.
    """
    from sklearn.isotonic import IsotonicRegression

    if min(right.sum(), (~right).sum()) < FEWEST:
        raise ArgumentError(
            f"{right.sum()} right and {(~right).sum()} wrong pairs are too few to learn from what scores mean: "
            f"{FEWEST} of each are needed."
        )
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, right, sample_weight=weights)
    order = np.argsort(-scores, kind="stable")
    predicted = fitted.predict(scores[order])
    sums = np.cumsum(predicted * weights[order]) / np.cumsum(weights[order])  # smooth, and falls with the score
    knots = np.unique(np.quantile(scores, 1 - np.geomspace(1, 1 / len(scores), KNOTS)))  # most where scores are high
    shares = np.interp(knots, scores[order][::-1], np.maximum.accumulate(sums[::-1]))
    return Calibration(knots, np.maximum.accumulate(fitted.predict(knots)), shares, source, encoder_hash, len(scores))


def by_labels(index: VectorIndex) -> Calibration:
    """Learn from an index with labels what its scores mean: images stand for queries, others of their label are right.

    Images that no encoder was trained on go first, where a column `split` tells them. As some queries will be for what
    is not there, and are answered by wrong images alone, wrong ones weigh a little more.

    Raises:
        ArgumentError: if there are no labels, or too few images.
    """
    rows = index.rows
    labels = rows["label"].to_numpy(object) if "label" in rows else np.full(len(rows), None)
    told = np.array([isinstance(label, str) and label != "" for label in labels], bool) & ~index.removed
    if len(set(labels[told])) < 2:
        raise ArgumentError("There are no labels to learn from what scores mean: at least two are needed.")
    fresh = told & rows["split"].isin(["val", "test"]).to_numpy() if "split" in rows else told
    chosen = np.flatnonzero(fresh if fresh.sum() >= min(QUERIES, told.sum()) / 4 else told)
    queries = np.sort(np.random.default_rng(0).choice(chosen, min(QUERIES, len(chosen)), replace=False))
    scores, positions = index.search(index.vectors_at(queries), min(ANSWERS + 1, int(told.sum())), where=told)
    others = positions != queries[:, None]
    right = labels[positions] == labels[queries][:, None]
    sizes = pd.Series(labels[told]).value_counts()
    size = np.broadcast_to(sizes[labels[queries]].to_numpy()[:, None], right.shape)[others]
    scores, right = scores[others].astype(float), right[others]
    new = size / np.maximum(size - 1, 1)  # a new query has one more of its label
    weights = np.where(right, (1 - ABSENT) * new, 1.0)
    return fit(scores, right, weights, "labels", index.encoder_hash)


def by_copies(index: VectorIndex, copies: np.ndarray, originals: np.ndarray) -> Calibration:
    """Learn from altered copies of images what scores mean: their originals are right, images at random wrong.

    Args:
        index: of the originals.
        copies: vectors of the copies (M, dim).
        originals: positions of their originals (M,).

    Raises:
        ArgumentError: if there are too few.
    """
    there = np.flatnonzero(~index.removed)
    others = np.random.default_rng(0).choice(there, len(originals))
    others = np.where(others == originals, there[(np.searchsorted(there, others) + 1) % len(there)], others)
    pairs = [np.einsum("nd,nd->n", copies, index.vectors_at(at)) for at in (originals, others)]
    right = np.repeat([True, False], len(originals))
    weights = np.where(right, 1 - ABSENT, 1.0)
    return fit(np.concatenate(pairs).astype(float), right, weights, "copies", index.encoder_hash)


def of_collection(shop: Collection) -> Calibration:
    """Learn what the scores of a collection mean, by its labels or else by altered copies, and save it beside it.

    Raises:
        ArgumentError: if it has no labels and too few images; and as `Collection.encoder` without labels.
    """
    try:
        found = by_labels(shop.index)
    except ArgumentError as error:
        copies, originals = _altered(shop)
        if len(originals) < FEWEST:
            raise error
        found = by_copies(shop.index, copies, originals)
    folder = shop.workspace.path("indexes", shop.name)
    with suppress(StorageError), writing(folder):  # what cannot be saved now is learned again
        if folder.is_dir():
            found.save(folder)
    return found


def saved(shop: Collection) -> Calibration | None:
    """Return what was saved beside a collection, if it belongs to its index."""
    try:
        found = Calibration.load(shop.workspace.path("indexes", shop.name))
    except DataError:
        return None
    return found if found.encoder_hash == shop.index.encoder_hash else None


def _altered(shop: Collection) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (M, dim) of copies, cut and recoloured, of images of a collection, and the originals (M,)."""
    import torch
    from torchvision.transforms import v2

    rows, there = shop.index.rows, np.flatnonzero(~shop.index.removed)
    if shop.place is None or "path" not in rows or not shop.place.there():
        return np.empty((0, shop.index.dim), np.float32), np.empty(0, np.int64)
    chosen = np.sort(np.random.default_rng(0).permutation(there)[:COPIED])
    wanted, paths = shop.encoder.preprocessing, rows["path"].iloc[chosen]
    images = image_files.read_ahead(shop.place, paths, wanted["size"], wanted["channels"], (), image_files.MOST_WORKERS)
    read = [(place, image.pixels) for place, image in zip(chosen, images, strict=True) if image.pixels is not None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        side, jitter = wanted["size"], [v2.ColorJitter(0.3, 0.3, 0.3)] * (wanted["channels"] == 3)
        alter = v2.Compose([v2.RandomResizedCrop(side, (0.5, 1), antialias=True), v2.RandomHorizontalFlip(), *jitter])
        copies = [alter(torch.from_numpy(np.array(pixels))).numpy() for _, pixels in read]
    vectors = shop.encoder.encode(np.stack(copies)) if copies else np.empty((0, shop.index.dim), np.float32)
    return vectors, np.array([place for place, _ in read], np.int64)
