import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from makers.stores import SHARD, Counting, Killed, Negative, build, content, die, holds, keep, picture_set

from rectrio_lib.core import errors
from rectrio_lib.core.errors import StoreInUseError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data.dataset import ImageDataset, make_manifest
from rectrio_lib.embeddings import embed
from rectrio_lib.embeddings.embed import Report
from rectrio_lib.embeddings.embed import embed as embed_images
from rectrio_lib.embeddings.from_dataset import DatasetSource
from rectrio_lib.embeddings.store import open_store
from rectrio_lib.encoders.base import RawPixels

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
    store, _ = build(replace(picture_set(), generated_images=True))
    card = json.loads((store.folder / "card.json").read_text(encoding="utf-8"))
    told = {"encoder": "net", "dim": 36, "dtype": "float32", "dataset": "toy", "count": 30, "stand_in": True}
    assert {key: card[key] for key in told} == told
    assert card["dataset_hash"] == picture_set().hash
    assert store.folder == Workspace().outputs / "embeddings" / "net--toy"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell which pages are resident")
def test_pages_of_mapped_pixels_do_not_stay_in_memory(tmp_path):
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).integers(0, 256, (4_000, 1, 32, 32), np.uint8))
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    manifest = make_manifest(pixels, pd.DataFrame({"label": "a"}, range(4_000)))
    source = DatasetSource(ImageDataset("mapped", manifest, pixels, ("a",), "noise"))
    source.open(None, tmp_path, source.empty, source.empty["image_id"])
    sums = [int(images.numpy().sum(dtype=np.int64)) for _, images in source.batches(128)]
    assert sum(sums) == pixels.sum(dtype=np.int64)
    assert resident(tmp_path / "pixels.npy") > 3_000  # kB: the line above has read it all
    for _ in source.batches(128):
        assert resident(tmp_path / "pixels.npy") < 100


def test_rows_that_the_caller_holds_are_not_held_twice_and_stay_the_callers():
    dataset = picture_set()
    store, _ = build(dataset)
    assert np.shares_memory(store.rows["row"].to_numpy(), dataset.manifest["row"].to_numpy())
    pd.testing.assert_frame_equal(store.rows, pd.read_parquet(store.folder / "rows.parquet"))
    store.rows.loc[:, "row"] = -1
    store.rows.loc[0, "image_id"] = "changed"
    pd.testing.assert_frame_equal(dataset.manifest, picture_set().manifest)


def resident(path):
    """The kB of a mapped file that count as memory of this process."""
    _, _, told = Path("/proc/self/smaps").read_text(encoding="utf-8").partition(str(path))
    return int(re.search(r"Rss: +(\d+) kB", told)[1])


# --- what is refused


def test_a_store_that_was_stopped_half_way_is_not_opened():
    with pytest.raises(Killed):
        build(picture_set(), Counting(2, die))
    with pytest.raises(ValueError, match=r" 14 vectors"):
        open_store("net", "toy")


def test_a_missing_store_names_the_chapter_that_makes_it():
    with pytest.raises(errors.MissingArtefactError, match="--only 04"):
        open_store("net", "toy")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def huge(path):
    content = path.read_bytes()
    shape = b"(" + b"1" + b"0" * 30 + b", 36)"
    path.write_bytes(content.replace(b"(7, 36), }" + b" " * 29, shape + b", }"))


@pytest.mark.parametrize(
    "damage",
    [
        *(Path.unlink, cut, huge, lambda p: p.write_bytes(b""), lambda p: np.save(p, np.zeros((3, 36), np.float32))),
        *(lambda p: np.save(p, np.zeros((7, 36), np.float32)), lambda p: np.save(p, np.zeros((7, 36), np.float16))),
        lambda p: shutil.copy(p.with_name("vectors-00002.npy"), p),
    ],
    ids=["missing", "cut", "huge", "empty", "shorter", "zeros", "another type", "another shard"],
)
def test_a_damaged_shard_is_named_together_with_what_to_do(damage):
    store, _ = build(picture_set())
    damage(store.folder / "vectors-00001.npy")
    for opening in (lambda: open_store("net", "toy"), lambda: build(picture_set())):
        with pytest.raises(errors.DataError, match=r"vectors-00001\.npy"):
            opening()


def test_an_unknown_dtype_is_refused_before_anything_is_written():
    with pytest.raises(ValueError, match="int8"):
        build(picture_set(), dtype="int8")
    assert not Workspace().outputs.exists()


def test_pictures_that_do_not_fit_the_encoder_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 9, 9\)"):
        embed_images(picture_set(), RawPixels(1, 9), dtype="float32", shard_rows=SHARD, encoder_name="net")


def test_a_second_writer_is_refused_while_the_first_one_works_and_not_afterwards():
    def meanwhile():
        with pytest.raises(StoreInUseError, match="net--toy"):
            embed_images(picture_set(5), Counting(), dtype="float32", shard_rows=SHARD, encoder_name="net")

    store, embedded = build(picture_set(), Counting(2, meanwhile))
    assert embedded == 30
    holds(store, picture_set())
    assert build(picture_set(5))[1] == 0


# --- what a call reports


def test_a_report_says_how_fast_and_which_stage_limits():
    seconds = {"listing": 1.0, "reading": 2.0, "encoding": 6.0, "writing": 1.0}
    report = Report(files=40, embedded=30, copies=4, bad=5, deleted=2, seconds=seconds)
    shares = {"listing": 0.1, "reading": 0.2, "encoding": 0.6, "writing": 0.1}
    assert report.timings == {"images_per_second": 3.0, **shares, "limit": "encoding"}
    assert str(report) == (
        "30 of 40 embedded in 10.0 s, 3.0 a second (listing 10%, reading 20%, encoding 60%, writing 10%: encoding "
        "limits); 4 copies, 5 unreadable, 2 deleted"
    )
    assert Report().timings["images_per_second"] == 0
    assert str(Report(copies=1)).endswith("; 1 copy, 0 unreadable, 0 deleted")


def test_time_is_counted_for_the_stage_even_if_it_fails(monkeypatch):
    ticks = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(embed, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    report = Report()
    with report.timed("reading"):
        pass
    with pytest.raises(Killed), report.timed("reading"):
        die()
    assert report.seconds == {"listing": 0, "reading": 3.5, "encoding": 0, "writing": 0}
