"""What the service takes and gives, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_PARTS, MOST_RESULTS, MOST_OFFSET, LONGEST_WHERE, LONGEST_TEXT = 32, 200, 1000, 2000, 1000
SORT = r"^(score|[A-Za-z_][A-Za-z0-9_]{0,63})$"

ImageId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[0-9A-Za-z_-]+$")]

SearchId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]  # of one in the history, or a saved one


def _whole(text: str) -> str:
    if text.encode("utf-8", "ignore").decode() != text:
        raise ValueError("text should hold no half of a surrogate pair")
    return text


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("the date lies outside of the years 1 to 9999") from None


def _free(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} is a column of RecTrio's own: take another name")
    return name


Text = Annotated[str, Field(pattern=r"^[^\x00]*$"), AfterValidator(_whole)]  # PostgreSQL keeps no NUL
RESERVED = frozenset(
    ("image_id", "id", "path", "label", "category", "price", "colour", "tags", "created", "width", "height")
) | {"uploaded", "score", "rank", "query", "row"}
Tag = Annotated[Text, Field(min_length=1, max_length=64)]
NewColumn = Annotated[str, Field(pattern=SORT), AfterValidator(_free)]


class Strict(BaseModel):
    """Refuses keys that it does not know, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _exactly_one(schema: dict[str, Any]) -> None:
    kinds = {"id": "string", "text": "string", "file": "integer"}
    types = {name: {key: kind if key == name else "null" for key, kind in kinds.items()} for name in kinds}
    schema["oneOf"] = [
        {"required": [name], "properties": {key: {"type": kind} for key, kind in types[name].items()}} for name in kinds
    ]


class Example(Strict):
    """An image of the collection, words, or an uploaded file; exactly one of these."""

    model_config = ConfigDict(json_schema_extra=_exactly_one)

    id: ImageId | None = Field(None, description="Id of an image of the collection.")
    text: Text | None = Field(None, min_length=1, max_length=LONGEST_TEXT, description="Words.")
    file: int | None = Field(None, ge=0, lt=MOST_PARTS, description="Number of an uploaded file, from 0.")

    @model_validator(mode="after")
    def _one(self) -> Example:
        if sum(value is not None for value in (self.id, self.text, self.file)) != 1:
            raise ValueError("give exactly one of id, text and file")
        return self


class Part(Example):
    """One part of a query: an image of the collection, words, or an uploaded file; exactly one of these."""

    weight: float = Field(1, gt=0, le=100, description="How much this part counts, relative to the others.")


class SearchRequest(Strict):
    """A search. Without `like`, `without` and `words` the newest images are listed."""

    like: list[Part] = Field([], max_length=MOST_PARTS)
    without: list[Part] = Field([], max_length=MOST_PARTS, description="What to turn away from.")
    words: Text | None = Field(
        None, min_length=1, max_length=LONGEST_TEXT,
        description="Words of labels, tags, file names and other metadata; mixed with what looks alike.",
    )  # fmt: skip
    k: int = Field(24, ge=1, le=MOST_RESULTS, description="Results per page.")
    offset: int = Field(0, ge=0, le=MOST_OFFSET, description="Results to skip: `next` of the page before.")
    where: str | None = Field(
        None, max_length=LONGEST_WHERE, description="A condition, such as \"label == 'cat' and price < 50\"."
    )
    minimum: float | None = Field(None, ge=-1, le=1, description="Only results of at least this score.")
    sure: float | None = Field(
        None, ge=0, le=1, description="Only so many of the best results that this share of them is right, such as 0.9."
    )
    minimum_probability: float | None = Field(
        None, ge=0, le=1, description="Only results that are right with at least this probability."
    )
    sort: str = Field("score", pattern=SORT, description="score, or a column: then the best 1,000 matches are sorted.")
    descending: bool = True
    distinct: float | None = Field(
        None, ge=-1, le=1, description="Drop results more similar than this to a better one."
    )
    mmr: float | None = Field(None, ge=0, le=1, description="Relevance (1) against variety (0).")


class Image(BaseModel):
    """An image of the collection; addresses are relative to that of the service."""

    id: str
    metadata: dict[str, Any] = Field(description="label, category, price, tags, created, width, height, path, ….")
    thumbnail: str
    view: str = Field(description="A larger picture, at most 1,600 pixels wide.")


class Result(Image):
    """An image found."""

    rank: int = Field(description="From 1.")
    score: float | None = Field(description="Cosine similarity to the query; null where nothing was asked for.")
    probability: float | None = Field(
        None, description="That it is of the same kind as the images of the query; null if nobody knows."
    )


class SearchAnswer(BaseModel):
    """A page of results, best first or as sorted."""

    results: list[Result]
    total: int = Field(description="Images that meet the condition.")
    next: int | None = Field(description="The offset of the next page; null on the last.")
    search: str | None = Field(description="Id of this search in the history; null if it is not kept.")
    reason: str | None = Field(None, description="Why there is no result, if nothing here is sure enough.")
    seconds: float
    random_weights: bool = Field(description="The encoder has random weights, so that scores mean nothing.")


class Metadata(Strict):
    """What people say about an image. Other columns go into `extra`."""

    label: Text | None = Field(None, max_length=200)
    category: Text | None = Field(None, max_length=200)
    price: float | None = None
    tags: list[Tag] | None = Field(None, max_length=64)
    created: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    extra: dict[NewColumn, Text | float | bool | None] | None = Field(
        None, max_length=64, json_schema_extra={"propertyNames": {"pattern": SORT, "not": {"enum": sorted(RESERVED)}}}
    )


class Uploaded(BaseModel):
    """What became of one file."""

    name: str
    status: Literal["added", "known", "refused"]
    id: str | None = None
    reason: str | None = None


class UploadAnswer(BaseModel):
    """What became of the files, in their order."""

    images: list[Uploaded]


class Value(BaseModel):
    """A value of a column and how many images have it."""

    value: str | float | bool
    count: int


class Facet(BaseModel):
    """A column that can be filtered by."""

    name: str
    kind: Literal["category", "tags", "colour", "number", "date", "bool"]
    count: int = Field(description="Images that have a value.")
    values: list[Value] = Field([], description="Most frequent first, at most 50; of numbers and dates none.")
    distinct: int = Field(description="How many different values there are.")
    minimum: float | datetime | None = None
    maximum: float | datetime | None = None


class Facets(BaseModel):
    """The columns of the images that meet a condition."""

    total: int
    columns: list[Facet]


class About(BaseModel):
    """What is served, and what the caller may do."""

    collection: str
    images: int
    encoder: str
    texts: bool = Field(description="Whether words can be searched for.")
    calibrated: bool = Field(description="Whether it is known what scores mean, so that `sure` costs nothing.")
    random_weights: bool
    generated_images: bool
    scopes: list[str] = Field(description="Of search, write, admin.")
    user: str
    columns: list[str]
    most_bytes: int = Field(description="Largest upload of one file, in bytes.")
    most_files: int = Field(description="Most files of one request.")
    version: str


class Searched(BaseModel):
    """A search of the caller's history."""

    id: str
    created: datetime
    query: SearchRequest
    title: str = Field(description="The query in words, such as \"'red shoe' + 2 images\".")
    results: list[str] = Field(description="Ids of the first results.")


class History(BaseModel):
    """The caller's searches, newest first."""

    searches: list[Searched]
    next: str | None = Field(description="The `before` of the next page; null on the last.")
    keep: bool = Field(description="Whether searches are kept, see `PUT /history`.")


class Keep(Strict):
    """Whether the caller's searches, judgements and what was shown are kept."""

    keep: bool


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    images: list[Uploaded] | None = Field(None, description="Of an upload: what became of each file.")
