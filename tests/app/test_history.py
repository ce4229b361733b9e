"""Searches are written behind the answer; none is lost on the way, and who asks sees all."""

import asyncio
import time

import pytest
from sqlalchemy.exc import OperationalError

from rectrio_lib.app.records import history
from rectrio_lib.app.records.database import open_database, writing
from rectrio_lib.app.records.history import FLUSH_SECONDS, Searches
from rectrio_lib.app.schemas import Part, SearchRequest
from rectrio_lib.core.workspace import Workspace


def slowly(engine):
    time.sleep(6 * FLUSH_SECONDS)
    return writing(engine)


def away(engine):
    raise OperationalError("insert", {}, Exception("locked"))


@pytest.fixture
def searches(tmp_path, monkeypatch):
    """Searches whose writes take a while."""
    monkeypatch.setattr(history, "writing", slowly)
    return Searches(open_database(workspace=Workspace(tmp_path)), "photos")


def search(searches):
    return searches.record("ann", SearchRequest(like=[Part(text="a cat")]), ["a"], 0.01, 0.9)


def kept(searches):
    return [found.id for found in searches.list("ann", 10).searches]


async def during_a_write(searches):
    """Record one search, and another while that one is written."""
    first = search(searches)
    await asyncio.sleep(3 * FLUSH_SECONDS)
    return first, search(searches)


def test_a_search_that_comes_during_a_write_is_written_as_well(searches):
    async def run():
        first, second = await during_a_write(searches)
        for _ in range(200):
            if len(kept(searches)) == 2:
                break
            await asyncio.sleep(FLUSH_SECONDS)
        return [second, first]

    assert asyncio.run(run()) == kept(searches)


def test_who_waits_for_the_writer_sees_what_it_has_under_way(searches):
    async def run():
        first = search(searches)
        await asyncio.sleep(3 * FLUSH_SECONDS)
        assert kept(searches) == []
        await searches.flush()
        assert kept(searches) == [first]

    asyncio.run(run())


def test_while_the_database_is_away_searches_wait(searches, monkeypatch):
    async def run():
        monkeypatch.setattr(history, "writing", away)
        first, second = await during_a_write(searches)
        assert not await searches.flush()
        assert kept(searches) == []
        monkeypatch.setattr(history, "writing", writing)
        assert await searches.flush()
        return [second, first]

    assert asyncio.run(run()) == kept(searches)
