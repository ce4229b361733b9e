"""How maps become features: the average, or a generalised mean with a learned exponent."""

import json

import numpy as np
import pytest
import torch
from makers.networks import RESNET, RN, SQUEEZENET, VIT, pictures, pretrained, same_in_a_new_process

from rectrio_lib.encoders import pretrained as pretrained_module
from rectrio_lib.encoders.backbone import GeM
from rectrio_lib.encoders.pretrained import Pretrained, build_backbone, load_backbone, load_pretrained
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder

pytestmark = pytest.mark.usefixtures("full_precision")


def maps(seed=0):
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


# --- the pooling


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0, 6.0])
@torch.no_grad()
def test_gem_equals_the_naive_generalised_mean(p):
    found, given = GeM(p)(maps()), maps().double().numpy()
    for b, c in np.ndindex(2, 3):
        places = [given[b, c, y, x] ** p for y, x in np.ndindex(4, 5)]
        assert found[b, c, 0, 0].item() == pytest.approx((sum(places) / len(places)) ** (1 / p), rel=1e-4)


@torch.no_grad()
def test_gem_goes_from_the_average_to_the_maximum_and_counts_negatives_as_nothing():
    torch.testing.assert_close(GeM(1.0)(maps()), maps().mean((2, 3), keepdim=True))
    assert (GeM(60.0)(maps() + 0.1) > 0.93 * (maps() + 0.1).amax((2, 3), keepdim=True)).all()
    assert (GeM()(-maps()) < 1e-5).all()


def test_exponent_and_maps_have_finite_gradients_where_all_is_zero_and_half_precision_is_no_loss():
    gem, zeros = GeM(), torch.zeros(1, 2, 3, 3, requires_grad=True)
    gem(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all() and torch.isfinite(gem.p.grad)
    with torch.no_grad():
        torch.testing.assert_close(gem(maps().half()), gem(maps()), rtol=2e-3, atol=1e-4)
        assert gem(maps().bfloat16()).dtype == torch.float32


# --- in a backbone


@pytest.mark.parametrize("name", [SQUEEZENET, RESNET])
@torch.no_grad()
def test_a_backbone_pools_its_last_maps_and_the_average_is_the_default(name):
    outputs, images = [], torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    average, gem = build_backbone(name).eval(), build_backbone(name, pooling="gem").eval()
    dict(gem.network.named_modules())[gem.spatial].register_forward_hook(lambda m, i, out: outputs.append(out))
    torch.testing.assert_close(gem(images), GeM()(outputs[0]).flatten(1))
    torch.testing.assert_close(average(images), outputs[0].mean((2, 3)))
    assert gem.dim == average.dim and gem.blocks == average.blocks
    extra = gem.state_dict().keys() - average.state_dict().keys()
    assert extra == {"network.1.p"} and gem.network[1].p.item() == 3
    assert average.state_dict().keys() == build_backbone(name, pooling="average").state_dict().keys()


def test_the_exponent_is_frozen_with_the_backbone_and_learns_with_its_last_block():
    encoder = pretrained(RESNET, dim=4, pooling="gem")
    p = encoder.backbone.network[1].p
    for count, free in ((0, False), (1, True), (4, True)):
        encoder.backbone.unfreeze_last(count)
        assert p.requires_grad is free
        assert any(p is q for group in encoder.parameter_groups(1.0, 0.1) for q in group["params"]) is free
    encoder.train()(encoder.prepare(torch.as_tensor(pictures(2, 3, 32)))).sum().backward()
    assert p.grad.abs() > 0


@pytest.mark.parametrize("name", [VIT, RN])
def test_clip_pools_in_its_own_way(name, monkeypatch):
    monkeypatch.setattr(pretrained_module, "find_state", lambda *asked: pytest.fail("looked for weights first"))
    for attempt in (
        lambda: build_backbone(name, tiny=True, pooling="gem"),
        lambda: load_backbone(name, pooling="gem"),
        lambda: Pretrained(name, pooling="gem"),
        lambda: load_pretrained(name, pooling="gem"),
    ):
        with pytest.raises(ValueError, match=f"pooling='gem': {name} pools in its own way; leave pooling at 'average'"):
            attempt()


@pytest.mark.parametrize("name", [SQUEEZENET, VIT])
def test_an_unknown_pooling_is_refused_with_the_known_ones_named(name):
    with pytest.raises(ValueError, match="pooling='max' is unknown: choose one of average, gem"):
        load_pretrained(name, pooling="max")


# --- saved and loaded


def test_the_exponent_is_saved_and_gives_the_same_vectors_in_a_new_process(tmp_path):
    encoder = pretrained(SQUEEZENET, dim=8, pooling="gem")
    with torch.no_grad():
        encoder.backbone.network[1].p.fill_(4.25)
    card = json.loads((save_encoder(encoder, "net") / "encoder.json").read_text(encoding="utf-8"))
    assert card["arguments"]["pooling"] == "gem"
    same_in_a_new_process(encoder, pictures(3, 3, 32), tmp_path)
    assert load_encoder("net").backbone.network[1].p.item() == 4.25


def test_an_encoder_saved_before_there_was_a_choice_is_still_opened():
    encoder = pretrained(SQUEEZENET)
    card = json.loads((save_encoder(encoder, "net") / "encoder.json").read_text(encoding="utf-8"))
    assert set(card["arguments"]) == {"backbone", "size", "resolution", "dim", "hidden", "stand_in"}
    assert fingerprint(pretrained(SQUEEZENET, pooling="average")) == card["hash"] == fingerprint(load_encoder("net"))
    assert fingerprint(pretrained(SQUEEZENET, pooling="gem")) != card["hash"]


def test_pretrained_weights_fit_whatever_the_pooling(monkeypatch):
    from torchvision import models

    state = models.get_model("squeezenet1_0", weights=None).state_dict()
    monkeypatch.setattr(pretrained_module, "find_state", lambda *_: (state, "file"))
    encoder = load_pretrained(SQUEEZENET, size=32, resolution=32, pooling="gem")
    assert not encoder.stand_in and encoder.backbone.network[1].p.item() == 3
    save_encoder(encoder, "net")
    assert fingerprint(load_encoder("net")) == fingerprint(encoder)
