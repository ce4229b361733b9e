"""Searches are written behind people's backs: nothing is lost, and nothing comes late."""

import asyncio
import time

import pytest
from sqlalchemy.exc import OperationalError

from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.records.history import Searches
from rectrio_lib.app.schemas import SearchRequest
from rectrio_lib.core.workspace import Workspace


@pytest.fixture
def searches(tmp_path):
    return Searches(open_database(workspace=Workspace(tmp_path)), "photos")


def record(searches):
    return searches.record("ann", SearchRequest(words="red"), [], 0.1, None)


def names(searches):
    return {found.id for found in searches.list("ann", 100).searches}


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
        deleted = searches.delete("ann")
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
