"""Which places of an image made it similar to another one: Grad-CAM of a cosine similarity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from rectrio_lib.encoders.pretrained import Pretrained
from rectrio_lib.report.grids import Wall
from rectrio_lib.report.lettering import lettered

LEVELS = (0.25, 0.5, 0.75)  # of the strongest place
FINE = 32  # points a side between which contours are drawn


def similarity_map(network: Pretrained, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Follow the similarity of an image to a vector back to the last layer that has places.

    Args:
        network: a backbone, with a head or without.
        image: uint8 (3, H, W).
        other: a unit vector (dim,), such as that of the nearest image.

    Returns:
        What each place added, at least 0, in arbitrary units: (h, w).

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, with a cosine similarity in place of a class score.
    """
    outputs = []
    layer = network.backbone.network.get_submodule(network.backbone.spatial)
    hook = layer.register_forward_hook(lambda module, given, output: outputs.append(output))
    try:
        pixels = network.prepare(torch.as_tensor(image[None])).requires_grad_()
        similarity = network.cpu()(pixels)[0] @ torch.as_tensor(other)
    finally:
        hook.remove()
    (gradient,), maps = torch.autograd.grad(similarity, outputs), outputs[0]
    if maps.ndim == 3:  # a ViT: (1 + h * w, 1, C), the first is the class token
        side = int((len(maps) - 1) ** 0.5)
        maps, gradient = (m[1:].permute(1, 2, 0).unflatten(2, (side, side)) for m in (maps, gradient))
    return (maps * gradient.mean((2, 3), keepdim=True)).sum(1).relu()[0].detach().numpy()


def strongest_at_border(heat: np.ndarray) -> bool:
    """Tell whether the strongest place of a map (h, w) is in its outermost ring."""
    inner = heat[1:-1, 1:-1]
    return inner.size == 0 or bool(heat.max() > inner.max())


@lettered
def contours(
    images: np.ndarray, maps: Sequence[np.ndarray], captions: Sequence[str], columns: int, title: str
) -> Figure:
    """Images uint8 (N, 3, H, W) under contours of their maps (h, w): shares of the strongest place of each."""
    wall = Wall(-(-len(images) // columns), columns, 1.6)
    for number, (image, heat, caption) in enumerate(zip(images, maps, captions, strict=True)):
        left, right, bottom, top = wall.show(*divmod(number, columns), image, caption)
        shares = torch.as_tensor(heat / max(heat.max(), 1e-9), dtype=torch.float32)[None, None]
        fine = F.interpolate(shares, (FINE, FINE), mode="bilinear", align_corners=False)[0, 0].numpy()
        places = np.linspace(left, right, FINE), np.linspace(top, bottom, FINE)
        drawn = wall.axis.contour(*places, fine, LEVELS, cmap="plasma", vmin=0, vmax=1, linewidths=1.8)
    bar = wall.figure.colorbar(drawn, ax=wall.axis, fraction=0.02, pad=0.01, ticks=LEVELS)
    bar.set_label("share of the strongest place", fontsize=8)
    bar.lines[0].set_linewidth(5)
    wall.axis.set_title(title)
    return wall.figure
