"""What lies below outputs/, as tables: indexes, embedding stores and encoders."""

from __future__ import annotations

from rectrio_lib.core.errors import ArgumentError, RectrioError
from rectrio_lib.core.workspace import Card, Workspace
from rectrio_lib.search import provenance
from rectrio_lib.search.collection import Collection


def overview(name: str = "") -> dict[str, list[Card]]:
    """Return what there is, as rows of three tables.

    Args:
        name: of an index, a store, a data set or an encoder; empty: all there is.

    Returns:
        {"Indexes", "Embedding stores", "Encoders": rows}; those of one name also list the columns of an index.

    Raises:
        ArgumentError: if nothing has that name; the message lists what there is.
    """
    stores, indexes, encoders = (Workspace().cards(kind) for kind in ("embeddings", "indexes", "encoders"))
    chosen = {n: c for n, c in stores.items() if name in ("", n, c.get("dataset"))}
    shown = [_index_row(n) for n in indexes if name in ("", n)]
    makers = {c.get("encoder") for c in (*chosen.values(), *shown)}
    if not name:
        shown = [{key: value for key, value in row.items() if key != "columns"} for row in shown]
    tables = {
        "Indexes": shown,
        "Embedding stores": [_store_row(n, c) for n, c in chosen.items()],
        "Encoders": [_encoder_row(n, c) for n, c in encoders.items() if name in ("", n) or n in makers],
    }
    if name and not any(tables.values()):
        known = ", ".join(sorted({*indexes, *stores, *encoders})) or "nothing yet"
        home = Workspace().outputs
        raise ArgumentError(f"There is no index, store or encoder {name!r}: below {home} there is {known}.")
    return tables


def _index_row(name: str) -> Card:
    try:
        row = Collection.open(name).info()
    except RectrioError as error:
        row = {"name": name, "remark": str(error)}
    return row | {"size": _size("indexes", name)}


def _store_row(name: str, card: Card) -> Card:
    row = {"name": name, "images": card.get("count", ""), "length": card.get("dim", ""), "type": card.get("dtype", "")}
    row |= {"size": _size("embeddings", name), "stand-in": provenance.stand_in(card)}
    return row | {"state": "complete" if card.get("finished") else "unfinished", "folder": card.get("folder", "")}


def _encoder_row(name: str, card: Card) -> Card:
    row = {"name": name, "kind": provenance.backbone_of(card) or card.get("kind", "")}
    row |= {"length": card.get("dim", ""), "size": _size("encoders", name)}
    return row | {"trained": "yes" if card.get("trained_on") else "no", "stand-in": provenance.stand_in(card)}


def _size(kind: str, name: str) -> str:
    files = (path for path in Workspace().path(kind, name).iterdir() if path.is_file())
    return f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"
