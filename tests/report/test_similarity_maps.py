"""Maps of what made images similar."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from makers.networks import SQUEEZENET, VIT, pretrained
from makers.training import photos

from rectrio_lib.report.teaching import similarity_maps


@pytest.mark.parametrize(("name", "options"), [(SQUEEZENET, {"resolution": 96}), (VIT, {})])
def test_a_map_has_places_and_leaves_no_hook(name, options):
    network, (images, _) = pretrained(name, **options), photos(3)
    heat = similarity_maps.similarity_map(network, images[0], network.encode(images)[1])
    assert heat.ndim == 2 and heat.shape[0] == heat.shape[1] > 1  # of a single place nothing but rounding is left
    assert (heat >= 0).all() and heat.max() > 0
    assert not any(module._forward_hooks for module in network.modules())
    other = similarity_maps.similarity_map(network, images[0], network.encode(images)[2])
    assert not np.allclose(heat, other), "the map does not depend on the other image"


def test_the_border_is_the_outermost_ring():
    heat = np.zeros((5, 5))
    heat[2, 3] = 1
    assert not similarity_maps.strongest_at_border(heat)
    heat[2, 4] = 2
    assert similarity_maps.strongest_at_border(heat)
    assert similarity_maps.strongest_at_border(np.ones((2, 2))), "every place of a small map is at its border"


def test_contours_lie_where_the_map_is_strong():
    heat = np.zeros((8, 8))
    heat[0, 0] = 1
    images = np.zeros((1, 3, 8, 8), np.uint8)
    axis, bar = similarity_maps.contours(images, [heat], ["query"], 1, "a title").axes
    assert axis.get_title() == "a title" and "strongest" in bar.get_ylabel()
    points = np.concatenate([path.vertices for path in axis.collections[0].get_paths()])
    left, right, bottom, top = axis.images[0].get_extent()
    assert points[:, 0].max() < (left + right) / 2 and points[:, 1].max() < (bottom + top) / 2
    plt.close("all")
