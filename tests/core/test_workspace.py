import re
from pathlib import Path

import pytest

from rectrio_lib.core import errors, files, workspace
from rectrio_lib.core.workspace import Workspace


def test_relative_folders_count_from_the_checkout_wherever_the_notebook_runs(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("RECTRIO_DATA", "my/data")
    monkeypatch.delenv("RECTRIO_OUTPUTS")
    assert Workspace().data == tmp_path / "my" / "data"
    assert Workspace().outputs == tmp_path / "outputs"


def test_outside_of_a_checkout_the_working_directory_is_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECTRIO_DATA", "")
    assert Workspace().data == tmp_path / "data"


def test_absolute_and_home_folders_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTRIO_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("RECTRIO_OUTPUTS", "~/outputs")
    assert Workspace().data == tmp_path / "elsewhere"
    assert Workspace().outputs == Path.home() / "outputs"


def test_weights_lie_below_the_data_folder_of_the_checkout_unless_the_environment_names_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECTRIO_WEIGHTS", raising=False)
    assert Workspace().weights == tmp_path / "data" / "weights"
    monkeypatch.setenv("RECTRIO_WEIGHTS", "~/weights")
    assert Workspace().weights == Path.home() / "weights"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("", False), (None, False)])
@pytest.mark.parametrize("switch", ["offline", "quiet"])
def test_switches_are_on_only_when_set(monkeypatch, switch, value, expected):
    variable = f"RECTRIO_{switch.upper()}"
    monkeypatch.delenv(variable)
    if value is not None:
        monkeypatch.setenv(variable, value)
    assert getattr(workspace, switch)() is expected


def test_missing_artefact_names_the_path_the_chapter_and_the_command():
    with pytest.raises(errors.MissingArtefactError) as missing:
        Workspace().require("encoders", "fashion-triplet", "rectrio run --only 02")
    message = str(missing.value)
    assert str(Workspace().outputs / "encoders") in message
    assert "'fashion-triplet'" in message
    assert "`rectrio run --only 02`" in message


def test_require_returns_what_is_there():
    made = Workspace().path("datasets", "toy")
    files.write_json(made / "card.json", {})
    assert Workspace().require("datasets", "toy", "rectrio run --only 01") == made


def test_require_finds_the_folder_of_a_process_killed_between_its_renames():
    folder = Workspace().path("datasets", "toy")
    files.write_json(folder.with_name("toy.old") / "card.json", {})
    assert (Workspace().require("datasets", "toy", "make it") / "card.json").is_file()


@pytest.mark.parametrize("kind", workspace.CARDS)
@pytest.mark.parametrize(
    "name", ["", ".", "..", "../toy", "/tmp", "a/b", "a\\b", "a\0b", "toy.old", "toy.new", "x.lock"]
)
def test_names_that_lead_elsewhere_or_look_unfinished_are_refused(kind, name):
    with pytest.raises(errors.DataError, match=re.escape(repr(name))):
        Workspace().path(kind, name)


@pytest.mark.parametrize("name", ["toy", "net--toy", "clip-ViT-B-32", "Bilder 2026", "v1.2", "...", "Mütze"])
def test_other_names_are_folders_of_their_kind(name):
    assert Workspace().path("indexes", name) == Workspace().outputs / "indexes" / name


def test_cards_lists_what_is_finished_and_shows_what_is_damaged_as_empty():
    home = Workspace().outputs / "encoders"
    for name in ("b", "a", "a.old", "c.0.new"):
        files.write_json(home / name / "encoder.json", {"name": name})
    changed = {"typed": '{"arguments": []}', "named": '{"encoder": {}}', "nested": '{"made_from": {"folder": 3}}'}
    for name, content in {"damaged": "{", "list": "[1]", "deep": "[" * 100_000, **changed}.items():
        (home / name).mkdir()
        (home / name / "encoder.json").write_text(content, encoding="utf-8")
    (home / "empty").mkdir()
    assert Workspace().cards("encoders") == {
        "a": {"name": "a"},
        "b": {"name": "b"},
        "damaged": {},
        "deep": {},
        "list": {},
        **{name: {} for name in changed},
    }


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[1]", b"[" * 100_000, b"\xff"], ids=["gone", "empty", "cut", "list", "deep", "latin"]
)
def test_card_that_is_missing_or_damaged_is_a_data_error_that_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(errors.DataError, match=r"card\.json"):
        workspace.read_card(tmp_path / "card.json")


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "a\0b", ""])
def test_a_path_that_no_system_could_have_is_no_folder(path):
    assert files.is_folder(path) is (path == "")  # the working directory


def test_workspace_with_a_root_ignores_the_environment(tmp_path):
    here = Workspace(tmp_path)
    assert (here.data, here.weights, here.outputs) == tuple(tmp_path / p for p in ("data", "data/weights", "outputs"))
    assert Workspace(tmp_path, data="~/elsewhere").data == Path.home() / "elsewhere"


def test_two_workspaces_work_side_by_side_in_one_process(tmp_path):
    one, two = Workspace(tmp_path / "one"), Workspace(tmp_path / "two")
    for here, number in ((one, 1), (two, 2)):
        files.write_json(here.path("encoders", "net") / "encoder.json", {"number": number})
    assert [here.cards("encoders")["net"]["number"] for here in (one, two)] == [1, 2]
    assert one.require("encoders", "net", "") != two.require("encoders", "net", "")
    assert Workspace().cards("encoders") == {}


@pytest.mark.parametrize("value", [None, True, 1.0, "3", [3], {"a": 3}])
def test_a_card_value_of_another_type_is_refused_with_its_key(tmp_path, value):
    workspace.check_card({"count": 3, "more": value}, {"count": int, "absent?": str}, tmp_path / "card.json")
    with pytest.raises(errors.DataError, match=r"card\.json.*count"):
        workspace.check_card({"count": value}, {"count": int}, tmp_path / "card.json")


def test_a_checksum_sees_the_ends_and_the_size_of_a_large_file(tmp_path):
    path, size = tmp_path / "large", 4 * files.END_BYTES
    sums = set()
    for changed in (None, 0, size - 1):
        content = bytearray(size)
        if changed is not None:
            content[changed] = 1
        path.write_bytes(content)
        sums.add(files.checksum(path, whole=files.END_BYTES))
    path.write_bytes(bytes(size + 1))
    assert len(sums | {files.checksum(path, whole=files.END_BYTES)}) == 4
