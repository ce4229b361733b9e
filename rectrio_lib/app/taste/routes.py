"""The routes about what people like, and about how the collection is used."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rectrio_lib.app.records.database import SavedRow
from rectrio_lib.app.records.statistics import usage
from rectrio_lib.app.routes import Governing, Searching, Served
from rectrio_lib.app.schemas import SearchId, SearchRequest
from rectrio_lib.app.taste import recommending, schemas
from rectrio_lib.app.web import bodies
from rectrio_lib.search.ranking.recommend import ABSENT

WISH = TypeAdapter(schemas.RecommendRequest)
WISH_BODY = bodies.described("RecommendRequest")
GOOD = 0.5  # probability of the best result, below which a search had no good answer
routes = APIRouter()


@routes.post("/recommend", tags=["taste"], response_model=schemas.RecommendAnswer, openapi_extra=WISH_BODY)
async def recommend(request: Request, service: Served, caller: Searching) -> Response:
    """Show what will be liked, by examples and by the caller's own judgements; nothing is needed.

    Files come as of a search; without `query` the files are what is liked.
    """
    query, files = await bodies.query_and_files(request, WISH)
    answer = await recommending.answer(service, query, files, caller.name)
    return Response(answer.__pydantic_serializer__.to_json(answer), media_type=bodies.JSON)


@routes.post("/feedback", tags=["taste"])
async def judge(
    said: Annotated[
        schemas.Judgement | Annotated[list[schemas.Judgement], Body(min_length=1, max_length=schemas.MOST_JUDGED)],
        Body(),
    ],
    service: Served, caller: Searching,
) -> schemas.FeedbackAnswer:  # fmt: skip
    """Like, dislike, "not the same", click or undo; one, or a list. Images that are gone are ignored."""
    said = said if isinstance(said, list) else [said]
    there = service.now.live.current.positions([one.image for one in said])
    known = [one for one in said if one.image in there or one.kind == "undo"]
    gone = [schemas.Ignored(id=one.image, reason=ABSENT) for one in said if one not in known]
    await service.searches.flush()  # the search that it was found by may still wait
    rows = [{"image_id": one.image, **one.model_dump(exclude={"image"})} for one in known]
    kept = await asyncio.to_thread(service.judgements.add, caller.name, rows) if rows else 0
    return schemas.FeedbackAnswer(kept=kept, ignored=gone)


@routes.get("/feedback", tags=["taste"])
def judgements(
    service: Served, caller: Searching, limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
) -> schemas.Feedback:  # fmt: skip
    """The caller's own judgements, newest first."""
    rows = service.judgements.list(caller.name, limit + 1, before)
    shown = [
        schemas.Judged(image=row.image_id, kind=row.kind, anchor=row.anchor, search=row.search, created=row.created)
        for row in rows[:limit]
    ]
    return schemas.Feedback(judgements=shown, next=rows[limit - 1].id if len(rows) > limit else None)


@routes.delete("/feedback", tags=["taste"], status_code=204)
def forget(service: Served, caller: Searching) -> None:
    """Delete all of the caller's judgements."""
    service.judgements.delete(caller.name)


@routes.get("/saved", tags=["taste"])
def saved(service: Served, caller: Searching) -> schemas.SavedSearches:
    """The caller's own saved searches, newest first."""
    return schemas.SavedSearches(saved=[_saved(row) for row in service.saved.list(caller.name)])


@routes.post("/saved", tags=["taste"], status_code=201)
def save(said: schemas.Save, service: Served, caller: Searching) -> schemas.SavedSearch:
    """Save a search; one with uploaded files cannot be."""
    return _saved(service.saved.add(caller.name, said.query, said.title))


@routes.delete("/saved/{saved_id}", tags=["taste"], status_code=204)
def unsave(saved_id: SearchId, service: Served, caller: Searching) -> None:
    """Delete one of the caller's saved searches."""
    if not service.saved.delete(caller.name, saved_id):
        raise HTTPException(404, f"You have no saved search {saved_id}.")


def _saved(row: SavedRow) -> schemas.SavedSearch:
    return schemas.SavedSearch(id=row.name, created=row.created, query=SearchRequest(**row.query), title=row.title)


@routes.get("/stats", tags=["service"])
def stats(service: Served, caller: Governing, days: Annotated[int, Query(ge=1, le=3650)] = 30) -> schemas.Stats:
    """How the collection is used, over all callers who let their history be kept."""
    known = service.now.collection.calibration
    least = None if known is None else known.minimum(probability=GOOD)
    return schemas.Stats(**usage(service.engine, service.name, days, least))
