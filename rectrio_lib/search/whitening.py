"""Whitening of a collection, not centred: fitted on its own vectors, kept as an encoder that queries go through."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.knn import Mapped
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.store import EmbeddingStore, MappedVectors
from rectrio_lib.encoders.adapted import adapted
from rectrio_lib.encoders.pretrained import Pretrained, ProjectionHead
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.evaluation.retrieval import evaluate
from rectrio_lib.search.provenance import WHITENED
from rectrio_lib.training.two_phase import attach, preferred, whitening_head

LOG = logging.getLogger(__name__)
AUTO = "auto"  # labels decide
DIMS = 256  # directions that are kept, if nothing else is said
ROWS_PER_DIM = 2  # vectors that each direction needs: fewer give noise
FEWEST = 16  # directions that are worth it
MOST_FITTED, MOST_JUDGED = 50_000, 5_000  # vectors


class Whitening(NamedTuple):
    """What became of a wish to whiten: an encoder and its head, or None twice; and what the card of the index says."""

    encoder: str | None  # name of the saved encoder
    encoder_hash: str | None
    head: ProjectionHead | None  # from the vectors of the store to those of the index
    told: dict[str, Any]  # wanted, source (the encoder of the store), dims (0: not whitened), why


def projected(vectors: MappedVectors, head: ProjectionHead) -> Mapped:
    """Return the vectors of a store after a head, made when asked for."""

    def read(places: slice | np.ndarray) -> np.ndarray:
        found = vectors[places]
        return head.encode(found.reshape(-1, found.shape[-1])).reshape(*found.shape[:-1], head.dim)

    return Mapped(len(vectors), head.dim, read)


def whiten(store: EmbeddingStore, name: str, wanted: bool | int | str, workspace: Workspace) -> Whitening:
    """Fit a whitening head on the vectors of a store, and save it with their encoder as <name>-whitened.

    Images of the splits "val" and "test" are left out of the fit. With "auto" it is used only if labels say so: images
    of "val", or else a random half, are ranked without and with the head that the others give.

    Args:
        store: of the collection.
        name: of the collection.
        wanted: True for DIMS directions, or fewer where vectors are; their number; or "auto".
        workspace: where encoders lie.

    Raises:
        ArgumentError: if `wanted` is something else, or the vectors are too few, or too short, for the directions.
    """
    if not (wanted == AUTO or wanted is True or (type(wanted) is int and wanted > 0)):
        raise ArgumentError(f"whiten={wanted!r}: expected True, False, a number of dimensions, or {AUTO!r}.")
    rows, base = store.select(), load_encoder(store.card["encoder"], workspace)
    told = {"wanted": wanted, "source": store.card["encoder"], "dims": 0}
    learning = np.flatnonzero(~rows["split"].isin(["val", "test"]).to_numpy())
    texts = getattr(base, "text_tower", None) is not None
    if wanted == AUTO:
        why = "it would no longer find images by words" if texts else ""
        good, why = (False, why) if why else _judged(store, rows, learning)
        if not good:
            return Whitening(None, None, None, told | {"why": f"Not whitened: {why}"})
    else:
        why = "as was asked for" + (", so that it finds nothing by words" if texts else "")
    head = _fitted(store, learning, 0 if wanted in (AUTO, True) else wanted, name)
    bare = isinstance(base, Pretrained) and base.head is None and not texts
    whole, saved = attach(base, head) if bare else adapted(base, head=head), f"{name}{WHITENED}"
    save_encoder(whole, saved, workspace=workspace)
    told |= {"dims": head.dim, "why": f"Whitened to {head.dim} dimensions: {why}"}
    return Whitening(saved, fingerprint(whole), head, told)


def _fitted(store: EmbeddingStore, learning: np.ndarray, dims: int, name: str) -> ProjectionHead:
    """Return the head of some rows; dims=0: as many directions as they are good for."""
    vectors = _some(store, learning, MOST_FITTED)
    most, needed = len(vectors) // ROWS_PER_DIM, dims or FEWEST
    if most < needed:
        wanted = f"whiten={dims} needs" if dims else "Whitening needs"
        advice = f"take whiten={most} or less" if most >= FEWEST else "leave it out"
        raise ArgumentError(
            f"{wanted} {ROWS_PER_DIM * needed:,} images to learn from, and {name} has {len(vectors):,}: {advice}."
        )
    with torch.random.fork_rng(devices=[]):  # the length of its weights is drawn, and is part of the fingerprint
        torch.manual_seed(0)
        return whitening_head(vectors, dims or min(DIMS, most, vectors.shape[1]))


def _judged(store: EmbeddingStore, rows: pd.DataFrame, learning: np.ndarray) -> tuple[bool, str]:
    """Tell whether labelled images find each other better after whitening, and why."""
    labels = next((rows[c].fillna("").astype(str) for c in ("label", "group") if c in rows and _known(rows[c])), None)
    if labels is None:
        return False, "no labels that could decide"
    mixed, held = np.random.default_rng(0).permutation, np.flatnonzero(rows["split"].eq("val").to_numpy())
    if not len(held):
        learning, held = np.array_split(mixed(learning), 2)
    held = mixed(held[labels.iloc[held].ne("").to_numpy()])[:MOST_JUDGED]  # of all classes: rows are sorted by path
    if labels.iloc[held].nunique() < 2 or not labels.iloc[held].duplicated().any():
        return False, "too few labelled images that could decide"
    if len(learning) < ROWS_PER_DIM * FEWEST:
        return False, f"{len(learning)} images are too few to learn from"
    vectors, head = _some(store, held, MOST_JUDGED), _fitted(store, learning, 0, "")
    spaces = {"as they are": vectors, "whitened": head.encode(vectors)}
    names = labels.iloc[np.sort(held)].to_numpy()
    figures = {space: evaluate(found, names, ks=(1,), knn=1).means() for space, found in spaces.items()}
    shown = ", ".join(f"{figures[space]['map_at_r']:.3f} {space}" for space in spaces)
    decision = f"mAP@R of {len(held):,} images that it was not fitted on: {shown}"
    return preferred(figures, "as they are") == "whitened", decision


def _known(column: pd.Series) -> bool:
    return column.fillna("").astype(str).ne("").any()


def _some(store: EmbeddingStore, places: np.ndarray, most: int) -> np.ndarray:
    """Return the vectors float32 of some rows, in the order of the store, at random if they are too many."""
    if len(places) > most:
        places = np.random.default_rng(0).choice(places, most, replace=False)
    return store.mapped()[np.sort(places)].astype(np.float32)
