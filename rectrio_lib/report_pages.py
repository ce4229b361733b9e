"""From a folder of pictures to a report on it: one web page that holds all it shows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from rectrio_lib import datasets, galleries, metrics, page_template, plots, previews, resources, searching, surveys
from rectrio_lib.embeddings import Report
from rectrio_lib.galleries import Gallery
from rectrio_lib.stores import EmbeddingStore, home_of, open_store

THUMBNAIL, MAP_THUMBNAIL = 112, 64  # pixels
QUERIES, ANSWERS = 12, 8
MOST_GROUPS, MOST_OF_A_GROUP, MOST_BAD = 12, 8, 40
MAP_COLUMNS = 26
LONGEST_DRAWN = 24  # letters of a class name in a figure

Facts = dict[str, Any]


def run_folder(folder: str | Path, name: str = "", parameters: Mapping[str, Any] | None = None) -> Path:
    """Check and embed a folder of pictures, train on it if it has classes, build an index, and write a report.

    Each step tells what it found in a printed line.

    Args:
        folder: of pictures, in class folders or not.
        name: of all that comes of it; empty: that of the folder.
        parameters: of chapter 03, if there is something to train on; `backbone` counts in any case.

    Returns:
        The page, outputs/reports/<name>/index.html.

    Raises:
        ValueError: if there are parameters, but nothing to train on; and as `galleries.build` and `galleries.train`.
        OSError: as `galleries.build`.
        running.ChapterError: as `galleries.train`.
    """
    parameters = dict(parameters or {})
    fixed = {"dataset", "folder", "encoder", "name"} & parameters.keys()
    if fixed:
        raise ValueError(f"{', '.join(sorted(fixed))}: follows from the folder and its name, and is no parameter here.")
    backbone = parameters.get("backbone", galleries.BACKBONE)
    seen, report = galleries.embed(folder, backbone, name)
    print(f"Checked    {report}", flush=True)
    name, reason = seen.card["dataset"], surveys.why_untrained(seen.select())
    if reason and parameters.keys() - {"backbone"}:
        raise ValueError(f"{', '.join(parameters)}: nothing is trained here, for {reason}.")
    if reason:
        decision = f"Nothing was trained, for {reason}: this is {backbone} as it was pretrained."
        gallery, _ = galleries.build(folder, backbone, name)
    else:
        decision = f"The pictures lie in class folders: chapter {galleries.CHAPTER} trained {backbone} on them."
        encoder = galleries.train(folder, name, **parameters)
        gallery, report = galleries.build(folder, encoder, name, manifest=datasets.load_dataset(name).manifest)
        print(f"Embedded   {report}", flush=True)
    print(f"Encoder    {gallery.encoder}. {decision}\nIndex      {gallery.index.info()}", flush=True)
    return write(gallery, seen, report, decision)


def write(gallery: Gallery, seen: EmbeddingStore, report: Report, decision: str, drawn: bool = False) -> Path:
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
    store = open_store(gallery.encoder, gallery.name)
    spaces = {s.card["encoder"]: s for s in (seen, store)}
    trained = len(spaces) > 1
    rows = store.select()
    compared = surveys.sample(rows[rows["image_id"].isin(seen.rows["image_id"])], surveys.MOST_COMPARED)
    compared = compared.reset_index(drop=True)
    vectors = {name: surveys.vectors_of(s, compared["image_id"]) for name, s in spaces.items()}
    facts = _contents(gallery, rows, store.files(), report) | {"decision": decision, "trained": trained, "drawn": drawn}
    facts |= {"compared": len(compared), **_quality(vectors, compared, trained)}
    facts |= _near_copies(gallery, vectors[seen.card["encoder"]], compared)
    facts |= {"questions": _neighbours(gallery, compared), **_map(gallery, vectors[gallery.encoder], compared)}
    page = resources.outputs_root() / "reports" / gallery.name / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(facts), encoding="utf-8")
    return page


def render(facts: Mapping[str, Any]) -> str:
    """Fill the page; whatever comes from file names is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = "{:,}".format
    return environment.from_string(page_template.PAGE).render(facts)


def _contents(gallery: Gallery, rows: pd.DataFrame, files: pd.DataFrame, report: Report) -> Facts:
    """Tell what the folder contains, and what was left out."""
    by_area = rows.iloc[(rows["width"] * rows["height"]).argsort(kind="stable")]
    sizes = [f"{by_area['width'].iloc[i]:,} × {by_area['height'].iloc[i]:,}" for i in (0, len(rows) // 2, -1)]
    formats = files["path"].str.rpartition(".")[2].str.lower().value_counts()
    counts = rows["label"][rows["label"].ne("")].value_counts()
    ledger, path = report.ledger, home_of(gallery.encoder, gallery.name) / "ledger.csv"
    listed = {"count": len(ledger), "bad": report.bad, "copies": report.copies, "path": str(path)}
    return {
        "name": gallery.name,
        "folder": str(gallery.folder),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "stand_in": gallery.stand_in,
        "encoder": gallery.encoder,
        "index": gallery.index.info(),
        "timings": str(report),
        "pictures": len(rows),
        "megabytes": files["size"].clip(lower=0).sum() / 1e6,
        "formats": formats.to_dict(),
        "sizes": dict(zip(("smallest", "median", "largest"), sizes, strict=True)),
        "classes": counts.to_dict(),
        "unlabelled": int(rows["label"].eq("").sum()),
        "ledger": listed | {"shown": ledger.head(MOST_BAD).to_dict("records")},
    }


def _quality(spaces: Mapping[str, np.ndarray], rows: pd.DataFrame, tested: bool) -> Facts:
    """Tell how well the encoders rank, and which classes look alike to the last of them."""
    found = surveys.quality(spaces, rows, tested)
    if not found:
        return {"quality": [], "asked": 0, "per_class": {}, "similarity": ""}
    last, vectors = list(found.values())[-1], list(spaces.values())[-1]
    labels = rows["label"].to_numpy()
    classes = rows["label"][rows["label"].ne("")].value_counts().head(surveys.MOST_CLASSES).index.sort_values()
    similarity = surveys.class_similarity(vectors, labels, classes)
    figure = plots.class_similarities({"": similarity}, list(map(_drawable, classes)))
    return {
        "quality": [{"encoder": name, **_figures(evaluation)} for name, evaluation in found.items()],
        "asked": len(last.labels) - last.skipped,
        "per_class": last.per_class()["recall_at_1"].dropna().to_dict(),
        "similarity": previews.figure_address(figure),
    }


def _drawable(name: str) -> str:
    """Shorten a class name for a figure, where a dollar would begin a formula."""
    short = name if len(name) <= LONGEST_DRAWN else f"{name[: LONGEST_DRAWN - 1]}…"
    return short.replace("$", r"\$")


def _figures(found: metrics.Evaluation) -> dict[str, str]:
    names = {"recall_at_1": "recall@1", "recall_at_5": "recall@5", "map_at_r": "mAP@R"}
    means = found.means()
    return {told: "{:.3f} ({:.3f} to {:.3f})".format(means[n], *found.interval(n)) for n, told in names.items()}


def _near_copies(gallery: Gallery, vectors: np.ndarray, rows: pd.DataFrame) -> Facts:
    groups = [] if gallery.stand_in else surveys.near_copies(vectors, rows)
    shown = [rows["path"].iloc[members[:MOST_OF_A_GROUP]].tolist() for members in groups[:MOST_GROUPS]]
    seen = previews.thumbnails(gallery.folder, [path for paths in shown for path in paths], THUMBNAIL)
    told = [
        {"count": len(members), "pictures": [{"path": path, "address": seen[path]} for path in paths]}
        for members, paths in zip(groups, shown, strict=False)
    ]
    return {"groups": told, "group_count": len(groups), "in_groups": sum(map(len, groups))}


def _neighbours(gallery: Gallery, rows: pd.DataFrame) -> list[Facts]:
    """Ask the index for the neighbours of some pictures."""
    chosen = surveys.examples(rows, QUERIES)
    answers = searching.search_ids(gallery.index, chosen["image_id"].tolist(), ANSWERS).frame()
    seen = previews.thumbnails(gallery.folder, [*chosen["path"], *answers["path"]], THUMBNAIL)
    told = []
    for asked in chosen.itertuples():
        found = answers[answers["query"] == asked.image_id]
        told.append({"path": asked.path, "label": asked.label, "address": seen[asked.path], "answers": []})
        for answer in found.itertuples():
            verdict = "" if not asked.label else "hit" if answer.label == asked.label else "miss"
            fact = {"path": answer.path, "label": answer.label, "score": answer.score, "verdict": verdict}
            told[-1]["answers"].append(fact | {"address": seen[answer.path]})
    return told


def _map(gallery: Gallery, vectors: np.ndarray, rows: pd.DataFrame) -> Facts:
    """Lay pictures out in the plane: as pictures, and where there are few classes as points in their colours."""
    chosen = surveys.sample(rows, surveys.MOST_MAPPED)
    if len(chosen) < 3:
        return {"map": [], "mapped": 0, "map_columns": 0, "method": "", "scatter": ""}
    method, points = surveys.project(vectors[chosen.index])
    columns = min(MAP_COLUMNS, int(np.ceil((1.5 * len(chosen)) ** 0.5)) + 1)
    first, places = surveys.cells(points, columns, columns * 2 // 3)
    paths = chosen["path"].iloc[first].tolist()
    seen = previews.thumbnails(gallery.folder, paths, MAP_THUMBNAIL)
    told = [
        {"path": path, "address": seen[path], "column": int(column) + 1, "line": int(line) + 1}
        for path, (column, line) in zip(paths, places, strict=True)
        if seen[path]
    ]
    classes = sorted(set(chosen["label"]) - {""})
    scatter = ""
    if 2 <= len(classes) <= surveys.MOST_CLASSES:
        # y grows upwards in a plot, and downwards on a page
        names = list(map(_drawable, classes))
        figure = plots.projection({"": points * (1, -1)}, chosen["label"].map(_drawable), names)
        scatter = previews.figure_address(figure)
    return {"map": told, "mapped": len(chosen), "map_columns": columns, "method": method, "scatter": scatter}
