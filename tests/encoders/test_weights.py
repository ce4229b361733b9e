import functools
import hashlib
import http.server
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rectrio_lib.core.errors import DataError, StorageError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders import backbone
from rectrio_lib.encoders.families import clip
from rectrio_lib.encoders.families.clip import clip_module
from rectrio_lib.encoders.weights import find_state, load_weights

NAME = "torchvision:squeezenet1_0"
STATE = {"features.weight": torch.arange(6.0).view(2, 3), "features.bias": torch.tensor([1.0, -1.0]).half()}

addresses = []


def official() -> tuple[str, str]:
    return addresses[-1]


def in_weights_folder(name: str) -> Path:
    path = Workspace().weights / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def same_state(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key])


# --- files


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("squeezenet1_0-imagenet.safetensors", save_file),
        ("squeezenet1_0.safetensors", save_file),
        ("squeezenet1_0-b66bff10.pth", torch.save),
        ("squeezenet1_0.pth", functools.partial(torch.save, _use_new_zipfile_serialization=False)),
        ("squeezenet1_0.pt", torch.save),
    ],
)
def test_a_file_with_the_networks_name_is_found_and_read(file, write, caplog):
    path = in_weights_folder(file)
    write(STATE, path)
    state, where = find_state(NAME, official)
    same_state(state, STATE)
    assert where == str(path)
    assert caplog.messages == []


class Archived(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(3, 2)
        self.register_buffer("input_resolution", torch.tensor(64))

    def forward(self, x):
        return self.visual(x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
def test_an_archive_of_openais_kind_gives_the_weights_inside(caplog):
    module = Archived().half()
    torch.jit.script(module).save(str(in_weights_folder("ViT-B-32.pt")))
    state, _ = find_state("clip:ViT-B/32", official)
    same_state(state, module.state_dict())
    assert state["visual.weight"].dtype == torch.float16
    assert caplog.messages == []


@pytest.mark.parametrize("file", ["squeezenet1_1.pth", "xsqueezenet1_0.pth", "squeezenet1_0.onnx", "squeezenet1_0x.pt"])
def test_files_of_other_networks_are_passed_over(file):
    torch.save(STATE, in_weights_folder(file))
    assert find_state(NAME, official) == (None, "")


@pytest.mark.parametrize("file", ["squeezenet1_0.safetensors", "squeezenet1_0.pth", "squeezenet1_0.pt"])
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[9:], lambda b: b"", lambda b: b"no weights at all"])
def test_a_damaged_file_is_refused_with_its_name(file, damage):
    path = in_weights_folder(file)
    (save_file if path.suffix == ".safetensors" else torch.save)(STATE, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=path.name):
        find_state(NAME, official)


@pytest.mark.parametrize("content", [[1, 2], {"model": STATE, "epoch": 3}, torch.ones(3), Archived])
def test_a_file_of_something_else_than_named_tensors_is_refused(content):
    torch.save(content, in_weights_folder("squeezenet1_0.pth"))
    with pytest.raises(DataError, match=r"squeezenet1_0\.pth"):
        find_state(NAME, official)


def test_the_weights_folder_of_the_given_workspace_is_used(tmp_path):
    save_file(STATE, in_weights_folder("squeezenet1_0.safetensors"))
    assert find_state(NAME, official, Workspace(tmp_path / "elsewhere")) == (None, "")
    assert find_state(NAME, official, Workspace())[1] == str(in_weights_folder("squeezenet1_0.safetensors"))


# --- filling


def test_fill_copies_weights_of_half_precision_into_float32():
    module = torch.nn.Linear(3, 2)
    load_weights(module, {"weight": STATE["features.weight"], "bias": STATE["features.bias"]}, "file")
    assert torch.equal(module.weight, STATE["features.weight"])
    assert torch.equal(module.bias, torch.tensor([1.0, -1.0]))
    assert module.bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda state: state.pop("0.weight"), r"0\.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "extra"),
        (lambda state: state.update({"0.weight": torch.ones(3, 2)}), r"0\.weight"),
        (lambda state: state.pop("1.running_mean"), r"1\.running_mean"),
    ],
    ids=["missing", "foreign", "shape", "statistics"],
)
def test_weights_of_another_architecture_are_refused_with_the_key_and_change_nothing(change, key):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = {name: torch.full_like(value, 7) for name, value in module.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=rf"weights in file\.pt are of another architecture: {key} do not match"):
        load_weights(module, state, "file.pt")
    assert not any((parameter == 7).any() for parameter in module.parameters())


def test_of_many_wrong_keys_the_first_five_are_named_and_the_others_counted():
    foreign = {f"key{n}": torch.ones(1) for n in range(9)}
    with pytest.raises(ValueError, match=r"key0, key1, key2, key3, key4 and 4 more do not match"):
        load_weights(torch.nn.Identity(), foreign, "file")


def test_old_files_without_batch_norm_counters_fit():
    module = torch.nn.BatchNorm1d(2)
    load_weights(module, {k: v + 1 for k, v in module.state_dict().items() if k != "num_batches_tracked"}, "file")
    assert module.running_mean.tolist() == [1, 1]


# --- downloads


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class Nonsense(Silent):
    def handle(self):
        self.wfile.write(b"no HTTP\r\n\r\n")


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Start a server of a folder on this machine, and let it be the official source of a file in it."""
    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(content: bytes, sha256: str, handler=Silent):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "squeezenet1_0-abc.pth").write_bytes(content)
        handler = functools.partial(handler, directory=tmp_path / "site")
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}/squeezenet1_0-abc.pth"
        addresses.append((url, sha256))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def saved(tmp_path) -> bytes:
    torch.save(STATE, tmp_path / "state.pth")
    return (tmp_path / "state.pth").read_bytes()


@pytest.mark.parametrize("digits", [8, 64])
def test_weights_are_downloaded_checked_and_kept(serve, saved, caplog, monkeypatch, digits):
    serve(saved, hashlib.sha256(saved).hexdigest()[:digits])
    state, where = find_state(NAME, official)
    same_state(state, STATE)
    assert where == str(Workspace().weights / "squeezenet1_0-abc.pth")
    assert caplog.messages == []
    monkeypatch.setenv("RECTRIO_OFFLINE", "1")
    same_state(find_state(NAME, official)[0], STATE)


def announced(caplog) -> str:
    """Return the only message."""
    (line,) = caplog.messages
    assert line.startswith("STAND-IN: ")
    assert "random weights" in line
    return line


def test_a_download_with_another_checksum_is_not_kept_and_a_stand_in_announced(serve, saved, caplog):
    serve(saved, "0" * 64)
    assert find_state(NAME, official) == (None, "")
    assert "invalid hash value" in announced(caplog)
    assert list(Workspace().weights.iterdir()) == []


@pytest.mark.parametrize("handler", [Silent, Nonsense])
def test_a_server_without_the_file_or_without_sense_leads_to_a_stand_in(serve, caplog, tmp_path, handler):
    serve(b"", "", handler)
    (tmp_path / "site" / "squeezenet1_0-abc.pth").unlink()
    assert find_state(NAME, official) == (None, "")
    assert "the download failed (" in announced(caplog)


def test_a_server_that_cannot_be_reached_leads_to_a_stand_in_with_the_reason(monkeypatch, caplog):
    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    assert find_state(NAME, lambda: ("http://127.0.0.1:9/net.pth", "")) == (None, "")
    assert "refused" in announced(caplog)


def test_weights_that_cannot_be_kept_lead_to_an_error_and_not_to_a_stand_in(monkeypatch):
    monkeypatch.setenv("RECTRIO_OFFLINE", "0")
    Workspace().weights.parent.mkdir(parents=True, exist_ok=True)
    Workspace().weights.write_bytes(b"a file where the folder should be")
    with pytest.raises(StorageError):
        find_state(NAME, lambda: ("http://127.0.0.1:9/net.pth", ""))


def test_offline_nothing_is_asked_and_the_stand_in_names_folder_network_and_reason(monkeypatch, caplog):
    assert find_state("clip:ViT-B/32", None) == (None, "")
    line = announced(caplog)
    for part in (str(Workspace().weights), "ViT-B-32", "RECTRIO_OFFLINE=1"):
        assert part in line


@pytest.mark.parametrize("name", ["torchvision:resnet50", *(f"clip:{n}" for n in clip.CLIP_NETWORKS)])
def test_official_addresses_end_in_a_name_that_is_found_again_and_bring_a_checksum(name):
    family, network = name.split(":")
    url, sha256 = (clip.official_weights if family == "clip" else backbone.official_weights)(network)
    assert url.startswith("https://")
    assert len(sha256) == (64 if family == "clip" else 8) and set(sha256) <= set("0123456789abcdef")
    torch.save(STATE, in_weights_folder(url.rpartition("/")[2]))
    same_state(find_state(name, None)[0], STATE)


# --- the clip package


@pytest.fixture
def not_yet_imported(monkeypatch):
    clip_module.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] in ("clip", "pkg_resources")]:
        monkeypatch.delitem(sys.modules, name)
    yield
    clip_module.cache_clear()


@pytest.mark.usefixtures("not_yet_imported")
def test_clip_is_imported_and_pkg_resources_is_left_as_it_was():
    assert clip_module().tokenize(["a cat"]).shape == (1, 77)
    assert "pkg_resources" not in sys.modules


@pytest.mark.parametrize("has", ["packaging", "no packaging"])
@pytest.mark.usefixtures("not_yet_imported")
def test_a_pkg_resources_that_is_there_stays_whether_or_not_it_has_what_clip_wants(monkeypatch, has):
    there = types.ModuleType("pkg_resources")
    if has == "packaging":
        import packaging.version

        there.packaging = packaging
    monkeypatch.setitem(sys.modules, "pkg_resources", there)
    assert clip_module().tokenize(["a cat"]).shape == (1, 77)
    assert sys.modules["pkg_resources"] is there


@pytest.mark.parametrize("missing", ["clip", "ftfy", "regex"])
@pytest.mark.usefixtures("not_yet_imported")
def test_without_clip_or_what_it_needs_the_extra_is_named(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"not installed \({missing}\): pip install 'rectrio\[clip\]'"):
        clip_module()
    assert "pkg_resources" not in sys.modules


@pytest.mark.parametrize("package", [True, False], ids=["package", "single file"])
@pytest.mark.usefixtures("not_yet_imported")
def test_another_package_called_clip_is_refused_with_its_place(monkeypatch, tmp_path, package):
    file = tmp_path / ("clip/__init__.py" if package else "clip.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("def paste():\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"is another `clip` than OpenAI's: .*pip install 'rectrio\[clip\]'"):
        clip_module()
    sys.modules.pop("clip", None)
