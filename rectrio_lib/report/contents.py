"""From a folder of pictures to a report on it: one web page that holds all it shows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rectrio_lib.data import duplicates
from rectrio_lib.embeddings.embed import Report
from rectrio_lib.embeddings.store import store_folder
from rectrio_lib.evaluation.classes import class_similarity, quality
from rectrio_lib.evaluation.evaluation import Evaluation
from rectrio_lib.report import charts, projection, thumbnails
from rectrio_lib.search.collection import Collection

MOST_COMPARED = 10_000  # pictures that are compared with one another, all with all


def sample(rows: pd.DataFrame, most: int, seed: int = 0) -> pd.DataFrame:
    """Return at most so many rows, drawn by chance, in their order."""
    return rows if len(rows) <= most else rows.sample(most, random_state=seed).sort_index()


def examples(rows: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """Choose pictures by chance, of every class one before any class two; of the test split where there is one."""
    rows = rows[rows["split"].eq("test")] if rows["split"].eq("test").any() else rows
    shuffled = rows.sample(frac=1, random_state=seed)
    turn = shuffled.groupby("label").cumcount().to_numpy()
    return shuffled.iloc[turn.argsort(kind="stable")].head(count)


THUMBNAIL, MAP_THUMBNAIL = 112, 64  # pixels
QUERIES, ANSWERS = 12, 8
MOST_GROUPS, MOST_OF_A_GROUP, MOST_BAD = 12, 8, 40
MAP_COLUMNS = 26
LONGEST_DRAWN = 24  # letters of a class name in a figure
Facts = dict[str, Any]


def folder_contents(gallery: Collection, rows: pd.DataFrame, files: pd.DataFrame, report: Report) -> Facts:
    """Tell what the folder contains, and what was left out."""
    by_area = rows.iloc[(rows["width"] * rows["height"]).argsort(kind="stable")]
    sizes = [f"{by_area['width'].iloc[i]:,} × {by_area['height'].iloc[i]:,}" for i in (0, len(rows) // 2, -1)]
    formats = files["path"].str.rpartition(".")[2].str.lower().value_counts()
    counts = rows["label"][rows["label"].ne("")].value_counts()
    ledger, path = report.ledger, store_folder(gallery.encoder_name, gallery.name) / "ledger.csv"
    listed = {"count": len(ledger), "bad": report.bad, "copies": report.copies, "path": str(path)}
    return {
        "name": gallery.name,
        "folder": str(gallery.folder),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "stand_in": gallery.stand_in,
        "encoder": gallery.encoder_name,
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


def class_quality(spaces: Mapping[str, np.ndarray], rows: pd.DataFrame, tested: bool) -> Facts:
    """Tell how well the encoders rank, and which classes look alike to the last of them."""
    found = quality(spaces, rows, tested)
    if not found:
        return {"quality": [], "asked": 0, "per_class": {}, "similarity": ""}
    last, vectors = list(found.values())[-1], list(spaces.values())[-1]
    labels = rows["label"].to_numpy()
    classes = rows["label"][rows["label"].ne("")].value_counts().head(projection.MOST_CLASSES).index.sort_values()
    similarity = class_similarity(vectors, labels, classes)
    figure = charts.class_similarities({"": similarity}, list(map(_drawable, classes)))
    return {
        "quality": [{"encoder": name, **_figures(evaluation)} for name, evaluation in found.items()],
        "asked": len(last.labels) - last.skipped,
        "per_class": last.per_class()["recall_at_1"].dropna().to_dict(),
        "similarity": thumbnails.figure_address(figure),
    }


def _drawable(name: str) -> str:
    """Shorten a class name for a figure, where a dollar would begin a formula."""
    short = name if len(name) <= LONGEST_DRAWN else f"{name[: LONGEST_DRAWN - 1]}…"
    return short.replace("$", r"\$")


def _figures(found: Evaluation) -> dict[str, str]:
    names = {"recall_at_1": "recall@1", "recall_at_5": "recall@5", "map_at_r": "mAP@R"}
    means = found.means()
    return {told: "{:.3f} ({:.3f} to {:.3f})".format(means[n], *found.interval(n)) for n, told in names.items()}


def near_copies(gallery: Collection, vectors: np.ndarray, rows: pd.DataFrame) -> Facts:
    """Group near copies, as the page shows them."""
    groups = [] if gallery.stand_in else duplicates.near_copy_groups(vectors, rows)
    shown = [rows["path"].iloc[members[:MOST_OF_A_GROUP]].tolist() for members in groups[:MOST_GROUPS]]
    seen = thumbnails.thumbnails(gallery.folder, [path for paths in shown for path in paths], THUMBNAIL)
    told = [
        {"count": len(members), "pictures": [{"path": path, "address": seen[path]} for path in paths]}
        for members, paths in zip(groups, shown, strict=False)
    ]
    return {"groups": told, "group_count": len(groups), "in_groups": sum(map(len, groups))}


def neighbours(gallery: Collection, rows: pd.DataFrame) -> list[Facts]:
    """Ask the index for the neighbours of some pictures."""
    chosen = examples(rows, QUERIES)
    answers = gallery.search(chosen["image_id"].tolist(), k=ANSWERS).frame()
    seen = thumbnails.thumbnails(gallery.folder, [*chosen["path"], *answers["path"]], THUMBNAIL)
    told = []
    for asked in chosen.itertuples():
        found = answers[answers["query"] == asked.image_id]
        told.append({"path": asked.path, "label": asked.label, "address": seen[asked.path], "answers": []})
        for answer in found.itertuples():
            verdict = "" if not asked.label else "hit" if answer.label == asked.label else "miss"
            fact = {"path": answer.path, "label": answer.label, "score": answer.score, "verdict": verdict}
            told[-1]["answers"].append(fact | {"address": seen[answer.path]})
    return told


def image_map(gallery: Collection, vectors: np.ndarray, rows: pd.DataFrame) -> Facts:
    """Lay pictures out in the plane: as pictures, and where there are few classes as points in their colours."""
    chosen = sample(rows, projection.MOST_MAPPED)
    if len(chosen) < 3:
        return {"map": [], "mapped": 0, "map_columns": 0, "method": "", "scatter": ""}
    method, points = projection.project(vectors[chosen.index])
    columns = min(MAP_COLUMNS, int(np.ceil((1.5 * len(chosen)) ** 0.5)) + 1)
    first, places = projection.cells(points, columns, columns * 2 // 3)
    paths = chosen["path"].iloc[first].tolist()
    seen = thumbnails.thumbnails(gallery.folder, paths, MAP_THUMBNAIL)
    told = [
        {"path": path, "address": seen[path], "column": int(column) + 1, "line": int(line) + 1}
        for path, (column, line) in zip(paths, places, strict=True)
        if seen[path]
    ]
    classes = sorted(set(chosen["label"]) - {""})
    scatter = ""
    if 2 <= len(classes) <= projection.MOST_CLASSES:
        # y grows upwards in a plot, and downwards on a page
        names = list(map(_drawable, classes))
        figure = charts.projection({"": points * (1, -1)}, chosen["label"].map(_drawable), names)
        scatter = thumbnails.figure_address(figure)
    return {"map": told, "mapped": len(chosen), "map_columns": columns, "method": method, "scatter": scatter}
