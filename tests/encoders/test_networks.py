import re
import subprocess
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from makers.networks import pictures, small
from makers.texts import dual

from rectrio_lib.core import device as device_module
from rectrio_lib.core.device import best_device
from rectrio_lib.encoders import base
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.dual import DualEncoder
from rectrio_lib.encoders.registry import count_parameters, fingerprint, save_encoder

NATIVE_TOLERANCE = 0.03  # bfloat16 keeps eight bits


# --- what comes out


@pytest.mark.parametrize("encoder", [small(), small(channels=3), RawPixels(1, 12)], ids=["grey", "colour", "raw"])
def test_vectors_are_float32_of_unit_length_one_a_picture(encoder):
    vectors = encoder.encode(pictures(channels=encoder.preprocessing["channels"]))
    assert (vectors.shape, vectors.dtype) == ((7, encoder.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_pictures_give_no_vectors():
    assert small().encode(pictures(0)).shape == (0, 10)


def test_raw_pixels_are_the_flattened_picture_at_unit_length():
    images = pictures(channels=3)
    flat = images.reshape(7, -1) / 255.0
    expected = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(RawPixels(3, 12).encode(images), expected, atol=1e-6)
    assert RawPixels(3, 12).dim == 3 * 12 * 12


def test_a_black_picture_has_a_raw_pixel_vector_of_unit_length_too():
    vector = RawPixels(1, 12).encode(np.zeros((1, 1, 12, 12), np.uint8))
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)


def test_encode_gives_what_forward_gives_in_evaluation_mode(full_precision):
    network = small()
    with torch.no_grad():
        expected = network(network.prepare(torch.as_tensor(pictures()))).numpy()
    np.testing.assert_allclose(network.encode(pictures()), expected, atol=1e-6)
    np.testing.assert_allclose(network.encode(torch.as_tensor(pictures())), expected, atol=1e-6)


def test_the_processors_own_precision_stays_close_to_float32(monkeypatch):
    native = small().encode(pictures())
    monkeypatch.setattr(device_module, "best_precision", lambda device: "no")
    np.testing.assert_allclose(native, small().encode(pictures()), atol=NATIVE_TOLERANCE)


@pytest.mark.parametrize("training", [True, False])
def test_encode_neither_depends_on_the_mode_nor_changes_it_or_the_running_statistics(training):
    expected, network = small().encode(pictures()), small().train(training)
    before = fingerprint(network)
    np.testing.assert_array_equal(network.encode(pictures()), expected)
    assert network.training is training
    assert fingerprint(network) == before


def test_a_picture_and_its_mirror_image_get_the_same_vector(full_precision):
    images = pictures()
    vectors = small().encode(images)
    np.testing.assert_allclose(small().encode(images[..., ::-1]), vectors, atol=1e-6)
    assert np.abs(small().encode(images[..., ::-1, :]) - vectors).max() > 1e-3


def test_batches_do_not_matter(monkeypatch, full_precision):
    whole = small().encode(pictures())
    for size in (1, 3, 7):
        monkeypatch.setattr(base, "BATCH", size)
        np.testing.assert_allclose(small().encode(pictures()), whole, atol=1e-6)


def test_a_read_only_memory_mapped_array_is_encoded_without_a_warning(tmp_path):
    np.save(tmp_path / "pixels.npy", pictures())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = small().encode(np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    np.testing.assert_array_equal(vectors, small().encode(pictures()))


def test_prepare_scales_pixels_by_the_encoders_own_mean_and_deviation():
    prepared = small(mean=0.25, std=0.5).prepare(torch.as_tensor(pictures()))
    np.testing.assert_allclose(prepared.numpy(), (pictures() / 255.0 - 0.25) / 0.5, atol=1e-6)
    assert prepared.dtype == torch.float32
    same = small(mean=np.float64(0.25), std=np.float64(0.3)).prepare(torch.as_tensor(pictures()))
    assert torch.equal(same, small(mean=0.25, std=0.3).prepare(torch.as_tensor(pictures())))


USES = {
    "encode": lambda encoder: encoder.encode(pictures()),
    "encode texts": lambda encoder: encoder.encode_texts(["a warm coat"]),
    "save": lambda encoder: save_encoder(encoder, "net"),
}


@pytest.mark.parametrize("use", USES)
def test_what_was_moved_to_another_device_to_be_used_can_still_be_trained(monkeypatch, use):
    journeys, encoder = [], dual()

    def moved(encoder, device="cpu"):
        journeys.append(device)
        return encoder.double().float()  # weights are made anew, as on another device

    for name in ("to", "cpu"):
        monkeypatch.setattr(DualEncoder, name, moved)
    monkeypatch.setattr(base, "best_device", lambda: "cpu:0")  # which is not called "cpu"
    monkeypatch.setattr(base, "autocast", lambda device: nullcontext())
    USES[use](encoder)
    assert journeys == ["cpu" if use == "save" else "cpu:0"]
    images = encoder.train()(encoder.prepare(torch.as_tensor(pictures())))
    (images @ encoder.text_tower(encoder.tokenize(["a warm coat"])).T).sum().backward()
    assert encoder.text_tower.project.weight.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 11, 12), (1, 12, 13)])
def test_pictures_of_another_shape_are_refused_with_both_shapes_named(shape):
    with pytest.raises(ValueError, match=re.escape(f"takes images of shape (1, 12, 12), not {shape}")):
        small().encode(np.zeros((2, *shape), np.uint8))


# --- the default network


def test_the_default_network_gives_128_numbers_and_has_at_most_half_a_million_parameters():
    network = ConvNet()
    assert network.encode(pictures(2, size=28)).shape == (2, 128)
    assert 100_000 < count_parameters(network) <= 500_000


def test_the_plan_decides_widths_and_poolings():
    layers = ConvNet(plan=(4, "M", 6, 8, "M"), dim=5).features
    widths = [(m.in_channels, m.out_channels) for m in layers if isinstance(m, torch.nn.Conv2d)]
    assert widths == [(1, 4), (4, 6), (6, 8)]
    assert sum(isinstance(m, torch.nn.MaxPool2d) for m in layers) == 2


# --- what the machine can do


def test_precision_is_bfloat16_only_where_the_processor_computes_in_it_and_fp16_on_older_gpus(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert device_module.best_precision("cpu") == "bf16"
    assert device_module.best_precision("mps") == "no"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert device_module.best_precision("cpu") == "no"
    for supported, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, answer=supported: including_emulation or answer,
        )
        assert device_module.best_precision("cuda") == expected


def test_the_first_device_of_cuda_mps_cpu_is_taken(monkeypatch):
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=cuda: answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda answer=mps: answer)
        assert best_device() == expected


REPEATED = """
import resource, torch
from rectrio_lib.core import device
kept = device.keep_freed_memory()
fetched = []
for _ in range(40):
    torch.ones(2**24)
    fetched.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(kept, fetched[-1] - fetched[19])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_freed_memory_is_not_fetched_again_from_the_system():
    printed = subprocess.run(
        [sys.executable, "-c", REPEATED], capture_output=True, text=True, check=True
    ).stdout.split()
    if printed[0] == "False":
        pytest.skip("this C library has no mallopt")
    pages = 2**24 * 4 // 4096
    assert int(printed[1]) < pages  # twenty times as many where each tensor is fetched again
