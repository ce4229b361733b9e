"""What the routes about tastes take and give, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from rectrio_lib.app.schemas import (
    LONGEST_WHERE,
    MOST_RESULTS,
    Example,
    ImageId,
    Result,
    SearchId,
    SearchRequest,
    Strict,
)

MOST_EXAMPLES, MOST_SEEN, MOST_JUDGED = 64, 2000, 100
COLUMN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"


class RecommendRequest(Strict):
    """What is liked and disliked. Without any of it, images that differ from each other are shown."""

    like: list[Example] = Field([], max_length=MOST_EXAMPLES)
    dislike: list[Example] = Field([], max_length=MOST_EXAMPLES)
    seen: list[ImageId] = Field([], max_length=MOST_SEEN, description="Images that are no results.")
    history: bool = Field(True, description="Go by the caller's own likes and dislikes as well, the latest 30 of each.")
    unseen: bool = Field(True, description="Leave out what was judged, or recommended lately.")
    k: int = Field(24, ge=1, le=MOST_RESULTS, description="Most results.")
    where: str | None = Field(None, max_length=LONGEST_WHERE, description="A condition, as of a search.")
    strategy: Literal["logistic", "mean", "best"] = "logistic"
    minimum: float | None = Field(None, ge=-1, le=1, description="Only results of at least this score.")
    distinct: float | None = Field(None, ge=-1, le=1, description="Drop results more similar than this to another.")
    mmr: float | None = Field(None, ge=0, le=1, description="What is liked (1) against variety (0).")
    group_by: str | None = Field(None, pattern=COLUMN, description="A column, such as label.")
    per_group: int = Field(1, ge=1, le=MOST_RESULTS, description="Most results that share a value of this column.")


class Ignored(BaseModel):
    """An image that was left out of account."""

    id: str
    reason: str


class RecommendAnswer(BaseModel):
    """What will be liked, best first."""

    results: list[Result]
    liked: int = Field(description="Likes that were gone by.")
    disliked: int
    ignored: list[Ignored]
    strategy: str = Field(description="How the scores came about; diverse: nothing is liked, and there are none.")
    reason: str | None = Field(None, description="Why there is no result.")
    seconds: float
    random_weights: bool


class Judgement(Strict):
    """What the caller says of an image."""

    image: ImageId
    kind: Literal["like", "dislike", "different", "click", "undo"] = Field(
        description="different: not the same as the anchor; undo: takes back what was said of this image, clicks aside."
    )
    search: SearchId | None = Field(None, description="The caller's search that it was found by.")
    anchor: ImageId | None = Field(None, description="What it is compared with; else the first image of that search.")


class FeedbackAnswer(BaseModel):
    """What was kept."""

    kept: int = Field(description="0 if the caller lets nothing be kept.")
    ignored: list[Ignored]


class Judged(BaseModel):
    """A judgement of the caller."""

    image: str
    kind: Literal["like", "dislike", "different", "click"]
    anchor: str | None
    search: str | None
    created: datetime


class Feedback(BaseModel):
    """The caller's judgements, newest first."""

    judgements: list[Judged]
    next: int | None = Field(description="The `before` of the next page; null on the last.")


class Save(Strict):
    """A search to save."""

    query: SearchRequest
    title: str = Field("", max_length=200, description="By default the query in words.")


class SavedSearch(BaseModel):
    """A saved search of the caller."""

    id: str
    created: datetime
    query: SearchRequest
    title: str


class SavedSearches(BaseModel):
    """The caller's saved searches, newest first."""

    saved: list[SavedSearch]


class Day(BaseModel):
    """Searches of one day, in UTC."""

    day: str
    searches: int


class Query(BaseModel):
    """A query in words, and how often it was made."""

    title: str
    count: int


class Stats(BaseModel):
    """How the collection is used, by those who let their history be kept."""

    days: int
    searches: int
    owners: int
    click_through: float | None = Field(description="Share of the searches of which a result was clicked or liked.")
    per_day: list[Day]
    feedback: dict[str, int] = Field(description="Judgements by kind.")
    top: list[Query] = Field(description="Most frequent queries.")
    unanswered: int = Field(description="Searches without a good answer.")
    without_answer: list[Query]
    seconds: dict[str, float] = Field(description="Percentiles p50, p90, p95 and p99.")
