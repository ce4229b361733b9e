"""Boxes and arrows: how the parts of a method hang together. Returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.report.lettering import lettered

COLUMN, LINE, WIDTH, HEIGHT = 2.3, 1.1, 1.7, 0.8  # inches from box to box, and of a box


@lettered
def flow(
    boxes: Mapping[str, tuple[float, float, str]],
    arrows: Sequence[tuple[str, str, str]],
    title: str = "",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Boxes on a grid, joined by arrows.

    Args:
        boxes: {name: (column, line, text)}; the first line of the text is set bold.
        arrows: (from, to, text beside it).
        title: above all.
        colours: of the frames of some boxes; the others are grey.

    Raises:
        ArgumentError: if an arrow begins or ends at no box.
    """
    if strangers := {end for arrow in arrows for end in arrow[:2]} - set(boxes):
        raise ArgumentError(f"Arrows name {', '.join(sorted(strangers))}: expected names of boxes, {', '.join(boxes)}.")
    columns, lines = (max(box[axis] for box in boxes.values()) for axis in (0, 1))
    figure, axis = plt.subplots(figsize=(COLUMN * columns + WIDTH + 0.4, LINE * lines + HEIGHT + 0.6))
    patches = {}
    for name, (column, line, text) in boxes.items():
        x, y = COLUMN * column, -LINE * line
        patches[name] = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            *(WIDTH, HEIGHT),
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor="white",
            edgecolor=(colours or {}).get(name, "#7f7f7f"),
            linewidth=2,
        )
        axis.add_patch(patches[name])
        head, _, rest = text.partition("\n")
        shift = 0.09 * text.count("\n")
        axis.text(x, y + shift, head, ha="center", va="center", fontsize=9, weight="bold")
        axis.text(x, y + shift - 0.1, rest, ha="center", va="top", fontsize=8, linespacing=1.15)
    for start, end, text in arrows:
        ends = [(COLUMN * boxes[name][0], -LINE * boxes[name][1]) for name in (start, end)]
        arrow = FancyArrowPatch(
            *ends, patchA=patches[start], patchB=patches[end], arrowstyle="-|>", mutation_scale=12, color="#404040"
        )
        axis.add_patch(arrow)
        middle = [sum(pair) / 2 for pair in zip(*ends, strict=True)]
        axis.text(middle[0], middle[1] + 0.06, text, ha="center", va="bottom", fontsize=8)
    axis.set(
        xlim=(-WIDTH / 2 - 0.1, COLUMN * columns + WIDTH / 2 + 0.1),
        ylim=(-LINE * lines - HEIGHT / 2 - 0.1, HEIGHT / 2 + 0.1),
    )
    axis.set_aspect("equal")
    axis.axis("off")
    axis.set_title(title, fontsize=10)
    figure.tight_layout()
    return figure
