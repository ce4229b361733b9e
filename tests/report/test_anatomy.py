"""The drawing of backbone, head and sphere says what the networks are."""

import numpy as np
import pytest
from makers.networks import LITE, SQUEEZENET, VIT, pretrained
from matplotlib.colors import same_color
from matplotlib.patches import Rectangle

from rectrio_lib.encoders.pretrained import ProjectionHead
from rectrio_lib.report.teaching import anatomy


def image():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("name", [SQUEEZENET, VIT, f"{SQUEEZENET}+{LITE}", "timm:regnetx_002"])
@pytest.mark.parametrize("freed", [0, 2])
def test_as_many_blocks_are_green_as_are_freed(name, freed):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    encoder = pretrained(name)
    shapes = anatomy.block_shapes(encoder)
    assert len(shapes) == len(encoder.backbone.blocks)
    (axis,) = anatomy.draw(encoder, ProjectionHead(encoder.dim, 6, 5), freed, image()).axes
    bars = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    colours = [bar.get_facecolor() for bar in bars]
    assert sum(same_color(colour, anatomy.FREED) for colour in colours) == freed
    assert sum(same_color(colour, anatomy.FROZEN) for colour in colours) == len(shapes) - freed + 1  # and the features
    words = " ".join(text.get_text() for text in axis.texts)
    assert f"{encoder.dim}" in words and "6 dimensions" in words and f"{len(shapes)} blocks" in words


def test_shapes_are_those_of_the_blocks_and_nothing_stays_hooked():
    encoder = pretrained(SQUEEZENET)
    channels = [shape[0] for shape in anatomy.block_shapes(encoder)]
    assert channels == [96, 128, 128, 256, 256, 384, 384, 512, 512]
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_head_of_one_matrix_has_no_layer_in_between():
    encoder = pretrained(SQUEEZENET)
    (axis,) = anatomy.draw(encoder, ProjectionHead(encoder.dim, 6), 1, image()).axes
    bars = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert sum(same_color(bar.get_facecolor(), anatomy.HEAD) for bar in bars) == 1
    assert any("one matrix" in text.get_text() for text in axis.texts)
