import functools
import sys

import pytest
import torch
import torch.nn.functional as F
from makers.networks import RN, VIT, pretrained, small
from torch import nn

from rectrio_lib.encoders import openvino_network
from rectrio_lib.encoders.clip import ClipTextTower, build_clip, tokenize
from rectrio_lib.encoders.dual import TextTower


def unit(count, dim=8, seed=0):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


# --- agreement


def naive(vectors, exported, gallery, gallery_exported, itself):
    same, kept = [], []
    for q in range(len(vectors)):
        candidates = [i for i in range(len(gallery)) if not (itself and i == q)]
        by_right = sorted(candidates, key=lambda i: -float(vectors[q] @ gallery[i]))[:10]
        by_other = sorted(candidates, key=lambda i: -float(exported[q] @ gallery_exported[i]))[:10]
        same.append(set(by_right) == set(by_other))
        kept.append(len(set(by_right) & set(by_other)) / 10)
    return sum(same) / len(same), sum(kept) / len(kept)


@pytest.mark.parametrize("itself", [True, False], ids=["among themselves", "in a gallery"])
def test_agreement_counts_as_a_naive_loop_does(itself):
    vectors = unit(40)
    exported = F.normalize(vectors + 0.02 * unit(40, seed=1))
    galleries = None if itself else (unit(60, seed=2), F.normalize(unit(60, seed=2) + 0.02 * unit(60, seed=3)))
    found = openvino_network.agreement(vectors, exported, galleries)
    same, kept = naive(vectors, exported, *(galleries or (vectors, exported)), itself)
    assert 0 < same < 1
    assert (found["same top-10"], found["neighbours kept"]) == pytest.approx((same, kept))
    cosine = torch.stack([a @ b for a, b in zip(vectors, exported, strict=True)])
    assert found["cosine"] == pytest.approx(float(cosine.min()), abs=1e-6)
    assert found["mean cosine"] == pytest.approx(float(cosine.mean()), abs=1e-6)


def test_equal_vectors_agree_entirely_and_turned_ones_not():
    vectors = unit(30)
    assert openvino_network.agreement(vectors, vectors) == pytest.approx(
        {"cosine": 1, "mean cosine": 1, "same top-10": 1, "neighbours kept": 1}, abs=1e-6
    )
    mirrored = openvino_network.agreement(vectors, -vectors)
    assert mirrored["cosine"] == pytest.approx(-1) and mirrored["same top-10"] == 1  # neighbours alone are not enough


def test_pictures_that_are_equally_near_may_change_places():
    vectors = torch.cat([unit(5), unit(1, seed=1).repeat(15, 1)])  # of fifteen copies ten are chosen
    found = openvino_network.agreement(vectors, vectors.flip(0).flip(0) * (1 + 1e-7 * torch.arange(20))[:, None])
    assert found["same top-10"] == 1


# --- without the packages


@pytest.mark.parametrize("name", ["openvino", "nncf"])
def test_a_missing_package_is_told_with_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed \(.*\): pip install 'rectrio\[openvino\]'"):
        openvino_network.package(name)


# --- with them


@functools.cache
def towers():
    torch.manual_seed(0)
    words = torch.tensor([[2, 5, 0, 0], [7, 3, 4, 0], [9, 1, 2, 3], [4, 0, 0, 0]])
    return {
        "convnet": (small(looks=6), torch.randn(4, 1, 12, 12)),
        "ViT": (pretrained(VIT, dim=16, hidden=8), torch.randn(4, 3, 64, 64)),
        "ResNet of CLIP": (pretrained(RN), torch.randn(4, 3, 64, 64)),
        "squeezenet": (pretrained(), torch.randn(4, 3, 32, 32)),
        "LSTM": (TextTower(10, 6, 5, 7).eval(), words),
        "texts of CLIP": (
            ClipTextTower(build_clip("ViT-B/32", tiny=True)).eval(),
            tokenize(["a cat", "a red dog on the moon", "rain", "x"]),
        ),
    }


@pytest.mark.parametrize("name", towers())
def test_a_converted_network_gives_the_vectors_of_torch_for_any_batch(name):
    pytest.importorskip("openvino")
    network, inputs = towers()[name]
    run = openvino_network.compiled(openvino_network.convert(network, inputs[:2], "fp32"), "fp32")
    with torch.inference_mode():
        for batch in (inputs[:1], inputs[:3], inputs, inputs.repeat(9, *[1] * (inputs.dim() - 1))):
            vectors = run(batch)
            assert vectors.dtype == torch.float32
            torch.testing.assert_close(vectors, network(batch), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["convnet", "ViT"])
def test_eight_bits_change_the_vectors_but_not_much(name):
    pytest.importorskip("openvino"), pytest.importorskip("nncf")
    network, inputs = towers()[name]
    run = openvino_network.compiled(openvino_network.convert(network, inputs, "int8"), "int8")
    with torch.inference_mode():
        cosine = F.cosine_similarity(network(inputs), run(inputs))
    assert 0.9 < float(cosine.min()) < 1 - 1e-6


def test_attention_is_quantised_as_a_transformer(monkeypatch):
    pytest.importorskip("openvino")
    nncf, asked = pytest.importorskip("nncf"), []
    monkeypatch.setattr(nncf, "quantize", lambda model, data, **options: asked.append(options) or model)
    for name in ("convnet", "ViT"):
        network, inputs = towers()[name]
        openvino_network.convert(network, inputs, "int8")
    assert [options["model_type"] for options in asked] == [None, nncf.ModelType.TRANSFORMER]
    assert [options["subset_size"] for options in asked] == [4, 4]


def test_properties_reach_openvino():
    openvino = pytest.importorskip("openvino")
    module = nn.Linear(3, 2).eval()
    model = openvino_network.convert(module, torch.randn(2, 3), "fp32")
    with pytest.raises(RuntimeError, match="NO_SUCH_PROPERTY"):
        openvino_network.compiled(model, "fp32", NO_SUCH_PROPERTY=1)
    assert isinstance(model, openvino.Model)
