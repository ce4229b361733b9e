import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rectrio_lib.core import files
from rectrio_lib.core.errors import DataError, StorageError

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "old.txt").write_text("old", encoding="utf-8")
    return folder


# --- files


def test_a_name_stands_for_a_file_or_for_none_whatever_it_is(folder, monkeypatch):
    monkeypatch.setenv("HOME" if os.name != "nt" else "USERPROFILE", str(folder))
    assert files.file_at("~/old.txt") == files.file_at(folder / "old.txt") == folder / "old.txt"
    for none in (folder, "", "x" * 5000, "a\0b", "~nobody-of-this-name/old.txt"):
        assert files.file_at(none) is None
    monkeypatch.chdir(folder)
    (folder / "~$old.txt").write_text("of an editor", encoding="utf-8")
    assert files.file_at("~$old.txt") == Path("~$old.txt")


def test_write_json_makes_folders_and_keeps_letters_readable(tmp_path):
    path = tmp_path / "deep" / "card.json"
    files.write_json(path, {"label": "Mütze", "sizes": (1, 2)})
    assert json.loads(path.read_text(encoding="utf-8")) == {"label": "Mütze", "sizes": [1, 2]}
    assert "Mütze" in path.read_text(encoding="utf-8")
    assert names(path.parent) == ["card.json"]


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "card.json", 1)
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "card.json", {"path": tmp_path})
    assert contents(tmp_path) == {"card.json": b"1\n"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), StorageError),
        (PermissionError(13, "Permission denied"), StorageError),
        (RuntimeError("faiss: write error in x: 0 != 4 (No space left on device)"), StorageError),
        (DataError("the source is damaged"), DataError),
        (ZeroDivisionError("a bug"), ZeroDivisionError),
        (KeyboardInterrupt("stopped"), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("write", [files.renamed, files.replaced_folder])
def test_failed_block_keeps_the_old_and_leaves_nothing_beside(folder, write, error, expected):
    path = folder / "old.txt" if write is files.renamed else folder
    said = re.escape(error.args[-1])
    with pytest.raises(expected, match=said) as caught, write(path) as new:
        (new if write is files.renamed else new / "half.txt").write_bytes(b"half")
        raise error
    assert caught.type is expected
    assert expected is not StorageError or str(path) in str(caught.value)
    assert contents(folder) == {"old.txt": b"old"}
    assert names(folder.parent) == ["toy"]


BEYOND_THE_LIMIT = """
import resource, sys
import faiss, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from rectrio_lib.core import files

index = faiss.IndexFlatL2(100)
index.add(np.zeros((1000, 100), np.float32))
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))  # the system refuses longer files
for write in (
    lambda folder: save_file({"x": np.zeros(100_000, np.float32)}, folder / "weights.safetensors"),
    lambda folder: faiss.write_index(index, str(folder / "vectors.faiss")),
    lambda folder: (folder / "text").write_bytes(bytes(100_000)),
):
    try:
        with files.replaced_folder(Path(sys.argv[1])) as fresh:
            write(fresh)
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX limit")
def test_full_disk_is_a_storage_error_whatever_the_library_calls_it(folder):
    command = [sys.executable, "-c", BEYOND_THE_LIMIT, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["StorageError"] * 3, done.stderr
    assert contents(folder) == {"old.txt": b"old"}
    assert names(folder.parent) == ["toy"]


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"card\.json"):
        files.write_json(tmp_path / "file" / "card.json", 1)
    with pytest.raises(StorageError, match="toy"), files.replaced_folder(tmp_path / "file" / "toy"):
        raise AssertionError("not reached")


WRITE_OFTEN = """
import sys
from pathlib import Path
from rectrio_lib.core import files

for number in range(60):
    files.write_json(Path(sys.argv[1]), [number] * 1000)
"""


def test_processes_that_write_the_same_file_do_not_collide(tmp_path):
    command = [sys.executable, "-c", WRITE_OFTEN, str(tmp_path / "card.json")]
    writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == [59] * 1000
    assert names(tmp_path) == ["card.json"]


def test_two_writers_of_one_folder_do_not_share_a_temporary_one(folder):
    with files.replaced_folder(folder) as first, files.replaced_folder(folder) as second:
        (first / "first.txt").write_bytes(b"1")
        (second / "second.txt").write_bytes(b"2")
    assert contents(folder) == {"first.txt": b"1"}


def test_leftovers_of_killed_processes_go_after_a_day_and_nothing_else_does(folder):
    old = time.time() - 2 * files.STALE_SECONDS
    for name in ("card.json.0.part", "card.json.1.part", "other.json.0.part"):
        (folder / name).touch()
    for name in ("card.json.0.part", "other.json.0.part", "old.txt"):
        os.utime(folder / name, (old, old))
    files.write_json(folder / "card.json", 1)
    assert names(folder) == ["card.json", "card.json.1.part", "old.txt", "other.json.0.part"]

    stale = folder.with_name("toy.0.new")
    stale.mkdir()
    os.utime(stale, (old, old))
    with files.replaced_folder(folder):
        pass
    assert names(folder.parent) == ["toy"]


# --- power cuts


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folder")
@pytest.mark.parametrize("write", ["file", "folder", "many files"])
def test_content_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(folder, monkeypatch, write):
    done, rename, fsync = [], Path.replace, os.fsync
    known = {}  # a folder or file by what the system calls it

    def synced(descriptor):
        fsync(descriptor)
        done.append(known.get(os.fstat(descriptor).st_ino, "another"))

    def renamed(path, target):
        done.append(f"{Path(target).name} named")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "sync", lambda: done.append("all"), raising=False)
    monkeypatch.setattr(Path, "replace", renamed)
    known[folder.stat().st_ino], known[folder.parent.stat().st_ino] = "toy", "home"
    if write == "file":
        with files.renamed(folder / "new.txt") as partial:
            partial.write_text("new", encoding="utf-8")
            known[partial.stat().st_ino] = "new.txt"
    else:
        with files.replaced_folder(folder) as fresh:
            for number in range(1 if write == "folder" else files.MANY):
                (fresh / f"{number}.txt").write_text("new", encoding="utf-8")
            known[fresh.stat().st_ino], known[(fresh / "0.txt").stat().st_ino] = "fresh", "new.txt"
    expected = {
        "file": ["new.txt", "new.txt named", "toy"],
        "folder": ["new.txt", "fresh", "toy.old named", "toy named", "home"],
        "many files": ["all", "toy.old named", "toy named", "home"],
    }[write]
    assert done == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folder")
@pytest.mark.parametrize("code", files.NO_SYNC)
def test_a_disk_that_cannot_sync_folders_is_written_all_the_same(folder, monkeypatch, code):
    fsync = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    files.write_json(folder / "old.txt", 1)
    assert contents(folder) == {"old.txt": b"1\n"}


# --- folders


def test_replaced_folder_holds_only_the_new_files_and_leaves_nothing_beside(folder):
    with files.replaced_folder(folder) as fresh:
        (fresh / "new.txt").write_text("new", encoding="utf-8")
        assert names(folder) == ["old.txt"]
    assert contents(folder) == {"new.txt": b"new"}
    assert names(folder.parent) == ["toy"]


@pytest.fixture
def killed_between_renames(folder) -> Path:
    """Return a folder that was set aside when the process that replaced it was killed."""
    return folder.rename(folder.with_name("toy.old")).with_name("toy")


def test_replaced_folder_is_set_aside_under_the_name_that_restore_folder_knows(folder, monkeypatch):
    renames, rename = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (renames.append(target.name), rename(self, target))[1])
    with files.replaced_folder(folder):
        pass
    assert renames == ["toy.old", "toy"]


def test_folder_of_a_process_killed_between_the_renames_comes_back(killed_between_renames):
    files.restore_folder(killed_between_renames)
    assert contents(killed_between_renames) == {"old.txt": b"old"}


def test_failure_after_a_kill_still_keeps_the_old_folder(killed_between_renames):
    with pytest.raises(ValueError, match="again"), files.replaced_folder(killed_between_renames):
        raise ValueError("again")
    assert contents(killed_between_renames) == {"old.txt": b"old"}
