import os
import shutil

import pandas as pd
import pytest
from makers.stores import SHARD, embed, embeds_nothing, holds_files, save_pictures
from PIL import Image

from rectrio_lib.core.workspace import Workspace


@pytest.fixture
def folder(tmp_path):
    return save_pictures(tmp_path / "toys", range(30))


# --- what a store of files holds


def test_every_file_is_embedded_with_what_its_folder_tells(folder):
    Image.new("L", (6, 12), 9).save(folder / "cat" / "tall.png")
    store, report = embed(folder)
    assert holds_files(store, folder) == report.embedded == report.files == 31
    assert list(store.select()) == ["image_id", "path", "label", "split", "width", "height"]
    rows = store.select().set_index("path")
    assert (rows["label"] == [path.partition("/")[0] for path in rows.index]).all()
    assert rows["split"].eq("").all()
    assert rows.loc["cat/tall.png", ["width", "height"]].tolist() == [6, 12]
    assert store.rows["shard"].value_counts().max() == SHARD
    assert (report.ledger.empty, report.bad, report.copies, report.deleted) == (True, 0, 0, 0)


def test_a_flat_folder_has_no_labels_and_folders_of_splits_have_splits(tmp_path):
    save_pictures(tmp_path / "pictures", range(4))
    flat = tmp_path / "pictures" / "cat"
    assert embed(flat)[0].select()["label"].tolist() == ["", ""]
    save_pictures(tmp_path / "divided" / "train", range(4))
    save_pictures(tmp_path / "divided" / "test", range(4, 6))
    store, _ = embed(tmp_path / "divided")
    assert store.select("test")[["path", "label"]].values.tolist() == [
        ["test/cat/04.png", "cat"],
        ["test/dog/05.png", "dog"],
    ]
    assert (len(store.vectors("train")), len(store.vectors("test")), len(store.vectors())) == (4, 2, 6)


def test_the_card_says_where_the_pictures_are(folder):
    store, _ = embed(folder, name="mine")
    assert store.folder == Workspace().outputs / "embeddings" / "net--mine"
    told = {
        "dataset": "mine",
        "folder": str(folder.resolve()),
        "count": 30,
        "dim": 36,
        "stand_in": False,
        "finished": True,
    }
    assert {key: store.card[key] for key in told} == told
    (folder / "cat" / "00.png").unlink()
    assert embed(folder, name="mine")[0].card["dataset_hash"] != store.card["dataset_hash"]


def test_a_manifest_tells_splits_groups_and_labels(folder):
    manifest = pd.DataFrame({"path": ["cat/00.png", "dog/01.png"], "split": "test", "group": ["g", "h"], "row": 7})
    store, _ = embed(folder, manifest=manifest)
    assert store.select("test")[["path", "label", "group"]].values.tolist() == [
        ["cat/00.png", "cat", "g"],
        ["dog/01.png", "dog", "h"],
    ]
    assert "row" not in store.select()
    assert len(embeds_nothing(folder, manifest=manifest.assign(split="val")).select("val")) == 2


# --- what is embedded again


def test_an_unchanged_folder_is_not_read_again(folder):
    (folder / "broken.png").write_text("no picture", encoding="utf-8")
    before, _ = embed(folder)
    written = {p.name: p.read_bytes() for p in before.folder.glob("*.[nj]*")}
    told = before.files()
    after = embeds_nothing(folder)
    assert {p.name: p.read_bytes() for p in after.folder.glob("*.[nj]*")} == written
    tables = {"files.parquet", "files-manifests.parquet", "rows.parquet"}
    assert {p.name for p in after.folder.iterdir()} == {*written, *tables}
    assert after.rows.equals(before.rows)
    assert after.files().to_dict("list") == told.to_dict("list")


def test_ten_new_files_embed_ten(folder):
    before, _ = embed(folder)
    save_pictures(folder, range(30, 40))
    store, report = embed(folder)
    assert (report.embedded, report.files) == (10, 40)
    assert store.rows["image_id"][:30].tolist() == before.rows["image_id"].tolist()
    assert holds_files(store, folder) == 40


def test_a_moved_file_is_followed_by_its_content(folder):
    before, _ = embed(folder)
    (folder / "cat" / "00.png").rename(folder / "dog" / "renamed.png")
    store, report = embed(folder)
    assert (report.embedded, report.deleted) == (0, 0)
    assert store.rows["image_id"].tolist() == before.rows["image_id"].tolist()
    moved = store.select().set_index("path").loc["dog/renamed.png"]
    assert moved["label"] == "dog"
    assert holds_files(store, folder) == 30


def test_where_deleted_images_lay_does_not_tell_how_the_others_are_split(folder):
    embed(folder)
    (folder / "train").mkdir()
    (folder / "cat").rename(folder / "train" / "cat")
    shutil.rmtree(folder / "dog")
    for _ in range(2):
        rows = embed(folder)[0].rows
        assert rows["deleted"].sum() == 15  # they stay in the store
        assert set(rows.loc[~rows["deleted"], ["label", "split"]].itertuples(index=False, name=None)) == {
            ("cat", "train")
        }


def test_a_picture_replaced_under_the_same_name_is_embedded_anew(folder):
    before, _ = embed(folder)
    state = (folder / "cat" / "00.png").stat()
    save_pictures(folder / "new", [98])
    shutil.move(folder / "new" / "cat" / "98.png", folder / "cat" / "00.png")
    shutil.rmtree(folder / "new")
    os.utime(folder / "cat" / "00.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    store, report = embed(folder)
    assert (report.embedded, report.deleted) == (1, 1)
    assert holds_files(store, folder) == 30
    gone = before.rows["image_id"][0]
    assert gone not in set(store.select()["image_id"]) and store.rows["deleted"].tolist() == [True] + [False] * 30


def test_deleted_files_are_marked_and_come_back_without_embedding(folder):
    embed(folder)
    for number in (0, 9, 13):
        (folder / ("cat", "dog")[number % 2] / f"{number:02}.png").unlink()
    store = embeds_nothing(folder)
    assert holds_files(store, folder) == len(store) == 27
    assert store.rows["deleted"].sum() == 3
    assert sum(len(vectors) for vectors, _ in store.blocks()) == 27
    save_pictures(folder, [0, 9, 13])
    store, report = embed(folder)
    assert (report.embedded, report.deleted) == (0, 0)
    assert holds_files(store, folder) == 30


def test_many_deleted_files_are_dropped_from_the_shards(folder):
    embed(folder)
    for number in range(10):
        (folder / ("cat", "dog")[number % 2] / f"{number:02}.png").unlink()
    store = embeds_nothing(folder)
    assert holds_files(store, folder) == len(store.rows) == 20
    assert not store.rows["deleted"].any()
    assert len(list(store.folder.glob("*.npy"))) == 3
    assert embeds_nothing(folder).rows.equals(store.rows)


def test_equal_files_are_embedded_once_and_both_are_found(folder):
    shutil.copy(folder / "cat" / "04.png", folder / "zebra.png")
    shutil.copy(folder / "dog" / "05.png", folder / "a copy.png")
    store, report = embed(folder)
    assert (report.embedded, report.copies, report.files) == (30, 2, 32)
    assert holds_files(store, folder) == 30
    ids = store.files().set_index("path")["image_id"]
    assert ids["zebra.png"] == ids["cat/04.png"] and ids["a copy.png"] == ids["dog/05.png"]
    assert report.ledger.values.tolist() == [
        ["dog/05.png", "copy of a copy.png"],
        ["zebra.png", "copy of cat/04.png"],
    ]
    (folder / "cat" / "04.png").unlink()
    store = embeds_nothing(folder)
    assert store.select().set_index("image_id")["path"][ids["zebra.png"]] == "zebra.png"
    assert holds_files(store, folder) == len(store) == 30
