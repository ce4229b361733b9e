import pickle
import weakref
from copy import deepcopy

import pytest
import torch
from makers.networks import RESNET, RN, SQUEEZENET, VIT
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from rectrio_lib.core.device import best_device
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import pretrained
from rectrio_lib.encoders.backbone import fuse_batch_norm
from rectrio_lib.encoders.families import clip
from rectrio_lib.encoders.families import clip as clip_module
from rectrio_lib.encoders.families.clip import _TINY, CLIP_NETWORKS, build_clip, load_clip
from rectrio_lib.encoders.pretrained import build_backbone, load_backbone

CLIP_KINDS = [VIT, RN]
BLOCKS = {SQUEEZENET: 9, RESNET: 9, VIT: 4, RN: 4}


def build(name):
    return build_backbone(name, tiny=name.startswith("clip:"))


def noise(side=64, count=2, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def place(state, file):
    path = Workspace().weights / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)


def other_weights(module, seed=1):
    """Weights that fit, but are not those that the module begins with."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.05 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in module.state_dict().items()
    }


# --- networks


@pytest.mark.parametrize(
    "network",
    ["squeezenet1_0", "resnet18", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"],
)
@torch.no_grad()
def test_a_torchvision_backbone_gives_the_pooled_features_of_the_network_of_that_name(network, monkeypatch):
    torch.manual_seed(0)
    model = models.get_model(network, weights=None, num_classes=5)
    monkeypatch.setattr(pretrained, "find_state", lambda *_: (model.eval().state_dict(), "file"))
    monkeypatch.setattr(models, "get_model", lambda name, weights: models.get_model_builder(name)(num_classes=5))
    backbone, stand_in = load_backbone(f"torchvision:{network}")
    images = noise(32)
    if hasattr(model, "features"):
        expected = model.features(images).mean((2, 3))
    else:
        model.fc = nn.Identity()
        expected = model(images)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert backbone.dim == expected.shape[1]
    assert (stand_in, backbone.resolution, backbone.fixed) == (False, 224, False)
    assert not backbone.training


@pytest.mark.parametrize(("name", "dim"), [(VIT, 512), ("clip:ViT-B/16", 512), (RN, 1024)])
@torch.no_grad()
def test_a_clip_backbone_gives_what_clips_picture_tower_gives(name, dim):
    backbone = build(name)
    expected = build_clip(name.removeprefix("clip:"), tiny=True).eval().encode_image(noise())
    torch.testing.assert_close(backbone(noise()), expected, rtol=1e-4, atol=1e-5)
    assert (backbone.dim, expected.shape[1]) == (dim, dim)
    assert (backbone.resolution, backbone.fixed) == (64, True)


def test_full_clip_has_the_sizes_of_the_published_networks():
    with torch.device("meta"):
        clips = {name: clip_module.clip_module().model.CLIP(**sizes) for name, sizes in CLIP_NETWORKS.items()}
    counted = {name: sum(p.numel() for p in clip.parameters()) for name, clip in clips.items()}
    assert counted == {"ViT-B/32": 151_277_313, "ViT-B/16": 149_620_737, "RN50": 102_007_137}
    assert clips["ViT-B/32"].visual.conv1.weight.shape == (768, 3, 32, 32)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_backbone_names_its_blocks_in_order_its_last_places_and_its_activation(name):
    backbone = build(name)
    modules = dict(backbone.network.named_modules())
    assert len(backbone.blocks) == BLOCKS[name] == len({modules[block] for block in backbone.blocks})
    order = list(modules)
    assert [order.index(block) for block in backbone.blocks] == sorted(order.index(block) for block in backbone.blocks)
    assert backbone.spatial in modules
    assert backbone.activation == ("quickgelu" if name == VIT else "relu")


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_the_spatial_module_still_knows_places(name):
    backbone, outputs = build(name), []
    dict(backbone.network.named_modules())[backbone.spatial].register_forward_hook(
        lambda m, i, out: outputs.append(out)
    )
    backbone(noise())
    (maps,) = outputs
    if name == VIT:
        assert maps.shape == (1 + 4 * 4, 2, 64), "places first, then pictures: what CLIP's transformer works on"
    else:
        assert maps.dim() == 4 and min(maps.shape[2:]) >= 2


def test_random_weights_are_the_same_each_time_and_leave_chance_alone():
    before = torch.get_rng_state()
    for name in (SQUEEZENET, VIT):
        one, other = (build(name).state_dict() for _ in range(2))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert torch.equal(torch.get_rng_state(), before)


# --- names


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("clip:ViT-B/33", "clip:ViT-B/32"),
        ("torchvision:resnet51", "torchvision:resnet50"),
        ("tim:resnet50", "torchvision:resnet50"),
        ("resnet50", "torchvision:resnet50"),
        ("", "clip:ViT-B/32, .*torchvision:resnet50"),
        ("clip:", "clip:RN50"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_or_else_all_that_there_are(name, offered):
    for function in (build_backbone, load_backbone):
        with pytest.raises(ValueError, match=rf"is unknown: choose one of .*{offered}.*timm:NAME") as caught:
            function(name)
        assert repr(name) in str(caught.value)


# --- freezing


@pytest.mark.parametrize("name", BLOCKS)
def test_unfreeze_last_makes_the_last_blocks_and_what_follows_them_trainable_and_freezes_the_rest(name):
    backbone = build(name)
    parameters = dict(backbone.network.named_parameters())
    for count in (0, 1, 2, BLOCKS[name], 1, 0):
        backbone.unfreeze_last(count)
        freed = {key for key, parameter in parameters.items() if parameter.requires_grad}
        wanted = [*backbone.blocks[BLOCKS[name] - count :], *backbone.tail] if count else []
        assert freed == {key for key in parameters for w in wanted if key == w or key.startswith(f"{w}.")}
        assert bool(freed) is (count > 0)


def test_what_follows_the_last_block_is_named_for_both_kinds_of_clip():
    assert build(VIT).tail == ["ln_post", "proj"]
    assert build(RN).tail == ["attnpool"]


def test_similar_numbers_of_blocks_are_told_apart():
    with torch.device("meta"):
        visual = clip_module.clip_module().model.CLIP(**CLIP_NETWORKS["ViT-B/32"]).visual
    backbone = build(VIT)
    backbone.network, backbone.blocks = visual, [f"transformer.resblocks.{i}" for i in range(12)]
    for count, expected in ((1, {"11"}), (11, {str(i) for i in range(1, 12)})):
        backbone.unfreeze_last(count)
        moved = {key.split(".")[2] for key, p in visual.named_parameters() if p.requires_grad and "resblocks" in key}
        assert moved == expected


@pytest.mark.parametrize("count", [-1, 10, 100])
def test_more_blocks_than_there_are_cannot_be_unfrozen(count):
    backbone = build(SQUEEZENET)
    with pytest.raises(ValueError, match=f"blocks={count}: .* 9 blocks"):
        backbone.unfreeze_last(count)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


# --- checkpointing


def kept_bytes_and_gradients(name, count, on):
    backbone = build(name).train()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    backbone.unfreeze_last(count)
    backbone.set_grad_checkpointing(on)
    own, kept = {p.data_ptr() for p in backbone.parameters()}, weakref.WeakSet()

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda saved: saved.tensor):
        loss = backbone(noise(count=4)).square().sum()
    sizes = {k.tensor.data_ptr(): k.tensor.untyped_storage().nbytes() for k in kept}
    loss.backward()
    gradients = {key: p.grad.clone() for key, p in backbone.named_parameters() if p.grad is not None}
    return sum(size for place, size in sizes.items() if place not in own), gradients


@pytest.mark.parametrize(("name", "count"), [(SQUEEZENET, 9), (SQUEEZENET, 3), (RESNET, 4), (VIT, 2), (RN, 4)])
def test_checkpointing_changes_what_is_kept_in_memory_and_no_gradient(name, count):
    (plain, expected), (less, found) = (kept_bytes_and_gradients(name, count, on) for on in (False, True))
    assert found.keys() == expected.keys() and len(found) > 1
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
    assert 0 < less < 0.8 * plain


def test_checkpointing_is_for_training_only():
    backbone = build(SQUEEZENET).train()
    backbone.set_grad_checkpointing(True)
    calls = []
    backbone.network[0][3].register_forward_pre_hook(lambda *arguments: calls.append(1))
    backbone(noise()).sum().backward()
    assert len(calls) == 2
    for forward in (torch.no_grad()(backbone), backbone.eval()):
        calls.clear()
        forward(noise())
        assert len(calls) == 1
    backbone.train().set_grad_checkpointing(False)
    calls.clear()
    backbone(noise()).sum().backward()
    assert len(calls) == 1


# --- pretrained weights


@torch.no_grad()
def test_weights_in_a_file_are_loaded_in_float32_whatever_their_precision():
    state = other_weights(models.squeezenet1_0())
    place({key: value.half() for key, value in state.items()}, "squeezenet1_0-mine.safetensors")
    backbone, stand_in = load_backbone(SQUEEZENET)
    assert not stand_in
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert torch.equal(backbone.network[0][0][0].weight, state["features.0.weight"].half().float())
    assert (backbone(noise()) - build(SQUEEZENET)(noise())).abs().max() > 1e-3


@pytest.mark.parametrize("name", CLIP_KINDS)
def test_clip_is_loaded_from_half_precision_files_with_openais_extra_numbers(monkeypatch, name):
    network = name.removeprefix("clip:")
    tiny = {**CLIP_NETWORKS[network], **_TINY[network[:3]]}
    monkeypatch.setitem(CLIP_NETWORKS, network, tiny)
    state = {key: value.half() for key, value in other_weights(build_clip(network)).items()}
    extra = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77), "vocab_size": torch.tensor(9)}
    place({**state, **extra}, f"{network.replace('/', '-')}.pt")
    model, stand_in = load_clip(network)
    assert not stand_in and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype))
    backbone, stand_in = load_backbone(name)
    assert not stand_in
    torch.testing.assert_close(backbone(noise()), model.encode_image(noise()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [SQUEEZENET, VIT])
def test_weights_of_another_architecture_are_refused_with_keys_and_file(name):
    file = f"{name.split(':')[1].replace('/', '-')}.pt"
    place({"features.0.weight": torch.ones(3), "conv1.weight": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=rf"{file} are of another architecture: .*conv1\.weight"):
        load_backbone(name)


@pytest.mark.parametrize("name", BLOCKS)
def test_without_weights_a_stand_in_says_so(name, caplog):
    backbone, stand_in = load_backbone(name)
    assert stand_in
    assert caplog.messages[0].startswith("STAND-IN: ")
    assert backbone.dim == {SQUEEZENET: 512, RESNET: 512, VIT: 512, RN: 1024}[name]


def test_a_missing_clip_package_is_said_before_weights_are_looked_for(monkeypatch):
    def missing():
        raise ModuleNotFoundError("CLIP needs a package")

    monkeypatch.setattr(clip_module, "clip_module", missing)
    monkeypatch.setattr(clip, "find_state", None)
    with pytest.raises(ModuleNotFoundError, match="CLIP needs a package"):
        load_backbone(VIT)


# --- batch norm in inference


def shaken(backbone):
    """Give batch norms statistics as of a trained network, not 0 and 1."""
    torch.manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return backbone.eval()


@pytest.mark.parametrize("name", ["lite:efficientnet_lite0", "torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_batch_norm_is_fused_in_inference_alone_and_the_features_stay(name):
    backbone, images = shaken(build_backbone(name)), torch.randn(2, 3, 64, 64)
    with torch.enable_grad():
        expected = backbone(images).detach()
    with torch.inference_mode():
        found = backbone(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    fused = backbone._fused[2]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert not [key for key in backbone.state_dict() if "fused" in key]
    with torch.inference_mode():  # a GPU may round its convolutions to ten bits
        backbone.to(best_device())(images.to(best_device()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone._fused[2].modules())


def test_a_copy_leaves_out_what_was_fused_for_it_may_go_to_another_machine():
    backbone = shaken(build_backbone("lite:efficientnet_lite0"))
    size = len(pickle.dumps(backbone))
    with torch.inference_mode():
        expected = backbone(torch.ones(1, 3, 64, 64))
        assert len(pickle.dumps(backbone)) == size
        assert deepcopy(backbone)._fused[2] is None
        torch.testing.assert_close(pickle.loads(pickle.dumps(backbone))(torch.ones(1, 3, 64, 64)), expected)


def test_what_is_fused_is_made_again_when_weights_change_and_only_then():
    backbone, images = shaken(build_backbone("lite:efficientnet_lite0")), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = backbone(images)
        first = backbone._fused[2]
        backbone(images)
    assert backbone._fused[2] is first
    with torch.no_grad():
        backbone.network[0][-1].block[0][0].weight.mul_(2)
        after = backbone(images)
    assert backbone._fused[2] is not first
    assert (after - before).abs().max() > 1e-3
    backbone.load_state_dict(shaken(build_backbone("lite:efficientnet_lite0")).state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), before)


def test_a_network_is_left_alone_where_fusing_would_change_it():
    class Twice(nn.Module):
        """The convolution's output goes into the batch norm, and past it."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    network, plain = shaken(Twice()), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    for each in (network, plain):
        assert fuse_batch_norm(each, torch.randn(1, 3, 8, 8)) is each


def test_a_backbone_whose_blocks_learn_can_still_be_traced():
    backbone = build_backbone("lite:efficientnet_lite0")
    backbone.unfreeze_last(2)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(backbone.eval(), images, check_trace=False)
        torch.testing.assert_close(traced(images), backbone(images))
    assert any(p.requires_grad for p in backbone.network.parameters())
