import json
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.networks import RESNET, RN, SQUEEZENET, VIT, pictures, pretrained, same_in_a_new_process

from rectrio_lib.core import device as device_module
from rectrio_lib.core import files
from rectrio_lib.encoders import pretrained as pretrained_module
from rectrio_lib.encoders import registry
from rectrio_lib.encoders.families import clip
from rectrio_lib.encoders.families.clip import clip_module
from rectrio_lib.encoders.pretrained import LARGE, LIGHT, Pretrained, ProjectionHead, choose_backbone, load_pretrained
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.search import building

ALL = [SQUEEZENET, RESNET, VIT, RN]
NATIVE_TOLERANCE = 0.03  # bfloat16 keeps eight bits

pytestmark = pytest.mark.usefixtures("full_precision")


def photos(count=4, size=32, seed=0):
    return pictures(count, 3, size, seed)


# --- vectors


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dim", "hidden"), [(0, 0), (10, 0), (10, 7)])
def test_vectors_have_unit_length_and_the_heads_dim_or_else_the_backbones(name, dim, hidden):
    torch.manual_seed(0)  # by chance, all of seven hidden numbers can be zero, and so the vector
    encoder = pretrained(name, dim=dim, hidden=hidden)
    vectors = encoder.encode(photos())
    assert encoder.dim == (dim or encoder.backbone.dim)
    assert (vectors.shape, vectors.dtype) == ((4, encoder.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (encoder.head is None) is (dim == 0)


@torch.no_grad()
def test_the_head_sees_the_backbones_features_and_none_passes_them_on():
    bare, headed = pretrained(), pretrained(dim=10)
    features = bare.backbone(bare.prepare(torch.as_tensor(photos())))
    np.testing.assert_allclose(bare.encode(photos()), F.normalize(features).numpy(), atol=1e-6)
    expected = F.normalize(F.normalize(features) @ headed.head.project[0].weight.T)
    np.testing.assert_allclose(headed.encode(photos()), expected.numpy(), atol=1e-5)


def test_the_head_does_not_mind_how_long_the_features_are_nor_changes_them():
    assert ProjectionHead(6, 4).preprocessing == {"features": 6}
    head, features = ProjectionHead(6, 4, hidden=5).eval(), np.random.default_rng(0).random((3, 6), np.float32)
    before = features.copy()
    np.testing.assert_allclose(head.encode(features * 9), head.encode(features), atol=1e-5)
    np.testing.assert_array_equal(features, before)


def test_half_precision_on_the_way_stays_close(monkeypatch):
    exact = pretrained(VIT).encode(photos())
    monkeypatch.setattr(device_module, "best_precision", lambda device: "bf16")
    half = pretrained(VIT).encode(photos())
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < NATIVE_TOLERANCE


# --- preparation


@pytest.mark.parametrize(
    ("name", "resolution", "expected"), [(SQUEEZENET, 48, 48), (SQUEEZENET, 0, 224), (VIT, 0, 64), (RN, 0, 64)]
)
def test_pictures_are_enlarged_to_the_resolution_and_scaled_as_in_pretraining(name, resolution, expected):
    encoder = pretrained(name, resolution=resolution)
    images = torch.full((2, 3, 32, 32), 51, dtype=torch.uint8)
    prepared = encoder.prepare(images)
    assert (prepared.shape, prepared.dtype) == ((2, 3, expected, expected), torch.float32)
    published = {"clip": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)), "torchvision": ((0.485, 0.456, 0.406), None)}
    mean, std = published[name.split(":")[0]]
    grey = (0.2 - torch.tensor(mean)) / torch.tensor(std or (0.229, 0.224, 0.225))
    torch.testing.assert_close(prepared.mean((0, 2, 3)), grey, rtol=0, atol=4e-3)
    assert encoder.preprocessing["resolution"] == expected
    assert (images == 51).all()


@torch.no_grad()
def test_bicubic_overshoot_is_cut_off():
    encoder = pretrained(resolution=48)
    edge = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    edge[..., 16:] = 255
    mean, std = (torch.tensor(encoder.preprocessing[k]).view(3, 1, 1) for k in ("mean", "std"))
    scaled = encoder.prepare(edge) * std + mean
    assert scaled.min() > -1e-5 and scaled.max() < 1 + 1e-5


def test_pictures_of_the_networks_own_side_are_not_resized():
    images = torch.as_tensor(photos())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(pretrained().prepare(images), (images / 255.0 - mean) / std)


def shrink_clip(monkeypatch):
    """Let the tiny network be the real one."""
    tiny = {**clip.CLIP_NETWORKS["ViT-B/32"], **clip._TINY["ViT"]}
    monkeypatch.setitem(clip.CLIP_NETWORKS, "ViT-B/32", tiny)


def test_clip_at_another_resolution_is_refused_with_its_own_named(monkeypatch):
    shrink_clip(monkeypatch)
    with pytest.raises(ValueError, match=r"resolution=96: clip:ViT-B/32 takes 64 only \(or 0, which means the same\)"):
        Pretrained(VIT, resolution=96)
    assert [Pretrained(VIT, resolution=r).preprocessing["resolution"] for r in (0, 64)] == [64, 64]


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_head_is_made_without_a_warning(hidden):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ProjectionHead(6, 4, hidden)


# --- modes


@pytest.mark.parametrize("name", [RESNET, RN])
def test_training_mode_leaves_a_frozen_backbone_and_every_batch_norm_of_a_freed_one_in_evaluation_mode(name):
    encoder = pretrained(name, dim=4, hidden=3)
    for count in (0, 1, 4):
        encoder.backbone.unfreeze_last(count)
        encoder.train()
        assert encoder.training and all(module.training for module in encoder.head.modules())
        for module in encoder.backbone.modules():
            norm = isinstance(module, torch.nn.BatchNorm2d)
            assert module.training is (count > 0 and not norm)
        assert not any(module.training for module in encoder.eval().modules())


@pytest.mark.parametrize(("count", "rates"), [(0, [1.0]), (2, [1.0, 0.1])])
def test_the_freed_backbone_learns_at_its_share_of_the_rate_and_a_frozen_one_not_at_all(count, rates):
    encoder = pretrained(RESNET, dim=4)
    encoder.backbone.unfreeze_last(count)
    groups = encoder.parameter_groups(1.0, 0.1)
    assert [group["lr"] for group in groups] == rates
    given = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in encoder.parameters() if p.requires_grad}
    assert len(given) == len({id(p) for p in given})
    assert groups[0]["params"] == list(encoder.head.parameters())


def test_without_a_head_the_freed_backbone_is_all_that_learns():
    encoder = pretrained(RESNET)
    encoder.backbone.unfreeze_last(1)
    (group,) = encoder.parameter_groups(1.0, 0.1)
    assert group["lr"] == 0.1


# --- loading pretrained weights


def test_load_pretrained_takes_the_weights_of_a_file_and_says_that_it_is_no_stand_in(monkeypatch):
    state = {k: v + 0.01 for k, v in clip.build_clip("ViT-B/32", tiny=True).state_dict().items()}
    shrink_clip(monkeypatch)
    monkeypatch.setattr(clip, "find_state", lambda *_: (state, "file"))
    encoder = load_pretrained(VIT, size=32, dim=5)
    assert not encoder.stand_in and not encoder.training
    assert torch.equal(encoder.backbone.network.proj, state["visual.proj"])
    assert encoder.encode(photos()).shape == (4, 5)
    save_encoder(encoder, "net")
    assert fingerprint(load_encoder("net")) == fingerprint(encoder)


@pytest.mark.parametrize("name", [SQUEEZENET, VIT])
def test_a_stand_in_says_so_and_its_card_too(name, caplog):
    encoder = load_pretrained(name, size=32)
    assert encoder.stand_in and encoder.arguments["stand_in"]
    assert sum("STAND-IN" in line for line in caplog.messages) == 1
    card = json.loads((save_encoder(encoder, "net") / "encoder.json").read_text(encoding="utf-8"))
    assert card["stand_in"] is card["random_weights"] is True
    assert load_encoder("net").stand_in


# --- saved and loaded


def as_after_training(name):
    encoder = pretrained(name, dim=16, hidden=8)
    with torch.no_grad():
        for number, value in enumerate(encoder.state_dict().values()):
            if value.is_floating_point():
                value += 0.01 * (number % 5)
    return encoder


@pytest.mark.parametrize("name", [SQUEEZENET, VIT, RN])
def test_a_fine_tuned_backbone_gives_the_same_vectors_in_a_new_process(tmp_path, name):
    encoder = as_after_training(name)
    same_in_a_new_process(encoder.train(), photos(6), tmp_path)
    assert np.abs(encoder.encode(photos(6)) - pretrained(name, dim=16, hidden=8).encode(photos(6))).max() > 1e-3


def test_loading_needs_neither_the_weights_folder_nor_a_download(monkeypatch):
    encoder = pretrained(VIT, dim=4)
    save_encoder(encoder, "net")
    monkeypatch.setattr(clip, "find_state", None)
    assert fingerprint(load_encoder("net")) == fingerprint(encoder)


def card_of(folder):
    return json.loads((folder / "encoder.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "activation"), [(VIT, "quickgelu"), (RN, "relu"), (SQUEEZENET, "relu")])
def test_the_card_names_the_activation_and_holds_golden_vectors(name, activation):
    encoder = pretrained(name, dim=20)
    card = card_of(save_encoder(encoder, "net"))
    assert card["activation"] == activation
    assert np.shape(card["golden"]) == (2, 16)
    assert np.abs(np.subtract(*card["golden"])).max() > 1e-4, "two pictures, two vectors"
    assert card["preprocessing"]["resolution"] == encoder.preprocessing["resolution"]


def tamper(folder, **changes):
    files.write_json(folder / "encoder.json", {**card_of(folder), **changes})


def test_another_activation_than_the_card_names_is_refused_with_both_named():
    tamper(save_encoder(pretrained(VIT), "net"), activation="gelu")
    with pytest.raises(ValueError, match=r"other vectors than when it was saved.*then 'gelu', now 'quickgelu'"):
        load_encoder("net")


@pytest.mark.parametrize("place", [(0, 0), (1, 15)])
def test_other_golden_vectors_than_the_card_holds_are_refused(place):
    folder = save_encoder(pretrained(SQUEEZENET, dim=16), "net")
    golden = np.array(card_of(folder)["golden"])
    golden[place] += 0.0003
    tamper(folder, golden=golden.tolist())
    with pytest.raises(ValueError, match="gives other vectors than when it was saved"):
        load_encoder("net")


def test_a_network_that_computes_another_activation_under_the_same_name_is_found_out(monkeypatch):
    save_encoder(pretrained(VIT), "net")
    load_encoder("net")
    quick = clip_module().model.QuickGELU
    monkeypatch.setattr(quick, "forward", lambda self, x: F.gelu(x))
    with pytest.raises(ValueError, match="gives other vectors than when it was saved"):
        load_encoder("net")


def test_every_kind_can_be_loaded_by_its_name():
    assert registry.KINDS["pretrained"] is Pretrained
    assert set(registry.KINDS) == {"raw-pixels", "convnet", "pretrained", "dual", "module", "adapted"}


# --- the choice of a backbone


def test_a_named_backbone_stays_and_auto_is_the_light_one_without_a_gpu(monkeypatch):
    assert choose_backbone(RESNET)[0] == RESNET
    monkeypatch.setattr(pretrained_module, "best_device", lambda: "cpu")
    name, why = choose_backbone("auto")
    assert name == LIGHT and "no GPU" in why


def test_auto_is_clip_on_a_gpu_where_its_weights_can_be_had_and_else_says_what_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(pretrained_module, "best_device", lambda: "cuda")
    name, why = choose_backbone("auto")
    assert name == LIGHT and "RECTRIO_OFFLINE" in why and LARGE in why
    assert "STAND-IN" not in caplog.text  # nothing stands in: the light network is a choice
    monkeypatch.setattr(clip, "look_for_state", lambda *given: ({}, "ViT-B-32.pt"))
    assert choose_backbone("auto") == (LARGE, "there is a GPU")
    monkeypatch.setitem(sys.modules, "clip", None)
    clip_module.cache_clear()
    name, why = choose_backbone("auto")
    clip_module.cache_clear()
    assert name == LIGHT and "rectrio[clip]" in why


def test_the_default_of_collections_is_the_light_network():
    assert building.BACKBONE == LIGHT
