"""What lies below outputs/, as tables: indexes, embedding stores and encoders."""

from __future__ import annotations

from pathlib import Path

from pyarrow import parquet

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Card, Workspace
from rectrio_lib.index import storage
from rectrio_lib.search.collection import encoder_of, store_of

STAND_IN, REAL = "STAND-IN", "real"


def overview(name: str = "") -> dict[str, list[Card]]:
    """Tell what there is, as rows of three tables.

    Args:
        name: of an index, a store, a data set or an encoder; empty: all there is.

    Returns:
        {"Indexes", "Embedding stores", "Encoders": rows}; those of one name also tell the columns of an index.

    Raises:
        ValueError: if nothing has that name; the message names what there is.
    """
    stores, indexes = Workspace().cards("embeddings"), Workspace().cards("indexes")
    chosen = {n: c for n, c in stores.items() if name in ("", n, c.get("dataset"))}
    makers = {c.get("encoder") for c in chosen.values()}
    tables = {
        "Indexes": [_index_row(n, columns=bool(name)) for n in indexes if name in ("", n)],
        "Embedding stores": [_store_row(n, c) for n, c in chosen.items()],
        "Encoders": [
            _encoder_row(n, c) for n, c in Workspace().cards("encoders").items() if name in ("", n) or n in makers
        ],
    }
    if name and not any(tables.values()):
        known = ", ".join(sorted({*indexes, *stores, *Workspace().cards("encoders")})) or "nothing yet"
        raise ArgumentError(f"There is no index, store or encoder called {name!r}: below outputs/ there is {known}.")
    return tables


def _index_row(name: str, columns: bool) -> Card:
    folder = Workspace().outputs / "indexes" / name
    try:
        card = storage.read_card(folder)
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
    told |= {"type": card.get("dtype", ""), "size": _size(Workspace().outputs / "embeddings" / name)}
    told |= {"weights": _weights(card), "state": "whole" if card.get("finished") else "stopped half way"}
    return told | {"folder": card.get("folder", "")}


def _encoder_row(name: str, card: Card) -> Card:
    told = {"name": name, "kind": card.get("arguments", {}).get("backbone", card.get("kind", ""))}
    told |= {"length": card.get("dim", ""), "size": _size(Workspace().outputs / "encoders" / name)}
    return told | {"trained": "yes" if card.get("trained_on") else "no", "weights": _weights(card)}


def _weights(*cards: Card) -> str:
    """Say whether random weights or drawn pictures stood in somewhere."""
    return STAND_IN if any(card.get("stand_in") for card in cards) else REAL


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6:,.1f} MB"
