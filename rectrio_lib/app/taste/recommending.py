"""From likes, given or remembered, to images of the present generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from rectrio_lib.app import querying
from rectrio_lib.app.generation import Generation
from rectrio_lib.app.schemas import Example
from rectrio_lib.app.service import Service
from rectrio_lib.app.taste.schemas import Ignored, RecommendAnswer, RecommendRequest
from rectrio_lib.app.web.metrics import SECONDS
from rectrio_lib.index.live import Snapshot
from rectrio_lib.search.ranking import strategies
from rectrio_lib.search.ranking.recommend import ABSENT, BOTH, Taste, apart, recommend

NOTHING = "No image meets the condition."
ALL_SEEN = "Every image that fits was judged or shown before: ask again with unseen=false."


async def answer(service: Service, request: RecommendRequest, files: Sequence[bytes], owner: str) -> RecommendAnswer:
    """Recommend to an owner; errors as of `Service.search`, but unknown ids are ignored."""
    begun, now = time.perf_counter(), service.now
    snapshot, ignored = now.live.current, []
    liked_before, disliked_before, shown = await asyncio.to_thread(_remembered, service, request, owner)
    given = [_given(service, now, snapshot, part, files, ignored) for part in (request.like, request.dislike)]
    (likes, its), (dislikes, others) = await asyncio.gather(*given)
    judged = {*its.tolist(), *others.tolist()}
    with SECONDS.labels("recommend").time():
        before = [await _before(now, snapshot, names, judged) for names in (liked_before, disliked_before)]
        likes, its = np.concatenate([likes, before[0][0]]), np.concatenate([its, before[0][1]])
        dislikes, others = np.concatenate([dislikes, before[1][0]]), np.concatenate([others, before[1][1]])
        likes, dislikes, both = apart(likes, its, dislikes, others)
        ignored += [Ignored(id=record["image_id"], reason=BOTH) for record in snapshot.records(both.tolist())]
        seen = np.array([*snapshot.positions([*request.seen, *shown]).values()], np.int64)
        out = np.concatenate([its[its >= 0], others[others >= 0], seen])
        names = ("strategy", "where", "minimum", "distinct", "mmr", "group_by", "per_group")
        taste = Taste(**{name: getattr(request, name) for name in names})
        scores, found = await asyncio.to_thread(recommend, snapshot, likes, dislikes, request.k, out, taste)
    results = querying.results_of(snapshot, scores, found)
    if request.unseen:
        service.searches.record_feed(owner, [result.id for result in results])
    reason = None if results else NOTHING if not snapshot.count(request.where) else ALL_SEEN
    return RecommendAnswer.model_construct(
        results=results, liked=len(likes), disliked=len(dislikes), ignored=ignored, reason=reason,
        strategy=request.strategy if len(likes) else "diverse", seconds=round(time.perf_counter() - begun, 4),
        random_weights=now.collection.random_weights,
    )  # fmt: skip


def _remembered(service: Service, request: RecommendRequest, owner: str) -> tuple[list[str], list[str], set[str]]:
    """Return what the owner liked and disliked before, and what they have seen."""
    liked, disliked = service.judgements.taste(owner) if request.history else ([], [])
    return liked, disliked, service.searches.shown(owner) if request.unseen else set()


async def _given(
    service: Service, now: Generation, snapshot: Snapshot, parts: Sequence[Example], files: Sequence[bytes],
    ignored: list[Ignored],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return vectors (P, dim) and positions (P,), -1 for what is not in the collection, of the parts of a request."""
    there = snapshot.positions([part.id for part in parts if part.id is not None])
    ignored += [Ignored(id=part.id, reason=ABSENT) for part in parts if part.id is not None and part.id not in there]
    parts = [part for part in parts if part.id is None or part.id in there]
    vectors, places = np.empty((len(parts), snapshot.main.dim), np.float32), np.full(len(parts), -1)
    for number, part in enumerate(parts):
        vectors[number], places[number] = await service.vector_of(now, snapshot, part, files)
    return vectors, places


async def _before(
    now: Generation, snapshot: Snapshot, names: Sequence[str], judged: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors and positions of remembered images, those aside that the request speaks of itself."""
    places = np.array([at for at in snapshot.positions(names).values() if at not in judged], np.int64)
    return await now.quick(snapshot.vectors_at, places), places


def warm_up() -> None:
    """Import what the first recommendation would wait for."""
    strategies.by_regression(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:1], np.empty((0, 3), np.float32))
