import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.stores import ROOT, SHARD, Counting, Killed, Negative, build, content, die, keep, picture_set

from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.embed import embed as embed_images


def first_build():
    return lambda encoder: build(picture_set(), encoder)


def appended():
    build(picture_set(17))
    return lambda encoder: build(picture_set(30), encoder)


def thinned():
    build(picture_set(20))
    return lambda encoder: build(keep(picture_set(30), np.arange(30) % 4 != 1), encoder)


def relabelled():
    build(picture_set())
    changed = replace(picture_set(), manifest=picture_set().manifest.assign(label="ring"))
    return lambda encoder: build(changed, encoder)


def other_encoder():
    store, _ = embed_images(picture_set(), Negative(), dtype="float32", shard_rows=5, encoder_name="net")
    assert len(store) == 30
    return lambda encoder: build(picture_set(), encoder)


SCENARIOS = [first_build, appended, thinned, relabelled, other_encoder]


def in_folder(monkeypatch, path):
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(path))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_rename_the_next_call_finishes_as_if_nothing_had_happened(tmp_path, monkeypatch, scenario):
    in_folder(monkeypatch, tmp_path / "whole")
    expected, needed = scenario()(Counting())
    expected, kills = content(expected), 0
    rename = Path.replace
    while True:
        in_folder(monkeypatch, tmp_path / str(kills))
        run, left = scenario(), [kills]

        def replace_or_die(path, target, left=left):
            left[0] -= 1
            return rename(path, target) if left[0] >= 0 else die()

        killed = Counting()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
            try:
                run(killed)
                break
            except Killed:
                kills += 1
        last = Counting()
        store, _ = run(last)
        assert content(store) == expected
        assert killed.embedded + last.embedded <= needed + SHARD
    assert kills >= (2 if scenario is relabelled else 3)


def test_killed_while_it_deletes_and_again_while_it_starts_no_old_vector_survives(tmp_path, monkeypatch):
    in_folder(monkeypatch, tmp_path / "whole")
    expected = content(other_encoder()(Counting())[0])
    for victim in ("card.json", "rows.parquet", "vectors-00000.npy"):
        in_folder(monkeypatch, tmp_path / victim)
        run = other_encoder()

        def delete_one_and_die(folder, victim=victim, **options):
            (Path(folder) / victim).unlink()
            die()

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(shutil, "rmtree", delete_one_and_die)
            run(Counting())
        with pytest.raises(Killed):
            run(Counting(0, die))
        assert content(run(Counting())[0]) == expected


@pytest.mark.parametrize("shards", range(5))
def test_killed_after_some_shards_the_next_call_embeds_only_the_rest(tmp_path, monkeypatch, shards):
    in_folder(monkeypatch, tmp_path / "whole")
    expected = content(build(picture_set())[0])
    in_folder(monkeypatch, tmp_path / "killed")
    with pytest.raises(Killed):
        build(picture_set(), Counting(shards, die))
    store, embedded = build(picture_set())
    assert embedded == 30 - shards * SHARD
    assert content(store) == expected


def test_orphans_of_a_killed_call_are_overwritten(tmp_path, monkeypatch):
    in_folder(monkeypatch, tmp_path / "whole")
    expected = content(build(picture_set())[0])
    in_folder(monkeypatch, tmp_path / "killed")
    with pytest.raises(Killed):
        build(picture_set(), Counting(2, die))
    folder = Workspace().outputs / "embeddings" / "net--toy"
    np.save(folder / "vectors-00002.npy", np.zeros((3, 36), np.float32))
    for name in ("vectors-00002.part", "vectors-00003.part", "rows.part", "card.json.part"):
        (folder / name).write_bytes(b"half")
    assert content(build(picture_set())[0]) == expected


def build_until_killed():
    """Run in a process of its own: waits for the end before the third shard."""

    def wait():
        (Workspace().outputs / "waiting").touch()
        time.sleep(600)

    build(picture_set(), Counting(2, wait))


def test_a_killed_process_is_continued_by_another_one(tmp_path, monkeypatch):
    in_folder(monkeypatch, tmp_path / "whole")
    expected = content(build(picture_set())[0])
    in_folder(monkeypatch, tmp_path / "killed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    code = "from embeddings import test_from_dataset_killed as t; t.build_until_killed()"
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        while not (tmp_path / "killed" / "waiting").exists():
            assert child.poll() is None, "the build ended by itself"
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    store, embedded = build(picture_set())
    assert embedded == 30 - 2 * SHARD
    assert content(store) == expected
