"""How a collection is used: counts over all owners, made in SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import Engine, distinct, func, or_, select
from sqlalchemy.orm import Session

from rectrio_lib.app.records.database import JudgementRow, SearchRow, now

TOP, MEASURED = 10, 100_000  # most frequent queries; latest searches that percentiles are taken of
POSITIVE = ("click", "like")  # what makes a search a good one
PERCENTILES = (50, 90, 95, 99)


def usage(engine: Engine, collection: str, days: int, least: float | None = None) -> dict[str, Any]:
    """Return what happened in the last days, as `schemas.Stats` describes it.

    Args:
        engine: the database.
        collection: its name.
        days: how far to look back.
        least: score below which the best result is no good answer; None: only searches without a result have none.
    """
    start = now() - timedelta(days=days)
    made = [SearchRow.collection == collection, SearchRow.created >= start]
    judged = [JudgementRow.collection == collection, JudgementRow.created >= start]
    good = select(JudgementRow.search).where(*judged, JudgementRow.kind.in_(POSITIVE), JudgementRow.search.isnot(None))
    bad = SearchRow.best.is_(None) if least is None else or_(SearchRow.best.is_(None), SearchRow.best < least)
    utc = SearchRow.created if engine.dialect.name == "sqlite" else func.timezone("UTC", SearchRow.created)
    day, count = func.date(utc), func.count()
    with Session(engine) as session:
        total, owners = session.execute(select(count, func.count(distinct(SearchRow.owner))).where(*made)).one()
        followed = session.scalar(select(count).select_from(SearchRow).where(*made, SearchRow.name.in_(good)))
        per_day = session.execute(select(day, count).where(*made).group_by(day).order_by(day)).all()
        kinds = session.execute(select(JudgementRow.kind, count).where(*judged).group_by(JudgementRow.kind)).all()
        top, unanswered = (_top(session, [*made, *which]) for which in ([], [bad]))
        missed = session.scalar(select(count).select_from(SearchRow).where(*made, bad))
        timed = select(SearchRow.seconds).where(*made, SearchRow.seconds.isnot(None))
        seconds = np.array(session.scalars(timed.order_by(SearchRow.id.desc()).limit(MEASURED)).all(), float)
    return {
        "days": days, "searches": total, "owners": owners, "click_through": followed / total if total else None,
        "per_day": [{"day": str(date), "searches": number} for date, number in per_day],
        "feedback": dict(map(tuple, kinds)),
        "top": top, "unanswered": missed, "without_answer": unanswered,
        "seconds": {f"p{p}": float(np.percentile(seconds, p)) for p in PERCENTILES} if len(seconds) else {},
    }  # fmt: skip


def _top(session: Session, which: list) -> list[dict[str, Any]]:
    count = func.count()
    wanted = select(SearchRow.title, count).where(*which).group_by(SearchRow.title)
    rows = session.execute(wanted.order_by(count.desc(), SearchRow.title).limit(TOP))
    return [{"title": title, "count": number} for title, number in rows]
