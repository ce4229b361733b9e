import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from rectrio_lib import encoders, resources
from rectrio_lib.encoders import ConvNet, RawPixels, count_parameters, fingerprint, load_encoder, save_encoder

ROOT = Path(__file__).resolve().parents[1]
NATIVE_TOLERANCE = 0.03  # bfloat16 keeps eight bits


def pictures(count=7, channels=1, size=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def small(seed=0, **changes):
    """A small network that has seen a few batches, so that its running statistics are not the initial ones."""
    torch.manual_seed(seed)
    network = ConvNet(**{"size": 12, "plan": (8, "M", 16), "dim": 10, "mean": 0.4, "std": 0.3, **changes})
    channels, size = network.preprocessing["channels"], network.preprocessing["size"]
    with torch.no_grad():
        for step in range(3):
            network.train()(network.prepare(torch.as_tensor(pictures(20, channels, size, step))))
    return network.eval()


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(encoders, "best_precision", lambda device: "no")


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
    monkeypatch.setattr(encoders, "best_precision", lambda device: "no")
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
        monkeypatch.setattr(encoders, "BATCH", size)
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


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 11, 12), (1, 12, 13)])
def test_pictures_of_another_shape_are_refused_with_both_shapes_named(shape):
    with pytest.raises(ValueError, match=re.escape(f"takes pictures of shape (1, 12, 12), not {shape}")):
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


def test_frozen_parameters_are_not_counted():
    network = ConvNet(plan=(4,), dim=5)
    assert count_parameters(network) == 4 * 9 + 2 * 4 + 4 * 5 + 2 * 5
    network.features.requires_grad_(False)
    assert count_parameters(network) == 4 * 5 + 2 * 5


# --- fingerprints


def test_equal_encoders_have_equal_fingerprints_whatever_the_mode_or_memory_format():
    network = small()
    assert fingerprint(network) == fingerprint(small())
    assert fingerprint(network.train()) == fingerprint(small())
    assert fingerprint(network.to(memory_format=torch.contiguous_format)) == fingerprint(small())
    assert fingerprint(RawPixels()) == fingerprint(RawPixels())


def test_every_weight_and_buffer_and_the_preprocessing_change_the_fingerprint():
    prints = {fingerprint(small()), fingerprint(small(mean=0.41)), fingerprint(small(std=0.31))}
    for name in small().state_dict():
        network = small()
        value = network.state_dict()[name]
        value[(0,) * value.dim()] += 1
        prints.add(fingerprint(network))
    network = small()
    network.preprocessing["mean"] = 0.5
    prints.add(fingerprint(network))
    prints |= {fingerprint(RawPixels(1, 12)), fingerprint(RawPixels(1, 13)), fingerprint(RawPixels(3, 12))}
    assert len(prints) == 4 + len(small().state_dict()) + 3


# --- save and load


def test_a_saved_encoder_gives_the_same_vectors_in_a_new_process(tmp_path):
    network = small()
    save_encoder(network, "net", trained_on="abc", seed=3)
    np.save(tmp_path / "images.npy", pictures(30))
    code = (
        "import sys, numpy as np; from rectrio_lib.encoders import load_encoder; "
        "np.save(sys.argv[2], load_encoder('net').encode(np.load(sys.argv[1])))"
    )
    paths = [str(tmp_path / name) for name in ("images.npy", "vectors.npy")]
    subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, check=True)
    np.testing.assert_allclose(np.load(paths[1]), network.encode(pictures(30)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoder", [small(channels=3), RawPixels(3, 12)], ids=lambda e: e.kind)
def test_loading_restores_kind_arguments_preprocessing_and_weights(encoder):
    save_encoder(encoder.train(), "net")
    loaded = load_encoder("net")
    assert (type(loaded), loaded.arguments, loaded.dim) == (type(encoder), encoder.arguments, encoder.dim)
    assert loaded.preprocessing == encoder.preprocessing
    assert fingerprint(loaded) == fingerprint(encoder)
    assert not loaded.training


def test_the_card_says_what_the_encoder_is_and_where_it_comes_from():
    folder = save_encoder(small(), "net", trained_on="abc", seed=3)
    card = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    assert folder == resources.outputs_root() / "encoders" / "net"
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.json", "weights.safetensors"]
    expected = {"name": "net", "kind": "convnet", "dim": 10, "trained_on": "abc", "seed": 3, "activation": "relu"}
    assert {key: card[key] for key in expected} == expected
    assert card["preprocessing"] == {"channels": 1, "size": 12, "mean": 0.4, "std": 0.3}
    assert card["hash"] == fingerprint(small())
    assert card["versions"].keys() == {"rectrio", "torch"}


def test_saving_again_replaces_the_encoder():
    save_encoder(small(0), "net")
    save_encoder(small(1), "net")
    assert fingerprint(load_encoder("net")) == fingerprint(small(1))


def test_a_save_killed_between_its_two_renames_leaves_the_old_encoder():
    folder = save_encoder(small(), "net")
    folder.replace(folder.with_name("net.old"))
    assert fingerprint(load_encoder("net")) == fingerprint(small())


def test_a_missing_encoder_names_the_chapter_that_makes_it():
    with pytest.raises(resources.MissingArtefact, match=r"Chapter 02_train_fashion_triplet makes it: .*--only 02"):
        load_encoder("net")


def test_an_unknown_kind_is_refused_with_the_known_ones_named():
    folder = save_encoder(small(), "net")
    card = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    resources.write_json(folder / "encoder.json", {**card, "kind": "resnet"})
    with pytest.raises(ValueError, match="kind 'resnet'; known kinds: raw-pixels, convnet"):
        load_encoder("net")


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (small(plan=(8, "M", 16, 16)), r"features\.\d"),
        (small(dim=11), r"project\.0\.weight"),
        (RawPixels(1, 12), r"features\.\d"),
    ],
    ids=["deeper", "longer", "raw"],
)
def test_weights_of_another_architecture_are_refused_with_their_keys_named(other, key):
    folder, foreign = save_encoder(small(), "net"), save_encoder(other, "other")
    (foreign / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(ValueError, match=f"another architecture: .*{key}.* do not match"):
        load_encoder("net")


def test_weights_that_the_card_does_not_describe_are_refused():
    folder, foreign = save_encoder(small(0), "net"), save_encoder(small(1), "other")
    (foreign / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(ValueError, match=r"not the ones its encoder\.json describes: train it again"):
        load_encoder("net")


@pytest.mark.parametrize("left", [slice(-9), slice(0), slice(9, None)], ids=["cut", "empty", "headless"])
def test_damaged_weights_are_refused(left):
    path = save_encoder(small(), "net") / "weights.safetensors"
    path.write_bytes(path.read_bytes()[left])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged: train the encoder again"):
        load_encoder("net")


def test_a_single_changed_byte_of_the_weights_is_noticed():
    path = save_encoder(small(), "net") / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not the ones its"):
        load_encoder("net")


# --- what the machine can do


def test_precision_is_bfloat16_only_where_the_processor_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert encoders.best_precision("cpu") == "bf16"
    assert encoders.best_precision("mps") == "no"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert encoders.best_precision("cpu") == "no"
    for supported, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=supported: answer)
        assert encoders.best_precision("cuda") == expected


def test_the_first_device_of_cuda_mps_cpu_is_taken(monkeypatch):
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=cuda: answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda answer=mps: answer)
        assert encoders.best_device() == expected
