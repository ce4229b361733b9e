"""Killed at any moment, the next call finishes as if nothing had happened: data sets and folders alike."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.stores import ROOT, SHARD, Counting, Killed, Negative, build, die, embed, keep, picture_set, save_pictures

from rectrio_lib.core.errors import RectrioError, StoreInUseError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data import image_files
from rectrio_lib.embeddings.embed import embed as embed_images
from rectrio_lib.embeddings.store import open_store

pytestmark = pytest.mark.slow

COUNT = 20  # files


def first_build(home):
    return lambda encoder: build(picture_set(), encoder)[0]


def appended(home):
    build(picture_set(17))
    return first_build(home)


def thinned(home):
    build(picture_set(20))
    return lambda encoder: build(keep(picture_set(30), np.arange(30) % 4 != 1), encoder)[0]


def relabelled(home):
    build(picture_set())
    changed = replace(picture_set(), manifest=picture_set().manifest.assign(label="ring"))
    return lambda encoder: build(changed, encoder)[0]


def other_encoder(home):
    embed_images(picture_set(), Negative(), dtype="float32", shard_rows=5, encoder_name="net")
    return first_build(home)


def first_files(home):
    save_pictures(home / "toys", range(COUNT))
    return lambda encoder: embed(home / "toys", encoder)[0]


def grown_files(home):
    save_pictures(home / "toys", range(9))
    embed(home / "toys")
    return first_files(home)


def thinned_files(home):
    run = first_files(home)
    run(None)
    for path in sorted((home / "toys" / "cat").iterdir())[::2]:
        path.unlink()
    save_pictures(home / "toys", range(30, 33))
    return run


def shuffled_files(home):
    run, folder = first_files(home), home / "toys"
    run(None)
    (folder / "cat" / "00.png").rename(folder / "dog" / "moved.png")
    (folder / "cat" / "02.png").unlink()
    shutil.copy(folder / "cat" / "04.png", folder / "copy.png")
    (folder / "cat" / "06.png").write_text("not an image any more", encoding="utf-8")
    save_pictures(folder / "more", range(40, 44))
    return run


FILES = [first_files, grown_files, thinned_files, shuffled_files]
SCENARIOS = [first_build, appended, thinned, relabelled, other_encoder, *FILES]


def prepared(tmp_path, monkeypatch, name, scenario):
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / name / "outputs"))
    return scenario(tmp_path / name)


def state(store):
    """What lies in the store's folder and beside it, but for times and places."""
    vectors = {p.name: p.read_bytes() for p in store.folder.glob("*.npy")}
    card = {key: value for key, value in store.card.items() if key not in ("folder", "checksums")}
    names = sorted(store.card["checksums"])
    files = store.files().drop(columns="mtime_ns").to_dict("list") if store.card["folder"] else None
    beside = [sorted(p.name for p in place.iterdir()) for place in (store.folder, store.folder.parent)]
    return vectors, store.rows.to_dict("list"), files, card, names, beside


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_rename_the_next_call_finishes_as_if_nothing_had_happened(tmp_path, monkeypatch, scenario):
    once = Counting()
    expected = state(prepared(tmp_path, monkeypatch, "whole", scenario)(once))
    kills, rename = 0, Path.replace
    while True:
        run, left = prepared(tmp_path, monkeypatch, str(kills), scenario), [kills]

        def replace_or_die(path, target, left=left):
            left[0] -= 1
            return rename(path, target) if left[0] >= 0 else die()

        killed, last = Counting(), Counting()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
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
    with pytest.raises(RectrioError):
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
    last = Counting()
    assert state(run(last)) == expected
    assert last.embedded == COUNT - SHARD


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


def embed_until_killed(home):
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
    first_files(Path(home))(Counting())


def test_kill_9_in_the_middle_of_a_shard_frees_the_store_and_loses_no_whole_shard(tmp_path, monkeypatch):
    expected = state(prepared(tmp_path, monkeypatch, "whole", first_files)(Counting()))
    run, last = prepared(tmp_path, monkeypatch, "killed", first_files), Counting()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    code = f"from embeddings import test_embed_killed as t; t.embed_until_killed({str(tmp_path / 'killed')!r})"
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        while not (Workspace().outputs / "waiting").exists():
            assert child.poll() is None, "the call ended by itself"
            time.sleep(0.05)
        with pytest.raises(StoreInUseError):
            run(Counting())
    finally:
        child.kill()
        child.wait()
    assert state(run(last))[:5] == expected[:5]
    assert last.embedded == COUNT - 2 * SHARD
