"""What an index, a store or an encoder was made from, by its card."""

from __future__ import annotations

from rectrio_lib.core.workspace import Card, Workspace

WHITENED, MIRRORED = "-whitened", "-mirrored"  # endings of encoders that are made from others, see `Adapted`


def flags(card: Card) -> Card:
    """Return whether random weights or generated images stood in; older cards have one flag for both.

    It means generated images in the store of a data set, and random weights in every other card.
    """
    images = "encoder" in card and not card.get("folder")
    old = {"random_weights": not images, "generated_images": images}
    return {name: bool(card.get(name, meant and card.get("stand_in", False))) for name, meant in old.items()}


def stand_in(card: Card) -> str:
    """Say what stood in, in words; "no" if nothing did."""
    return ", ".join(name.replace("_", " ") for name, meant in flags(card).items() if meant) or "no"


def of_store(name: str, card: Card) -> Card:
    """Return what an index of a store is made from."""
    keys = ("encoder", "dataset", "folder", "dataset_hash")
    return {"store": name, **{key: card.get(key, "") for key in keys}, **flags(card)}


def of_index(name: str, card: Card, workspace: Workspace) -> Card:
    """Return what an index was made from; of an older card, by the stores and encoders of its fingerprint."""
    if card.get("made_from"):
        return card["made_from"]
    made_by = card.get("encoder_hash", "")
    stores = {s: c for s, c in workspace.cards("embeddings").items() if c.get("encoder_hash") == made_by}
    store = next((s for s, c in stores.items() if name in (s, c.get("dataset"))), "")
    encoders = {e: c for e, c in workspace.cards("encoders").items() if c.get("hash") == made_by}
    likely = stores.get(store, {}).get("encoder", "")
    encoder = likely if likely in encoders else next(iter(encoders), likely)
    found = of_store(store, stores.get(store, {})) | {"encoder": encoder}
    found["random_weights"] |= flags(encoders.get(encoder, {}))["random_weights"]
    return found


def before_whitening(made_from: Card) -> tuple[str, bool | int | str]:
    """Return the encoder that an index has, or had before it was whitened, and which whitening was asked for."""
    encoder, whitening = made_from.get("encoder", ""), made_from.get("whitening", {})
    source = whitening.get("source", "")
    if encoder.endswith(WHITENED) and source:
        return source, whitening.get("wanted", False)
    return encoder, encoder == source and whitening.get("wanted", False)


def command(encoder: str, card: Card, folder: str) -> str:
    """Return the command that makes an encoder that an index of a folder needs: by its card, or else by its name."""
    if not folder:
        return "rectrio run"
    place = f'"{folder}"' if " " in folder else folder
    if encoder.endswith(WHITENED):
        return f"rectrio index {place} --whiten yes"
    if encoder.endswith(MIRRORED):
        return f"{command(encoder.removesuffix(MIRRORED), {}, folder)} --mirror"
    if card:
        backbone = "" if card.get("trained_on") else backbone_of(card)
        return f"rectrio index {place} " + (f"--backbone {backbone}" if backbone else f"--encoder {encoder}")
    from rectrio_lib.encoders.registry import backbone_called

    backbone = backbone_called(encoder)
    return f"rectrio index {place} --backbone {backbone}" if backbone else f"rectrio build {place}"


def backbone_of(card: Card) -> str:
    """Return the backbone of an encoder, or of the one that it was made from, by its card; empty if it has none."""
    arguments = card.get("arguments", {})
    return arguments.get("backbone") or (backbone_of(arguments["source"]) if "source" in arguments else "")


def file_name(backbone: str) -> str:
    """Return the name under which a pretrained backbone is saved."""
    return backbone.replace(":", "-").replace("/", "-")
