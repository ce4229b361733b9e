"""The searches that people made: each sees, and deletes, their own alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from rectrio_lib.app.records.database import SearchRow, now, writing
from rectrio_lib.app.schemas import History, Part, Searched, SearchRequest
from rectrio_lib.core.tables import shortened

LOG = logging.getLogger(__name__)
FLUSH_SECONDS = 0.05  # searches that come together are written in one transaction
MOST_WAITING = 10_000  # if the database is away for long, older ones are forgotten


class Searches:
    """Writes searches down without making them wait."""

    def __init__(self, engine: Engine, collection: str):
        self.engine, self.collection = engine, collection
        self._waiting: list[dict] = []
        self._writer: asyncio.Task | None = None

    def record(self, owner: str, request: SearchRequest, shown: Sequence[str]) -> str:
        """Keep a search; return its id. Uploaded images are not kept, only that there were some."""
        name = uuid4().hex
        query = request.model_dump(mode="json", exclude_defaults=True)
        row = {"name": name, "owner": owner, "collection": self.collection, "created": now(), "query": query}
        self._waiting.append(row | {"title": title(request), "shown": list(shown)})
        del self._waiting[:-MOST_WAITING]
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._flush_soon())
        return name

    async def _flush_soon(self) -> None:
        await asyncio.sleep(FLUSH_SECONDS)
        await self.flush()

    async def flush(self) -> None:
        """Write down what waits; if the database is away, it waits on."""
        rows, self._waiting = self._waiting, []
        if rows:
            try:
                await asyncio.to_thread(self._write, rows)
            except SQLAlchemyError as error:
                LOG.warning("The history cannot be written now: %s", type(error).__name__)
                self._waiting = rows + self._waiting

    def _write(self, rows: list[dict]) -> None:
        with writing(self.engine) as session:
            session.execute(insert(SearchRow), rows)

    def list(self, owner: str, limit: int, before: str | None = None) -> History:
        """Return an owner's searches, newest first; `before` names the last one of the page before."""
        wanted = select(SearchRow).where(*self._of(owner)).order_by(SearchRow.id.desc()).limit(limit + 1)
        if before is not None:
            named = select(SearchRow.id).where(*self._of(owner), SearchRow.name == before).scalar_subquery()
            wanted = wanted.where(SearchRow.id < named)
        with Session(self.engine) as session:
            rows = list(session.scalars(wanted))
        searches = [
            Searched(id=r.name, created=r.created, query=SearchRequest(**r.query), title=r.title, results=r.shown)
            for r in rows[:limit]
        ]
        return History(searches=searches, next=searches[-1].id if len(rows) > limit else None)

    def delete(self, owner: str, name: str | None = None) -> int:
        """Delete one search of an owner, or all; return how many. Nothing of them stays in an SQLite file."""
        chosen = [*self._of(owner), *([] if name is None else [SearchRow.name == name])]
        with writing(self.engine) as session:
            count = session.execute(delete(SearchRow).where(*chosen)).rowcount
        if self.engine.dialect.name == "sqlite":  # `secure_delete` blanks the pages; the log still held them
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def _of(self, owner: str) -> list:
        return [SearchRow.owner == owner, SearchRow.collection == self.collection]


def title(request: SearchRequest) -> str:
    """Say a query in words, such as "'red shoe' + 2 images - 'laces'"."""
    wanted, unwanted = _words(request.like), _words(request.without)
    return " ".join([" + ".join(wanted), *(f"- {part}" for part in unwanted)]).strip() or "newest images"


def _words(parts: Sequence[Part]) -> list[str]:
    images = sum(part.text is None for part in parts)
    texts = [f"'{shortened(part.text)}'" for part in parts if part.text]
    return texts + [f"{images} image{'s' * (images > 1)}"] * (images > 0)
