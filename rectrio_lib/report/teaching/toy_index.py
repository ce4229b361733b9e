"""Flat, HNSW, IVF and PQ on a plane, where one can see what each looks at; the indexes are FAISS's own."""

from __future__ import annotations

import heapq

import faiss
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from rectrio_lib.report.grids import HIT, MISS, QUERY

GREY, DARK, LIT = "#bbbbbb", "#404040", "#fdf0c8"
SIDE = np.linspace(0, 1, 201)
LINKS = 4  # of a point on an upper level of HNSW; twice as many at the bottom
CELLS, BITS = 16, 3  # of IVF; of PQ's code for each of the two numbers


def toy_points() -> np.ndarray:
    """Return points in loose clumps of the unit square, float32 (240, 2)."""
    rng = np.random.default_rng(3)
    points = rng.uniform(0.1, 0.9, (12, 2))[rng.integers(12, size=240)] + rng.normal(0, 0.07, (240, 2))
    return np.clip(points, 0.01, 0.99).astype(np.float32)


def graph_walk(
    points: np.ndarray, query: np.ndarray, ef: int
) -> tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """Walk FAISS's HNSW graph of points (N, 2) towards a query (2,), as its search does.

    Args:
        points: what the graph joins.
        query: where to go.
        ef: candidates kept on the bottom level, at least 1.

    Returns:
        The points compared, the nearest of them last; the hops, each to a nearer point; the edges of the bottom level.

    Source: Malkov and Yashunin, TPAMI 2020, algorithms 2 and 5.
    """
    index = faiss.IndexHNSWFlat(points.shape[1], LINKS)
    index.add(np.ascontiguousarray(points))
    graph = index.hnsw
    offsets, ends, steps = (
        faiss.vector_to_array(v).astype(int) for v in (graph.offsets, graph.neighbors, graph.cum_nneighbor_per_level)
    )

    def linked(point: int, level: int) -> list[int]:
        return [int(p) for p in ends[offsets[point] + steps[level] : offsets[point] + steps[level + 1]] if p >= 0]

    def distance(point: int) -> float:
        return float(((points[point] - query) ** 2).sum())

    here, hops = graph.entry_point, []
    compared = {here: distance(here)}
    for level in range(graph.max_level, 0, -1):
        while True:
            compared |= {p: distance(p) for p in linked(here, level) if p not in compared}
            best = min([here, *linked(here, level)], key=compared.__getitem__)
            if best == here:
                break
            hops, here = [*hops, (here, best)], best
    waiting, kept, seen = [(compared[here], here)], [(-compared[here], here)], {here}
    while waiting and (waiting[0][0] <= -kept[0][0] or len(kept) < ef):
        _, here = heapq.heappop(waiting)
        for point in linked(here, 0):
            if point not in seen:
                seen.add(point)
                compared.setdefault(point, distance(point))
                if len(kept) < ef or compared[point] < -kept[0][0]:
                    heapq.heappush(waiting, (compared[point], point))
                    heapq.heappush(kept, (-compared[point], point))
                    hops += [(here, point)] if max(kept)[1] == point else []
                    if len(kept) > ef:
                        heapq.heappop(kept)
    nearest = max(kept)[1]
    order = [p for p in compared if p != nearest] + [nearest]
    return order, hops, [(p, q) for p in range(len(points)) for q in linked(p, 0)]


def four_indexes(points: np.ndarray, query: np.ndarray, ef: int, nprobe: int) -> Figure:
    """What a search compares its query with, in four panels: dark points were compared, grey ones never looked at.

    Args:
        points: float32 (N, 2).
        query: (2,).
        ef: efSearch of HNSW.
        nprobe: cells that IVF searches.
    """
    query = np.asarray(query, np.float32)
    true = int(((points - query) ** 2).sum(1).argmin())
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.7))
    for axis in axes:
        axis.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], aspect="equal")
    _panel(axes[0], points, query, np.arange(len(points)), true, true)
    axes[0].set_title(f"Flat, exact:\nall {len(points)} compared")
    _hnsw(axes[1], points, query, ef, true)
    _ivf(axes[2], points, query, nprobe, true)
    _pq(axes[3], points, query, true)
    figure.tight_layout()
    return figure


def _panel(axis: Axes, points: np.ndarray, query: np.ndarray, compared: np.ndarray, found: int, true: int) -> None:
    dark = np.isin(np.arange(len(points)), compared)
    axis.scatter(*points.T, s=12, c=np.where(dark, DARK, GREY), zorder=3)
    axis.scatter(*query, marker="*", s=160, color=QUERY, zorder=5, clip_on=False)
    axis.scatter(*points[true], s=110, facecolors="none", edgecolors=HIT, linewidths=2, zorder=4)
    if found != true:
        axis.scatter(*points[found], s=110, facecolors="none", edgecolors=MISS, linewidths=2, linestyles="--", zorder=4)


def _hnsw(axis: Axes, points: np.ndarray, query: np.ndarray, ef: int, true: int) -> None:
    compared, hops, edges = graph_walk(points, query, ef)
    axis.add_collection(LineCollection(points[np.array(edges)], colors="#e6e6e6", linewidths=0.6, zorder=1))
    for start, end in hops:
        arrow = {"arrowstyle": "-|>", "color": QUERY, "lw": 1.3, "shrinkA": 0, "shrinkB": 2}
        axis.annotate("", points[end], points[start], arrowprops=arrow, zorder=4)
    _panel(axis, points, query, np.array(compared), compared[-1], true)
    axis.set_title(f"HNSW, efSearch {ef}:\n{len(compared)} compared")


def _ivf(axis: Axes, points: np.ndarray, query: np.ndarray, nprobe: int, true: int) -> None:
    learner = faiss.Kmeans(2, CELLS, seed=1, min_points_per_centroid=1)
    learner.train(points)
    centres = learner.centroids
    grid = np.stack(np.meshgrid(SIDE, SIDE), -1)

    def cell_of(places: np.ndarray) -> np.ndarray:
        return ((places[..., None, :] - centres) ** 2).sum(-1).argmin(-1)

    lit = ((centres - query) ** 2).sum(1).argsort()[:nprobe]
    axis.contourf(SIDE, SIDE, np.isin(cell_of(grid), lit), [0.5, 1.5], colors=[LIT], zorder=0)
    for cell in range(CELLS):
        axis.contour(SIDE, SIDE, cell_of(grid) == cell, [0.5], colors=["#b0b0b0"], linewidths=0.6, zorder=1)
    axis.scatter(*centres.T, marker="x", s=25, color=QUERY, lw=1, zorder=4)
    compared = np.flatnonzero(np.isin(cell_of(points), lit))
    found = int(compared[((points[compared] - query) ** 2).sum(1).argmin()]) if len(compared) else true
    _panel(axis, points, query, compared, found, true)
    axis.set_title(f"IVF, nprobe {nprobe} of {CELLS}:\n{CELLS} + {len(compared)} compared")


def _pq(axis: Axes, points: np.ndarray, query: np.ndarray, true: int) -> None:
    coder = faiss.ProductQuantizer(2, 2, BITS)
    coder.cp.min_points_per_centroid = 1
    coder.train(points)
    books = np.sort(faiss.vector_to_array(coder.centroids).reshape(2, -1))
    for book, line in zip(books, (axis.axvline, axis.axhline), strict=True):
        for edge in (book[1:] + book[:-1]) / 2:
            line(edge, color="#b0b0b0", lw=0.6, zorder=1)
    codes = np.stack([books[part][abs(points[:, part, None] - books[part]).argmin(1)] for part in (0, 1)], 1)
    axis.add_collection(LineCollection(np.stack([points, codes], 1), colors=GREY, linewidths=0.6, zorder=1))
    axis.scatter(*codes.T, marker="s", s=14, color=QUERY, zorder=2)
    found = int(((codes - query) ** 2).sum(1).argmin())
    _panel(axis, points, query, np.empty(0, int), found, true)
    axis.set_title(f"PQ: each point becomes\none of {2**BITS} × {2**BITS} codes")
