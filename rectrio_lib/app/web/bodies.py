"""Bodies of requests: JSON, or a form with JSON and files; and how OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from rectrio_lib.app.schemas import MOST_PARTS

JSON, FORM = "application/json", "multipart/form-data"
LONGEST = 1 << 17  # bytes of JSON: whatever is wrong with them is told field by field, which takes time
LIST_OF_FILES = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}


def described(model: str) -> dict[str, Any]:
    """Describe a body that is a model as JSON, or a form with it as `query`, and with `files`."""
    query = {"$ref": f"#/components/schemas/{model}"}
    form = {"type": "object", "properties": {"query": query, "files": LIST_OF_FILES}, "required": ["files"]}
    content = {JSON: {"schema": query}, FORM: {"schema": form, "encoding": {"query": {"contentType": JSON}}}}
    return {"requestBody": {"required": True, "content": content}}


async def query_and_files(request: Request, model: TypeAdapter) -> tuple[Any, list[bytes]]:
    """Read a query and the files that it refers to by number; without one, the files are what is liked."""
    kind, files = request.headers.get("content-type", "").partition(";")[0].strip().lower(), []
    if kind == FORM:
        async with request.form(max_files=MOST_PARTS, max_fields=4) as form:
            files = [data for _, data in await files_of(form, "query")]
            given = await text_of(form, "query") or {"like": [{"file": number} for number in range(len(files))]}
    elif kind == JSON:
        given = await request.body()
    else:
        raise HTTPException(415, f"Send the query as {JSON}, or with files as {FORM}.")
    query = valid(model, given)
    parts = [part for value in dict(query).values() if isinstance(value, list) for part in value]
    if silent := sorted({*range(len(files))} - {getattr(part, "file", None) for part in parts}):
        given = f'"like": [{{"file": {silent[0]}}}]'
        raise HTTPException(422, f"The query does not say what file {silent[0]} is for, such as {given}.")
    return query, files


async def files_of(form: FormData, *others: str) -> list[tuple[str, bytes]]:
    """Return names and bytes of the `files` of a form; HTTPException if it has other fields than these and `others`."""
    if unknown := set(form) - {"files", *others}:
        raise HTTPException(422, f"The form has a field {min(unknown)!r:.100}; it takes files, {', '.join(others)}.")
    files = [(f.filename or "image", await f.read()) for f in form.getlist("files") if isinstance(f, UploadFile)]
    if not files:
        raise HTTPException(422, "There is no file in this request: send at least one as `files`.")
    return files


async def text_of(form: FormData, name: str) -> str | bytes | None:
    """Return a field of a form that holds JSON, sent as text or as a file; None if it is absent."""
    given = form.get(name)
    return await given.read(LONGEST + 1) if isinstance(given, UploadFile) else given


def valid(model: TypeAdapter, given: Any) -> Any:
    """Return what was sent, as a model; RequestValidationError if it is none."""
    if isinstance(given, str | bytes) and len(given) > LONGEST:
        raise HTTPException(413, f"JSON of {len(given):,} bytes; {LONGEST:,} are allowed.")
    check = model.validate_json if isinstance(given, str | bytes) else model.validate_python
    try:
        return check(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from error
