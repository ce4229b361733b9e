import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from makers.stores import ROOT, SHARD, Counting, Killed, die, embed, holds_files, save_pictures

from rectrio_lib.core import errors
from rectrio_lib.core.errors import StoreInUseError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.embeddings.store import open_store

COUNT = 20


def first_call(folder):
    save_pictures(folder, range(COUNT))


def grown(folder):
    save_pictures(folder, range(9))
    embed(folder)
    save_pictures(folder, range(9, COUNT))


def thinned(folder):
    first_call(folder)
    embed(folder)
    for path in sorted((folder / "cat").iterdir())[::2]:
        path.unlink()
    save_pictures(folder, range(30, 33))


def shuffled(folder):
    first_call(folder)
    embed(folder)
    (folder / "cat" / "00.png").rename(folder / "dog" / "moved.png")
    (folder / "cat" / "02.png").unlink()
    shutil.copy(folder / "cat" / "04.png", folder / "copy.png")
    (folder / "cat" / "06.png").write_text("no picture any more", encoding="utf-8")
    save_pictures(folder / "more", range(40, 44))


SCENARIOS = [first_call, grown, thinned, shuffled]


def state(store):
    """What lies in the store's folder and beside it, but for times and places."""
    vectors = {p.name: p.read_bytes() for p in store.folder.glob("*.npy")}
    files = store.files().drop(columns="mtime_ns").to_dict("list")
    card = {key: value for key, value in store.card.items() if key != "folder"}
    beside = [sorted(p.name for p in place.iterdir()) for place in (store.folder, store.folder.parent)]
    return vectors, store.rows.to_dict("list"), files, card, beside


def prepared(tmp_path, monkeypatch, name, scenario):
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / name / "outputs"))
    scenario(tmp_path / name / "toys")
    return tmp_path / name / "toys"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_rename_the_next_call_finishes_as_if_nothing_had_happened(tmp_path, monkeypatch, scenario):
    store, report = embed(prepared(tmp_path, monkeypatch, "whole", scenario))
    expected, kills, rename = state(store), 0, Path.replace
    while True:
        folder, left = prepared(tmp_path, monkeypatch, str(kills), scenario), [kills]

        def replace_or_die(path, target, left=left):
            left[0] -= 1
            return rename(path, target) if left[0] >= 0 else die()

        killed, last = Counting(), Counting()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
            try:
                embed(folder, killed)
                break
            except Killed:
                kills += 1
        assert state(embed(folder, last)[0]) == expected
        assert killed.embedded + last.embedded <= report.embedded + SHARD
        holds_files(open_store("net", "toys"), folder)
    assert kills >= 5


@pytest.mark.parametrize("shards", [0, 1, 2])
@pytest.mark.parametrize("stage", ["reading", "encoding"])
def test_killed_while_reading_or_encoding_the_next_call_does_only_the_rest(tmp_path, monkeypatch, shards, stage):
    expected = state(embed(prepared(tmp_path, monkeypatch, "whole", first_call))[0])
    folder = prepared(tmp_path, monkeypatch, "killed", first_call)
    read, fatal = image_files.read_image, sorted(folder.rglob("*.png"))[shards * SHARD + 2].name

    def read_or_die(home, path, *rest):
        return die() if stage == "reading" and path.endswith(fatal) else read(home, path, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(image_files, "read_image", read_or_die)
        embed(folder, Counting(shards, die) if stage == "encoding" else Counting())
    with pytest.raises((ValueError, errors.MissingArtefactError)):
        open_store("net", "toys")
    store, report = embed(folder)
    assert report.embedded == COUNT - shards * SHARD
    assert state(store) == expected


def embed_until_killed(folder):
    """Run in a process of its own: waits for the end in the middle of the third shard's file."""
    save = np.save

    def save_half_and_wait(file, array):
        if not Path(file.name).name.startswith("vectors-00002"):
            return save(file, array)
        file.write(array.tobytes()[: array.nbytes // 2])
        file.flush()
        (Workspace().outputs / "waiting").touch()
        time.sleep(600)

    np.save = save_half_and_wait
    embed(Path(folder))


def test_kill_9_in_the_middle_of_a_shard_frees_the_store_and_loses_no_whole_shard(tmp_path, monkeypatch):
    expected = state(embed(prepared(tmp_path, monkeypatch, "whole", first_call))[0])
    folder = prepared(tmp_path, monkeypatch, "killed", first_call)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    code = f"from embeddings import test_from_folder_killed as t; t.embed_until_killed({str(folder)!r})"
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        while not (Workspace().outputs / "waiting").exists():
            assert child.poll() is None, "the call ended by itself"
            time.sleep(0.05)
        with pytest.raises(StoreInUseError, match="another process"):
            embed(folder)
    finally:
        child.kill()
        child.wait()
    store, report = embed(folder)
    assert report.embedded == COUNT - 2 * SHARD
    assert holds_files(store, folder) == COUNT
    assert state(store)[:4] == expected[:4]
    assert not list(store.folder.glob("*.part"))
