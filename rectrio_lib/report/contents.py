"""What the page on a folder of images says and shows, as plain facts for its template."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping
from functools import partial
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rectrio_lib.core.tables import shortened, with_interval
from rectrio_lib.data.places.archives import archive_of
from rectrio_lib.data.places.place import Place
from rectrio_lib.embeddings.embed import Report
from rectrio_lib.embeddings.store import store_folder
from rectrio_lib.evaluation.classes import class_similarity, quality
from rectrio_lib.evaluation.doubts import doubtful_labels
from rectrio_lib.evaluation.evaluation import Evaluation
from rectrio_lib.report import charts, grids, projection
from rectrio_lib.search.collection import Collection
from rectrio_lib.search.results import thumbnails

MOST_COMPARED = 10_000  # images that are compared with one another, all with all
THUMBNAIL, MAP_WIDTH = 112, 1200  # pixels
QUERIES, RESULTS = 12, 8
MOST_GROUPS, MOST_OF_A_GROUP, MOST_BAD, MOST_DOUBTS = 12, 8, 40, 16
MAP_COLUMNS = 26
Facts = dict[str, Any]
_drawn = partial(shortened, most=24)  # a class name in a figure


def figure_address(figure: Figure) -> str:
    """Return a figure as a data URI, and close it."""
    written = BytesIO()
    figure.savefig(written, format="png", dpi=grids.DPI, bbox_inches="tight")
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def sample(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most this many rows, drawn at random, in their order."""
    return rows if len(rows) <= most else rows.sample(most, random_state=0).sort_index()


def held_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the test images, or all images where there is no test split."""
    return rows[rows["split"].eq("test")] if rows["split"].eq("test").any() else rows


def examples(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Draw held-out images at random, of every class one before any class two."""
    shuffled = held_out(rows).sample(frac=1, random_state=0)
    turn = shuffled.groupby("label").cumcount().to_numpy()
    return shuffled.iloc[turn.argsort(kind="stable")].head(count)


def folder_contents(gallery: Collection, rows: pd.DataFrame, files: pd.DataFrame, report: Report) -> Facts:
    """List what the folder contains, and what was left out."""
    by_area = rows.iloc[(rows["width"] * rows["height"]).argsort(kind="stable")]
    sizes = [f"{by_area['width'].iloc[i]:,} × {by_area['height'].iloc[i]:,}" for i in (0, len(rows) // 2, -1)]
    formats = files["path"].str.extract(r"\.([^./]*)(?:/\d+)?$")[0].str.lower().value_counts()
    counts = rows["label"][rows["label"].ne("")].value_counts()
    ledger, path = report.ledger, store_folder(gallery.encoder_name, gallery.name, gallery.workspace) / "ledger.csv"
    listed = {"count": len(ledger), "bad": report.bad, "copies": report.copies, "path": str(path)}
    return {
        "name": gallery.name,
        "folder": gallery.uri,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "stand_in": gallery.stand_in,
        "encoder": gallery.encoder_name,
        "index": gallery.index.info(),
        "timings": str(report),
        "images": len(rows),
        "megabytes": files.groupby(archive_of(files["path"]))["size"].max().clip(lower=0).sum() / 1e6,
        "formats": formats.to_dict(),
        "sizes": dict(zip(("smallest", "median", "largest"), sizes, strict=True)),
        "classes": counts.to_dict(),
        "unlabelled": int(rows["label"].eq("").sum()),
        "ledger": listed | {"shown": ledger.head(MOST_BAD).to_dict("records")},
    }


def class_quality(spaces: Mapping[str, np.ndarray], rows: pd.DataFrame, tested: bool) -> Facts:
    """Say how well the encoders {name: vectors (N, dim)} rank, and which classes look alike to the last of them."""
    measured = quality(spaces, rows, tested)
    if not measured:
        return {"quality": [], "queries": 0, "at_random": 0.0, "remarks": [], "per_class": {}, "similarity": ""}
    last, vectors = list(measured.values())[-1], list(spaces.values())[-1]
    known = rows["label"].ne("").to_numpy()
    labels = rows["label"][known & rows.index.isin(held_out(rows).index)]
    classes = labels.value_counts().head(projection.MOST_CLASSES).index.sort_values()
    similarity = class_similarity(vectors[labels.index], labels.to_numpy(), classes)
    figure = charts.class_similarities({"": similarity}, list(map(_drawn, classes)))
    share = rows["label"][known & (rows["split"].ne("test") | (not tested))].value_counts(normalize=True)
    return {
        "quality": [{"encoder": name, **_figures(evaluation)} for name, evaluation in measured.items()],
        "queries": len(last.labels) - last.skipped,
        "at_random": float(share.reindex(last.labels).fillna(0).mean()),
        "remarks": _remarks([evaluation.means() for evaluation in measured.values()]),
        "per_class": last.per_class()["recall_at_1"].dropna().to_dict(),
        "similarity": figure_address(figure),
    }


def _figures(measured: Evaluation) -> dict[str, str]:
    names = {"recall_at_1": "recall@1", "recall_at_5": "recall@5", "map_at_r": "mAP@R"}
    return {name: with_interval(measured.means()[n], measured.interval(n)) for n, name in names.items()}


def _remarks(means: list[Mapping[str, float]]) -> list[str]:
    """Say what training lost, where it lost anything."""
    if len(means) < 2:
        return []
    (before, after), remarks = (means[0], means[-1]), []
    if after["recall_at_1"] <= before["recall_at_1"]:
        remarks.append(
            f"Training did not make the first result better: recall@1 was {before['recall_at_1']:.3f} and is "
            f"{after['recall_at_1']:.3f}. An index with the pretrained backbone serves you as well."
        )
    if after["recall_at_5"] < before["recall_at_5"]:
        remarks.append(
            f"Recall@5 fell from {before['recall_at_5']:.3f} to {after['recall_at_5']:.3f}: training draws each class "
            "together, so the five nearest of an image tend to be all right or all wrong."
        )
    return remarks


def near_copies(gallery: Collection, groups: list[np.ndarray], rows: pd.DataFrame) -> Facts:
    """Show groups of likely near copies."""
    shown = []
    for members in groups[:MOST_GROUPS]:
        shots = _shots(gallery.place, rows["path"].iloc[members[:MOST_OF_A_GROUP]])
        shown.append({"count": len(members), "images": list(shots.values())})
    return {"groups": shown, "group_count": len(groups), "in_groups": sum(map(len, groups))}


def doubts(gallery: Collection, vectors: np.ndarray, groups: list[np.ndarray], rows: pd.DataFrame) -> Facts:
    """Show the labels that look wrong to vectors (N, dim) that did not learn them; groups are of likely near copies."""
    known = np.flatnonzero(rows["label"].ne(""))
    if gallery.stand_in or rows["label"].iloc[known].nunique() < 2:
        return {"doubts": [], "doubt_count": 0}
    alike = np.arange(len(rows))
    for members in groups:
        alike[members] = members[0]
    found = doubtful_labels(vectors[known], rows["label"].to_numpy()[known], alike[known])
    shown = found.head(MOST_DOUBTS)
    shots = _shots(gallery.place, rows["path"].iloc[known[shown["row"]]]).values()
    words = shown[["label", "closer_to"]].to_dict("records")
    return {"doubts": [a | b for a, b in zip(shots, words, strict=True)], "doubt_count": len(found)}


def _shots(place: Place, paths: Iterable[str], side: int = THUMBNAIL) -> dict[str, Facts]:
    """Return {path: what the page needs to show an image and to link to its file}."""
    small = thumbnails(place, paths, side)
    return {p: {"path": p, "address": address, "file": place.address(p)} for p, address in small.items()}


def neighbours(gallery: Collection, vectors: np.ndarray, rows: pd.DataFrame) -> Facts:
    """Search the index with some images, and measure how similar pairs drawn at random are."""
    chosen = examples(rows, QUERIES)
    results = gallery.search(chosen["image_id"].tolist(), k=RESULTS).frame()
    shots = _shots(gallery.place, [*chosen["path"], *results["path"]])
    strips = []
    for query in chosen.itertuples():
        strips.append({**shots[query.path], "label": query.label, "results": []})
        for result in results[results["query"] == query.image_id].itertuples():
            verdict = "" if not query.label else "hit" if result.label == query.label else "miss"
            facts = {"label": result.label, "score": result.score, "verdict": verdict}
            strips[-1]["results"].append(shots[result.path] | facts)
    draw = np.random.default_rng(0)
    one, other = draw.choice(held_out(rows).index, 10_000), draw.integers(0, len(rows), 10_000)
    pairs = (vectors[one] * vectors[other]).sum(1)[one != other]
    usual = dict(zip((50, 99), np.percentile(pairs, (50, 99)), strict=True)) if len(pairs) else {}
    return {"strips": strips, "usual": usual}


def image_map(gallery: Collection, vectors: np.ndarray, rows: pd.DataFrame) -> Facts:
    """Lay the held-out images out in the plane: as images, and where there are few classes as points."""
    chosen = sample(held_out(rows), projection.MOST_MAPPED)
    if len(chosen) < 3:
        return {"map": [], "mapped": 0, "map_columns": 0, "method": "", "scatter": ""}
    method, points = projection.project(vectors[chosen.index])
    columns = min(MAP_COLUMNS, int(np.ceil((1.5 * len(chosen)) ** 0.5)) + 1)
    first, places = projection.cells(points, columns, columns * 2 // 3)
    shots = _shots(gallery.place, chosen["path"].iloc[first], min(THUMBNAIL, max(64, MAP_WIDTH // columns))).values()
    places = [{"column": int(column) + 1, "line": int(line) + 1} for column, line in places]
    shown = [shot | place for shot, place in zip(shots, places, strict=True) if shot["address"]]
    classes, scatter = sorted(set(chosen["label"]) - {""}), ""
    if 2 <= len(classes) <= projection.MOST_CLASSES:
        upright = {"": points * (1, -1)}  # y grows upwards in a plot, and downwards on a page
        figure = charts.projection(upright, chosen["label"].map(_drawn), list(map(_drawn, classes)))
        scatter = figure_address(figure)
    return {"map": shown, "mapped": len(chosen), "map_columns": columns, "method": method, "scatter": scatter}
