import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.networks import pictures, small

from rectrio_lib.core import errors, files
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.registry import count_parameters, fingerprint, load_encoder, save_encoder, variants

ROOT = Path(__file__).resolve().parents[2]


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
        "import sys, numpy as np; from rectrio_lib import load_encoder; "
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
    assert folder == Workspace().outputs / "encoders" / "net"
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.json", "weights.safetensors"]
    expected = {"name": "net", "kind": "convnet", "dim": 10, "trained_on": "abc", "seed": 3, "activation": "relu"}
    assert {key: card[key] for key in expected} == expected
    assert card["preprocessing"] == {"channels": 1, "size": 12, "mean": 0.4, "std": 0.3}
    assert card["hash"] == fingerprint(small())
    assert card["versions"].keys() == {"rectrio", "torch"}


def test_relatives_are_the_encoders_saved_under_the_longer_names():
    for name in ("shapes-untrained", "shapes", "shapes-pixels", "shapeless-pixels"):
        save_encoder(small(), name)
    assert variants("shapes") == ["shapes-pixels", "shapes-untrained"]
    assert variants("nothing") == []


def test_a_card_without_golden_vectors_is_refused():
    card = save_encoder(small(), "shapes") / "encoder.json"
    content = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({k: v for k, v in content.items() if k != "golden"}), encoding="utf-8")
    with pytest.raises(ValueError, match="Train it again"):
        load_encoder("shapes")


def test_saving_again_replaces_the_encoder():
    save_encoder(small(0), "net")
    save_encoder(small(1), "net")
    assert fingerprint(load_encoder("net")) == fingerprint(small(1))


def test_a_save_killed_between_its_two_renames_leaves_the_old_encoder():
    folder = save_encoder(small(), "net")
    folder.replace(folder.with_name("net.old"))
    assert fingerprint(load_encoder("net")) == fingerprint(small())


def test_a_missing_encoder_names_the_chapter_that_makes_it():
    with pytest.raises(errors.MissingArtefactError, match="--only 02"):
        load_encoder("net")


def test_an_unknown_kind_is_refused_with_the_known_ones_named():
    folder = save_encoder(small(), "net")
    card = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    files.write_json(folder / "encoder.json", {**card, "kind": "resnet"})
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
