"""A pretrained encoder as a drawing: image, blocks of the backbone, head, unit sphere; what is trained, and when."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, Rectangle

from rectrio_lib.encoders.pretrained import Pretrained, ProjectionHead
from rectrio_lib.report.charts import colour_of
from rectrio_lib.report.grids import HIT, MISS, QUERY

FROZEN, HEAD, FREED = colour_of("frozen"), colour_of("phase 1"), colour_of("phase 2")
WIDTH, HEIGHT = 10, 3  # of the drawing in inches
TALLEST = 1.5  # of a block
BLOCKS, LAYERS, SPHERE = (1.7, 5.6), (6.3, 8.2), 9.2  # where each part begins and ends, or its middle


def block_shapes(encoder: Pretrained) -> list[tuple[int, ...]]:
    """Return what each block of the backbone gives for one image: (C, h, w), or (tokens, C) in a ViT."""
    shapes, network = [], encoder.backbone.network
    hooks = [
        _module_of(network, block).register_forward_hook(lambda module, given, output: shapes.append(output.shape))
        for block in encoder.backbone.blocks
    ]
    side = encoder.arguments["size"]
    with torch.no_grad():
        encoder.cpu()(encoder.prepare(torch.zeros(1, 3, side, side, dtype=torch.uint8)))
    for hook in hooks:
        hook.remove()
    return [tuple(n for n in shape if n > 1) for shape in shapes]  # the batch is of one image


def _module_of(network: torch.nn.Module, block: str | tuple[str, ...]) -> torch.nn.Module:
    """Return the module of a block that is told by its name, or by those of its parameters, or by one of each part."""
    names = [name.split(".") for name in ([block] if isinstance(block, str) else block)]
    names = [name for name in names if name[:2] == names[-1][:2]]
    shared, modules = names[-1], dict(network.named_modules())
    while ".".join(shared) not in modules or any(name[: len(shared)] != shared for name in names):
        shared = shared[:-1]
    return modules[".".join(shared)]


def draw(encoder: Pretrained, head: ProjectionHead, freed: int, image: np.ndarray) -> Figure:
    """Draw the way of an image through a backbone without a head, a head, and onto the sphere, with shapes.

    Args:
        encoder: the frozen backbone.
        head: trained in both phases.
        freed: the number of last blocks that phase 2 trains, too.
        image: uint8 (3, H, W), drawn on the left.
    """
    shapes = block_shapes(encoder)
    figure, axis = plt.subplots(figsize=(WIDTH, HEIGHT))
    axis.set(xlim=(0, WIDTH), ylim=(-1.5, 1.5), aspect="equal")
    axis.axis("off")
    axis.imshow(image.transpose(1, 2, 0), extent=(0.1, 1.3, -0.6, 0.6))
    side = encoder.preprocessing["resolution"]
    _below(axis, 0.7, f"image\n{side} × {side} pixels")
    _blocks(axis, shapes, len(shapes) - freed)
    _below(axis, sum(BLOCKS) / 2, f"{len(shapes)} blocks, from {_written(shapes[0])} to {_written(shapes[-1])}")
    step = (BLOCKS[1] - BLOCKS[0]) / len(shapes)
    kept = BLOCKS[1] - step * freed
    _above(axis, BLOCKS[0], kept, "frozen in both phases", FROZEN)
    _above(axis, kept, BLOCKS[1], f"freed: {freed}", FREED)
    _above(axis, *LAYERS, "head: trained in both phases", HEAD)
    _head(axis, encoder.dim, head)
    _sphere(axis, head.dim)
    for start, end in ((1.35, BLOCKS[0]), (BLOCKS[1], LAYERS[0]), (LAYERS[1], SPHERE - 0.65)):
        axis.annotate("", (end, 0), (start, 0), arrowprops={"arrowstyle": "-|>", "color": "#404040"})
    return figure


def _written(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _below(axis: Axes, x: float, text: str) -> None:
    axis.text(x, -0.95, text, ha="center", va="top", fontsize=8)


def _above(axis: Axes, start: float, end: float, text: str, colour: str) -> None:
    if end > start:
        axis.plot((start + 0.04, end - 0.04), (1.05, 1.05), color=colour, lw=3, solid_capstyle="butt")
        axis.text((start + end) / 2, 1.15, text, ha="center", fontsize=8)


def _blocks(axis: Axes, shapes: list[tuple[int, ...]], frozen: int) -> None:
    """Blocks as high as the root of their positions, and as dark as they are deep."""
    places = np.array([np.prod(shape[1:]) if len(shape) > 2 else shape[0] for shape in shapes], float)
    heights = TALLEST * (places / places.max()) ** 0.25
    step = (BLOCKS[1] - BLOCKS[0]) / len(shapes)
    for number, height in enumerate(heights):
        corner = (BLOCKS[0] + step * number + 0.15 * step, -height / 2)
        colour = FROZEN if number < frozen else FREED
        axis.add_patch(Rectangle(corner, 0.7 * step, height, facecolor=colour, edgecolor="white"))


def _head(axis: Axes, features: int, head: ProjectionHead) -> None:
    layers = [layer for layer in head.project if isinstance(layer, torch.nn.Linear)]
    lengths = [features, *(layer.out_features for layer in layers)]
    where = np.linspace(LAYERS[0] + 0.1, LAYERS[1] - 0.1, len(lengths))
    for number, (x, length) in enumerate(zip(where, lengths, strict=True)):
        height = TALLEST * (length / max(lengths)) ** 0.5
        bar = Rectangle((x - 0.06, -height / 2), 0.12, height, facecolor=FROZEN if number == 0 else HEAD)
        axis.add_patch(bar)
        axis.text(x, height / 2 + 0.05, f"{length}", ha="center", fontsize=8)
    for start, end in pairwise(where):
        axis.plot((start + 0.1, end - 0.1), (0, 0), color=HEAD, lw=1)
    words = {1: "one matrix", 2: "matrix, batch norm,\nReLU, matrix"}
    _below(axis, sum(LAYERS) / 2, f"features, {words[len(layers)]}")


def _sphere(axis: Axes, dim: int) -> None:
    axis.add_patch(Circle((SPHERE, 0), 0.6, facecolor="#f2f2f2", edgecolor="#404040"))
    for width, height in ((1.2, 0.36), (0.36, 1.2)):
        axis.add_patch(Ellipse((SPHERE, 0), width, height, fill=False, edgecolor="#b0b0b0", lw=0.8))
    points = {"anchor": (-0.2, 0.3, QUERY), "same": (0.1, 0.2, HIT), "other": (0.15, -0.35, MISS)}
    for (name, (x, y, colour)), place in zip(points.items(), ((-0.35, 0.75), (0.35, 0.75), (0.5, -0.72)), strict=True):
        axis.plot(SPHERE + x, y, "o", ms=5, color=colour)
        line = {"arrowprops": {"arrowstyle": "-", "color": colour, "lw": 0.8}, "color": colour, "fontsize": 8}
        axis.annotate(name, (SPHERE + x, y), (SPHERE + place[0], place[1]), ha="center", va="center", **line)
    _below(axis, SPHERE, f"unit sphere,\n{dim} dimensions")
