"""What is known of files besides their pixels: from paths, manifests, tables beside them, earlier calls."""

import logging
import shutil

import pandas as pd
import pytest
from makers.stores import Counting, embed, embeds_nothing, save_pictures

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import Workspace


@pytest.fixture
def folder(tmp_path):
    save_pictures(tmp_path / "toys", range(12))
    return tmp_path / "toys"


def row(store, path):
    return store.select().set_index("path").loc[path]


def test_a_second_call_without_the_manifest_keeps_what_it_told(folder):
    table = {"path": ["cat/00.png", "dog/01.png"], "label": ["Katze", "dog"], "split": "test", "price": [2.5, 3.0]}
    embed(folder, manifest=pd.DataFrame(table))
    save_pictures(folder, [12])
    (folder / "cat" / "00.png").rename(folder / "dog" / "00.png")
    (folder / "dog" / "03.png").rename(folder / "cat" / "03.png")
    store, report = embed(folder)
    assert report.embedded == 1
    assert row(store, "dog/00.png")[["label", "split", "price"]].tolist() == ["Katze", "test", 2.5]
    assert row(store, "cat/03.png")["label"] == "cat", "a label from the path follows the path"
    assert row(store, "cat/12.png")["label"] == "cat" and store.select()["price"].notna().sum() == 2
    again = embeds_nothing(folder)
    assert again.rows.equals(store.rows)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("key", ["file_name", "path"])
def test_a_table_beside_the_images_is_joined_in(folder, suffix, key):
    table = pd.DataFrame({key: ["cat/00.png", "dog/01.png", "none.png"], "price": [1.5, 2.0, 9.0], "colour": "red"})
    table = table.assign(label=["lion", "wolf", "x"], width=7)
    table.to_csv(folder / "metadata.csv", index=False) if suffix == "csv" else table.to_parquet(
        folder / "metadata.parquet"
    )
    (folder / "cat" / "metadata.csv").write_text("file_name,tag\n02.png,old\n", encoding="utf-8")
    store, _ = embed(folder)
    assert row(store, "dog/01.png")[["label", "price", "colour", "width"]].tolist() == ["wolf", 2.0, "red", 6]
    assert row(store, "cat/02.png")[["label", "tag"]].tolist() == ["cat", "old"]
    assert store.select()["price"].notna().sum() == 2
    table.assign(price=4.0).rename(columns={key: "path"}).to_csv(folder / "metadata.csv", index=False)
    (folder / "metadata.parquet").unlink(missing_ok=True)
    assert row(embeds_nothing(folder), "cat/00.png")["price"] == 4.0


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ({"name": ["cat/00.png"]}, "file_name"),
        ({"file_name": ["cat/00.png", "cat/00.png"]}, "file_name"),
        ({"file_name": [1, 2]}, "file_name"),
        ({"path": ["cat/00.png", None]}, "path"),
        ({"file_name": ["cat/00.png"], "tags": [["a", "b"]]}, "tags"),
    ],
)
def test_a_bad_table_is_refused_with_its_column_named(folder, table, column):
    pd.DataFrame(table).to_parquet(folder / "metadata.parquet")
    with pytest.raises(DataError, match=rf"metadata\.parquet.*{column}"):
        embed(folder)


def test_a_table_that_is_not_one_is_named(folder):
    (folder / "metadata.parquet").write_text("file_name", encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.parquet"):
        embed(folder)


def test_a_folder_that_is_away_loses_no_vector_and_is_warned_of(folder, tmp_path, caplog):
    embed(folder)
    shutil.move(folder / "dog", tmp_path / "unmounted")
    with caplog.at_level(logging.WARNING):
        store, report = embed(folder)
    assert (report.deleted, len(store)) == (6, 6)
    assert [r.levelname for r in caplog.records if "6 of 12" in r.getMessage()] == ["WARNING"]
    for _ in range(2):
        (folder / "dog").mkdir(exist_ok=True)
        store, report = embed(folder)
        assert (report.deleted, report.embedded) == (0, 0), "counted once"
    shutil.rmtree(folder / "dog")
    shutil.move(tmp_path / "unmounted", folder / "dog")
    store, report = embed(folder, Counting())
    assert (report.embedded, report.deleted, len(store)) == (0, 0, 12)


def test_outputs_inside_the_folder_are_not_embedded(folder, monkeypatch):
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(folder / "outputs"))
    save_pictures(folder / "outputs" / "figures", [90, 91])
    store, report = embed(folder)
    assert report.files == len(store) == 12
    assert not store.select()["path"].str.startswith("outputs").any()


def test_stores_of_two_workspaces_and_their_flags(folder, tmp_path):
    encoder = Counting()
    encoder.stand_in = True
    first, _ = embed(folder, encoder, workspace=Workspace(tmp_path / "a"))
    second, _ = embed(folder, workspace=Workspace(tmp_path / "b"))
    assert first.folder.is_relative_to(tmp_path / "a") and second.folder.is_relative_to(tmp_path / "b")
    assert [(s.card["random_weights"], s.card["generated_images"]) for s in (first, second)] == [
        (True, False),
        (False, False),
    ]
