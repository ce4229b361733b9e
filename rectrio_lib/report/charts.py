"""Every figure, from plain arrays or `Results`. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, TextArea

from rectrio_lib.report.grids import HIT, MISS, QUERY
from rectrio_lib.report.lettering import lettered, readable

# One colour per encoder in all figures, by what its name holds; any other is a trained one.
ENCODERS = {"pixels": "#7f7f7f", "untrained": "#E69F00", "frozen": "#E69F00", "phase 1": QUERY, "phase1": QUERY}
TRAINED = HIT


def colour_of(encoder: str) -> str:
    """Return the colour of an encoder, such as "raw pixels", "frozen backbone", "phase 1" or "fashion-triplet"."""
    return next((colour for word, colour in ENCODERS.items() if word in encoder.lower()), TRAINED)


@lettered
def projection(panels: Mapping[str, np.ndarray], labels: Sequence[str], classes: Sequence[str]) -> Figure:
    """Scatter plots {title: points (N, 2)} side by side; each class is named at its middle, and coloured in turn."""
    labels = np.asarray(labels)
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 5), squeeze=False)
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    size = np.clip(6000 / max(1, len(labels)), 6, 40)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        for number, label in enumerate(classes):
            if len(members := points[labels == label]):
                colour = colours(number % colours.N)
                axis.scatter(*members.T, s=size, color=colour, alpha=0.6, linewidths=0)
                box = TextArea(readable(label), textprops={"fontsize": 8, "color": colour, "weight": "bold"})
                axis.add_artist(AnnotationBbox(box, np.median(members, 0), bboxprops={"lw": 0, "alpha": 0.75}, pad=0.1))
        axis.set(xticks=[], yticks=[], title=title)
        axis.spines[:].set_visible(False)
    figure.tight_layout()
    return figure


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss, active triplets, distances and validation figures over the epochs, as `training.fit` recorded them."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.2))
    axes[0].plot(history["epoch"], history["loss"], color=QUERY)
    axes[1].plot(history["epoch"], history["active"], color=QUERY)
    axes[2].plot(history["epoch"], history["positive_distance"], color=HIT, label="anchor to positive")
    axes[2].plot(history["epoch"], history["negative_distance"], color=MISS, label="anchor to negative")
    axes[2].legend(fontsize=8)
    validated = history[history["validated"]]
    for name, label, colour in (("recall_at_1", "recall@1", QUERY), ("map_at_r", "mAP@R", HIT)):
        if name in validated:
            axes[3].plot(validated["epoch"], validated[name], "o-", color=colour, label=label)
    axes[3].legend(fontsize=8)
    titles = ("loss", "share of active triplets", "mean distance", "validation")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[1].set_ylim(bottom=0)
    figure.tight_layout()
    return figure


@lettered
def class_bars(per_class: Mapping[str, pd.Series], ylabel: str = "recall@1") -> Figure:
    """Grouped bars: {encoder: one figure per class}."""
    table = pd.DataFrame(per_class).rename(index=readable)
    figure, axis = plt.subplots(figsize=(max(6, 1.1 * len(table)), 3.4))
    table.plot.bar(ax=axis, width=0.8, color=list(map(colour_of, table)), legend=table.shape[1] > 1)
    axis.set(ylabel=ylabel, xlabel="", ylim=(0, 1.02))
    if table.shape[1] > 1:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=table.shape[1], frameon=False)
    axis.tick_params(axis="x", rotation=30)
    axis.grid(axis="y", alpha=0.3)
    return figure


@lettered
def class_similarities(panels: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Matrices {title: mean cosine similarities (classes, classes)} side by side, shaded by the range of all."""
    side, entries = 0.5 * len(classes) + 2, np.stack(list(panels.values()))
    low, span = entries.min(), max(np.ptp(entries), 1e-9)
    figure, axes = plt.subplots(1, len(panels), figsize=(side * len(panels), side), squeeze=False)
    for axis, (title, matrix) in zip(axes[0], panels.items(), strict=True):
        class_matrix(axis, matrix, classes, (matrix - low) / span)
        axis.set(title=title)
    figure.tight_layout()
    return figure


def class_matrix(axis: Axes, matrix: np.ndarray, classes: Sequence[str], shades: np.ndarray) -> None:
    """Draw a matrix (classes, classes) of shares or similarities in per cent, as dark as the shades, 0 to 1, say."""
    names = list(map(readable, classes))
    axis.imshow(shades, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(matrix):
        if abs(share) >= 0.005:
            colour = "white" if shades[row, column] > 0.63 else "black"
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
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 3.6), squeeze=False)
    for axis, (column, ylabel) in zip(axes[0], panels.items(), strict=True):
        for name, points in table.groupby("kind", sort=False):
            by, *number = points["setting"].iloc[0].split()
            label = f"{name}, {by}" if number else name
            if "bytes_per_vector" in points:
                label += f", {points['bytes_per_vector'].iloc[0]:.0f} bytes per vector"
            (line,) = axis.plot(points["ms"], points[column], "o-", label=label)
            if "p95_ms" in points:
                axis.hlines(points[column], points["ms"], points["p95_ms"], color=line.get_color(), alpha=0.5, lw=1)
            if "tuned" in points and number:
                chosen = points[points["tuned"]]
                axis.plot(chosen["ms"], chosen[column], "*", ms=15, color=line.get_color(), mec="black", zorder=4)
        if exact and column == "task_recall":
            axis.axhspan(*exact, color=TRAINED, alpha=0.12, lw=0, label="exact search, 95 % interval")
            axis.legend(fontsize=8)
        _name_settings(axis, table, column)
        percentile = " (to the right: the 95th percentile)" if "p95_ms" in table else ""
        axis.set(xscale="log", xlabel=f"milliseconds per query{percentile}", ylabel=ylabel)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def _name_settings(axis: Axes, table: pd.DataFrame, column: str) -> None:
    """Write the setting beside each point, and beside a point on top of another one only if it is tuned."""
    span = max(np.ptp(table[column]), 1e-9), max(np.ptp(np.log(table["ms"])), 1e-9)
    places = np.stack([table[column] / span[0], np.log(table["ms"]) / span[1]], 1)
    named: list[int] = []
    tuned = table["tuned"].to_numpy() if "tuned" in table else np.zeros(len(table), bool)
    for at in np.argsort(~tuned, kind="stable"):
        if all(np.abs(places[at] - places[other]).max() > 0.05 for other in named):
            named.append(int(at))
            text, place = table["setting"].iloc[at].split()[-1], (table["ms"].iloc[at], table[column].iloc[at])
            axis.annotate(text, place, fontsize=7, xytext=(4, -11), textcoords="offset points")
