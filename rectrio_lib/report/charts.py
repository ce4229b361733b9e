"""Every figure, from plain arrays or `Results`. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, TextArea
from matplotlib.ticker import LogLocator, NullFormatter

from rectrio_lib.evaluation.evaluation import Evaluation
from rectrio_lib.report.grids import HIT, MISS, QUERY
from rectrio_lib.report.lettering import lettered, readable
from rectrio_lib.report.projection import apart

# One colour per encoder in all figures, by what its name holds; any other is a trained one.
ENCODERS = {"pixels": "#7f7f7f", "untrained": "#e69f00", "frozen": "#e69f00", "phase 1": QUERY, "phase1": QUERY}
TRAINED = HIT
KINDS = ("#cc79a7", "#56b4e9", "black", MISS)  # of lines that are no encoders: none of their colours
NAMES = {"pixels": "raw pixels", "frozen": "frozen backbone", "phase1": "phase 1", "phase2": "phase 2"}
CURVES = {
    "Loss": "loss",
    "Triplets that violate the margin": "share of a batch",
    "Mean distances in a batch": "distance of unit vectors",
    "Validation": "share",
}
VALIDATED = {
    "recall_at_1": ("recall@1", TRAINED),
    "map_at_r": ("mAP@R", "#cc79a7"),
    "named_correctly": ("named correctly", QUERY),
}


def colour_of(encoder: str) -> str:
    """Return the colour of an encoder, such as "raw pixels", "frozen backbone", "phase 1" or "fashion-triplet"."""
    return next((colour for word, colour in ENCODERS.items() if word in encoder.lower()), TRAINED)


def name_of(encoder: str) -> str:
    """Return what readers call a saved encoder: "fashion-triplet-pixels" is "raw pixels", one of no kind "trained"."""
    kind = encoder.rpartition("-")[2]
    return NAMES.get(kind, kind if kind in ENCODERS else "trained")


@lettered
def projection(panels: Mapping[str, np.ndarray], labels: Sequence[str], classes: Sequence[str]) -> Figure:
    """Scatter plots {title: points (N, 2)} side by side; each class is named at its middle, and coloured in turn."""
    labels = np.asarray(labels)
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4), squeeze=False)
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    size = np.clip(6000 / max(1, len(labels)), 6, 40)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        middles = {}
        for number, label in enumerate(classes):
            if len(members := points[labels == label]):
                colour = colours(number % colours.N)
                axis.scatter(*members.T, s=size, color=colour, alpha=0.6, linewidths=0)
                middles[label] = np.median(members, 0), colour
        for label, place in zip(middles, apart(np.array([m for m, _ in middles.values()]), points), strict=True):
            box = TextArea(readable(label), textprops={"fontsize": 8, "color": middles[label][1], "weight": "bold"})
            axis.add_artist(AnnotationBbox(box, place, bboxprops={"lw": 0, "alpha": 0.75}, pad=0.1))
        axis.set(xticks=[], yticks=[], title=title)
        axis.spines[:].set_visible(False)
    figure.tight_layout()
    return figure


def training_curves(history: pd.DataFrame, baselines: Mapping[str, float] | None = None) -> Figure:
    """Loss, active triplets, distances and validation figures over the epochs, as `training.fit` recorded them.

    Args:
        history: of a `TrainingResult`.
        baselines: {encoder: what it reaches on validation} for lines to compare with, such as {"raw pixels": 0.83}.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4))
    loss, active, distance, validation = axes.flat
    few = "o-" if len(history) < 10 else "-"  # between points of so short a training nothing was seen
    loss.plot(history["epoch"], history["loss"], few, color=QUERY)
    active.plot(history["epoch"], history["active"], few, color=QUERY)
    distance.plot(history["epoch"], history["positive_distance"], few, color=HIT, label="anchor to positive")
    distance.plot(history["epoch"], history["negative_distance"], few, color=MISS, label="anchor to negative")
    distance.axhline(2**0.5, color="0.5", linestyle=":", label="orthogonal")
    validated = history[history["validated"]]
    for name, (label, colour) in VALIDATED.items():
        if name in validated:
            validation.plot(validated["epoch"], validated[name], "o-", color=colour, label=label)
    for encoder, height in (baselines or {}).items():
        validation.axhline(height, color=colour_of(encoder), linestyle="--", label=encoder)
    for axis, (title, ylabel) in zip(axes.flat, CURVES.items(), strict=True):
        axis.set(title=title, xlabel="epoch", ylabel=ylabel, xlim=(0, None))
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(fontsize=9)
    for axis in (loss, active, distance):
        axis.set_ylim(bottom=0)
    figure.tight_layout()
    return figure


@lettered
def class_dots(
    evaluations: Mapping[str, Evaluation],
    classes: Sequence[str] = (),
    title: str = "",
    score: str = "recall_at_1",
    groups: np.ndarray | None = None,
) -> Figure:
    """One row per class, a dot with its 95 % interval per encoder; what the last one gains over the first orders them.

    Args:
        evaluations: {encoder: figures of queries by class}.
        classes: names of the classes, where labels are numbers; empty: labels are names.
        title: above.
        score: which figure, a key of VALIDATED.
        groups: of the queries (Q,), each with several labels, to draw rows of in place of labels.
    """
    labels = next(iter(evaluations.values())).labels
    groups = labels if groups is None else groups
    figures = [pd.Series(evaluation.scores[score]).groupby(groups).mean() for evaluation in evaluations.values()]
    order = (figures[-1] - figures[0] if len(figures) > 1 else figures[0]).sort_values().index
    figure, axis = plt.subplots(figsize=(7.5, (0.14 * len(evaluations) + 0.12) * len(order) + 1.2))
    for number, (name, evaluation) in enumerate(evaluations.items()):
        for row, group in enumerate(order):
            chosen = groups == group
            one = Evaluation(labels[chosen], {score: evaluation.scores[score][chosen]})
            interval = one.interval(score, by_label=len(set(one.labels)) > 1)
            height, colour = row + 0.22 * ((len(evaluations) - 1) / 2 - number), colour_of(name)
            axis.plot(interval, [height] * 2, color=colour, lw=2, alpha=0.5)
            axis.plot(one.means()[score], height, "os^dv"[number % 5], color=colour, label=name if row == 0 else None)
    axis.set_yticks(range(len(order)), [readable(classes[group] if len(classes) else group) for group in order])
    axis.set(xlabel=f"{VALIDATED[score][0]}, with 95 % intervals", title=title)
    axis.set(xlim=(None, 1.005), ylim=(-0.6, len(order) - 0.4))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


@lettered
def class_similarities(panels: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Matrices {title: mean cosine similarities (classes, classes)} side by side.

    One scale for all: white at 0, blue below and red above, or where nothing is below, from the lowest to the highest.
    """
    side, entries = 0.5 * len(classes) + 2, np.stack(list(panels.values()))
    low, span, colours = entries.min(), max(np.ptp(entries), 1e-9), "Blues"
    if low < 0:
        low, span, colours = -abs(entries).max(), 2 * abs(entries).max(), "RdBu_r"
    figure, axes = plt.subplots(1, len(panels), figsize=(side * len(panels), side), squeeze=False)
    for axis, (title, matrix) in zip(axes[0], panels.items(), strict=True):
        class_matrix(axis, matrix, classes, (matrix - low) / span, colours)
        axis.set(title=title)
    figure.tight_layout()
    return figure


def class_matrix(
    axis: Axes, matrix: np.ndarray, classes: Sequence[str], shades: np.ndarray, colours: str = "Blues"
) -> None:
    """Draw a matrix (classes, classes) of shares or similarities in per cent; shades, 0 to 1, are of a colour map."""
    names = list(map(readable, classes))
    painted = axis.imshow(shades, cmap=colours, vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(matrix):
        if abs(share) >= 0.005:
            luminance = np.dot(painted.to_rgba(shades[row, column])[:3], (0.299, 0.587, 0.114))
            colour = "white" if luminance < 0.5 else "black"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)


def recall_against_latency(table: pd.DataFrame, exact: tuple[float, float] | None = None) -> Figure:
    """One point per search setting: milliseconds per query (logarithmic) against the share of true neighbours found.

    Args:
        table: kind, setting ("efSearch 64"), ms, recall_at_10; maybe p95_ms, bytes_per_vector, task_recall, tuned: such
            points are stars.
        exact: interval of the task's recall by exact search, drawn as a band.
    """
    panels = {"recall_at_10": "share of true 10 neighbours found", "task_recall": "recall@1 of the task"}
    panels = {column: label for column, label in panels.items() if column in table}
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.6), squeeze=False)
    for axis, (column, ylabel) in zip(axes[0], panels.items(), strict=True):
        colours = cycle(KINDS)
        for name, points in table.groupby("kind", sort=False):
            by, *number = points["setting"].iloc[0].split()
            label = f"{name}, {by}" if number else name
            if "bytes_per_vector" in points:
                label += f", {points['bytes_per_vector'].iloc[0]:.0f} bytes per vector"
            (line,) = axis.plot(points["ms"], points[column], "o-", color=next(colours), label=label)
            if "p95_ms" in points:
                axis.hlines(points[column], points["ms"], points["p95_ms"], color=line.get_color(), alpha=0.5, lw=1)
            if "tuned" in points and number:
                chosen = points[points["tuned"]]
                axis.plot(chosen["ms"], chosen[column], "*", ms=15, color=line.get_color(), mec="black", zorder=4)
        if exact and column == "task_recall":
            axis.axhspan(*exact, color="0.5", alpha=0.15, lw=0, label="exact search, 95 % interval")
        percentile = " (to the right: the 95th percentile)" if "p95_ms" in table else ""
        axis.set(xscale="log", xlabel=f"milliseconds per query{percentile}", ylabel=ylabel)
        plain_logarithmic(axis.xaxis)
        axis.margins(0.08)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False)
    _name_settings(axes[0, 0], table)  # not on the right, where points of several settings lie on one another
    figure.tight_layout()
    return figure


def plain_logarithmic(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as 0.02, 0.05, 0.1, not as powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _name_settings(axis: Axes, table: pd.DataFrame) -> None:
    """Write the setting beside each point, and beside a point on top of another one only if it is tuned."""
    spots = np.stack([np.log(table["ms"]), table["recall_at_10"]], 1)
    places = spots / np.maximum(np.ptp(spots, axis=0), 1e-9)
    named: list[int] = []
    tuned = table["tuned"].to_numpy() if "tuned" in table else np.zeros(len(table), bool)
    for at in np.argsort(~tuned, kind="stable"):
        if all(np.abs(places[at] - places[other]).max() > 0.05 for other in named):
            named.append(int(at))
            text, place = table["setting"].iloc[at].split()[-1], table[["ms", "recall_at_10"]].iloc[at]
            axis.annotate(text, place, fontsize=7, xytext=(6, -11), textcoords="offset points", zorder=5)


def label_efficiency(table: pd.DataFrame, chance: float) -> Figure:
    """Lines of the share named rightly: rows are labelled images per class, columns methods; chance is a line, too."""
    figure, axis = plt.subplots(figsize=(7, 3.8))
    styles = {"linear probe": {"color": "#cc79a7", "marker": "D", "ls": ":"}}
    for name, shares in table.items():
        colour = QUERY if "head" in name else colour_of(name)
        axis.plot(table.index, shares, **{"color": colour, "marker": "o", **styles.get(name, {})}, label=name)
    axis.axhline(chance, color="0.6", lw=1, label="always the largest class")
    axis.set(xscale="log", ylim=(0, 1), xlabel="labelled images per class", ylabel="share named rightly")
    axis.set_xticks(table.index, table.index.astype(str))
    axis.minorticks_off()
    few, many = table.iloc[0], table.iloc[-1]
    axis.set_title(
        f"{table.index[0]} labels per class on frozen features: {few['frozen backbone']:.2f}, "
        f"{table.index[-1]} on pixels: {many['raw pixels']:.2f}"
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.42))
    return figure


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
