"""How good rankings are, drawn: one worked by hand, ranks, recall at k, scores, thresholds, mistaken pairs, angles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rectrio_lib.report.charts import colour_of
from rectrio_lib.report.grids import HIT, MISS, QUERY, Wall
from rectrio_lib.report.lettering import lettered

RANKS = {"1": 1, "2": 2, "3": 3, "4-5": 4, "6-10": 6, "11-30": 11, "later": 31}  # bars and where they begin
MARKS = "os^Dv"
IN_LINE, APART = 4, 2.5  # mistaken pairs beside each other, and how far, in images


@lettered
def worked_ranking(query: np.ndarray, results: np.ndarray, right: np.ndarray, relevant: int) -> Figure:
    """Draw a query uint8 (C, H, W), its results (n, C, H, W), best first, and AP@R term by term.

    Args:
        query: the image.
        results: `relevant` of them or more.
        right: which results show what is wanted, bool (n,).
        relevant: R, how many images could be right; results beyond that rank do not count.
    """
    wall, terms, found = Wall(1, len(results) + 1, 1.3, caption=0.32), [], np.cumsum(right)
    wall.show(0, 0, query, "query", QUERY)
    for rank, (image, hit, so_far) in enumerate(zip(results, right, found, strict=True), 1):
        counts = "" if rank <= relevant else "beyond R"
        if hit and not counts:
            counts = f"precision {so_far}/{rank}"
            terms.append(so_far / rank)
        caption = f"{rank}: {'right' if hit else 'wrong'}\n{counts}"
        wall.show(0, rank, image, caption, HIT if hit else MISS)
    added = " + ".join(f"{term:.3g}" for term in terms) or "0"
    wall.axis.set_title(f"AP@R of one query, R = {relevant}: ({added}) / {relevant} = {sum(terms) / relevant:.3f}")
    return wall.figure


def angles(panels: Mapping[str, np.ndarray], labels: np.ndarray, shown: Sequence[str]) -> Figure:
    """Draw points {title: (N, 2)} as a cloud, and those of the labels that are shown as arrows from the origin."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        axis.scatter(*points.T, s=8, color=colour_of("pixels"), label="others")
        for label, colour, mark in zip(shown, (QUERY, MISS, HIT), MARKS, strict=False):
            own = points[labels == label]
            axis.plot(*own.T, mark, color=colour, label=label)
            axis.plot(*np.stack([0 * own, own]).transpose(2, 0, 1), color=colour, lw=0.8)
        axis.set(title=title, xlabel="strongest direction", ylabel="second direction")
        axis.axhline(0, color="black", lw=0.5)
        axis.set_aspect("equal", "datalim")  # an angle looks like the angle it is
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    return figure


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
        xlabel = "cosine to the first result\n(leftmost bar: and all below)"
        axis.set(title=f"{name}: AUROC {auroc:.2f}", xlabel=xlabel, yticks=[])
        axis.locator_params(axis="x", nbins=4)
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


def first_right(ranks: Mapping[str, np.ndarray]) -> Figure:
    """Histogram of the rank of the first right result, {encoder: (Q,)}, NaN where there is none to find."""
    asked = {name: found[~np.isnan(found)] for name, found in ranks.items()}
    shares = {
        name: np.bincount(np.searchsorted([*RANKS.values()], found, "right") - 1, minlength=len(RANKS)) / len(found)
        for name, found in asked.items()
    }
    colours = [colour_of(name) for name in shares]
    axis = pd.DataFrame(shares, index=list(RANKS)).plot.bar(figsize=(7, 3.4), color=colours, rot=0, width=0.8)
    for bars in axis.containers:
        axis.bar_label(bars, [f"{value:.0%}" if value >= 0.005 else "" for value in bars.datavalues], fontsize=8)
    axis.margins(y=0.12)
    name, found = list(asked.items())[-1]
    axis.set_title(
        f"{name[:1].upper()}{name[1:]}: the right product comes first for {(found <= 1).mean():.0%}, "
        f"among the first five for {(found <= 5).mean():.0%}"
    )
    axis.set(xlabel="rank of the first right image", ylabel="share of queries")
    axis.figure.tight_layout()
    return axis.figure


def answered(
    curves: Mapping[str, pd.DataFrame],
    chosen: Mapping[str, dict[str, float | None]],
    answerable: float,
    title: str = "",
) -> Figure:
    """Draw precision against coverage, what is ideal, and a chosen threshold on each curve.

    Args:
        curves: {encoder: of `evaluation.threshold_curve`}.
        chosen: {encoder: of `catalogue.at_threshold`}; nothing is drawn where none is answered.
        answerable: share of the queries that have a right result: an ideal search answers these, and only these.
        title: above.
    """
    figure, axis = plt.subplots(figsize=(7, 4))
    shares = np.linspace(0.01, 1, 199)
    axis.plot(shares, np.minimum(1, answerable / shares), "--", color="black", lw=1, label="ideal")
    for (name, curve), mark in zip(curves.items(), MARKS, strict=False):
        colour = colour_of(name)
        axis.plot(curve["answered"], curve["precision"], color=colour, label=name)
        if (right := chosen[name]["right"]) is None:
            continue
        answered = chosen[name]["answered"]
        axis.plot(answered, right, mark, ms=9, color=colour, mec="black", label=f"{name}: chosen threshold")
    axis.set(xlabel="share of queries answered", ylabel="share of the answered that are right", title=title)
    axis.set(xlim=(0, 1), ylim=(0, 1.03))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    return figure


@lettered
def mistaken_pairs(images: np.ndarray, cases: pd.DataFrame, title: str = "") -> Figure:
    """Draw pairs of `catalogue.mistaken`: on the left what was asked, beside it what was found instead, and how often.

    Args:
        images: uint8 (N, C, H, W), in which the cases count.
        cases: label, taken_for, times, query and result.
        title: above.
    """
    beside = min(IN_LINE, max(1, len(cases)))
    wall = Wall(max(1, -(-len(cases) // IN_LINE)), APART * (beside - 1) + 2, 1.1, caption=0.4)
    for number, case in enumerate(cases.itertuples()):
        line, column = number // IN_LINE, APART * (number % IN_LINE)
        wall.show(line, column, images[case.query], case.label, QUERY)
        wall.show(line, column + 1, images[case.result], f"{case.times} × taken for\n{case.taken_for}", MISS)
    wall.axis.set_title(title)
    return wall.figure


def right_among_nearest(shares: Mapping[str, np.ndarray]) -> Figure:
    """Bars {encoder: shares of queries with 0, 1, ... k right ones among k nearest (k + 1,)}; two encoders or more."""
    figure, axis = plt.subplots(figsize=(7, 3))
    offsets = 0.4 * (np.arange(len(shares)) - (len(shares) - 1) / 2)
    for offset, (name, heights) in zip(offsets, shares.items(), strict=True):
        bars = axis.bar(np.arange(len(heights)) + offset, heights, 0.38, color=colour_of(name), label=name)
        axis.bar_label(bars, [f"{height:.0%}" for height in heights], fontsize=8)
    axis.set(xlabel="images of the query's class among its nearest", ylabel="share of queries", ylim=(0, 1.05))
    first, *_, last = (f"{heights[1:-1].sum():.0%}" for heights in shares.values())
    axis.set_title(f"Neither all right nor all wrong: {first} of the queries, then {last}")
    axis.legend(frameon=False)
    return figure
