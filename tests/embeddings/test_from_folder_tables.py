"""What is known of files besides their pixels: from paths, manifests, tables beside them, earlier calls."""

import io
import logging
import shutil

import pandas as pd
import pytest
from makers.stores import Counting, embed, embeds_nothing, save_pictures

from rectrio_lib.core.errors import DataError
from rectrio_lib.core.workspace import Workspace


@pytest.fixture
def folder(tmp_path):
    return save_pictures(tmp_path / "toys", range(12))


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
    ("head", "columns"), [("filename,price", "'filename', 'price'"), ("file_name;price", "'file_name;price'")]
)
def test_a_table_that_names_no_files_is_refused_with_the_columns_it_has(folder, head, columns):
    (folder / "metadata.csv").write_text(f"{head}\ncat/00.png{head[-6]}1\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"no column file_name or path that names the image files, only {columns}"):
        embed(folder)


FULL = "file_name,label,price\ncat/00.png,lion,2\ndog/01.png,wolf,3\n"
FEWER = {
    "two cells": ("file_name,label,price\ncat/00.png,,\ndog/01.png,wolf,3\n", ["cat", "wolf"], {3}),
    "a row": ("file_name,label,price\ndog/01.png,wolf,3\n", ["cat", "wolf"], {3}),
    "two columns": ("file_name,size\ncat/00.png,5\n", ["cat", "dog"], None),
    "the table": (None, ["cat", "dog"], None),
}


def write_table(folder, text):
    (folder / "metadata.csv").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("taken", FEWER)
def test_what_a_table_does_not_say_any_more_is_gone(folder, taken):
    text, labels, prices = FEWER[taken]
    write_table(folder, FULL)
    embed(folder)
    write_table(folder, text) if text else (folder / "metadata.csv").unlink()
    store = embeds_nothing(folder)
    assert [row(store, path)["label"] for path in ("cat/00.png", "dog/01.png")] == labels
    assert (set(store.select()["price"].dropna()) if prices else "price" in store.select()) == (prices or False)
    assert embeds_nothing(folder).rows.equals(store.rows)


def test_what_an_earlier_manifest_told_holds_where_no_table_says_otherwise(folder):
    table = {"path": ["cat/00.png", "dog/01.png", "cat/02.png"], "label": "pet", "split": "test", "price": 1.0}
    embed(folder, manifest=pd.DataFrame(table))
    write_table(folder, FULL)
    told = ["label", "split", "price"]
    store = embeds_nothing(folder)
    assert row(store, "cat/00.png")[told].tolist() == ["lion", "test", 2.0]
    assert row(store, "cat/02.png")[told].tolist() == ["pet", "test", 1.0]
    store = embeds_nothing(folder, manifest=pd.DataFrame({"path": ["cat/00.png"], "label": ["tom"], "colour": "grey"}))
    assert row(store, "cat/00.png")[[*told, "colour"]].tolist() == ["tom", "test", 2.0, "grey"]
    (folder / "metadata.csv").unlink()
    for number in range(4, 12):  # so many that the store is written anew
        (folder / ("cat", "dog")[number % 2] / f"{number:02}.png").unlink()
    for _ in range(2):
        store = embeds_nothing(folder)
        assert row(store, "cat/00.png")[[*told, "colour"]].tolist() == ["tom", "test", 1.0, "grey"]
        assert row(store, "dog/01.png")[told].tolist() == ["pet", "test", 1.0]
        assert len(store.rows) == 4 and set(store.select()) - {"image_id", "path", "width", "height"} == {
            *told,
            "colour",
        }


def test_images_whose_files_are_gone_keep_what_tables_said_until_they_come_back(folder, tmp_path):
    write_table(folder, FULL)
    embed(folder)
    shutil.move(folder / "cat" / "00.png", tmp_path / "away.png")
    save_pictures(tmp_path / "new", [90])
    shutil.move(tmp_path / "new" / "cat" / "90.png", folder / "cat" / "00.png")  # another image of the same name
    write_table(folder, FULL.replace("lion,2", "lynx,9"))
    told = ["label", "price"]
    store, _ = embed(folder, manifest=pd.DataFrame({"path": ["cat/00.png"], "split": "val"}))
    assert store.rows.loc[store.rows["deleted"], [*told, "split"]].values.tolist() == [["lion", 2.0, ""]]
    assert row(store, "cat/00.png")[[*told, "split"]].tolist() == ["lynx", 9.0, "val"]
    shutil.move(tmp_path / "away.png", folder / "dog" / "back.png")
    back = row(embed(folder)[0], "dog/back.png")
    assert (back["label"], back["split"]) == ("dog", "") and pd.isna(back["price"])


@pytest.mark.parametrize("given", [True, False])
def test_text_of_an_image_that_is_gone_makes_no_text_of_the_numbers_of_the_others(folder, given):
    def told(value):
        table = f"path,price\ncat/00.png,{value}\ncat/02.png,{value}\n"
        write_table(folder, table if not given else "path\ncat/00.png\n")
        return {"manifest": pd.read_csv(io.StringIO(table))} if given else {}

    embed(folder, **told("3 EUR"))
    (folder / "cat" / "02.png").unlink()
    embed(folder, **told(3))
    store = embeds_nothing(folder)
    assert row(store, "cat/00.png")["price"] == 3.0 and store.rows["deleted"].sum() == 1


@pytest.mark.parametrize("values", [("True", "3.5"), ("3.5", "True")])
def test_truths_beside_numbers_are_text_in_whatever_order_they_come(folder, values):
    for home, number, value in zip(("cat", "dog"), ("00", "01"), values, strict=True):
        write_table(folder / home, f"path,price\n{number}.png,{value}\n")
    store, _ = embed(folder)
    assert store.select()["price"].dropna().tolist() == list(values)


@pytest.mark.parametrize(("name", "values", "stored"), [
    (5, [1, 2], "5"), (("a", "b"), [1, 2], "('a', 'b')"), ("stars", pd.array([1, None], "Int64"), "stars"),
    ("new", pd.array([True, None], "boolean"), "new"), ("brand", pd.Categorical(["x", "y"]), "brand"),
    ("label", pd.Categorical(["x", "dog"]), "label"),
])  # fmt: skip
def test_a_manifest_may_have_any_column_and_holds_again_and_again(folder, name, values, stored):
    table = pd.DataFrame({"path": ["cat/00.png", "dog/01.png"]})
    table[name] = values
    for manifest in (table, table, None, None):
        store, _ = embed(folder, manifest=manifest)
        found = [row(store, path)[stored] for path in table["path"]]
        assert [None if pd.isna(value) else value for value in found] == [None if v is pd.NA else v for v in values]


def test_a_manifest_of_windows_names_the_same_files(folder):
    store, _ = embed(folder, manifest=pd.DataFrame({"path": ["cat\\00.png"], "price": 3}))
    assert row(store, "cat/00.png")["price"] == 3
    for bad in (pd.DataFrame([["cat/00.png", 1, 2]], columns=["path", "5", 5]),
                pd.DataFrame({"path": ["cat/00.png", "cat\\00.png"]})):  # fmt: skip
        with pytest.raises(DataError, match=r"manifest: .*'(5|path)'"):
            embed(folder, manifest=bad)


def test_where_nothing_changed_the_rows_are_not_written_again(folder):
    write_table(folder, FULL)
    file = embed(folder)[0].folder / "rows.parquet"
    before = file.stat().st_ino
    embeds_nothing(folder)
    assert file.stat().st_ino == before


def test_a_table_that_names_no_image_is_warned_of(folder, caplog):
    write_table(folder, "path,price\n./cat/00.png,3\n")
    assert row(embed(folder)[0], "cat/00.png")["price"] == 3 and not caplog.text
    write_table(folder, f"path,price\n{folder.as_posix()}/cat/00.png,3\n")
    embed(folder)
    (folder / "metadata.csv").unlink()
    embed(folder, manifest=pd.DataFrame({"path": ["elsewhere.png"]}))
    assert [record.args[1:] for record in caplog.records] == [
        (f"{folder.as_posix()}/cat/00.png", "cat/00.png"), ("elsewhere.png", "cat/00.png"),
    ]  # fmt: skip


def test_a_store_of_an_older_version_keeps_once_what_no_table_says(folder):
    write_table(folder, FULL)
    store, _ = embed(folder, manifest=pd.DataFrame({"path": ["cat/02.png"], "label": ["tom"], "group": ["g"]}))
    (store.folder / "files-manifests.parquet").unlink()
    write_table(folder, FULL.replace("cat/00.png,lion,2\n", ""))
    for labels in (["lion", "wolf", "tom"], ["lion", "dog", "tom"]):
        store = embeds_nothing(folder)
        assert [row(store, path)["label"] for path in ("cat/00.png", "dog/01.png", "cat/02.png")] == labels
        assert row(store, "cat/02.png")["group"] == "g" and row(store, "cat/00.png")["price"] == 2
        (folder / "metadata.csv").unlink(missing_ok=True)


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


@pytest.mark.parametrize("end", [",", ",,", ", round"])
def test_values_beyond_the_header_are_refused_and_commas_alone_are_none(folder, end):
    lines = ["file_name,label", f"cat/00.png,lion{end}", f"dog/01.png,wolf{end}"]
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    if end == ",":
        store, _ = embed(folder)
        assert row(store, "dog/01.png")["label"] == "wolf"
        (folder / "metadata.csv").write_text("\n".join([lines[0] + end, *lines[1:]]), encoding="utf-8")
        assert embeds_nothing(folder).rows.equals(store.rows)
    else:
        with pytest.raises(DataError, match=r"toys.metadata\.csv: lines hold more values than the header[^:]*$"):
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
