import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rectrio_lib import resources
from rectrio_lib.datasets import ImageDataset, make_manifest
from rectrio_lib.embeddings import build_store, open_store
from rectrio_lib.encoders import RawPixels
from rectrio_lib.shapes import SHAPES, draw_shapes

ROOT = Path(__file__).resolve().parents[1]
SHARD = 7


class Killed(BaseException):
    """Nothing catches it, as nothing catches a killed process."""


class Counting(RawPixels):
    """Raw pixels that count what they embed, and stop before a given call."""

    def __init__(self, stop_at=None, stop=None, size=6):
        super().__init__(1, size)
        self.embedded, self.calls, self.stop_at, self.stop = 0, 0, stop_at, stop
        self.arguments = {"channels": 1, "size": size}

    def encode(self, images, progress=""):
        if self.calls == self.stop_at:
            self.stop()
        self.calls += 1
        self.embedded += len(images)
        return super().encode(images, progress)


class Negative(Counting):
    """Another encoder of the same length."""

    kind = "negative"

    def encode(self, images, progress=""):
        return -super().encode(images, progress)


def die():
    raise Killed


def picture_set(count=30, seed=0):
    pixels, frame = draw_shapes(3, views=1, size=6, seed=seed)
    splits = np.resize(["train", "test", "train", "val"], len(pixels))
    manifest = make_manifest(pixels, frame[["label"]].assign(split=splits)).iloc[:count]
    return ImageDataset("toy", manifest, pixels, tuple(SHAPES), "drawn")


def keep(dataset, chosen):
    return replace(dataset, manifest=dataset.manifest[chosen].reset_index(drop=True))


def build(dataset, encoder=None, dtype="float32", shard_rows=SHARD):
    encoder = encoder or Counting()
    store, embedded = build_store(encoder, "net", dataset, dtype, shard_rows)
    assert encoder.embedded == embedded
    return store, embedded


def holds(store, dataset, sign=1):
    """Every picture of the data set is in the store once, with its own vector and what the manifest says of it."""
    assert len(store) == len(dataset)
    rows = store.select()
    told = dataset.manifest.set_index("image_id").loc[rows["image_id"]].reset_index()
    pd.testing.assert_frame_equal(rows, told[rows.columns], check_dtype=False)
    np.testing.assert_allclose(
        store.vectors(), sign * RawPixels(1, 6).encode(dataset.pixels[rows["row"].to_numpy()]), atol=1e-6
    )


def content(store):
    """Everything in the store's folder, to the byte, and whatever lies beside it."""
    files = {p.name: p.read_bytes() for p in store.folder.iterdir()}
    beside = sorted(p.name for p in store.folder.parent.iterdir())
    assert pd.read_parquet(store.folder / "rows.parquet").equals(store.rows)
    return {name: data for name, data in files.items() if name != "rows.parquet"}, store.rows.to_dict("list"), beside


# --- what a store holds


def test_every_picture_is_embedded_once_and_lies_in_the_order_of_the_rows():
    store, embedded = build(picture_set())
    assert embedded == 30
    assert not store.rows["image_id"].duplicated().any()
    assert store.rows["shard"].value_counts().sort_index().tolist() == [7, 7, 7, 7, 2]
    holds(store, picture_set())


def test_a_second_call_embeds_nothing_and_changes_nothing():
    first = content(build(picture_set())[0])
    store, embedded = build(picture_set())
    assert embedded == 0
    assert content(store) == first


def test_an_opened_store_equals_the_built_one():
    built, _ = build(picture_set())
    opened = open_store("net", "toy")
    assert opened.rows.equals(built.rows) and opened.card == built.card
    np.testing.assert_array_equal(opened.vectors(), built.vectors())


def test_ten_new_pictures_embed_ten():
    before, _ = build(picture_set(20))
    store, embedded = build(picture_set(30))
    assert embedded == 10
    assert store.rows["image_id"][:20].tolist() == before.rows["image_id"].tolist()
    holds(store, picture_set(30))


@pytest.mark.parametrize(
    "chosen",
    [np.arange(30) % 3 != 1, np.arange(30) >= 9, np.arange(30) < 0],
    ids=["from every shard", "a whole shard", "all"],
)
def test_pictures_that_left_the_data_set_vanish_without_embedding_anything(chosen):
    build(picture_set())
    store, embedded = build(keep(picture_set(), chosen))
    assert embedded == 0
    assert len(list(store.folder.glob("*.npy"))) == store.rows["shard"].nunique()
    holds(store, keep(picture_set(), chosen))


def test_pictures_that_come_and_go_at_once_are_appended_and_dropped():
    build(keep(picture_set(), np.arange(30) < 20))
    store, embedded = build(keep(picture_set(), np.arange(30) >= 5))
    assert embedded == 10
    holds(store, keep(picture_set(), np.arange(30) >= 5))


def test_changed_labels_and_splits_reach_the_rows_without_embedding():
    build(picture_set())
    changed = picture_set()
    changed = replace(changed, manifest=changed.manifest.assign(label="ring", split="val", note="new"))
    store, embedded = build(changed)
    assert embedded == 0
    holds(store, changed)


def test_pictures_that_moved_in_the_array_file_are_followed_though_the_data_set_is_the_same():
    build(picture_set())
    turned = picture_set()
    manifest = turned.manifest.assign(row=turned.manifest["row"].to_numpy()[::-1]).iloc[::-1]
    turned = replace(turned, pixels=turned.pixels[::-1], manifest=manifest.reset_index(drop=True))
    turned.manifest["row"] = np.arange(30)
    assert turned.hash == picture_set().hash
    store, embedded = build(turned)
    assert embedded == 0
    holds(store, turned)


@pytest.mark.parametrize(
    ("encoder", "dtype", "sign"), [(Negative, "float32", -1), (Counting, "float16", 1)], ids=["encoder", "dtype"]
)
def test_another_encoder_or_dtype_embeds_everything_anew(encoder, dtype, sign):
    first = build(picture_set(), shard_rows=3)[0].vectors()
    store, embedded = build(picture_set(), encoder(), dtype)
    assert embedded == 30
    assert len(list(store.folder.glob("*.npy"))) == 5
    np.testing.assert_allclose(store.vectors(), sign * first, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-4), ("float32", 0)])
def test_vectors_are_kept_in_the_asked_precision_and_read_as_float32(dtype, tolerance):
    store, _ = build(picture_set(), dtype=dtype)
    exact = RawPixels(1, 6).encode(picture_set().pixels)
    assert np.load(store.folder / "vectors-00000.npy").dtype == dtype
    assert store.vectors().dtype == np.float32
    np.testing.assert_allclose(store.vectors(), exact, rtol=0, atol=tolerance)
    assert np.array_equal(store.vectors(), exact) is (dtype == "float32")


def test_vectors_of_chosen_splits_match_their_rows():
    store, _ = build(picture_set())
    by_id = dict(zip(store.rows["image_id"], store.vectors(), strict=True))
    for splits in [("test",), ("train", "val"), ("val",), ("nowhere",), ()]:
        rows, vectors = store.select(*splits), store.vectors(*splits)
        assert set(rows["split"]) == set(splits or ("train", "val", "test")) - {"nowhere"}
        assert vectors.shape == (len(rows), 36)
        for image_id, vector in zip(rows["image_id"], vectors, strict=True):
            np.testing.assert_array_equal(vector, by_id[image_id])
    assert "shard" not in store.select("test")


def test_the_card_says_which_encoder_and_data_set_the_vectors_come_from():
    store, _ = build(replace(picture_set(), stand_in=True))
    card = json.loads((store.folder / "card.json").read_text(encoding="utf-8"))
    told = {"encoder": "net", "dim": 36, "dtype": "float32", "dataset": "toy", "count": 30, "stand_in": True}
    assert {key: card[key] for key in told} == told
    assert card["dataset_hash"] == picture_set().hash
    assert store.folder == resources.outputs_root() / "embeddings" / "net--toy"


# --- killed, and continued


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
    store, _ = build_store(Negative(), "net", picture_set(), "float32", 5)
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
    folder = resources.outputs_root() / "embeddings" / "net--toy"
    np.save(folder / "vectors-00002.npy", np.zeros((3, 36), np.float32))
    for name in ("vectors-00002.part", "vectors-00003.part", "rows.part", "card.json.part"):
        (folder / name).write_bytes(b"half")
    assert content(build(picture_set())[0]) == expected


def build_until_killed():
    """Run in a process of its own: waits for the end before the third shard."""

    def wait():
        (resources.outputs_root() / "waiting").touch()
        time.sleep(600)

    build(picture_set(), Counting(2, wait))


def test_a_killed_process_is_continued_by_another_one(tmp_path, monkeypatch):
    in_folder(monkeypatch, tmp_path / "whole")
    expected = content(build(picture_set())[0])
    in_folder(monkeypatch, tmp_path / "killed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    code = "import test_embeddings; test_embeddings.build_until_killed()"
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


# --- what is refused


def test_a_store_that_was_stopped_half_way_is_not_opened():
    with pytest.raises(Killed):
        build(picture_set(), Counting(2, die))
    with pytest.raises(ValueError, match=r"holds 14 of 30 vectors: .*04_build_embeddings"):
        open_store("net", "toy")


def test_a_missing_store_names_the_chapter_that_makes_it():
    with pytest.raises(resources.MissingArtefact, match=r"net--toy is missing\. Chapter 04_build_embeddings makes it"):
        open_store("net", "toy")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda p: np.save(p, np.zeros((3, 36), np.float32)), cut, lambda p: p.write_bytes(b"")],
    ids=["missing", "shorter", "cut", "empty"],
)
def test_a_damaged_shard_is_named_together_with_what_to_do(damage):
    store, _ = build(picture_set())
    damage(store.folder / "vectors-00001.npy")
    sentence = "vectors-00001.npy does not hold the 7 vectors that rows.parquet names: delete"
    for opening in (lambda: open_store("net", "toy"), lambda: build(picture_set())):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            opening()


def test_an_unknown_dtype_is_refused_before_anything_is_written():
    with pytest.raises(ValueError, match="dtype='int8': choose float16 or float32"):
        build(picture_set(), dtype="int8")
    assert not resources.outputs_root().exists()


def test_pictures_that_do_not_fit_the_encoder_are_refused():
    with pytest.raises(ValueError, match="takes pictures of shape"):
        build_store(RawPixels(1, 9), "net", picture_set())
