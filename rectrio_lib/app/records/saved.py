"""Searches that people saved under a name: each sees, and deletes, their own alone."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session

from rectrio_lib.app.records.database import SavedRow, blank_log, owners_since, writing
from rectrio_lib.app.records.history import title
from rectrio_lib.app.schemas import SearchRequest
from rectrio_lib.core.errors import ArgumentError

MOST = 200  # of one owner


class Saved:
    """The saved searches in one collection."""

    def __init__(self, engine: Engine, collection: str):
        self.engine, self.collection = engine, collection

    def add(self, owner: str, query: SearchRequest, named: str = "") -> SavedRow:
        """Save a search under a title, by default the query in words.

        Raises:
            ArgumentError: if it holds an uploaded file, which is not kept, there are too many, or the key is gone.
        """
        if any(part.file is not None for part in (*query.like, *query.without)):
            raise ArgumentError("An uploaded image is not kept, so that this search cannot be saved: search by an id.")
        kept = query.model_dump(mode="json", exclude_defaults=True)
        row = SavedRow(
            name=uuid4().hex, owner=owner, collection=self.collection, query=kept, title=named or title(query)
        )
        count = select(func.count()).select_from(SavedRow).where(*SavedRow.of(owner, self.collection))
        with writing(self.engine) as session:
            if owner not in owners_since(session, [owner]):
                raise ArgumentError(f"The key {owner} was removed: nothing is saved under it any more.")
            if session.scalar(count) >= MOST:
                raise ArgumentError(f"There are {MOST} saved searches already: delete one first.")
            session.add(row)
        return row

    def list(self, owner: str) -> list[SavedRow]:
        """Return an owner's saved searches, newest first."""
        wanted = select(SavedRow).where(*SavedRow.of(owner, self.collection)).order_by(SavedRow.id.desc())
        with Session(self.engine) as session:
            return list(session.scalars(wanted))

    def delete(self, owner: str, name: str) -> int:
        """Delete one; return how many there were. Nothing of it stays in an SQLite file."""
        chosen = delete(SavedRow).where(*SavedRow.of(owner, self.collection), SavedRow.name == name)
        with writing(self.engine) as session:
            count = session.execute(chosen).rowcount
        blank_log(self.engine)
        return count
