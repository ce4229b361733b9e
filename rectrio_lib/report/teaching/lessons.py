"""What a ranking is worth, drawn: a worked strip, scores of hits and misses, recall at k, classes with intervals."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rectrio_lib.report.charts import colour_of
from rectrio_lib.report.grids import HIT, MISS, QUERY, Wall
from rectrio_lib.report.lettering import lettered, readable


@lettered
def worked_strip(query: np.ndarray, images: np.ndarray, hits: np.ndarray, title: str = "") -> Figure:
    """A query and its results, with the precision at each rank that holds a hit: what average precision adds up.

    Args:
        query: uint8 (C, H, W).
        images: results, best first, uint8 (k, C, H, W).
        hits: which of them are relevant, bool (k,).
        title: above.
    """
    wall = Wall(1, len(images) + 1, 1.1, caption=0.45)
    wall.show(0, 0, query, "query", QUERY)
    found = np.cumsum(hits)
    for rank, (image, hit) in enumerate(zip(images, hits, strict=True), 1):
        caption = f"rank {rank}\n{found[rank - 1]}/{rank} = {found[rank - 1] / rank:.2f}" if hit else f"rank {rank}\n0"
        wall.show(0, rank, image, caption, HIT if hit else MISS)
    wall.axis.set_title(title, fontsize=10)
    return wall.figure


@lettered
def score_histograms(spaces: Mapping[str, tuple[np.ndarray, np.ndarray, float]], title: str = "") -> Figure:
    """Histograms of the best result's score, of hits and of misses: {encoder: (scores (Q,), hits (Q,), AUROC)}."""
    figure, axes = plt.subplots(1, len(spaces), figsize=(4.2 * len(spaces), 3), squeeze=False)
    for axis, (name, (scores, hits, auroc)) in zip(axes[0], spaces.items(), strict=True):
        bins = np.linspace(np.quantile(scores, 0.01), scores.max() + 1e-6, 31)
        for chosen, colour, label, filled in ((hits, HIT, "hits", True), (~hits, MISS, "misses", False)):
            weights = np.full(chosen.sum(), 1 / max(1, chosen.sum()))
            look = {"alpha": 0.5} if filled else {"histtype": "step", "lw": 2, "linestyle": "--"}
            axis.hist(np.clip(scores[chosen], bins[0], None), bins, weights=weights, color=colour, label=label, **look)
        axis.set(title=f"{name}: AUROC {auroc:.2f}", xlabel="cosine to the first result", yticks=[])
    axes[0, 0].set_ylabel("share of hits, of misses")
    axes[0, 0].legend(frameon=False, loc="upper left")
    figure.suptitle(title)
    figure.tight_layout()
    return figure


@lettered
def recall_curves(spaces: Mapping[str, Mapping[int, float]], title: str = "") -> Figure:
    """Recall against the number of results looked at, on a logarithmic axis: {encoder: {k: recall}}."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for (name, curve), marker in zip(spaces.items(), "os^dv*" * len(spaces), strict=False):
        axis.plot(list(curve), list(curve.values()), marker=marker, color=colour_of(name), label=name)
    ticks = list(next(iter(spaces.values())))
    axis.set(xscale="log", xlabel="k, results looked at", ylabel="recall@k", title=title)
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure


@lettered
def class_dots(spaces: Mapping[str, pd.DataFrame], title: str = "", xlabel: str = "recall@1") -> Figure:
    """A dot and an interval for each class and encoder, classes sorted by what the last encoder gains over the first.

    Args:
        spaces: {encoder: table with the classes as index, and columns mean, low, high}.
        title: above.
        xlabel: what is measured.
    """
    first, *_, last = spaces.values() if len(spaces) > 1 else [*spaces.values()] * 2
    order = (last["mean"] - first["mean"]).sort_values().index
    figure, axis = plt.subplots(figsize=(7.5, 0.42 * len(order) + 1.2))
    for number, (name, table) in enumerate(spaces.items()):
        table, height = table.loc[order], np.arange(len(order)) + 0.22 * ((len(spaces) - 1) / 2 - number)
        axis.hlines(height, table["low"], table["high"], color=colour_of(name), lw=2, alpha=0.7)
        axis.plot(table["mean"], height, "os^dv"[number % 5], color=colour_of(name), label=name)
    axis.set_yticks(range(len(order)), list(map(readable, order)))
    axis.set(xlabel=f"{xlabel}, with 95 % intervals", title=title)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False, loc="lower right" if len(spaces) < 3 else "best", fontsize=8)
    figure.tight_layout()
    return figure
