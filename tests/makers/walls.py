"""What a wall of pictures shows, read back from its artists."""

import numpy as np
from matplotlib.colors import to_hex


def tiles(figure) -> dict[tuple[int, int], dict]:
    """Read a wall of pictures from left to right and from top to bottom: what each (line, column) holds."""
    (axis,) = figure.axes
    found = {}
    for image in axis.get_images():
        left, right, _, top = image.get_extent()
        shown = image.to_rgba(image.get_array(), bytes=True)[..., :3].astype(int)
        frames = [to_hex(p.get_edgecolor()) for p in axis.patches if np.allclose(p.get_xy(), (left, top))]
        above = [text.get_text() for text in axis.texts if _is_above(text, left, right, top)]
        tile = found.setdefault((left, top), {"images": [], "arrays": []})
        tile["images"].append(shown)
        tile["arrays"].append(image.get_array())
        tile |= {"frame": next(iter(frames), None), "caption": next(iter(above), "")}
    columns, lines = (sorted({place[i] for place in found}) for i in (0, 1))
    return {(lines.index(top), columns.index(left)): tile for (left, top), tile in found.items()}


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def _is_above(text, left: float, right: float, top: float) -> bool:
    x, y = text.get_position()
    return left < x < right and 0 < top - y < 0.2
