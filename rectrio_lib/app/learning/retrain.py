"""Judgements become a new head and a new index, if held-out judgements say that it is better; or a refusal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from rectrio_lib.app.generation import Generation
from rectrio_lib.app.learning import head as heads
from rectrio_lib.app.learning import triplets
from rectrio_lib.app.learning.features import features_of, frozen_part, head_of
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.embeddings.writer import writing
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.evaluation.evaluation import Evaluation, paired_interval
from rectrio_lib.evaluation.retrieval import evaluate
from rectrio_lib.index.index import Index
from rectrio_lib.training.two_phase import attach

FEWEST = 20  # triplets held out, below which nothing can be said
VALIDATED = 1000  # labelled images that old and new are compared on
SHARES = (1.0, 0.6, 0.3)  # of the way from the old head to the trained one: the first that is better is taken
CONFIDENCE = 1 - 0.05 / len(SHARES)  # of each look, so that all of them together keep 95 %
BEFORE = "encoder_before"  # in the card of an index: the encoder that `undo` goes back to


@dataclass(frozen=True)
class Comparison:
    """Shares of right answers before and after, and the interval of their difference (95 % over all looks)."""

    count: int
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What became of a retraining.

    Attributes:
        accepted: whether the new encoder serves now.
        reason: why, in a sentence.
        encoder: name of the encoder that serves.
        judgements: how many were learned from, or held out.
        held_out: of triplets of held-out judgements, those whose liked image is the nearer one; None: nothing measured.
        labels: R-precision on labelled images held out; None: there are none.
        notes: what else there is to know.
        seconds: it took.
    """

    accepted: bool
    reason: str
    encoder: str
    judgements: int
    held_out: Comparison | None = None
    labels: Comparison | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def retrain(now: Generation, engine: Engine) -> Verdict:
    """Learn from all judgements on a collection; replace its index if that is better, see `Verdict`.

    Whenever it is killed, the old encoder and index serve, or the new ones: the index, which names its encoder, is
    replaced at once.

    Raises:
        ArgumentError: if its encoder or index cannot learn.
        DataError: if an image cannot be read.
        StoreInUseError: if another process is changing the collection.
        StorageError: if nothing can be written.
    """
    begun, collection = time.perf_counter(), now.collection
    with writing(collection.workspace.path("indexes", collection.name)):
        frozen, kept = _can_learn(now)
        names = now.live.current.rows["image_id"].iloc[kept]
        frame = triplets.judged(engine, collection.name, dict(zip(names, range(len(names)), strict=True)))
        parts = triplets.divide(frame)
        learned, held = (triplets.make(part, len(names)) for part in parts)
        verdict = Verdict(False, "", collection.encoder_name, len(frame))
        if min(len(learned), len(held)) < FEWEST:
            enough = f"{len(learned)} triplets to learn from and {len(held)} to test with: {FEWEST} of each are needed."
            return replace(verdict, reason=f"There are too few likes and dislikes: {enough}")
        features, computed = features_of(now, frozen, kept)
        old = head_of(now.collection.encoder)
        learning, validation = _labelled(now.live.current.rows.iloc[kept])
        known, before = (learning.index.to_numpy(), pd.factorize(learning)[0]), heads.vectors_of(old, features)
        trained = heads.train(old, features, learned, *known)
        for share in SHARES:
            new = heads.between(old, trained, share)
            after = heads.vectors_of(new, features)
            verdict = replace(verdict, **_compared(before, after, held, validation))
            if verdict.accepted:
                break
        if computed:
            verdict.notes.append(f"Features of {computed:,} images were not kept from before, and were computed.")
        if verdict.accepted:
            encoder = attach(frozen, new)
            name = _new_name(now)
            save_encoder(encoder, name, trained_on=collection.made_from.get("dataset_hash", ""),
                         workspace=collection.workspace)  # fmt: skip
            _replace_index(now, kept, after, encoder, name, {BEFORE: collection.encoder_name})
            verdict = replace(verdict, encoder=name)
    return replace(verdict, seconds=round(time.perf_counter() - begun, 2))


def undo(now: Generation) -> str:
    """Go back to the encoder before the last retraining; return its name.

    Raises:
        ArgumentError: if there was none; else as `retrain`, or if that encoder is gone.
    """
    collection = now.collection
    name = collection.made_from.get(BEFORE)
    if not name:
        raise ArgumentError(f"{collection.name} was not retrained: there is nothing to undo.")
    with writing(collection.workspace.path("indexes", collection.name)):
        frozen, kept = _can_learn(now)
        encoder = load_encoder(name, collection.workspace)
        if fingerprint(frozen_part(encoder)) != fingerprint(frozen):
            raise ArgumentError(f"The encoder {name} was changed since: build the index again with it.")
        features, _ = features_of(now, frozen, kept)
        _replace_index(now, kept, heads.vectors_of(head_of(encoder), features), encoder, name, {})
    return name


def _can_learn(now: Generation) -> tuple[Encoder, np.ndarray]:
    """Return the frozen part of the encoder, and the positions of the images that are there."""
    if not isinstance(now.collection.index, Index):
        raise ArgumentError("An index on a server cannot be replaced: retrain a collection whose vectors lie here.")
    return frozen_part(now.collection.encoder), np.flatnonzero(~now.live.current.removed)


def _labelled(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return labels to learn from and labels to validate with, by place; of either split none is in the other."""
    labels = rows["label"].reset_index(drop=True)
    labels = labels[labels.notna() & labels.ne("")]
    if "split" in rows and rows["split"].isin(["val", "test"]).any():
        splits = rows["split"].reset_index(drop=True)[labels.index]
        learning, validation = labels[splits.eq("train") | splits.eq("")], labels[splits.eq("val")]
        validation = validation if len(validation) else labels[splits.eq("test")]
    else:
        held = np.random.default_rng(0).random(len(labels)) < triplets.HELD_OUT
        learning, validation = labels[~held], labels[held]
    validation = validation.sample(min(VALIDATED, len(validation)), random_state=0)
    return learning, validation[validation.duplicated(keep=False)]


def _compared(before: np.ndarray, after: np.ndarray, held: np.ndarray, validation: pd.Series) -> dict[str, Any]:
    """Compare old and new vectors; return what a verdict says of it."""
    judged = _comparison(*(heads.on_triplets(vectors, held) for vectors in (before, after)), "triplets")
    labels = None
    if len(validation.unique()) > 1:
        names, places = validation.to_numpy(object).astype(str), validation.index.to_numpy()
        found = (evaluate(vectors[places], names, ks=(1,), knn=1) for vectors in (before, after))
        labels = _comparison(*found, "r_precision")
    better, worse = judged.low > 0, labels is not None and labels.high < 0
    said = "held-out judgements agree with it more often" if better else "held-out judgements do not clearly agree more"
    if worse:
        said += ", but images of one label find each other less well"
    reason = f"The new encoder is {'kept' if better and not worse else 'refused'}: {said}."
    return {"accepted": better and not worse, "reason": reason, "held_out": judged, "labels": labels}


def _comparison(before: Evaluation, after: Evaluation, name: str) -> Comparison:
    many = len(np.unique(before.labels)) > 1
    low, high = paired_interval(after, before, name, CONFIDENCE, by_label=many)
    means = (float(np.nanmean(evaluation.scores[name])) for evaluation in (before, after))
    return Comparison(len(before.labels), *means, low, high)


def _new_name(now: Generation) -> str:
    """Return a name that no encoder has yet."""
    home, name = now.collection.workspace.outputs / "encoders", now.collection.name
    return next(found for n in range(1, 10**6) if not (home / (found := f"{name}-learned-{n}")).exists())


def _replace_index(
    now: Generation, kept: np.ndarray, vectors: np.ndarray, encoder: Encoder, name: str, more: dict[str, str]
) -> None:
    """Save an index of new vectors in the place of the present one."""
    made_from = {key: value for key, value in now.collection.index.made_from.items() if key != BEFORE}
    now.rebuild(kept, vectors, fingerprint(encoder), made_from | {"encoder": name} | more)
