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
CURVES = {"loss": "loss", "active": "share of a batch", "distance": "distance of unit vectors", "validation": "share"}
VALIDATED = {  # name, colour, and the line of what others reach
    "recall_at_1": ("recall@1", TRAINED, "--"),
    "map_at_r": ("mAP@R", "#cc79a7", ":"),
    "named_correctly": ("named correctly", QUERY, "-."),
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


def training_curves(
    history: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]] | None = None, margin: float | None = None
) -> Figure:
    """Draw loss, distances and validation over the epochs; of fewer than ten log entries, validation alone.

    Args:
        history: of a `TrainingResult`; of its validation figures, the first decides which weights are kept.
        baselines: {encoder: its validation figures} to compare with, such as {"raw pixels": {"recall_at_1": 0.83}}.
        margin: of a loss of triplets; the share of triplets that violate it is drawn as well.
    """
    rows = [["loss", "distance"], ["validation"] * 2] if margin is None else [[*CURVES][:2], [*CURVES][2:]]
    rows = rows if len(history) >= 10 else [["validation"]]
    figure, axes = plt.subplot_mosaic(rows, figsize=(10, 3.4 * len(rows) + (margin is None)))
    titles = {"loss": "Loss", "active": f"Triplets with a gap above −{margin}", "distance": "Mean distances in a batch"}
    validated = history[history["validated"]]
    drawn = [name for name in validated if name in VALIDATED]
    for name, axis in axes.items():
        if name in ("loss", "active"):
            axis.plot(history["epoch"], history[name], color=QUERY)
        if name == "distance":
            axis.plot(history["epoch"], history["positive_distance"], color=HIT, label="anchor to positive")
            axis.plot(history["epoch"], history["negative_distance"], color=MISS, label="anchor to negative")
            axis.axhline(2**0.5, color="0.5", linestyle=":", label="orthogonal")
        for metric in drawn if name == "validation" else ():
            label, colour, style = VALIDATED[metric]
            axis.plot(validated["epoch"], validated[metric], "o-", color=colour, label=label)
            for encoder, reached in (baselines or {}).items():
                line = {"color": colour_of(encoder), "linestyle": style, "label": f"{encoder}, {label}"}
                axis.axhline(reached[metric], **line)
        axis.set(title=titles.get(name, "Validation"), xlabel="epoch", ylabel=CURVES[name], xlim=(0, None))
        axis.set_ylim(bottom=None if name == "validation" else 0)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22), "ncols": 3} if name == "validation" else {}
            axis.legend(fontsize=9, **(below if margin is None else {}))
    told, reached = VALIDATED[drawn[0]][0], validated[drawn[0]]
    others = [f"{encoder} {figures[drawn[0]]:.3f}" for encoder, figures in (baselines or {}).items()]
    figure.suptitle(", ".join([f"Validation {told}: first {reached.iloc[0]:.3f}, best {reached.max():.3f}", *others]))
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
        title: above; empty: in how many classes the last one gains on the first, from where to where.
        score: which figure, a key of VALIDATED.
        groups: of the queries (Q,), each with several labels, to draw rows of in place of labels.
    """
    labels = next(iter(evaluations.values())).labels
    groups = labels if groups is None else groups
    figures = [pd.Series(evaluation.scores[score]).groupby(groups).mean() for evaluation in evaluations.values()]
    gain = (figures[-1] - figures[0] if len(figures) > 1 else figures[0]).sort_values()
    order = gain.index
    figure, axis = plt.subplots(figsize=(7.5, (0.14 * len(evaluations) + 0.12) * len(order) + 1.2))
    for number, (name, evaluation) in enumerate(evaluations.items()):
        for row, group in enumerate(order):
            chosen = groups == group
            one = Evaluation(labels[chosen], {score: evaluation.scores[score][chosen]})
            interval = one.interval(score, by_label=len(set(one.labels)) > 1)
            height, colour = row + 0.22 * ((len(evaluations) - 1) / 2 - number), colour_of(name)
            axis.plot(interval, [height] * 2, color=colour, lw=2, alpha=0.5)
            axis.plot(one.means()[score], height, "os^dv"[number % 5], color=colour, label=name if row == 0 else None)
    names = [readable(classes[group] if len(classes) else group) for group in order]
    if not title and len(figures) > 1:
        (least, most), (low, high) = (names[0], names[-1]), 100 * gain.iloc[[0, -1]]
        title = f"{(gain > 0).sum()} of {len(gain)} classes gain, in points: {least} {low:+.0f} to {most} {high:+.0f}"
    axis.set_yticks(range(len(order)), names)
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
    """Lines of the share named correctly: rows are labelled images per class, columns methods; so is chance."""
    figure, axis = plt.subplots(figsize=(7, 3.8))
    styles = {"linear probe": {"color": "#cc79a7", "marker": "D", "ls": ":"}}
    for name, shares in table.items():
        colour = QUERY if "head" in name else colour_of(name)
        axis.plot(table.index, shares, **{"color": colour, "marker": "o", **styles.get(name, {})}, label=name)
    axis.axhline(chance, color="0.6", lw=1, label="always the largest class")
    axis.set(xscale="log", ylim=(0, 1), xlabel="labelled images per class", ylabel="share named correctly")
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
