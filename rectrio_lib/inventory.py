"""What lies below outputs/: indexes, embedding stores and encoders, and what each says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyarrow import parquet

from rectrio_lib import index_files, resources

CARDS = {"indexes": "card.json", "embeddings": "card.json", "encoders": "encoder.json"}
UNFINISHED = (".new", ".old", ".part")  # what `resources.replaced_folder` and a broken download leave
STAND_IN, REAL = "STAND-IN", "real"

Card = dict[str, Any]


def cards(kind: str) -> dict[str, Card]:
    """Return {name: card} of all "indexes", "embeddings" or "encoders"; a card that cannot be read is empty."""
    paths = sorted((resources.outputs_root() / kind).glob(f"*/{CARDS[kind]}"))
    return {path.parent.name: _read(path) for path in paths if path.parent.suffix not in UNFINISHED}


def _read(path: Path) -> Card:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return card if isinstance(card, dict) else {}


def store_of(index: str, encoder_hash: str) -> Card:
    """Return the card of the embedding store that an index was built from; empty if it is gone."""
    stores = cards("embeddings").items()
    return next(
        (c for name, c in stores if c.get("encoder_hash") == encoder_hash and index in (name, c.get("dataset"))), {}
    )


def encoder_of(encoder_hash: str, likely: str = "") -> tuple[str, Card]:
    """Return name and card of the saved encoder with a fingerprint; both empty if there is none.

    Args:
        encoder_hash: the fingerprint.
        likely: name to prefer if several have it.
    """
    same = {name: card for name, card in cards("encoders").items() if card.get("hash") == encoder_hash}
    name = likely if likely in same else next(iter(same), "")
    return name, same.get(name, {})


def overview(name: str = "") -> dict[str, list[Card]]:
    """Tell what there is, as rows of three tables.

    Args:
        name: of an index, a store, a data set or an encoder; empty: all there is.

    Returns:
        {"Indexes", "Embedding stores", "Encoders": rows}; those of one name also tell the columns of an index.

    Raises:
        ValueError: if nothing has that name; the message names what there is.
    """
    stores, indexes = cards("embeddings"), cards("indexes")
    chosen = {n: c for n, c in stores.items() if name in ("", n, c.get("dataset"))}
    makers = {c.get("encoder") for c in chosen.values()}
    tables = {
        "Indexes": [_index_row(n, columns=bool(name)) for n in indexes if name in ("", n)],
        "Embedding stores": [_store_row(n, c) for n, c in chosen.items()],
        "Encoders": [_encoder_row(n, c) for n, c in cards("encoders").items() if name in ("", n) or n in makers],
    }
    if name and not any(tables.values()):
        known = ", ".join(sorted({*indexes, *stores, *cards("encoders")})) or "nothing yet"
        raise ValueError(f"There is no index, store or encoder called {name!r}: below outputs/ there is {known}.")
    return tables


def _index_row(name: str, columns: bool) -> Card:
    folder = resources.outputs_root() / "indexes" / name
    try:
        card = index_files.read_card(folder)
    except ValueError as error:
        return {"name": name, "size": _size(folder), "remark": str(error)}
    store = store_of(name, card["encoder_hash"])
    encoder, made_by = encoder_of(card["encoder_hash"], store.get("encoder", ""))
    recall = "not measured" if card["recall"] is None else "exact" if card["kind"] == "flat" else card["recall"]
    row = {"name": name, "pictures": card["count"], "kind": card["kind"], "recall": recall, "size": _size(folder)}
    row |= {"encoder": encoder or "gone", "weights": _weights(store, made_by), "folder": store.get("folder", "")}
    return row | ({"columns": ", ".join(parquet.read_schema(folder / "rows.parquet").names)} if columns else {})


def _store_row(name: str, card: Card) -> Card:
    told = {"name": name, "pictures": card.get("count", ""), "length": card.get("dim", "")}
    told |= {"type": card.get("dtype", ""), "size": _size(resources.outputs_root() / "embeddings" / name)}
    told |= {"weights": _weights(card), "state": "whole" if card.get("finished") else "stopped half way"}
    return told | {"folder": card.get("folder", "")}


def _encoder_row(name: str, card: Card) -> Card:
    told = {"name": name, "kind": card.get("arguments", {}).get("backbone", card.get("kind", ""))}
    told |= {"length": card.get("dim", ""), "size": _size(resources.outputs_root() / "encoders" / name)}
    return told | {"trained": "yes" if card.get("trained_on") else "no", "weights": _weights(card)}


def _weights(*cards: Card) -> str:
    """Say whether random weights or drawn pictures stood in somewhere."""
    return STAND_IN if any(card.get("stand_in") for card in cards) else REAL


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6:,.1f} MB"
