"""What lies below outputs/, as tables: indexes, embedding stores and encoders."""

from __future__ import annotations

from rectrio_lib.core.errors import ArgumentError, RectrioError
from rectrio_lib.core.workspace import Card, Workspace
from rectrio_lib.search import provenance
from rectrio_lib.search.collection import Collection


def overview(name: str = "", workspace: Workspace | None = None) -> dict[str, list[Card]]:
    """Return what there is, as rows of three tables.

    Args:
        name: of an index, a store, a data set or an encoder; empty: all there is.
        workspace: where to look; None: `Workspace()`.

    Returns:
        {"Indexes", "Embedding stores", "Encoders": rows}; those of one name also list the columns of an index.

    Raises:
        ArgumentError: if nothing has that name; the message lists what there is.
    """
    workspace = workspace or Workspace()
    stores, indexes, encoders = (workspace.cards(kind) for kind in ("embeddings", "indexes", "encoders"))
    chosen = {n: c for n, c in stores.items() if name in ("", n, c.get("dataset"))}
    shown = [_index_row(n, workspace) for n in indexes if name in ("", n)]
    makers = {c.get("encoder") for c in (*chosen.values(), *shown)}
    for row in shown:
        row.pop("columns", None) if not name else None
    tables = {
        "Indexes": shown,
        "Embedding stores": [_store_row(n, c, workspace) for n, c in chosen.items()],
        "Encoders": [_encoder_row(n, c, workspace) for n, c in encoders.items() if name in ("", n) or n in makers],
    }
    if name and not any(tables.values()):
        known = ", ".join(sorted({*indexes, *stores, *encoders})) or "nothing yet"
        raise ArgumentError(
            f"There is no index, store or encoder {name!r}: below {workspace.outputs} there is {known}."
        )
    return tables


def _index_row(name: str, workspace: Workspace) -> Card:
    try:
        row = Collection.open(name, workspace=workspace).info()
    except RectrioError as error:
        row = {"name": name, "remark": str(error)}
    return row | {"size": _size("indexes", name, workspace)}


def _store_row(name: str, card: Card, workspace: Workspace) -> Card:
    row = {"name": name, "images": card.get("count", ""), "length": card.get("dim", ""), "type": card.get("dtype", "")}
    row |= {"size": _size("embeddings", name, workspace), "stand-in": provenance.stand_in(card)}
    return row | {"state": "complete" if card.get("finished") else "unfinished", "folder": card.get("folder", "")}


def _encoder_row(name: str, card: Card, workspace: Workspace) -> Card:
    row = {"name": name, "kind": card.get("arguments", {}).get("backbone", card.get("kind", ""))}
    row |= {"length": card.get("dim", ""), "size": _size("encoders", name, workspace)}
    return row | {"trained": "yes" if card.get("trained_on") else "no", "stand-in": provenance.stand_in(card)}


def _size(kind: str, name: str, workspace: Workspace) -> str:
    files = (path for path in workspace.path(kind, name).iterdir() if path.is_file())
    return f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"
