"""What is embedded and in no shard yet lies in a journal: a death costs a batch, and the store is the same."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from makers.killed import COUNT, SCENARIOS, first_build, first_files, prepared, state
from makers.stores import Counting, Killed, Negative, build, die, embed, holds, keep, picture_set, save_pictures
from tqdm.auto import tqdm

from rectrio_lib.core.errors import DataError, StorageError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings import embed as conductor
from rectrio_lib.embeddings.journal import Journal
from rectrio_lib.embeddings.store import open_store

pytestmark = pytest.mark.slow
STEP = 3  # images a batch, of shards of SHARD = 7


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(conductor, "BATCH", STEP)


def one_shard(home):
    return lambda encoder: build(picture_set(), encoder, shard_rows=100)[0]


def one_shard_of_files(home):
    save_pictures(home / "toys", range(COUNT))
    return lambda encoder: embed(home / "toys", encoder, shard_rows=100)[0]


def blocks():
    """Files of the journal, the oldest first."""
    found = (Workspace().outputs / "embeddings").glob("*/journal/*")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def killed_before(batch, run):
    """Run, and die before a batch; return the encoder."""
    encoder = Counting(batch, die)
    with pytest.raises(Killed):
        run(encoder)
    return encoder


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_batch_no_image_is_encoded_twice_and_the_store_is_the_same(tmp_path, monkeypatch, scenario):
    once = Counting()
    expected = state(prepared(tmp_path, monkeypatch, "whole", scenario)(once))
    for batch in range(once.calls):
        run, last = prepared(tmp_path, monkeypatch, str(batch), scenario), Counting()
        killed = killed_before(batch, run)
        assert state(run(last)) == expected
        assert killed.embedded + last.embedded == once.embedded


@pytest.mark.parametrize("scenario", [first_build, first_files])
def test_killed_again_and_again(tmp_path, monkeypatch, scenario):
    once = Counting()
    expected = state(prepared(tmp_path, monkeypatch, "whole", scenario)(once))
    run, embedded = prepared(tmp_path, monkeypatch, "killed", scenario), 0
    for batch in [1] * (once.calls - 1):
        embedded += killed_before(batch, run).embedded
    last = Counting()
    assert state(run(last)) == expected
    assert embedded + last.embedded == once.embedded


@pytest.mark.parametrize("content", [lambda old: b"", lambda old: old[:-9], lambda old: bytes(len(old))])
@pytest.mark.parametrize("torn", range(3))
@pytest.mark.parametrize("scenario", [one_shard, one_shard_of_files])
def test_a_torn_block_is_embedded_again_in_its_place(tmp_path, monkeypatch, scenario, torn, content):
    expected = state(prepared(tmp_path, monkeypatch, "whole", scenario)(once := Counting()))
    run, last = prepared(tmp_path, monkeypatch, "killed", scenario), Counting()
    killed_before(4, run)
    path = blocks()[torn]
    path.write_bytes(content(path.read_bytes()))
    assert state(run(last)) == expected
    assert last.embedded == once.embedded - 3 * STEP


@pytest.mark.parametrize("options", [{"kind": Negative}, {"dtype": "float16"}])
def test_the_journal_of_another_encoder_or_dtype_goes_with_the_rest(options):
    kind, last = options.pop("kind", Counting), Counting()
    with pytest.raises(Killed):
        build(picture_set(), kind(2, die), **options)
    assert len(blocks()) == 2
    store, embedded = build(picture_set(), last)
    assert embedded == len(store) == 30 and holds(store, picture_set()) is None


def test_a_data_set_whose_column_is_a_number_outlives_a_kill():
    numbered = replace(picture_set(), manifest=picture_set().manifest.assign(**{"five": 1}).rename(columns={"five": 5}))
    killed_before(4, lambda encoder: build(numbered, encoder))
    store, embedded = build(numbered)
    assert embedded == len(store) - 4 * STEP and store.select()["5"].eq(1).all()


def test_a_full_disk_is_one_sentence_and_costs_a_batch(tmp_path, monkeypatch):
    expected = state(prepared(tmp_path, monkeypatch, "whole", first_files)(Counting()))
    run, write, left, last = prepared(tmp_path, monkeypatch, "killed", first_files), Path.write_bytes, [4], Counting()

    def write_until_full(path, content):
        left[0] -= 1
        if left[0] < 0:
            write(path, content[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="net--toys"):
        patch.setattr(Path, "write_bytes", write_until_full)
        run(Counting())
    assert state(run(last)) == expected
    assert last.embedded == COUNT - 4 * STEP


def test_of_copies_that_two_workers_encoded_the_first_counts_and_what_is_not_listed_comes_last(tmp_path):
    none = pd.DataFrame({"image_id": [], "path": []}, dtype=str)
    rows = pd.DataFrame({"image_id": ["gone", "x", "y", "x"], "path": ["away", "c", "b", "a"]})
    vectors = Journal(tmp_path, "float32", none).add(rows, np.eye(4))
    journal = Journal(tmp_path, "float32", none)
    assert journal.sort(pd.Series(["a", "b", "c", "d"], name="path")) == 2
    assert journal.rows["path"].tolist() == ["a", "b", "away"]
    np.testing.assert_array_equal(journal.vectors, vectors[[3, 2, 0]])
    fresh = pd.DataFrame({"image_id": ["z"], "path": ["d"]})
    both, _ = journal.with_earlier(fresh, np.ones((1, 4), np.float32))
    assert both["path"].tolist() == ["a", "b", "d"] and journal.rows["path"].tolist() == ["away"]
    journal.forget(both["image_id"])
    assert len([*tmp_path.glob("journal/*")]) == 1  # which still holds one that is in no shard
    journal.forget(["gone"])
    assert not [*tmp_path.glob("journal/*")]


def test_images_that_went_after_the_kill_are_not_in_the_store():
    killed_before(8, lambda encoder: build(picture_set(), encoder))
    fewer = keep(picture_set(), [number % 5 > 0 for number in range(30)])
    store, embedded = build(fewer)
    assert holds(store, fewer) is None and embedded == 5
    assert not blocks()


def test_a_journal_that_an_older_version_left_beside_a_finished_store_does_not_count(tmp_path):
    killed_before(2, lambda encoder: build(picture_set(), encoder))
    shutil.copytree(home := blocks()[0].parent, tmp_path / "kept")
    fewer = keep(picture_set(), [number > 3 for number in range(30)])
    store, _ = build(fewer)
    shutil.copytree(tmp_path / "kept", home)
    again, embedded = build(fewer)
    assert embedded == 0 and not home.exists()
    assert again.rows.equals(store.rows) and holds(again, fewer) is None


@pytest.mark.parametrize("scenario", [one_shard, one_shard_of_files])
def test_the_bar_begins_with_what_is_kept_and_ends_full(tmp_path, monkeypatch, scenario):
    run, bars = prepared(tmp_path, monkeypatch, "killed", scenario), []

    def shown(**options):
        bars.append(tqdm(**options | {"disable": False}))
        return bars[-1]

    killed_before(4, run)
    monkeypatch.setattr(conductor, "tqdm", shown)
    store = run(Counting())
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(4 * STEP, len(store), len(store))]


@pytest.mark.parametrize("batches", [0, 2, 4])
def test_what_a_half_finished_store_is_said_to_hold_is_what_shards_and_journal_hold(batches):
    killed_before(batches, lambda encoder: build(picture_set(), encoder))
    with pytest.raises(DataError, match=f"holds {batches * STEP} vectors"):
        open_store("net", "toy")


def test_copies_of_what_the_journal_holds_are_counted_and_not_embedded(tmp_path):
    save_pictures(tmp_path / "toys", range(COUNT))
    shutil.copy(tmp_path / "toys" / "cat" / "00.png", tmp_path / "toys" / "dog" / "zz.png")
    killed_before(5, lambda encoder: embed(tmp_path / "toys", encoder, shard_rows=100))
    store, report = embed(tmp_path / "toys", shard_rows=100)
    assert (report.files, report.embedded, report.copies) == (COUNT + 1, COUNT - 5 * STEP, 1)
    assert len(store) == COUNT
