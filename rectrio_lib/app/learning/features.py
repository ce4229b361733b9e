"""Features of the frozen backbone, kept for every image of a collection, and the head that stands on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rectrio_lib.app.generation import Generation
from rectrio_lib.core.errors import ArgumentError, DataError, RectrioError
from rectrio_lib.core.files import renamed
from rectrio_lib.encoders.base import Encoder
from rectrio_lib.encoders.pretrained import Pretrained, ProjectionHead
from rectrio_lib.encoders.registry import fingerprint

AT_ONCE = 128  # images in memory


def frozen_part(encoder: Encoder) -> Pretrained:
    """Return an encoder's backbone without its head.

    Raises:
        ArgumentError: if it has no pretrained backbone, or finds images by words, which a new head would end.
    """
    if not isinstance(encoder, Pretrained):
        raise ArgumentError(
            f"Encoders with a pretrained backbone learn from judgements, none of kind {encoder.kind!r}."
        )
    if encoder.arguments.get("texts"):
        raise ArgumentError("This encoder finds images by words, which it could no longer do with a head of its own.")
    frozen = Pretrained(**{**encoder.arguments, "dim": 0, "hidden": 0})
    frozen.backbone = encoder.backbone
    return frozen.eval()


def head_of(encoder: Pretrained) -> ProjectionHead:
    """Return a copy of an encoder's head; without one, a head that changes nothing."""
    features = encoder.backbone.dim
    head = ProjectionHead(features, encoder.arguments["dim"] or features, encoder.arguments["hidden"])
    if encoder.head is not None:
        head.load_state_dict(encoder.head.state_dict())
    else:
        with torch.no_grad():
            head.project[0].weight.copy_(torch.eye(features))
    return head.eval()


def features_of(now: Generation, frozen: Pretrained, kept: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the features float32 (N, F) of the images at some positions, and how many had to be computed.

    Raises:
        DataError: if an image cannot be read.
        StorageError: if they cannot be kept.
    """
    snapshot = now.live.current
    names = snapshot.rows["image_id"].iloc[kept].tolist()
    if not now.collection.encoder.arguments["dim"]:  # the vectors of the index are the features
        found, computed = dict(zip(names, snapshot.vectors_at(kept), strict=True)), 0
    else:
        found = _read(file := _file(now, frozen))
        absent = [at for at, name in zip(kept, names, strict=True) if name not in found]
        for start in range(0, len(absent), AT_ONCE):
            records = snapshot.records([int(at) for at in absent[start : start + AT_ONCE]])
            vectors = frozen.encode(np.stack([_pixels(now, record) for record in records]))
            found |= dict(zip((record["image_id"] for record in records), vectors, strict=True))
        computed = len(absent)
    features, file = np.stack([found[name] for name in names]).astype(np.float32), _file(now, frozen)
    with renamed(file) as partial, partial.open("wb") as opened:
        np.savez(opened, names=np.array(names), features=features.astype(np.float16))
    return features, computed


def _pixels(now: Generation, record: dict) -> np.ndarray:
    wanted = now.collection.encoder.preprocessing
    try:
        return now.pictures.pixels(record, wanted["size"], wanted["channels"])
    except RectrioError as error:
        raise DataError(
            f"{record['path']} cannot be read, so the index cannot be rebuilt: restore the file or remove the image."
        ) from error


def _file(now: Generation, frozen: Pretrained) -> Path:
    collection = now.collection
    return collection.workspace.outputs / "features" / f"{collection.name}-{fingerprint(frozen)}.npz"


def _read(file: Path) -> dict[str, np.ndarray]:
    """Return the features that were kept, by image_id; a damaged file counts as none."""
    try:
        with np.load(file) as kept:
            return dict(zip(kept["names"].tolist(), kept["features"], strict=True))
    except (OSError, ValueError, KeyError, EOFError):
        return {}
