import json
from pathlib import Path

import pytest

from rectrio_lib.core import errors, files, workspace
from rectrio_lib.core.workspace import Workspace


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files_below(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


# --- where things live


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


def test_weights_lie_below_the_data_folder_of_the_checkout_unless_told_otherwise(tmp_path, monkeypatch):
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


def test_artefact_returns_what_is_there():
    made = Workspace().path("datasets", "toy")
    files.write_json(made / "card.json", {})
    assert Workspace().require("datasets", "toy", "rectrio run --only 01") == made


# --- writing


def test_write_json_makes_folders_and_keeps_letters_readable(tmp_path):
    path = tmp_path / "deep" / "card.json"
    files.write_json(path, {"label": "Mütze", "sizes": (1, 2)})
    assert json.loads(path.read_text(encoding="utf-8")) == {"label": "Mütze", "sizes": [1, 2]}
    assert "Mütze" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["card.json"]


def test_full_disk_while_writing_json_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_json(path, {"kept": True})

    def disk_full(self, text, **kwargs):
        self.write_bytes(text[:5].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"kept": False})
    assert json.loads(path.read_text(encoding="utf-8")) == {"kept": True}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "old.txt").write_text("old", encoding="utf-8")
    return folder


def test_replaced_folder_holds_only_the_new_files_and_leaves_nothing_beside(folder):
    with files.replaced_folder(folder) as fresh:
        (fresh / "new.txt").write_text("new", encoding="utf-8")
        assert files_below(folder) == ["old.txt"]
    assert contents(folder) == {"new.txt": b"new"}
    assert list(folder.parent.glob("toy*")) == [folder]


def test_error_while_filling_leaves_the_old_folder_whole_and_the_next_try_starts_empty(folder):
    with pytest.raises(KeyboardInterrupt), files.replaced_folder(folder) as fresh:
        (fresh / "half.txt").write_text("ha", encoding="utf-8")
        raise KeyboardInterrupt
    assert contents(folder) == {"old.txt": b"old"}
    with files.replaced_folder(folder) as fresh:
        assert list(fresh.iterdir()) == []


@pytest.fixture
def killed_between_renames(folder, monkeypatch) -> Path:
    """Return a folder that was moved aside when the run that replaced it died."""
    rename = Path.replace

    def die_at_second(self, target):
        if self.name == "toy.new":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", die_at_second)
        with files.replaced_folder(folder) as fresh:
            (fresh / "new.txt").write_text("new", encoding="utf-8")
    assert not folder.exists()
    return folder


def test_folder_of_a_run_killed_between_the_renames_comes_back(killed_between_renames):
    files.restore_folder(killed_between_renames)
    assert contents(killed_between_renames) == {"old.txt": b"old"}


def test_artefact_finds_the_folder_of_a_run_killed_between_the_renames(killed_between_renames, monkeypatch):
    home = killed_between_renames.parent
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(home))
    (home / "datasets").mkdir()
    old = (home / "toy.old").rename(home / "datasets" / "toy.old")
    files.write_json(old / "card.json", {})
    assert (Workspace().require("datasets", "toy", "make it") / "old.txt").read_bytes() == b"old"


def test_second_failure_after_a_kill_still_keeps_the_old_folder(killed_between_renames):
    with pytest.raises(ValueError, match="again"), files.replaced_folder(killed_between_renames):
        raise ValueError("again")
    assert contents(killed_between_renames) == {"old.txt": b"old"}


@pytest.mark.parametrize("value", [None, True, 1.0, "3", [3], {"a": 3}])
def test_a_card_value_of_another_type_is_refused_with_its_key(tmp_path, value):
    workspace.check_card({"count": 3, "more": value}, {"count": int, "absent?": str}, tmp_path / "card.json")
    with pytest.raises(errors.DataError, match=r"card\.json.*count"):
        workspace.check_card({"count": value}, {"count": int}, tmp_path / "card.json")


def test_a_folder_that_fills_the_disk_is_removed_and_the_old_one_stays(tmp_path):
    (tmp_path / "toy").mkdir()
    with pytest.raises(errors.StorageError, match="toy"), files.replaced_folder(tmp_path / "toy") as fresh:
        (fresh / "half").write_bytes(b"half")
        raise OSError("No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


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
