"""The images of a collection in SQL."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from rectrio_lib.app.records.catalogue import Catalogue, fits, frame_of, in_kinds, kinds_of, record_of
from rectrio_lib.app.records.database import ImageRow, open_database
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue(open_database(workspace=Workspace(tmp_path)), "photos")


def rows(*names, **columns):
    return pd.DataFrame({"image_id": names, "path": [f"{name}.png" for name in names], **columns})


def by_id(catalogue):
    return {row.image_id: row for row in catalogue.since(0)}


def last_of(catalogue):
    return catalogue.since(0)[-1].sequence


def uploaded(name, **values):
    return ImageRow(image_id=name, path=f"{name}.jpg", uploaded=True, vector=b"12", encoder_hash="e", **values)


def test_columns_become_what_they_are(catalogue):
    table = rows(
        "a", "b", label=["cat", ""], price=["3.5", "much"], tags=["red; summer", None], width=[640, 0],
        date=["2024-03-05", None], brand=["Acme", None], sold=[True, False], weight=[np.int64(3), np.nan],
    )  # fmt: skip
    catalogue.sync(table)
    a, b = by_id(catalogue)["a"], by_id(catalogue)["b"]
    assert (a.label, a.price, a.tags, a.width) == ("cat", 3.5, ["red", "summer"], 640)
    assert a.created == datetime(2024, 3, 5, tzinfo=UTC)
    assert a.extra == {"brand": "Acme", "sold": True, "weight": 3.0}
    assert (b.label, b.price, b.tags, b.width) == (None, None, [], None)
    assert b.extra == {"sold": False}


def test_the_age_of_a_file_is_its_date(catalogue, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    made = datetime.fromtimestamp((tmp_path / "a.png").stat().st_mtime, UTC)
    catalogue.sync(rows("a", "gone"), tmp_path)
    assert by_id(catalogue)["a"].created == made
    assert by_id(catalogue)["gone"].created.year >= 2026


def test_a_new_build_follows_the_folder_and_keeps_what_people_did(catalogue):
    catalogue.sync(rows("a", "b", "c", "d", label=["cat"] * 4))
    catalogue.add([uploaded("u")])
    catalogue.change("a", {"label": "tiger"})
    catalogue.remove("d")
    catalogue.sync(rows("a", "b", "e", label=["dog"] * 3))
    found = by_id(catalogue)
    assert {name: row.label for name, row in found.items()} == {
        "a": "tiger", "b": "dog", "d": "cat", "e": "dog", "u": None,
    }  # fmt: skip
    assert [name for name, row in found.items() if row.removed] == ["d"]
    catalogue.sync(rows("d", label=["cat"]))
    assert by_id(catalogue)["d"].removed


def test_an_edited_image_whose_file_moved_is_found_where_it_lies_and_keeps_what_people_wrote(catalogue):
    catalogue.sync(rows("a", "b", label=["cat"] * 2, price=[1.0, 2.0]))
    catalogue.change("a", {"label": "tiger", "extra": {"zoo": "Berlin"}})
    catalogue.add([uploaded("u")])
    catalogue.change("u", {"label": "lion"})
    last, moved = last_of(catalogue), rows("a", "b", "u", label=["dog"] * 3, price=[5.0] * 3)
    catalogue.sync(moved.assign(path=["dog/a.png", "dog/b.png", "dog/u.png"]))
    a, b, u = (by_id(catalogue)[name] for name in "abu")
    assert (a.path, a.label, a.price, a.extra, a.edited) == ("dog/a.png", "tiger", 1.0, {"zoo": "Berlin"}, True)
    assert (b.path, b.label, b.price, u.path, u.label) == ("dog/b.png", "dog", 5.0, "u.jpg", "lion")
    assert {row.image_id for row in catalogue.since(last)} == {"a", "b"}


def test_a_date_and_a_colour_that_a_table_says_anew_are_taken_and_what_was_found_stays_otherwise(catalogue):
    catalogue.sync(rows("a", "b", date=["2024-03-05", None], colour=["navy", None]))
    catalogue.set_colours({"b": "red"})
    found = by_id(catalogue)["b"].created
    catalogue.sync(rows("a", "b", date=["2025-01-01", None], colour=["teal", None]))
    a, b = (by_id(catalogue)[name] for name in "ab")
    assert (a.created, a.colour) == (datetime(2025, 1, 1, tzinfo=UTC), "teal")
    assert (b.created, b.colour) == (found, "red")
    last = last_of(catalogue)
    catalogue.set_colours({"a": "red", "b": "navy"})  # by two who looked for them at once
    assert [row.image_id for row in catalogue.since(last)] == []


def test_a_date_and_a_colour_that_a_table_says_no_more_are_those_of_the_file(catalogue, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    made = datetime.fromtimestamp((tmp_path / "a.png").stat().st_mtime, UTC)
    said, silent = rows("a", "b", date=["2024-03-05"] * 2, colour=["navy"] * 2), rows("a", "b", date=None, colour="")
    catalogue.sync(said, tmp_path)
    catalogue.change("b", {"label": "mine"})
    for built_by_the_service in (said.assign(uploaded=False), silent.assign(uploaded=False)):
        catalogue.sync(built_by_the_service, tmp_path)
        assert {row.colour for row in catalogue.since(0)} == {"navy"}
    catalogue.sync(silent, tmp_path)
    a, b = (by_id(catalogue)[name] for name in "ab")
    assert (a.created, a.colour) == (made, None)
    assert (b.created, b.colour) == (datetime(2024, 3, 5, tzinfo=UTC), "navy")  # people edited it
    catalogue.set_colours({"a": "red"})
    last = last_of(catalogue)
    for table in (silent, rows("a", "b", date=[made] * 2, colour=["red"] * 2).assign(uploaded=False), silent):
        catalogue.sync(table, tmp_path)
    assert last_of(catalogue) == last and by_id(catalogue)["a"].colour == "red"


def test_what_a_table_said_before_the_database_noted_it_is_noted_by_the_next_build(catalogue):
    said = rows("a", colour=["navy"])
    catalogue.sync(said)
    with Session(catalogue.engine) as session:
        session.execute(update(ImageRow).values(told=""))  # as the migration leaves it
        session.commit()
    for table, colour in ((rows("a"), "navy"), (said, "navy"), (rows("a"), None)):
        catalogue.sync(table)
        assert by_id(catalogue)["a"].colour == colour


def test_nothing_new_writes_nothing(catalogue):
    table = rows("a", "b", label=["cat", "dog"], price=[1.0, np.nan], brand=["x", "y"])
    catalogue.sync(table)
    last = last_of(catalogue)
    catalogue.sync(table)
    assert last_of(catalogue) == last
    assert catalogue.since(last) == []


def test_every_change_takes_the_next_number(catalogue):
    catalogue.sync(rows("a", "b"))
    first = last_of(catalogue)
    catalogue.add([uploaded("u"), uploaded("v")])
    assert [row.image_id for row in catalogue.since(first)] == ["u", "v"]
    middle = last_of(catalogue)
    catalogue.change("a", {"price": 5.0})
    catalogue.remove("u")
    assert [(row.image_id, row.removed) for row in catalogue.since(middle)] == [("a", False), ("u", True)]
    assert last_of(catalogue) == middle + 2


def test_changes_are_merged_and_none_deletes(catalogue):
    catalogue.sync(rows("a", label=["cat"], brand=["Acme"]))
    catalogue.change("a", {"tags": ["x"], "extra": {"size": 3, "brand": None}})
    row = catalogue.change("a", {"label": None, "price": 2.0})
    assert (row.label, row.price, row.tags, row.extra) == (None, 2.0, ["x"], {"size": 3})
    assert catalogue.change("a", {"tags": None}).tags == []


def test_an_absent_image_is_neither_changed_nor_removed(catalogue):
    catalogue.add([uploaded("u")])
    assert catalogue.change("no", {"label": "x"}) is None
    assert catalogue.remove("u").removed
    assert catalogue.remove("u") is None
    assert catalogue.change("u", {"label": "x"}) is None


def test_a_removed_image_comes_back(catalogue):
    catalogue.add([uploaded("u", label="old")])
    catalogue.remove("u")
    catalogue.add([uploaded("u", label="new")])
    row = by_id(catalogue)["u"]
    assert (row.removed, row.label) == (False, "new")


def test_collections_do_not_see_each_other(catalogue):
    other = Catalogue(catalogue.engine, "other")
    other.sync(rows("a", label=["theirs"]))
    catalogue.sync(rows("a", "b", label=["ours"] * 2))
    other.sync(rows("a", label=["theirs"]))
    assert (len(by_id(catalogue)), len(by_id(other))) == (2, 1)
    assert by_id(catalogue)["a"].label == "ours"


def test_a_user_column_does_not_hide_ours():
    row = ImageRow(image_id="a", path="a", collection="c", sequence=1, extra={"uploaded": "x", "brand": "y"})
    record = record_of(row)
    assert (record["uploaded"], record["brand"]) == (False, "y")
    assert frame_of([record], {})["price"].dtype == np.float64
    assert len(frame_of([], {})) == 0


def test_a_column_of_several_types_is_text():
    records = [{"a": 1, "b": True, "c": 1.5, "d": None}, {"a": "x", "b": 2, "c": None, "d": None}]
    kinds = kinds_of(records)
    assert kinds == {"a": str, "b": str, "c": float}
    assert [in_kinds(record, kinds) for record in records] == [
        {"a": "1", "b": "True", "c": 1.5, "d": None},
        {"a": "x", "b": "2", "c": None, "d": None},
    ]
    assert [fits(value, float) for value in (1, None, True, "x")] == [True, True, False, False]
    assert fits(5, str)
    assert not fits(5, None)


def test_a_wrong_address_is_refused(tmp_path):
    for url in ("nonsense", "mysql+nothing://x"):
        with pytest.raises(ArgumentError):
            open_database(url, Workspace(tmp_path))


def test_what_people_wrote_survives_a_build_without_the_file(catalogue):
    catalogue.sync(rows("a", "b", label=["cat", "cat"]))
    catalogue.change("a", {"label": "tiger", "tags": ["mine"], "price": 5.0})
    catalogue.sync(rows("b", label=["cat"]))
    catalogue.sync(rows("a", "b", label=["cat", "cat"]))
    row = by_id(catalogue)["a"]
    assert (row.label, row.tags, row.price, row.edited) == ("tiger", ["mine"], 5.0, True)
