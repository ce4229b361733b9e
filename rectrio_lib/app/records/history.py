"""The searches that people made, and what was shown to them: each sees, and deletes, their own alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from rectrio_lib.app.records.database import (
    FeedRow,
    JudgementRow,
    OwnerRow,
    SearchRow,
    blank_log,
    now,
    owners_since,
    writing,
)
from rectrio_lib.app.schemas import History, Part, Searched, SearchRequest
from rectrio_lib.core.tables import shortened

LOG = logging.getLogger(__name__)
FLUSH_SECONDS = 0.05  # searches that come together are written in one transaction
RETRY_SECONDS = 1  # if the database is away
FEEDS = 20  # of the last ones, nothing is recommended again
MOST_WAITING = 10_000  # if the database is away for long, older ones are forgotten
AWAY = (OperationalError, InterfaceError)
Kept = tuple[type[SearchRow | FeedRow], dict]


class Searches:
    """Writes searches and recommendations down without making them wait, for those who let them be kept."""

    def __init__(self, engine: Engine, collection: str):
        self.engine, self.collection = engine, collection
        self._waiting: list[Kept] = []
        self._under_way: list[Kept] = []
        self._later: asyncio.Task | None = None
        self._writer: asyncio.Task | None = None
        with Session(engine) as session:
            self._private = _private(session)

    def record(
        self, owner: str, request: SearchRequest, shown: Sequence[str], seconds: float, best: float | None
    ) -> str | None:
        """Keep a search; return its id, None if it is not kept. Of uploaded images only their number is kept."""
        if owner in self._private:
            return None
        name, query = uuid4().hex, request.model_dump(mode="json", exclude_defaults=True)
        row = {"name": name, "query": query, "title": title(request), "seconds": seconds, "best": best}
        self._wait(SearchRow, owner, shown, row)
        return name

    def record_feed(self, owner: str, shown: Sequence[str]) -> None:
        """Keep what was recommended."""
        if shown and owner not in self._private:
            self._wait(FeedRow, owner, shown, {})

    def _wait(self, table: type[SearchRow | FeedRow], owner: str, shown: Sequence[str], values: dict) -> None:
        own = {"owner": owner, "collection": self.collection, "created": now(), "shown": list(shown)}
        self._waiting.append((table, own | values))
        del self._waiting[:-MOST_WAITING]
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._flush_soon())

    async def _flush_soon(self) -> None:
        pause = FLUSH_SECONDS
        while self._waiting:  # what came during a write as well
            await asyncio.sleep(pause)
            try:
                await self.flush()
                pause = FLUSH_SECONDS
            except AWAY as error:
                LOG.warning("The history cannot be written now: %s", type(error).__name__)
                pause = RETRY_SECONDS

    async def flush(self) -> None:
        """Write down what waits, and wait for what is being written; those who come together share a write.

        Raises:
            OperationalError, InterfaceError: if the database is away; what waits waits on.
        """
        for _ in range(2):  # the write under way, then one of what came since
            if self._waiting or self._under_way:
                if self._writer is None or self._writer.done():
                    self._writer = asyncio.create_task(self._write_waiting())
                await asyncio.shield(self._writer)

    async def _write_waiting(self) -> None:
        batches = [self._waiting]
        self._under_way, self._waiting = self._waiting, []
        try:
            while batches:
                try:
                    await asyncio.to_thread(self._write, batches[0])
                except AWAY:
                    raise
                except Exception as error:  # one of them will never be written: the others are
                    bug = not isinstance(error, SQLAlchemyError)  # whose messages hold what was searched for
                    LOG.error("A search was not kept: %s", type(error).__name__, exc_info=bug)
                    batches += [[row] for row in batches[0]] if len(batches[0]) > 1 else []
                batches.pop(0)
        except AWAY:
            self._waiting = [row for rows in batches for row in rows] + self._waiting
            raise
        finally:
            self._under_way = []

    def _write(self, rows: list[Kept]) -> None:
        with writing(self.engine) as session:
            self._private = _private(session)
            since = owners_since(session, {row["owner"] for _, row in rows})
            there = since.keys() - self._private
            for table in (SearchRow, FeedRow):
                mine = [row for kind, row in rows if kind is table and row["owner"] in there]
                if wanted := [row for row in mine if since[row["owner"]] <= row["created"]]:
                    session.execute(insert(table), wanted)

    def set_keep(self, owner: str, keep: bool) -> None:
        """Say whether anything is kept from now on."""
        with writing(self.engine) as session:
            if owner in owners_since(session, [owner]):
                session.merge(OwnerRow(owner=owner, keep=keep))
            self._private = _private(session)

    def shown(self, owner: str) -> set[str]:
        """Return what was recommended to an owner lately, whether it is written already or not."""
        late = [
            row["shown"] for kind, row in self._waiting + self._under_way if (kind, row["owner"]) == (FeedRow, owner)
        ]
        mine = FeedRow.of(owner, self.collection)
        with Session(self.engine) as session:
            feeds = session.scalars(select(FeedRow.shown).where(*mine).order_by(FeedRow.id.desc()).limit(FEEDS))
            return {name for feed in (*feeds, *late) for name in feed}

    def list(self, owner: str, limit: int, before: str | None = None) -> History:
        """Return an owner's searches, newest first; `before` names the last one of the page before."""
        mine = SearchRow.of(owner, self.collection)
        wanted = select(SearchRow).where(*mine).order_by(SearchRow.id.desc()).limit(limit + 1)
        if before is not None:
            named = select(SearchRow.id).where(*mine, SearchRow.name == before).scalar_subquery()
            wanted = wanted.where(SearchRow.id < named)
        with Session(self.engine) as session:
            rows, keep = list(session.scalars(wanted)), owner not in _private(session)
        searches = [
            Searched(id=r.name, created=r.created, query=SearchRequest(**r.query), title=r.title, results=r.shown)
            for r in rows[:limit]
        ]
        return History(searches=searches, next=searches[-1].id if len(rows) > limit else None, keep=keep)

    def delete(self, owner: str, name: str | None = None) -> int:
        """Delete one search of an owner, or all, what was recommended and clicked as well; return how many searches.

        Nothing of them stays in an SQLite file.
        """
        chosen = [*SearchRow.of(owner, self.collection), *([] if name is None else [SearchRow.name == name])]
        judged = JudgementRow.of(owner, self.collection)
        with writing(self.engine) as session:
            count = session.execute(delete(SearchRow).where(*chosen)).rowcount
            if name is None:
                session.execute(delete(FeedRow).where(*FeedRow.of(owner, self.collection)))
                session.execute(delete(JudgementRow).where(*judged, JudgementRow.kind == "click"))
            found_by = JudgementRow.search.isnot(None) if name is None else JudgementRow.search == name
            session.execute(update(JudgementRow).where(*judged, found_by).values(search=None))
        blank_log(self.engine)
        return count


def _private(session: Session) -> set[str]:
    """Return the owners of whom nothing is kept."""
    return set(session.scalars(select(OwnerRow.owner).where(OwnerRow.keep.is_(False))))


def title(request: SearchRequest) -> str:
    """Say a query in words, such as `'red shoe' + 2 images + "sale" - 'laces'`."""
    wanted, unwanted = _words(request.like), _words(request.without)
    wanted += [f'"{shortened(request.words)}"'] if request.words else []
    return " ".join([" + ".join(wanted), *(f"- {part}" for part in unwanted)]).strip() or "newest images"


def _words(parts: Sequence[Part]) -> list[str]:
    images = sum(part.text is None for part in parts)
    texts = [f"'{shortened(part.text)}'" for part in parts if part.text]
    return texts + [f"{images} image{'s' * (images > 1)}"] * (images > 0)
