import json
import re

import pytest
import torch
from makers.networks import pictures, same_in_a_new_process, small
from safetensors import SafetensorError
from safetensors.torch import load_file

from rectrio_lib.core import errors, files
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import registry
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.convnet import ConvNet
from rectrio_lib.encoders.pretrained import ProjectionHead
from rectrio_lib.encoders.registry import count_parameters, fingerprint, load_encoder, save_encoder, variants


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


def test_a_saved_encoder_gives_the_same_vectors_in_a_new_process(tmp_path, full_precision):
    same_in_a_new_process(small(), pictures(30), tmp_path)


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
    assert card["random_weights"] is False
    assert card["versions"].keys() == {"rectrio", "torch"}


def test_relatives_are_the_encoders_saved_under_the_longer_names():
    for name in ("shapes-untrained", "shapes", "shapes-pixels", "shapeless-pixels"):
        save_encoder(small(), name)
    assert variants("shapes") == ["shapes-pixels", "shapes-untrained"]
    assert variants("nothing") == []


def test_saving_again_replaces_the_encoder():
    save_encoder(small(0), "net")
    save_encoder(small(1), "net")
    assert fingerprint(load_encoder("net")) == fingerprint(small(1))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("fashion-triplet", "rectrio run --only 02"),
        ("fashion-triplet-untrained", "rectrio run --only 02"),
        ("animals-clip-phase1", "rectrio run --only 03"),
        ("fashion-dual", "rectrio run --only 06"),
        ("products-resnet50", "rectrio run --only 07"),
        ("pets-tuned", "rectrio build FOLDER"),
        ("clip-ViT-B-32", "rectrio index FOLDER --backbone clip:ViT-B/32"),
        ("lite-efficientnet_lite0", "rectrio index FOLDER --backbone lite:efficientnet_lite0"),
        ("torchvision-resnet50", "rectrio index FOLDER --backbone torchvision:resnet50"),
        ("mine", "save_encoder(encoder, 'mine')"),
    ],
)
def test_a_missing_encoder_is_answered_with_what_makes_it_and_the_encoders_there_are(name, command):
    save_encoder(RawPixels(), "other")
    with pytest.raises(errors.MissingArtefactError, match=re.escape(command)) as caught:
        load_encoder(name)
    assert "other" in str(caught.value)


def test_two_workspaces_hold_two_encoders_of_one_name(tmp_path):
    one, other = Workspace(tmp_path / "one"), Workspace(tmp_path / "other")
    for seed, workspace in enumerate((one, other)):
        assert save_encoder(small(seed), "net", workspace=workspace) == workspace.outputs / "encoders" / "net"
    save_encoder(small(), "net-untrained", workspace=other)
    assert [fingerprint(load_encoder("net", w)) for w in (one, other)] == [fingerprint(small(s)) for s in (0, 1)]
    assert (variants("net", one), variants("net", other), variants("net")) == ([], ["net-untrained"], [])


@pytest.mark.parametrize("name", ["../net", "/net", "", "a/../../net", "a\0b"])
def test_a_name_that_leads_outside_is_refused(name):
    for call in (lambda: save_encoder(RawPixels(), name), lambda: load_encoder(name)):
        with pytest.raises(errors.DataError):
            call()


def test_what_could_not_be_loaded_again_is_not_saved():
    with pytest.raises(errors.ArgumentError, match="projection-head"):
        save_encoder(ProjectionHead(4), "head")
    assert not (Workspace().outputs / "encoders").exists()


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_a_storage_error_and_the_old_encoder_stays(monkeypatch, failure):
    def full(*arguments):
        raise failure

    save_encoder(small(), "net")
    monkeypatch.setattr(registry, "save_file", full)
    with pytest.raises(errors.StorageError, match="No space left"):
        save_encoder(small(1), "net")
    assert fingerprint(load_encoder("net")) == fingerprint(small())


# --- damaged and hand-changed cards


def tampered(change, encoder=None):
    """Save an encoder and change its card; its hash is made to fit the change, so that no check ends there."""
    path = save_encoder(encoder or small(), "net") / "encoder.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    card.update(change)
    card = {key: value for key, value in card.items() if value is not None}
    if "hash" not in change and {"kind", "arguments", "preprocessing"} <= card.keys():
        described = [card["kind"], card["arguments"], card["preprocessing"]]
        card["hash"] = registry._digest(described, load_file(path.with_name("weights.safetensors")))
    files.write_json(path, card)
    return path


FITTING = small().arguments


@pytest.mark.parametrize(
    "change",
    [
        {"kind": ["convnet"]},
        {"kind": "resnet"},
        {"kind": "pretrained"},
        {"kind": None},
        {"arguments": [1]},
        {"arguments": {**FITTING, "depth": 3}},
        {"arguments": {**FITTING, "dim": "ten"}},
        {"arguments": {**FITTING, "dim": -1}},
        {"arguments": {**FITTING, "dim": 11}},
        {"arguments": {**FITTING, "plan": {"a": 1}}},
        {"arguments": {**FITTING, "looks": 5}},
        {"preprocessing": None},
        {"preprocessing": {"channels": 1}},
        {"preprocessing": {"channels": "1", "size": 12}},
        {"preprocessing": {"channels": 1, "size": 13, "mean": 0.4, "std": 0.3}},
        {"activation": 3},
        {"activation": "gelu"},
        {"golden": None},
        {"golden": []},
        {"golden": ["a"]},
        {"golden": [[0.0] * 10] * 2},
        {"golden": [[[[0.0]]], 1]},
        {"hash": 5},
        {"hash": "0123456789abcdef"},
    ],
    ids=str,
)
def test_a_card_changed_by_hand_is_refused_with_its_file_or_folder_named(change):
    path = tampered(change)
    with pytest.raises(errors.DataError, match=re.escape(str(path.parent))):
        load_encoder("net")


@pytest.mark.parametrize("content", ["", "[]", "null", '{"kind"', "[" * 100_000, '{"a":' * 100_000, "\x00"])
def test_a_card_that_is_not_a_json_object_is_refused(content):
    path = save_encoder(small(), "net") / "encoder.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(errors.DataError, match=re.escape(str(path))):
        load_encoder("net")


@pytest.mark.parametrize(
    ("change", "key"),
    [({"plan": [8, "M", 16, 16]}, r"features\.\d"), ({"dim": 11}, r"project\.0\.weight")],
    ids=["deeper", "longer"],
)
def test_weights_of_another_architecture_are_refused_with_their_keys_named(change, key):
    tampered({"arguments": {**FITTING, **change}})
    with pytest.raises(errors.DataError, match=key):
        load_encoder("net")


def test_weights_that_the_card_does_not_describe_are_refused():
    folder, foreign = save_encoder(small(0), "net"), save_encoder(small(1), "other")
    (foreign / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(errors.DataError, match=r"weights\.safetensors"):
        load_encoder("net")


@pytest.mark.parametrize("left", [slice(-9), slice(0), slice(9, None), None], ids=["cut", "empty", "headless", "gone"])
def test_damaged_weights_are_refused(left):
    path = save_encoder(small(), "net") / "weights.safetensors"
    path.write_bytes(path.read_bytes()[left]) if left else path.unlink()
    with pytest.raises(errors.DataError, match=re.escape(str(path))):
        load_encoder("net")


def test_a_single_changed_byte_of_the_weights_is_noticed():
    path = save_encoder(small(), "net") / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match=re.escape(str(path))):
        load_encoder("net")
