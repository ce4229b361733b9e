"""What people said of images: liked, disliked, "not the same", looked at. Each sees, and deletes, their own alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.orm import Session

from rectrio_lib.app.records.database import JudgementRow, OwnerRow, SearchRow, blank_log, now, owners_since, writing
from rectrio_lib.core.errors import MissingArtefactError

TASTES = ("like", "dislike")  # of which an image has one
EXPLICIT = (*TASTES, "different")
# the kinds of older judgements of an image that a new one replaces; "different" only those of the same anchor
REPLACED = dict.fromkeys(TASTES, TASTES) | {"different": ("different",), "undo": EXPLICIT, "click": ()}
COLUMNS = ("image_id", "kind", "anchor", "owner", "created")
REMEMBERED = 30  # latest likes, and dislikes, that recommendations go by


class Judgements:
    """The judgements on the images of one collection."""

    def __init__(self, engine: Engine, collection: str):
        self.engine, self.collection = engine, collection

    def add(self, owner: str, said: Sequence[dict[str, Any]]) -> int:
        """Keep judgements, in their order; the last like or dislike of an image counts.

        Args:
            owner: who judges.
            said: image_id, kind (like, dislike, different, click or undo), anchor and search of each; without an
                anchor, the first image of the query of that search.

        Returns:
            How many were kept; none if the owner lets nothing be kept, or has no key any more.

        Raises:
            MissingArtefactError: if the owner has no such search.
        """
        with writing(self.engine) as session:
            settings = session.get(OwnerRow, owner)
            if owner not in owners_since(session, [owner]) or (settings is not None and not settings.keep):
                return 0
            anchors = self._anchors(session, owner, {one["search"] for one in said if one["search"]})
            own, fresh = {"owner": owner, "collection": self.collection, "created": now()}, []
            for one in said:
                new = own | one | {"anchor": one["anchor"] or anchors.get(one["search"])}
                fresh = [old for old in fresh if not _replaces(new, old)]
                if REPLACED[new["kind"]]:
                    self._delete_replaced(session, new)
                if new["kind"] != "undo":
                    fresh.append(new)
            if fresh:
                session.execute(insert(JudgementRow), fresh)
        return len(said)

    def _delete_replaced(self, session: Session, new: dict[str, Any]) -> None:
        chosen = [*JudgementRow.of(new["owner"], self.collection), JudgementRow.image_id == new["image_id"]]
        chosen.append(JudgementRow.kind.in_(REPLACED[new["kind"]]))
        if new["kind"] == "different":
            chosen.append(JudgementRow.anchor.is_not_distinct_from(new["anchor"]))
        session.execute(delete(JudgementRow).where(*chosen))

    def _anchors(self, session: Session, owner: str, searches: set[str]) -> dict[str, str]:
        """Return the first image of the query of each search that has one."""
        mine = *SearchRow.of(owner, self.collection), SearchRow.name.in_(searches)
        queries = dict(session.execute(select(SearchRow.name, SearchRow.query).where(*mine)).all()) if searches else {}
        if absent := searches - set(queries):
            raise MissingArtefactError(f"You have no search {min(absent)}: it is another's, or was deleted.")
        likes = {name: [part["id"] for part in said.get("like", []) if "id" in part] for name, said in queries.items()}
        return {name: ids[0] for name, ids in likes.items() if ids}

    def taste(self, owner: str) -> tuple[list[str], list[str]]:
        """Return the latest liked and disliked images of an owner, newest first."""
        mine = JudgementRow.of(owner, self.collection)
        with Session(self.engine) as session:
            liked, disliked = (
                list(session.scalars(
                    select(JudgementRow.image_id).where(*mine, JudgementRow.kind == kind)
                    .order_by(JudgementRow.id.desc()).limit(REMEMBERED)
                )) for kind in TASTES
            )  # fmt: skip
        return liked, disliked

    def list(self, owner: str, limit: int, before: int | None = None) -> list[JudgementRow]:
        """Return an owner's judgements, newest first; `before` is the id of the last one of the page before."""
        chosen = JudgementRow.of(owner, self.collection) + (() if before is None else (JudgementRow.id < before,))
        wanted = select(JudgementRow).where(*chosen).order_by(JudgementRow.id.desc()).limit(limit)
        with Session(self.engine) as session:
            return list(session.scalars(wanted))

    def frame(self) -> pd.DataFrame:
        """Return the judgements of all owners, oldest first; columns as of `Collection.feedback`."""
        wanted = select(*(getattr(JudgementRow, name) for name in COLUMNS))
        with Session(self.engine) as session:
            rows = session.execute(
                wanted.where(JudgementRow.collection == self.collection).order_by(JudgementRow.id)
            ).all()
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def delete(self, owner: str) -> None:
        """Delete all of an owner's judgements; nothing of them stays in an SQLite file."""
        with writing(self.engine) as session:
            session.execute(delete(JudgementRow).where(*JudgementRow.of(owner, self.collection)))
        blank_log(self.engine)


def _replaces(new: dict[str, Any], old: dict[str, Any]) -> bool:
    of_it = old["image_id"] == new["image_id"] and old["kind"] in REPLACED[new["kind"]]
    return of_it and (new["kind"] != "different" or old["anchor"] == new["anchor"])
