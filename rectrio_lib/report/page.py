"""The report: one web page that holds everything it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.embed import Report
from rectrio_lib.embeddings.store import EmbeddingStore, open_store, vectors_of
from rectrio_lib.report import contents
from rectrio_lib.report.contents import class_quality, folder_contents, image_map, near_copies, neighbours
from rectrio_lib.search.collection import Collection


def write_page(gallery: Collection, seen: EmbeddingStore, report: Report, decision: str, drawn: bool = False) -> Path:
    """Write outputs/reports/<name>/index.html.

    Args:
        gallery: of the folder.
        seen: the vectors of the pretrained backbone, with which the gallery's are compared if they are others.
        report: what was found when the pictures were embedded.
        decision: a sentence on which encoder it is, and why.
        drawn: whether the pictures are generated, which the page tells on top.

    Returns:
        The page.
    """
    store = open_store(gallery.encoder_name, gallery.name)
    spaces = {s.card["encoder"]: s for s in (seen, store)}
    trained = len(spaces) > 1
    rows = store.select()
    compared = contents.sample(rows[rows["image_id"].isin(seen.rows["image_id"])], contents.MOST_COMPARED)
    compared = compared.reset_index(drop=True)
    vectors = {name: vectors_of(s, compared["image_id"]) for name, s in spaces.items()}
    facts = folder_contents(gallery, rows, store.files(), report) | {
        "decision": decision,
        "trained": trained,
        "drawn": drawn,
    }
    facts |= {"compared": len(compared), **class_quality(vectors, compared, trained)}
    facts |= near_copies(gallery, vectors[seen.card["encoder"]], compared)
    facts |= {"questions": neighbours(gallery, compared), **image_map(gallery, vectors[gallery.encoder_name], compared)}
    page = Workspace().outputs / "reports" / gallery.name / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(facts), encoding="utf-8")
    return page


def render(facts: Mapping[str, Any]) -> str:
    """Fill the page; whatever comes from file names is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rectrio_lib", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = "{:,}".format
    return environment.get_template("page.html").render(facts)
