"""The report: one web page that holds everything it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from rectrio_lib.data.duplicates import near_copy_groups
from rectrio_lib.embeddings.embed import Report, embed
from rectrio_lib.embeddings.store import EmbeddingStore, open_store, vectors_of
from rectrio_lib.report import contents
from rectrio_lib.search.collection import Collection


def write_page(gallery: Collection, seen: EmbeddingStore, report: Report, decision: str, drawn: bool = False) -> Path:
    """Write outputs/reports/<name>/index.html.

    A trained encoder is compared with <encoder>-frozen, the backbone before training, or else with `seen`.

    Args:
        gallery: of the folder.
        seen: the vectors of the pretrained backbone, by which near copies are found.
        report: what happened when the images were embedded.
        decision: a sentence on which encoder it is, and why.
        drawn: whether the images are generated, which the page says on top.
    """
    workspace, baseline = gallery.workspace, seen
    store, frozen = open_store(gallery.encoder_name, gallery.name, workspace), f"{gallery.encoder_name}-frozen"
    if frozen in workspace.cards("encoders"):
        baseline, _ = embed(gallery.place, frozen, gallery.name, workspace=workspace)
    spaces = {s.card["encoder"]: s for s in (baseline, store)}
    trained = len(spaces) > 1
    rows = store.select()
    known = set.intersection(*(set(s.select()["image_id"]) for s in (seen, *spaces.values())))
    compared = contents.sample(rows[rows["image_id"].isin(known)], contents.MOST_COMPARED).reset_index(drop=True)
    vectors = {name: vectors_of(s, compared["image_id"]) for name, s in spaces.items()}
    own = vectors[gallery.encoder_name]
    facts = contents.folder_contents(gallery, rows, store.files(), report)
    facts |= {"decision": decision, "trained": trained, "drawn": drawn, "compared": len(compared)}
    facts |= contents.class_quality(vectors, compared, trained)
    pretrained = vectors_of(seen, compared["image_id"])
    copies = [] if gallery.stand_in else near_copy_groups(pretrained, compared)
    facts |= contents.near_copies(gallery, copies, compared) | contents.doubts(gallery, pretrained, copies, compared)
    facts |= contents.neighbours(gallery, own, compared) | contents.image_map(gallery, own, compared)
    page = workspace.outputs / "reports" / gallery.name / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(facts), encoding="utf-8")
    return page


def render(facts: Mapping[str, Any]) -> str:
    """Fill the page; whatever comes from file names is escaped."""
    loader, layout = jinja2.PackageLoader("rectrio_lib", "report"), {"trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, **layout)
    environment.filters["number"] = "{:,}".format
    environment.filters["counted"] = lambda count, one, more: f"{count:,} {one if count == 1 else more}"
    return environment.get_template("page.html").render(facts)
