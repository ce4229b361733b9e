"""Several backbones as one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers.networks import LITE, RESNET, SQUEEZENET, pictures, same_in_a_new_process

from rectrio_lib.core.errors import ArgumentError, MissingPackageError
from rectrio_lib.encoders import pretrained as module
from rectrio_lib.encoders.pretrained import Pretrained, ProjectionHead, build_backbone, load_pretrained
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder
from rectrio_lib.training.two_phase import attach

BOTH = f"{LITE}+{SQUEEZENET}"

pytestmark = pytest.mark.usefixtures("full_precision")


def photos(size=40):
    return pictures(5, 3, size)


@pytest.mark.parametrize(("resolution", "sides"), [(0, (224, 224)), (64, (64, 64))])
def test_vectors_are_those_of_the_parts_side_by_side(resolution, sides):
    parts = zip((LITE, SQUEEZENET), sides, strict=True)
    own = [Pretrained(name, 40, side).eval().encode(photos()) for name, side in parts]
    whole = Pretrained(BOTH, 40, resolution).eval()
    assert whole.dim == 320 + 512 and whole.preprocessing["size"] == 40
    np.testing.assert_allclose(whole.encode(photos()), np.concatenate(own, 1) / np.sqrt(2), atol=1e-5)


def test_each_part_sees_its_own_side_and_pixels():
    whole, seen = Pretrained("lite:efficientnet_lite2+squeezenet1_0", 40).eval(), []
    for part in whole.backbone.network.parts:
        part.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        whole(whole.prepare(torch.full((1, 3, 40, 40), 51, dtype=torch.uint8)))
    assert [tuple(pixels.shape[2:]) for pixels in seen] == [(260, 260), (224, 224)]
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.full((3,), (0.2 - 0.5) / 0.5))
    means, deviations = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    torch.testing.assert_close(seen[1].mean((0, 2, 3)), (0.2 - means) / deviations)


def test_images_are_resized_once_from_what_was_given():
    image = torch.as_tensor(photos(300))
    whole, part = Pretrained("lite:efficientnet_lite2+squeezenet1_0", 300).eval(), Pretrained(SQUEEZENET, 300).eval()
    seen = []
    whole.backbone.network.parts[1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        whole(whole.prepare(image))
    torch.testing.assert_close(seen[0], part.prepare(image))


def test_a_family_may_be_left_out_and_both_spellings_are_one_encoder():
    short, long = Pretrained("efficientnet_lite0+squeezenet1_0", 40), Pretrained(BOTH, 40)
    assert short.arguments["backbone"] == BOTH
    assert fingerprint(short) == fingerprint(long)


def test_the_last_blocks_of_all_parts_are_freed_together():
    backbone = build_backbone(f"{SQUEEZENET}+{RESNET}", resolution=32)
    squeeze, residual = build_backbone(SQUEEZENET), build_backbone(RESNET)
    assert len(backbone.blocks) == max(len(squeeze.blocks), len(residual.blocks))
    for count in (0, 1, 3, len(backbone.blocks)):
        backbone.unfreeze_last(count)
        free = {name for name, weight in backbone.network.named_parameters() if weight.requires_grad}
        expected = set()
        for number, part in enumerate((squeeze, residual)):
            part.unfreeze_last(min(count, len(part.blocks)))
            own = part.network.named_parameters()
            expected |= {f"parts.{number}.{name}" for name, weight in own if weight.requires_grad}
        assert free == expected


def test_generalised_means_pool_each_part_and_learn_with_it():
    parts = [Pretrained(name, 40, 64, pooling="gem").eval().encode(photos()) for name in (LITE, SQUEEZENET)]
    whole = Pretrained(BOTH, 40, 64, pooling="gem").eval()
    np.testing.assert_allclose(whole.encode(photos()), np.concatenate(parts, 1) / np.sqrt(2), atol=1e-5)
    whole.backbone.unfreeze_last(1)
    free = {name for name, weight in whole.backbone.network.named_parameters() if weight.requires_grad}
    assert {"parts.0.1.p", "parts.1.1.p"} <= free


def test_with_a_head_it_gives_the_same_vectors_in_a_new_process(tmp_path):
    torch.manual_seed(0)
    encoder = attach(Pretrained(BOTH, 40, 64).eval(), ProjectionHead(832, 6))
    same_in_a_new_process(encoder, photos(), tmp_path)
    assert load_encoder("net").arguments["backbone"] == BOTH


def test_random_weights_of_one_part_make_the_whole_random(monkeypatch):
    monkeypatch.setenv("RECTRIO_OFFLINE", "1")
    assert load_pretrained(f"{LITE}+{LITE}", 40).stand_in is False
    encoder = load_pretrained(BOTH, 40)
    assert encoder.stand_in is True
    real = load_pretrained(LITE, 40).encode(photos())
    np.testing.assert_allclose(encoder.encode(photos())[:, :320] * np.sqrt(2), real, atol=1e-5)


def test_a_stand_in_for_clip_makes_it_tiny_in_any_company(monkeypatch):
    monkeypatch.setenv("RECTRIO_OFFLINE", "1")
    encoder = load_pretrained(f"{LITE}+clip:ViT-B/32", 40)
    save_encoder(encoder, "mixed")
    np.testing.assert_allclose(load_encoder("mixed").encode(photos()), encoder.encode(photos()), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lite:efficientnet_lite0+squeezenet", "backbone='squeezenet' is unknown: .*torchvision:squeezenet1_0"),
        ("lite:efficientnet_lite9+squeezenet1_0", "'lite:efficientnet_lite9' is unknown: .*lite:efficientnet_lite0"),
        ("lite:efficientnet_lite0+", "backbone='' is unknown"),
    ],
)
def test_an_unknown_part_is_named_with_its_neighbours(name, said):
    with pytest.raises(ArgumentError, match=said):
        load_pretrained(name)


def test_what_a_part_cannot_do_the_whole_cannot(monkeypatch):
    with pytest.raises(ArgumentError, match="clip:ViT-B/32 pools in its own way"):
        build_backbone(f"{LITE}+clip:ViT-B/32", pooling="gem")
    with pytest.raises(ArgumentError, match="cannot read texts"):
        load_pretrained(f"clip:ViT-B/32+{LITE}", texts=True)

    def absent():
        raise MissingPackageError("timm: pip install 'rectrio[timm]'")

    monkeypatch.setattr(module.timm, "timm_module", absent)
    with pytest.raises(MissingPackageError, match="rectrio\\[timm\\]"):
        load_pretrained(f"{LITE}+timm:convnext_atto")


@torch.no_grad()
def test_batch_norms_are_fused_for_inference():
    backbone = build_backbone(BOTH, resolution=64).eval()
    image = torch.rand(2, 3, 64, 64)
    fused = backbone._for_inference(torch.device("cpu"))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.modules())
    torch.testing.assert_close(F.normalize(fused(image)), F.normalize(backbone.network(image)), rtol=0, atol=1e-4)
