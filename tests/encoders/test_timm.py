"""Image models of timm as backbones."""

import sys

import numpy as np
import pytest
import torch
from makers.networks import pictures
from safetensors.torch import save_file

from rectrio_lib.core.errors import ArgumentError, DataError, MissingPackageError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.pretrained import Pretrained, build_backbone, load_backbone, load_pretrained
from rectrio_lib.encoders.registry import load_encoder, save_encoder

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")
CONVNEXT, MOBILE, REGNET = "convnext_atto", "mobilenetv4_conv_small_035", "regnetx_002"
VIT, DINO, SWIN = "vit_tiny_patch16_224", "vit_small_patch14_dinov2", "swin_tiny_patch4_window7_224"
EACH = [CONVNEXT, MOBILE, REGNET, VIT, DINO]


def noise(side, seed=0):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def original(name, **options):
    """The model as timm builds it, with the weights that ours begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **options)
    model.reset_classifier(0)
    return model.eval()


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_features_and_pixels_are_those_of_timm(name):
    side = 98 if name == DINO else 224
    model = original(name, dynamic_img_size=True) if name in (VIT, DINO) else original(name)
    backbone = build_backbone(f"timm:{name}")
    torch.testing.assert_close(backbone(noise(side)), model(noise(side)), rtol=1e-3, atol=1e-3)
    config = timm.data.resolve_model_data_config(model)
    assert backbone.preprocessing == {"mean": tuple(config["mean"]), "std": tuple(config["std"])}
    assert (backbone.resolution, backbone.fixed) == (config["input_size"][-1], False)


@pytest.mark.parametrize(
    ("name", "blocks", "last"),
    [
        (CONVNEXT, 13, ("stages.3.blocks.1.", "head.norm.")),
        (MOBILE, 18, ("blocks.4.0.", "conv_head.", "norm_head.")),
        (REGNET, 14, ("s4.b7.",)),
        (VIT, 13, ("blocks.11.", "norm.")),
    ],
)
def test_the_last_block_is_freed_with_what_follows_it(name, blocks, last):
    backbone = build_backbone(f"timm:{name}")
    assert len(backbone.blocks) == blocks
    backbone.unfreeze_last(1)
    free = {name for name, p in backbone.network.named_parameters() if p.requires_grad}
    assert free == {n for n, _ in backbone.network.named_parameters() if n.startswith(last)}
    backbone.unfreeze_last(blocks)
    assert all(p.requires_grad for p in backbone.network.parameters())


@pytest.mark.parametrize("name", [CONVNEXT, VIT])
def test_gradients_are_the_same_with_checkpoints(name):
    backbone, images = build_backbone(f"timm:{name}"), noise(64)
    backbone.unfreeze_last(2)
    gradients = []
    for on in (False, True):
        backbone.set_grad_checkpointing(on)
        backbone.zero_grad()
        backbone.train()(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_it_is_an_encoder_that_is_saved_and_opened():
    encoder = Pretrained(f"timm:{VIT}", size=32, resolution=64, dim=8).eval()
    save_encoder(encoder, "small")
    np.testing.assert_allclose(load_encoder("small").encode(pictures(3, 3, 32)), encoder.encode(pictures(3, 3, 32)))


def test_dinov2_takes_the_size_that_is_asked_for_and_its_own_by_default():
    assert Pretrained(f"timm:{DINO}", size=32).preprocessing["resolution"] == 518
    small = Pretrained(f"timm:{DINO}", size=32, resolution=70).eval()
    assert small.preprocessing["resolution"] == 70
    assert small.encode(pictures(1, 3, 32)).shape == (1, 384)


# --- what cannot be pooled by GeM


def test_gem_pools_the_maps_of_a_convolutional_network():
    backbone, model = build_backbone(f"timm:{CONVNEXT}", pooling="gem"), original(CONVNEXT)
    with torch.no_grad():
        maps = model.forward_features(noise(64)).clamp_min(1e-6)
        expected = maps.pow(3).mean((2, 3)).pow(1 / 3)
        torch.testing.assert_close(backbone(noise(64)), expected, rtol=1e-3, atol=1e-4)
    backbone.unfreeze_last(1)
    free = [name for name, p in backbone.network.named_parameters() if p.requires_grad]
    assert "pool.p" in free and "model.stages.3.blocks.1.conv_dw.weight" in free


@pytest.mark.parametrize(("name", "shape"), [(VIT, r"\(1, 197, 192\)"), (SWIN, r"\(1, 7, 7, 768\)")])
def test_tokens_and_maps_with_channels_last_are_refused_for_gem(name, shape):
    with pytest.raises(ArgumentError, match=rf"gives {shape}.*'average'"):
        build_backbone(f"timm:{name}", pooling="gem")


def test_the_spatial_module_gives_maps_or_is_empty():
    backbone, outputs = build_backbone(f"timm:{CONVNEXT}"), []
    backbone.network.get_submodule(backbone.spatial).register_forward_hook(lambda m, i, out: outputs.append(out))
    backbone(noise(64))
    assert outputs[0].shape == (2, 320, 2, 2)
    assert build_backbone(f"timm:{VIT}").spatial == ""


# --- weights


def place(state, network=CONVNEXT):
    path = Workspace().weights / f"{network}-mine.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, path)


def weights(network=CONVNEXT, seed=3, **options):
    torch.manual_seed(seed)
    return timm.create_model(network, **options).state_dict()


@pytest.mark.parametrize("classes", [1000, 7, 0])
def test_a_file_is_used_whatever_its_classifier(classes):
    state = weights(num_classes=classes)
    place(state)
    backbone, random = load_backbone(f"timm:{CONVNEXT}")
    assert not random
    assert torch.equal(backbone.network.state_dict()["stem.0.weight"], state["stem.0.weight"])
    assert torch.equal(backbone.network.state_dict()["head.norm.bias"], state["head.norm.bias"])


def test_a_file_that_lacks_a_stage_is_refused_and_names_what_is_missing():
    state = weights()
    place({k: v for k, v in state.items() if not k.startswith("stages.2.")})
    with pytest.raises(DataError, match=r"stages\.2\.blocks\.0"):
        load_backbone(f"timm:{CONVNEXT}")
    place({**state, "stem.0.weight": torch.zeros(1, 2, 3, 4)})
    with pytest.raises(DataError, match=r"stem\.0\.weight"):
        load_backbone(f"timm:{CONVNEXT}")


def test_timms_own_loader_is_asked_where_there_is_no_file(monkeypatch, caplog):
    assert load_pretrained(f"timm:{CONVNEXT}", size=32, resolution=64).stand_in  # offline: nobody is asked
    assert "STAND-IN" in caplog.text
    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    real, asked = timm.create_model, []

    def create(name, pretrained=False, cache_dir=None, **options):
        if pretrained:
            asked.append((name, cache_dir))
            torch.manual_seed(5)
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    encoder = load_pretrained(f"timm:{CONVNEXT}", size=32, resolution=64)
    assert not encoder.stand_in and asked == [(CONVNEXT, Workspace().weights / "timm")]
    assert torch.equal(encoder.backbone.network.stem[0].weight, weights(seed=5)["stem.0.weight"])


# --- names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:convnext_atoo", "convnext_atto"),
        ("timm:convnext_atto.nothing", "d2_in1k"),
        ("timm:zzzzzzzzzzzzzzz", "none"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, said):
    with pytest.raises(ArgumentError, match=said):
        build_backbone(name)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"rectrio\[timm\]"):
        build_backbone(f"timm:{CONVNEXT}")
