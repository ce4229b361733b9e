"""Searches are written behind people's backs: nothing is lost, and nothing comes late."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import Session, select

from rectrio_lib.app.records.database import OWNED, open_database
from rectrio_lib.app.records.history import Searches
from rectrio_lib.app.records.judgements import Judgements
from rectrio_lib.app.records.saved import Saved
from rectrio_lib.app.schemas import SearchRequest
from rectrio_lib.app.web.access import add_key, remove_key
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace


@pytest.fixture
def searches(tmp_path):
    return Searches(open_database(workspace=Workspace(tmp_path)), "photos")


def record(searches, owner="local"):
    return searches.record(owner, SearchRequest(words="red"), [], 0.1, None)


def names(searches):
    return {found.id for found in searches.list("local", 100).searches}


def slowed(searches, monkeypatch, seconds=0.3):
    """Let writes take some time."""
    write = searches._write
    monkeypatch.setattr(searches, "_write", lambda rows: (time.sleep(seconds), write(rows)))


async def until_written(searches):
    """Wait until a write is under way."""
    while not searches._under_way:
        await asyncio.sleep(0.005)


def test_what_comes_during_a_write_is_written_although_nobody_searches_again(searches, monkeypatch):
    slowed(searches, monkeypatch)

    async def run():
        first = record(searches)
        await until_written(searches)
        second = record(searches)
        for _ in range(200):
            if names(searches) == {first, second}:
                return True
            await asyncio.sleep(0.02)

    assert asyncio.run(run())


def test_a_flush_waits_for_the_write_under_way_so_that_nothing_comes_after_a_deletion(searches, monkeypatch):
    slowed(searches, monkeypatch)

    async def run():
        name = record(searches)
        await until_written(searches)
        await searches.flush()
        there = names(searches)
        deleted = searches.delete("local")
        await asyncio.sleep(0.5)
        return name, there, deleted

    name, there, deleted = asyncio.run(run())
    assert (there, deleted, names(searches)) == ({name}, 1, set())


def test_while_the_database_is_away_all_fail_together_and_later_everything_is_written(searches, monkeypatch):
    write, calls = searches._write, []

    def away(rows):
        calls.append(len(rows))
        time.sleep(0.1)
        raise OperationalError("INSERT", {}, Exception("locked"))

    async def run():
        monkeypatch.setattr(searches, "_write", away)
        name = record(searches)
        failed = await asyncio.gather(*(searches.flush() for _ in range(20)), return_exceptions=True)
        monkeypatch.setattr(searches, "_write", write)
        for _ in range(200):
            if names(searches) == {name}:
                return failed
            await asyncio.sleep(0.02)

    failed = asyncio.run(run())
    assert [type(error) for error in failed] == [OperationalError] * 20
    assert len(calls) <= 2  # a write for all of them, and one of the writer in the background


@pytest.mark.parametrize("error", [TypeError("a bug"), IntegrityError("INSERT", {}, Exception("crimson"))])
def test_a_search_that_cannot_be_written_is_logged_and_costs_neither_the_others_nor_later_ones(
    searches, monkeypatch, caplog, error
):
    write, wrong = searches._write, []

    def refusing(rows):
        if any(row.get("name") in wrong for _, row in rows):
            raise error
        write(rows)

    async def run():
        monkeypatch.setattr(searches, "_write", refusing)
        first = {record(searches) for _ in range(3)}
        wrong.append(min(first))
        await asyncio.sleep(0)  # the writer in the background takes them
        while searches._waiting or searches._under_way:
            await asyncio.sleep(0.005)
        later = {record(searches)}
        while searches._waiting or searches._under_way:
            await asyncio.sleep(0.005)
        return first | later

    recorded = asyncio.run(run())
    assert names(searches) == recorded - {*wrong} and len(recorded) == 4
    assert type(error).__name__ in caplog.text and "crimson" not in caplog.text
    assert ("a bug" in caplog.text) == isinstance(error, TypeError)


def test_what_is_left_when_the_database_goes_away_after_a_refused_batch_waits_on(searches, monkeypatch):
    write, errors = searches._write, iter([TypeError(), None, OperationalError("INSERT", {}, Exception("locked"))])

    def failing(rows):
        if error := next(errors, None):
            raise error
        write(rows)

    async def run():
        monkeypatch.setattr(searches, "_write", failing)
        there = {record(searches) for _ in range(3)}
        with pytest.raises(OperationalError):
            await searches.flush()
        assert len(searches._waiting) == 2
        await searches.flush()
        return there

    recorded = asyncio.run(run())
    assert names(searches) == recorded


def owners(searches):
    """Whose data there are, of every kind."""
    with Session(searches.engine) as session:
        return {owner for table in OWNED for owner in session.exec(select(table.owner))}


@pytest.mark.parametrize("again", [False, True])
def test_what_waits_when_a_key_is_removed_is_never_written_not_even_for_the_next_key_of_its_name(searches, again):
    for name in ("ann", "bob"):
        add_key(searches.engine, name, "search")

    async def run():
        for name in ("ann", "bob"):
            record(searches, name)
            searches.record_feed(name, ["a"])
        remove_key(searches.engine, "ann")
        if again:
            add_key(searches.engine, "ann", "search")
        await searches.flush()

    asyncio.run(run())
    assert owners(searches) == {"bob"}
    if again:
        asyncio.run(record_and_flush(searches, "ann"))
        assert owners(searches) == {"ann", "bob"}


async def record_and_flush(searches, owner):
    record(searches, owner)
    await searches.flush()


def test_a_request_that_is_under_way_when_its_key_is_removed_leaves_nothing(searches):
    judgements, saved = (kind(searches.engine, searches.collection) for kind in (Judgements, Saved))
    said = [{"image_id": "a", "kind": "like", "anchor": None, "search": None}]
    add_key(searches.engine, "ann", "search")
    assert judgements.add("ann", said) == 1 and saved.add("ann", SearchRequest(words="red")).owner == "ann"
    searches.set_keep("ann", True)
    remove_key(searches.engine, "ann")
    assert judgements.add("ann", said) == 0
    with pytest.raises(ArgumentError):
        saved.add("ann", SearchRequest(words="red"))
    searches.set_keep("ann", False)
    assert owners(searches) == set()


def test_nothing_of_a_removed_key_stays_in_the_file(searches):
    add_key(searches.engine, "ann", "search")
    searches.set_keep("ann", True)
    Saved(searches.engine, "photos").add("ann", SearchRequest(words="crimson"))
    remove_key(searches.engine, "ann")
    home = Path(searches.engine.url.database).parent
    held = b"".join(file.read_bytes() for file in home.glob("service.sqlite*"))
    assert held and b"crimson" not in held
