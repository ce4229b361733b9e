"""What building a collection decides: name, encoder, and whether the saved index will do."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError, RectrioError
from rectrio_lib.core.workspace import Card, Workspace
from rectrio_lib.data.places.place import Place, is_another, place_of
from rectrio_lib.index import factory, opening
from rectrio_lib.index.base import VectorIndex
from rectrio_lib.index.index import Index
from rectrio_lib.index.servers.cards import with_password
from rectrio_lib.search import provenance
from rectrio_lib.search.provenance import MIRRORED

if TYPE_CHECKING:  # PyTorch is imported when something is embedded, not before
    from rectrio_lib.embeddings.embed import Report
    from rectrio_lib.embeddings.store import EmbeddingStore

LOG = logging.getLogger(__name__)
FORBIDDEN = r'[<>:"/\\|?*\x00-\x1f]|^\.|[ .]$|\.(new|old|part|lock)$'  # in names of folders, or used by core.files
LONGEST_NAME = 100
BACKBONE = "lite:efficientnet_lite0"  # its weights are installed with this package; quick on any processor


def place_and_name(folder: str | Path | Place, name: str = "") -> tuple[Place, str]:
    """Return the place that a folder or an address of images names, and the name to keep them under: by default its."""
    place = place_of(folder)
    if not place.there():
        raise DataError(f"{place.uri} is not a folder. It should hold images, in class folders or not.")
    name = name or place.name
    if not name or len(name) > LONGEST_NAME or re.search(FORBIDDEN, name):
        raise ArgumentError(f"{name!r} cannot be the name of an index: give it a short and plain one (--name).")
    return place, name


def refuse_other_images(place: Place, name: str, workspace: Workspace) -> None:
    """Refuse the name of a collection of other images, unless their folder is gone: it may have moved here."""
    card = workspace.cards("indexes").get(name, {})
    made_from = provenance.of_index(name, card, workspace) if card else {}
    then = made_from.get("folder", "")
    if made_from.get("store") and is_another(then, place.uri):
        owner = f"the images in {then}" if then else f"the data set {made_from['dataset']}"
        raise ArgumentError(f"The index {name} is of {owner}: give this one another name (--name).")


def chosen_index(name: str, workspace: Workspace) -> str:
    """Return the name of an index that is there; without one, that of the only one."""
    names = list(workspace.cards("indexes"))
    if not names:
        raise MissingArtefactError("There is no index yet: build one with `rectrio index FOLDER`.")
    if not name and len(names) > 1:
        raise ArgumentError(f"There are several indexes: name one of {', '.join(map(repr, names))}.")
    name = name or names[0]
    if name not in names:
        raise MissingArtefactError(f"There is no index {name!r}: choose one of {', '.join(map(repr, names))}.")
    return name


def usual_whitening(name: str, workspace: Workspace) -> bool | int | str:
    """Return the whitening that was asked for when the index of that name was built; False if there is none."""
    return provenance.before_whitening(workspace.cards("indexes").get(name, {}).get("made_from", {}))[1]


def asked_for(name: str, kind: str, recall: float | None, memory_limit: int | str | None, workspace: Workspace) -> Card:
    """Return kind and recall that an index should have: as given, or else as was asked for when it was built last.

    Raises:
        ArgumentError: if one of them or the memory limit is out of range.
    """
    before = workspace.cards("indexes").get(name, {}).get("made_from", {}).get("asked", {})
    kind, recall = kind or before.get("kind", "auto"), before.get("recall", 0.95) if recall is None else recall
    factory.candidates(kind, 1, 0, memory_limit)
    return {"kind": kind, "recall": factory.recall_of(recall)}


def usual_encoder(name: str, default: str, workspace: Workspace) -> str:
    """Return the encoder of the index of that name; of random weights the backbone, as real ones may be there now."""
    index = workspace.cards("indexes").get(name, {})
    encoder = provenance.before_whitening(provenance.of_index(name, index, workspace))[0] if index else ""
    card = workspace.cards("encoders").get(encoder, {})
    if card and (card.get("trained_on") or not provenance.flags(card)["random_weights"]):
        return encoder
    return provenance.backbone_of(card) or default


def saved_encoder(encoder: str, allow_random_weights: bool, workspace: Workspace) -> str:
    """Return the name of a saved encoder; a pretrained backbone is saved first, once."""
    from rectrio_lib.encoders.pretrained import AUTO, choose_backbone, load_pretrained
    from rectrio_lib.encoders.registry import save_encoder

    if encoder == AUTO:
        encoder, why = choose_backbone(encoder, workspace)
        LOG.info("Backbone %s: %s.", encoder, why)
    there = workspace.cards("encoders")
    name, texts = provenance.file_name(encoder), encoder.startswith("clip:")
    card = there.get(name, {})
    random = provenance.flags(card)["random_weights"]
    if ":" in encoder and (not card or random or card.get("texts", False) != texts):  # an older CLIP had no texts
        network = load_pretrained(encoder, texts=texts, workspace=workspace)
        random = network.stand_in
        if allow_random_weights or not random:
            save_encoder(network, name, workspace=workspace)
    elif not card:
        known = f"{', '.join(there) or 'none yet'}, and pretrained backbones such as clip:ViT-B/32"
        raise MissingArtefactError(f"There is no encoder {encoder!r}: there are {known}.")
    if random and not card.get("trained_on") and not allow_random_weights:
        raise MissingArtefactError(
            f"The weights of {encoder} are neither in {workspace.weights} nor to be downloaded now. Random ones would "
            "make results that mean nothing: put the weights there, or try with --allow-random-weights."
        )
    return name


def mirrored(encoder: str, workspace: Workspace) -> str:
    """Save an encoder that takes the mean of an image and its mirror image, made from a saved one; return its name."""
    from rectrio_lib.encoders.adapted import adapted
    from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder

    whole, name = adapted(load_encoder(encoder, workspace), True), encoder + MIRRORED
    there = workspace.cards("encoders")
    if there.get(name, {}).get("hash") != fingerprint(whole):
        made = {key: there[encoder].get(key) for key in ("trained_on", "seed")}
        save_encoder(whole, name, **made, workspace=workspace)
    LOG.info("Mirror     Each image is encoded twice, as it is and mirrored, which takes twice the time.")
    return name


def current_index(
    name: str,
    store: EmbeddingStore,
    asked: Card,
    workspace: Workspace,
    vectors: str,
    memory_limit: int | str | None = None,
    made_by: str = "",
) -> VectorIndex | None:
    """Return the saved index if it is of exactly these vectors, and as and where it is wanted.

    `asked` is what `asked_for` returns; `made_by` is the fingerprint of an encoder that whitens the vectors of the
    store; empty: the store's own.
    """
    try:
        index = opening.open_index(name, workspace)
        same = opening.holds_exactly(index, store.select())
    except RectrioError:  # absent, damaged, or of another version: it will be replaced
        return None
    same &= index.encoder_hash == (made_by or store.card["encoder_hash"])
    if vectors:
        return index if same and opening.lies_at(index, vectors) else None
    kinds = factory.candidates(asked["kind"], index.dim, len(store), memory_limit)  # the first may have fallen short
    found = (index.recall or 0) >= asked["recall"] or index.made_from.get("asked") == asked  # of few it is not measured
    return index if same and index.kind in kinds and found else None


def bring_up_to_date(
    name: str,
    store: EmbeddingStore,
    asked: Card,
    workspace: Workspace,
    vectors: str,
    memory_limit: int | str | None = None,
    whiten: bool | int | str = False,
) -> None:
    """Build and save an index of exactly the vectors of a store, unless it is there.

    `asked` is what `asked_for` returns; `vectors` is a server or empty; with `whiten`, see `whitening.whiten`, the
    vectors are whitened first. None as `memory_limit` stands for that of the index that is there.
    """
    if memory_limit is None:
        memory_limit = workspace.cards("indexes").get(name, {}).get("memory_limit")
    limit = factory.byte_count(memory_limit)
    made_from, made_by = provenance.of_store(store.folder.name, store.card), store.card["encoder_hash"]
    made_from["asked"] = asked
    mapped = store.mapped()
    if whiten:
        from rectrio_lib.search import whitening

        found = whitening.whiten(store, name, whiten, workspace)
        made_from["whitening"] = found.told
        LOG.info("Whitening  %s.", found.told["why"])
        if found.head:
            mapped, made_by = whitening.projected(mapped, found.head), found.encoder_hash
            made_from["encoder"] = found.encoder
    index = current_index(name, store, asked, workspace, vectors, limit, made_by)
    if index is not None and index.made_from == made_from and getattr(index, "memory_limit", limit) == limit:
        return
    if index is None and vectors:
        index = opening.build_on_server(vectors, name, mapped, store.select(), made_by)
    elif index is None:
        wishes = {"recall": asked["recall"], "memory_limit": limit, "workspace": workspace}
        index = Index.build(asked["kind"], mapped, store.select(), made_by, **wishes)
    elif isinstance(index, Index):
        index.memory_limit = limit
    index.made_from = made_from  # of one that is there: by an older version, or with other wishes
    index.save(name, workspace)


def server_of(vectors: str, name: str, workspace: Workspace) -> str:
    """Return the address of the server that keeps the vectors of a collection, with its password; empty: FAISS does.

    Raises:
        ArgumentError: if `vectors` is neither empty, nor "faiss", nor such an address.
    """
    if vectors == "faiss":
        return ""
    if vectors:
        opening.server_kind(vectors)
    return with_password(vectors or workspace.cards("indexes").get(name, {}).get("url", ""))


def embed(
    folder: str | Path | Place,
    encoder: str = "",
    name: str = "",
    manifest: pd.DataFrame | None = None,
    allow_random_weights: bool = True,
    workspace: Workspace | None = None,
    ray: str = "",
    mirror: bool | None = None,
) -> tuple[EmbeddingStore, Report]:
    """Embed what is new in a folder of images; what was left out is listed in ledger.csv of the store.

    Args:
        folder: of images, in class folders or not; or an address or archives, see `embeddings.embed.embed`.
        encoder: a saved one, or a backbone such as "clip:ViT-B/32" or "auto" (see `pretrained.choose_backbone`); empty:
            that of the index of this name, or BACKBONE.
        name: of the images; empty: that of the folder.
        manifest: see `embeddings.embed.embed`.
        allow_random_weights: whether random weights may stand in for a backbone whose weights are not there.
        workspace: where to keep it; None: `Workspace()`.
        ray: the Ray whose workers embed: HOST:PORT of a running one, "auto", or "local" for one that is started here;
            empty: this process embeds.
        mirror: take the mean of the vectors of each image and its mirror image; None: if the encoder does.

    Returns:
        The store, and what happened.

    Raises:
        ArgumentError: if the name cannot be that of a folder.
        ClusterError: if Ray cannot be reached or its nodes fail.
        DataError: if there is no such folder, or no readable image in it.
        MissingArtefactError: if there is no such encoder, or the weights are random and should not be.
        StorageError: if the store cannot be written, or is being written by another process.
    """
    from rectrio_lib.embeddings import embed as conductor

    workspace, (place, name) = workspace or Workspace(), place_and_name(folder, name)
    encoder = encoder or usual_encoder(name, BACKBONE, workspace)
    mirror = encoder.endswith(MIRRORED) if mirror is None else mirror
    encoder = saved_encoder(encoder.removesuffix(MIRRORED), allow_random_weights, workspace)
    encoder = mirrored(encoder, workspace) if mirror else encoder
    engine = {"engine": "ray", "address": ray} if ray else {}
    store, report = conductor.embed(place, encoder, name, manifest, workspace=workspace, **engine)
    ledger = store.folder / "ledger.csv"
    report.ledger.to_csv(ledger, index=False)
    if not len(store):
        first = report.ledger.iloc[0]
        raise DataError(f"{place.uri} holds no readable image: {first['picture']}: {first['reason']} (all: {ledger}).")
    return store, report
