"""From judgements to triplets: an image, one that is like it, and one that is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from rectrio_lib.app.records.database import JudgementRow
from rectrio_lib.app.records.judgements import EXPLICIT

MOST = 200_000  # latest judgements that are learned from
ANCHORS, EACH = 8, 8  # of a liked image, and triplets of each of them
HELD_OUT, MANY_OWNERS = 0.25, 8  # share of judgements held out; from so many owners on, whole ones are


def judged(engine: Engine, collection: str, places: dict[str, int]) -> pd.DataFrame:
    """Return the judgements of all owners on images that are there.

    Args:
        engine: the database.
        collection: its name.
        places: position of each image_id.

    Returns:
        Columns owner, kind, image and anchor, the latter two as positions; an anchor that is not there is -1.
    """
    columns = (JudgementRow.owner, JudgementRow.kind, JudgementRow.image_id, JudgementRow.anchor)
    mine = JudgementRow.collection == collection, JudgementRow.kind.in_(EXPLICIT)
    with Session(engine) as session:
        rows = session.execute(select(*columns).where(*mine).order_by(JudgementRow.id.desc()).limit(MOST)).all()
    frame = pd.DataFrame(rows, columns=["owner", "kind", "image", "anchor"])[::-1].reset_index(drop=True)
    for name in ("image", "anchor"):
        frame[name] = frame[name].map(places).fillna(-1).astype(np.int64)
    return frame[frame["image"] >= 0].reset_index(drop=True)


def divide(frame: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return judgements to learn from, and those held out: whole owners, or where these are few, single images."""
    owners = frame["owner"].unique()
    keys = owners if len(owners) >= MANY_OWNERS else frame["image"].unique()
    chosen = np.random.default_rng(seed).permutation(keys)[: int(np.ceil(HELD_OUT * len(keys)))]
    held = frame["owner" if len(owners) >= MANY_OWNERS else "image"].isin(chosen)
    return frame[~held].reset_index(drop=True), frame[held].reset_index(drop=True)


def make(frame: pd.DataFrame, count: int, seed: int = 0) -> np.ndarray:
    """Make triplets of judgements.

    The anchor is what a liked image was compared with, else another one that the same owner liked. The negative is what
    the owner called different from that anchor, or disliked; of an owner who did neither, an image at random.

    Args:
        frame: see `judged`.
        count: number of images.
        seed: of what is drawn.

    Returns:
        Positions of anchor, positive and negative, int64 (T, 3), each of three different images.
    """
    rng, found = np.random.default_rng(seed), []
    for _, own in frame.groupby("owner", sort=True):
        likes, dislikes = own[own["kind"] == "like"], own.loc[own["kind"] == "dislike", "image"].to_numpy()
        apart = own[own["kind"] == "different"].groupby("anchor")["image"].agg(list).to_dict()
        liked = likes["image"].to_numpy()
        for image, anchor in zip(liked, likes["anchor"], strict=True):
            anchors = _anchors(int(image), int(anchor), liked, rng)
            for at in anchors:
                wrong = np.array([*dislikes, *apart.get(at, []), *apart.get(-1, [])], np.int64)
                wrong = wrong if len(wrong) else rng.integers(count, size=EACH)
                found += [(at, image, negative) for negative in rng.choice(wrong, min(EACH, len(wrong)), replace=False)]
    triplets = np.array(found, np.int64).reshape(-1, 3)
    same = (triplets[:, :2] == triplets[:, 2:]).any(1) | (triplets[:, 0] == triplets[:, 1])
    return np.unique(triplets[~same], axis=0)


def _anchors(image: int, anchor: int, liked: np.ndarray, rng: np.random.Generator) -> Sequence[int]:
    """Return what an image is like: its anchor, or others that were liked."""
    if anchor >= 0 and anchor != image:
        return [anchor]
    others = np.unique(liked[liked != image])
    return rng.permutation(others)[:ANCHORS].tolist()
