"""The routes about images, searches and their history, and about the service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from prometheus_client import generate_latest
from pydantic import Field, TypeAdapter
from sqlalchemy import text
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

import rectrio_lib
from rectrio_lib.app import querying, schemas
from rectrio_lib.app.images.uploads import MOST_BYTES
from rectrio_lib.app.service import Service
from rectrio_lib.app.web import bodies, metrics, problems
from rectrio_lib.app.web.access import Caller, allow

PAGE = Path(__file__).parent / "page"
MOST_FILES = 64  # of one upload
FOREVER = {"Cache-Control": "private, max-age=86400, immutable"}  # an id names content, which never changes
Searching, Writing = Annotated[Caller, Depends(allow("search"))], Annotated[Caller, Depends(allow("write"))]
Governing = Annotated[Caller, Depends(allow("admin"))]
QUERY = TypeAdapter(schemas.SearchRequest)
SEARCH_BODY = bodies.described("SearchRequest")
METADATA = TypeAdapter(schemas.Metadata | Annotated[list[schemas.Metadata], Field(max_length=MOST_FILES)])
routes = APIRouter()


def served(request: Request) -> Service:
    """The service of this application."""
    return request.app.state.service


Served = Annotated[Service, Depends(served)]


@routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


@routes.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """The description of the API, to read and to try."""
    return FileResponse(PAGE / "docs.html", headers={"Cache-Control": "no-cache"})


@routes.post("/search", tags=["search"], response_model=schemas.SearchAnswer, openapi_extra=SEARCH_BODY)
async def search(request: Request, service: Served, caller: Searching) -> JSONResponse:
    """Find images by images of the collection, words, uploaded files, or a mix of these.

    Files come as `multipart/form-data`: `files`, and `query` as JSON, whose parts refer to them by number. Without
    `query` the files are what is searched for.
    """
    query, files = await bodies.query_and_files(request, QUERY)
    answer = await service.search(query, files, caller.name)
    return Response(answer.__pydantic_serializer__.to_json(answer), media_type=bodies.JSON)


UPLOAD_BODY = {"requestBody": {"required": True, "content": {bodies.FORM: {
    "schema": {"type": "object", "required": ["files"], "properties": {
        "files": bodies.LIST_OF_FILES,
        "metadata": {"oneOf": [
            {"$ref": "#/components/schemas/Metadata"},
            {"type": "array", "items": {"$ref": "#/components/schemas/Metadata"}},
        ]},
    }},
    "encoding": {"metadata": {"contentType": bodies.JSON}},
}}}}  # fmt: skip


@routes.post(
    "/upload", tags=["images"], response_model=schemas.UploadAnswer, openapi_extra=UPLOAD_BODY, status_code=201,
    responses={200: {"model": schemas.UploadAnswer, "description": "All of them were there already."}},
)  # fmt: skip
async def upload(request: Request, service: Served, caller: Writing) -> Response:
    """Add images to the collection; they can be found when the call returns. The same bytes are the same image.

    `metadata` is a JSON object for all files, or a list with one for each.
    """
    async with request.form(max_files=MOST_FILES, max_fields=4) as form:
        files = await bodies.files_of(form, "metadata")
        given = await bodies.text_of(form, "metadata") or {}
    said = bodies.valid(METADATA, given)
    said = said if isinstance(said, list) else [said] * len(files)
    if len(said) != len(files):
        raise HTTPException(422, f"{len(said)} objects of metadata for {len(files)} files: give one, or one for each.")
    images, refusals = await service.upload(files, said)
    if all(image.status == "refused" for image in images):
        return problems.problem(refusals[0].status, str(refusals[0]), images)
    added = any(image.status == "added" for image in images)
    return JSONResponse(schemas.UploadAnswer(images=images).model_dump(), 201 if added else 200)


def _record(service: Served, image_id: schemas.ImageId, caller: Searching) -> dict:
    snapshot = service.now.live.current
    places = snapshot.positions([image_id])
    if not places:
        raise HTTPException(404, f"There is no image {image_id} in this collection.")
    return snapshot.records([places[image_id]])[0]


Record = Annotated[dict, Depends(_record)]


@routes.get("/images/{image_id}", tags=["images"])
async def image(record: Record) -> schemas.Image:
    """What is known of an image."""
    return schemas.Image(**querying.image_fields(record))


_jpeg = {200: {"content": {"image/jpeg": {}}, "description": "The picture."}}


@routes.get("/images/{image_id}/view", tags=["images"], response_class=Response, responses=_jpeg)
def view(record: Record, service: Served) -> Response:
    """The image, at most 1,600 pixels wide and high, without the metadata of its file."""
    return Response(service.now.pictures.view(record), media_type="image/jpeg", headers=FOREVER)


@routes.get("/thumbnails/{image_id}", tags=["images"], response_class=Response, responses=_jpeg)
def thumbnail(record: Record, service: Served) -> Response:
    """The middle square of an image, small."""
    return Response(service.now.pictures.thumbnail(record), media_type="image/jpeg", headers=FOREVER)


@routes.patch("/images/{image_id}", tags=["images"])
async def change(image_id: schemas.ImageId, said: schemas.Metadata, service: Served, caller: Writing) -> schemas.Image:
    """Change what is said of an image: null deletes, `extra` is merged."""
    await service.change(image_id, said)
    return await image(_record(service, image_id, caller))


@routes.delete("/images/{image_id}", tags=["images"], status_code=204)
async def remove(image_id: schemas.ImageId, service: Served, caller: Writing) -> None:
    """Take an image out of the collection. An uploaded file is deleted; one of the collection's folder stays there."""
    await service.remove(image_id)


@routes.get("/facets", tags=["search"])
async def facets(
    service: Served, caller: Searching, where: Annotated[str | None, Query(max_length=schemas.LONGEST_WHERE)] = None
) -> schemas.Facets:
    """The columns, their values and ranges, among the images that meet a condition."""
    return await asyncio.to_thread(querying.facets, service.now.live.current, where or None)


@routes.get("/history", tags=["history"])
def history(
    service: Served, caller: Searching, limit: Annotated[int, Query(ge=1, le=100)] = 30,
    before: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
) -> schemas.History:  # fmt: skip
    """The caller's own searches, newest first."""
    return service.searches.list(caller.name, limit, before)


@routes.put("/history", tags=["history"])
async def keep(said: schemas.Keep, service: Served, caller: Searching) -> schemas.Keep:
    """Say whether the caller's searches, judgements and what was shown are kept. What is kept already stays."""
    await service.searches.flush()
    await asyncio.to_thread(service.searches.set_keep, caller.name, said.keep)
    return said


@routes.delete("/history", tags=["history"], status_code=204)
async def forget(service: Served, caller: Searching) -> None:
    """Delete all of the caller's searches, what was shown, and what was clicked."""
    await service.searches.flush()
    await asyncio.to_thread(service.searches.delete, caller.name)


@routes.delete("/history/{search_id}", tags=["history"], status_code=204)
async def forget_one(search_id: schemas.SearchId, service: Served, caller: Searching) -> None:
    """Delete one of the caller's searches."""
    await service.searches.flush()
    if not await asyncio.to_thread(service.searches.delete, caller.name, search_id):
        raise HTTPException(404, f"There is no search {search_id} in your history.")


@routes.get("/about", tags=["service"])
def about(service: Served, caller: Searching) -> schemas.About:
    """What is served, and what the caller may do."""
    now, index = service.now, service.now.collection
    return schemas.About(
        collection=service.name, images=len(now.live.current), encoder=index.encoder_name, texts=service.texts,
        calibrated=now.calibrated,
        random_weights=index.random_weights, generated_images=index.generated_images, scopes=sorted(caller.scopes),
        user=caller.name, columns=now.columns, most_bytes=MOST_BYTES, most_files=MOST_FILES,
        version=rectrio_lib.__version__,
    )  # fmt: skip


@routes.get("/health", tags=["service"])
async def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@routes.get("/ready", tags=["service"])
def ready(service: Served) -> dict[str, str]:
    """Whether searches can be answered: the database is there, and the encoder is loaded."""
    with service.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    if service.cold:
        raise HTTPException(503, service.cold, {"Retry-After": "2"})
    return {"status": "ready"}


@routes.get("/metrics", tags=["service"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def figures(service: Served, caller: Governing) -> Response:
    """Figures for Prometheus."""
    metrics.IMAGES.set(len(service.now.live.current))
    metrics.TAIL.set(len(service.now.live.current.tail))
    return Response(generate_latest(metrics.REGISTRY), media_type="text/plain; version=0.0.4")
