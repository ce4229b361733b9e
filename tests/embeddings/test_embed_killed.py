"""Killed at any moment, the next call finishes as if nothing had happened: data sets and folders alike."""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from makers.killed import COUNT, FILES, SCENARIOS, first_build, first_files, other_encoder, prepared, state
from makers.processes import Child
from makers.stores import SHARD, Counting, Killed, die

from rectrio_lib.core.errors import RectrioError, StoreInUseError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.embeddings.store import open_store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_rename_or_removal_the_next_call_makes_the_same_store(tmp_path, monkeypatch, scenario):
    once = Counting()
    expected = state(prepared(tmp_path, monkeypatch, "whole", scenario)(once))
    kills, rename, unlink = 0, Path.replace, Path.unlink
    while True:
        run, left = prepared(tmp_path, monkeypatch, str(kills), scenario), [kills]

        def or_die(act, left=left):
            left[0] -= 1
            return act() if left[0] >= 0 else die()

        def unlink_or_die(path, missing_ok=False):
            act = partial(unlink, path, missing_ok)
            return or_die(act) if path.suffix == ".parquet" else act()

        killed, last = Counting(), Counting()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda path, target, or_die=or_die: or_die(partial(rename, path, target)))
            patch.setattr(Path, "unlink", unlink_or_die)
            try:
                run(killed)
                break
            except Killed:
                kills += 1
        assert state(run(last)) == expected
        assert killed.embedded + last.embedded <= once.embedded + SHARD
    assert kills >= (3 if scenario not in FILES else 5)


@pytest.mark.parametrize("victim", ["card.json", "rows.parquet", "vectors-00000.npy"])
def test_killed_while_it_deletes_and_again_while_it_starts_no_old_vector_survives(tmp_path, monkeypatch, victim):
    expected = state(prepared(tmp_path, monkeypatch, "whole", other_encoder)(Counting()))
    run = prepared(tmp_path, monkeypatch, "killed", other_encoder)

    def delete_one_and_die(folder, **options):
        (Path(folder) / victim).unlink()
        die()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", delete_one_and_die)
        run(Counting())
    with pytest.raises(Killed):
        run(Counting(0, die))
    assert state(run(Counting())) == expected


@pytest.mark.parametrize("shards", [0, 1, 2])
@pytest.mark.parametrize("scenario", [first_build, first_files])
def test_killed_while_encoding_the_next_call_embeds_only_the_rest(tmp_path, monkeypatch, shards, scenario):
    once, last = Counting(), Counting()
    expected = state(prepared(tmp_path, monkeypatch, "whole", scenario)(once))
    run = prepared(tmp_path, monkeypatch, "killed", scenario)
    with pytest.raises(Killed):
        run(Counting(shards, die))
    with pytest.raises(RectrioError, match=f"holds {shards * SHARD} vectors"):
        open_store("net", "toys" if scenario is first_files else "toy")
    assert state(run(last)) == expected
    assert last.embedded == once.embedded - shards * SHARD


def test_killed_while_reading_the_next_call_reads_only_the_rest(tmp_path, monkeypatch):
    expected = state(prepared(tmp_path, monkeypatch, "whole", first_files)(Counting()))
    run, read = prepared(tmp_path, monkeypatch, "killed", first_files), image_files.read_image
    fatal = sorted((tmp_path / "killed" / "toys").rglob("*.png"))[SHARD + 2].name
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            image_files,
            "read_image",
            lambda home, path, *rest: die() if path.endswith(fatal) else read(home, path, *rest),
        )
        run(Counting())
    last, opened = Counting(), []
    monkeypatch.setattr(image_files, "read_image", lambda *file: opened.append(file) or read(*file))
    assert state(run(last)) == expected
    assert last.embedded == len(opened) == COUNT - SHARD


def test_orphans_of_a_killed_call_are_overwritten(tmp_path, monkeypatch):
    expected = state(prepared(tmp_path, monkeypatch, "whole", first_build)(Counting()))
    run = prepared(tmp_path, monkeypatch, "killed", first_build)
    with pytest.raises(Killed):
        run(Counting(2, die))
    folder = Workspace().outputs / "embeddings" / "net--toy"
    np.save(folder / "vectors-00002.npy", np.zeros((3, 36), np.float32))
    for name in ("vectors-00002.part", "vectors-00003.part", "rows.part", "card.part"):
        (folder / name).write_bytes(b"half")
    assert state(run(Counting())) == expected


EMBED_UNTIL_KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from makers.killed import first_files
from makers.stores import Counting
save = np.save

def save_half_and_wait(file, array):
    if not Path(file.name).name.startswith("vectors-00002"):
        return save(file, array)
    file.write(array.tobytes()[: array.nbytes // 2])
    file.flush()
    Path(sys.argv[2]).touch()
    time.sleep(600)

np.save = save_half_and_wait
first_files(Path(sys.argv[1]))(Counting())
"""  # in the middle of the third shard's file


def test_kill_9_in_the_middle_of_a_shard_frees_the_store_and_loses_nothing(tmp_path, monkeypatch):
    expected = state(prepared(tmp_path, monkeypatch, "whole", first_files)(Counting()))
    run, last = prepared(tmp_path, monkeypatch, "killed", first_files), Counting()
    child = Child(EMBED_UNTIL_KILLED, tmp_path / "killed", Workspace().outputs / "waiting")
    try:
        child.wait_until((Workspace().outputs / "waiting").exists)
        with pytest.raises(StoreInUseError):
            run(Counting())
    finally:
        child.kill()
    assert state(run(last))[:5] == expected[:5]
    assert last.embedded == 0


@pytest.mark.parametrize("torn", ["vectors-00001.npy", "rows-00001.parquet", "files-00001.parquet", "both shards"])
def test_a_power_cut_that_took_the_content_of_the_last_files_costs_only_those(tmp_path, monkeypatch, torn):
    expected = state(prepared(tmp_path, monkeypatch, "whole", first_files)(Counting()))
    run, last = prepared(tmp_path, monkeypatch, "killed", first_files), Counting()
    with pytest.raises(Killed):
        run(Counting(2, die))
    folder = Workspace().outputs / "embeddings" / "net--toys"
    for name in ("vectors-00000.npy", "vectors-00001.npy") if torn == "both shards" else (torn,):
        os.truncate(folder / name, 0)
    assert state(run(last)) == expected
    kept = {"both shards": 0, "files-00001.parquet": 2}.get(torn, 1)
    assert last.embedded == COUNT - kept * SHARD
