"""Bodies of requests: JSON, or a form with JSON and files; and how OpenAPI describes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from rectrio_lib.app.schemas import MOST_PARTS

JSON, FORM = "application/json", "multipart/form-data"
LIST_OF_FILES = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}


def described(model: str) -> dict[str, Any]:
    """Describe a body that is a model as JSON, or a form with it as `query`, and with `files`."""
    query = {"$ref": f"#/components/schemas/{model}"}
    form = {"type": "object", "properties": {"query": query, "files": LIST_OF_FILES}, "required": ["files"]}
    content = {JSON: {"schema": query}, FORM: {"schema": form, "encoding": {"query": {"contentType": JSON}}}}
    return {"requestBody": {"required": True, "content": content}}


async def query_and_files(
    request: Request, model: TypeAdapter, without_query: Callable[[int], Any]
) -> tuple[Any, list[bytes]]:
    """Read a query and the files that it refers to by number; without one, `without_query` makes it of their count."""
    kind, files = request.headers.get("content-type", "").partition(";")[0].strip().lower(), []
    if kind == FORM:
        async with request.form(max_files=MOST_PARTS, max_fields=4) as form:
            files = [await file.read() for file in form.getlist("files") if isinstance(file, UploadFile)]
            given = form.get("query") or without_query(len(files))
            given = await given.read() if isinstance(given, UploadFile) else given
    elif kind == JSON:
        given = await request.body()
    else:
        raise HTTPException(415, f"Send the query as {JSON}, or with files as {FORM}.")
    return valid(model, given), files


def valid(model: TypeAdapter, given: Any) -> Any:
    """Return what was sent, as a model; RequestValidationError if it is none."""
    try:
        return model.validate_json(given) if isinstance(given, str | bytes) else model.validate_python(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from error
