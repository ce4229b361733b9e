"""Any torch module as an encoder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.networks import pictures, same_in_a_new_process
from safetensors.torch import load_file
from torch import nn

import rectrio_lib as rt
from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError, DataError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import module as modules
from rectrio_lib.encoders import registry
from rectrio_lib.encoders.adapted import adapted
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder

ROOT = Path(__file__).resolve().parents[2]
NETS = """
from torch import nn

def build(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(48, 48)
        self.two = nn.Linear(48, 48)
        self.two.weight = self.one.weight

    def forward(self, images):
        return self.two(self.one(images.flatten(1)).tanh())

number, wrong = 3, dict
"""
SCALING = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A package that can be imported; the folder it lies in."""
    home = tmp_path / "site"
    (home / "ownnets").mkdir(parents=True)
    (home / "ownnets" / "__init__.py").touch()
    (home / "ownnets" / "nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.syspath_prepend(home)
    yield home
    for name in [name for name in sys.modules if name.split(".")[0] == "ownnets"]:
        del sys.modules[name]


def built(width=4):
    torch.manual_seed(0)
    import ownnets.nets

    return ownnets.nets.build(width)


def own(width=4, reference="ownnets.nets:build"):
    return rt.encoders.from_module(built(width), 8, **SCALING, reference=reference, arguments={"width": width})


def test_any_module_gives_the_unit_vectors_of_its_own_output_of_scaled_images(full_precision):
    torch.manual_seed(0)
    module, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), pictures(4, 1, 8)
    encoder = rt.encoders.from_module(module, 8, 0.5, 0.25, channels=1)
    with torch.no_grad():
        raw = module((torch.as_tensor(images) / 255 - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(encoder.encode(images), raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)
    assert encoder.dim == 5 and not encoder.training


@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten(0), nn.LSTM(8, 8)], ids=lambda m: type(m).__name__)
def test_a_module_that_gives_something_else_than_vectors_is_refused(module):
    with pytest.raises((ArgumentError, ValueError, RuntimeError)):
        rt.encoders.from_module(module, 8, 0.5, 0.5)


def test_without_a_reference_it_is_used_but_not_saved():
    encoder = rt.encoders.from_module(nn.Flatten(), 4, 0.5, 0.5)
    assert encoder.encode(pictures(2, 3, 4)).shape == (2, 48)
    with pytest.raises(ArgumentError, match="reference="):
        save_encoder(encoder, "own")


def test_a_saved_one_gives_the_same_vectors_in_a_new_process(nets, tmp_path, monkeypatch, full_precision):
    encoder = own()
    with torch.no_grad():
        encoder.module[0].weight += 0.5
    monkeypatch.setenv("PYTHONPATH", f"{nets}:{ROOT}")
    monkeypatch.setenv("RECTRIO_TRUST", "another.net:Net,ownnets.nets:build")
    same_in_a_new_process(encoder, pictures(5, 3, 8), tmp_path)
    loaded = load_encoder("net")
    assert fingerprint(loaded) == fingerprint(encoder) and loaded.preprocessing == encoder.preprocessing


def test_tied_weights_are_saved_and_tied_again(nets):
    from ownnets.nets import Tied

    save_encoder(rt.encoders.from_module(Tied(), 4, 0.5, 0.5, reference="ownnets.nets:Tied"), "tied")
    loaded = load_encoder("tied")
    assert loaded.module.one.weight is loaded.module.two.weight


@pytest.mark.parametrize(
    ("then", "token"),
    [
        (lambda source: None, "cannot be imported"),
        (lambda source: source.replace("def build", "def other"), "build"),
        (lambda source: source.replace("def build", "def other") + "build = 3", "not callable"),
        (lambda source: source.replace("(width=4)", "()").replace("3, width", "3, 4"), "width"),
        (lambda source: source.replace("return nn", "return 1 or nn"), "int"),
        (lambda source: source.replace("width, 3)", "width, 5)"), r"module\.0\.weight"),
        (lambda source: source.replace("AdaptiveAvg", "AdaptiveMax"), "other vectors"),
        (lambda source: source.replace("AdaptiveAvgPool2d(2)", "Identity()"), "own"),
    ],
    ids=["gone", "renamed", "a number", "arguments", "no module", "kernel", "pooling", "longer"],
)
def test_code_that_is_gone_or_builds_something_else_is_refused(nets, then, token):
    save_encoder(own(), "own")
    path, changed = nets / "ownnets" / "nets.py", then(NETS)
    path.unlink() if changed is None else path.write_text(changed + "\n# another length", encoding="utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "ownnets"]:
        del sys.modules[name]
    with pytest.raises(DataError, match=token):
        load_encoder("own")


@pytest.fixture
def elsewhere(nets, monkeypatch):
    """A function that opens the encoder called "own" as a process does that did not make it."""
    save_encoder(own(), "own")
    monkeypatch.setattr(modules, "_named", set())
    for name in [name for name in sys.modules if name.split(".")[0] == "ownnets"]:
        del sys.modules[name]
    return lambda: load_encoder("own")


def test_an_encoder_from_elsewhere_runs_no_code_that_the_user_did_not_name(elsewhere, monkeypatch):
    for trusted in ("", "ownnets.nets", "ownnets", "ownnets.nets:Tied", "nets:build", "*"):
        monkeypatch.setenv("RECTRIO_TRUST", trusted)
        with pytest.raises(DataError, match=r"RECTRIO_TRUST=ownnets\.nets:build"):
            elsewhere()
        assert "ownnets" not in sys.modules  # importing would have run it
    monkeypatch.setenv("RECTRIO_TRUST", "ownnets.nets:build")
    assert elsewhere().dim == 16


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in another one"])
@pytest.mark.parametrize(
    ("reference", "arguments"),
    [
        ("os:system", {"command": "touch ran"}),
        ("torch.hub:load", {"repo_or_dir": ".", "model": "x"}),
    ],
)
def test_a_card_calls_no_function_of_its_choice(nets, tmp_path, monkeypatch, reference, arguments, inside):
    save_encoder(adapted(own(), mirror=True) if inside else own(), "own")
    path = Workspace().outputs / "encoders" / "own" / "encoder.json"
    card = path.read_text(encoding="utf-8").replace('"ownnets.nets:build"', json.dumps(reference))
    card = json.loads(card.replace('"width": 4', json.dumps(arguments)[1:-1]))
    state = load_file(path.with_name("weights.safetensors"))
    card["hash"] = registry._digest([card["kind"], card["arguments"], card["preprocessing"]], state)
    files.write_json(path, card)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"RECTRIO_TRUST={reference}"):
        load_encoder("own")
    assert not (tmp_path / "ran").exists()


def test_arguments_that_json_cannot_hold_are_refused(nets):
    with pytest.raises(ArgumentError, match="set"):
        rt.encoders.from_module(built(), 8, **SCALING, reference="ownnets.nets:build", arguments={"width": {4}})


@pytest.mark.parametrize(
    "reference",
    [
        "ownnets.nets",
        "ownnets.nets:build.x",
        "ownnets.nets:build()",
        "__main__:build",
        "../nets:build",
        ".nets:build",
        "nothing.here:build",
        "ownnets.nets:nothing",
        "ownnets.nets:number",
        "ownnets.nets:wrong",
        "ownnets.nets:Tied",
    ],
)
def test_a_reference_that_does_not_build_the_module_is_refused_at_once(nets, reference):
    with pytest.raises(ArgumentError, match="reference="):
        own(reference=reference)
