"""Errors as RFC 9457 problem JSON: one shape, one sentence, and nothing about the inside of the service."""

from __future__ import annotations

import errno
import logging
import re
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic.json_schema import models_json_schema
from sqlalchemy import exc as sql
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match, Mount

from rectrio_lib.app.batching import BusyError
from rectrio_lib.app.images.uploads import UploadError
from rectrio_lib.app.schemas import Problem
from rectrio_lib.core import errors
from rectrio_lib.core.files import FULL

MEDIA_TYPE = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
RETRY_SECONDS = "5"
LONGEST_DETAIL, MOST_INVALID = 600, 5  # characters; fields that one answer names
FOLDERS = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\"]+[\\/])+")  # of the service: nobody's business
NO_DISK = (*FULL, errno.EROFS)
GONE = "The database of the service is busy, full, read-only or out of reach: try again in a few seconds."
NO_ROOM = "The service has no room left on its disk or may not write there: make room, then try again."
UNKNOWN = "Something went wrong inside the service; its log says what. If it happens again, report it."
UNAVAILABLE = "The index, the encoder or another file of the service is missing, damaged or in use; its log says which."
OF_SQL = (sql.OperationalError, sql.InterfaceError, sql.InternalError, sql.TimeoutError)
NOT_THERE = {"extra_forbidden": "there is no such field; /docs lists those there are"}
log = logging.getLogger(__name__)


def problem(
    status: int, detail: str, images: list[Any] | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return a problem response.

    Args:
        status: of HTTP.
        detail: a sentence: what is wrong, what was expected, what to do.
        images: of an upload: `schemas.Uploaded` of each file.
        headers: of the response.
    """
    text = detail.encode("utf-8", "backslashreplace").decode()[:LONGEST_DETAIL]
    content = Problem(title=HTTPStatus(status).phrase, status=status, detail=text, images=images)
    return JSONResponse(content.model_dump(mode="json", exclude_none=True), status, headers, MEDIA_TYPE)


def of(error: Exception) -> JSONResponse:
    """Return the problem response of an error; what a caller cannot mend is logged, and told without details."""
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, RequestValidationError):
        return problem(422, _invalid(error))
    if isinstance(error, UploadError):
        return problem(error.status, str(error))
    if isinstance(error, BusyError):
        return problem(503, "Too many queries wait: try again in a moment.", headers={"Retry-After": "1"})
    if isinstance(error, errors.ArgumentError | errors.RecallOutOfReachError):
        return problem(400, FOLDERS.sub("", str(error)))
    if isinstance(error, errors.MissingArtefactError):
        return problem(404, FOLDERS.sub("", str(error)))
    status, detail = _inside(error)
    log.error("%s %s", status, type(error).__name__, exc_info=error)
    return problem(status, detail, headers={"Retry-After": RETRY_SECONDS} if status == 503 else None)


def _of_http(error: HTTPException) -> JSONResponse:
    cause = error.__cause__
    if error.status_code == 400 and isinstance(cause, OSError) and cause.errno in NO_DISK:  # while the body was kept
        return of(cause)
    return problem(error.status_code, str(error.detail), headers=error.headers)


def _inside(error: Exception) -> tuple[int, str]:
    """Return status and sentence of an error that the caller did not make."""
    if isinstance(error, errors.StoreInUseError):
        return 503, UNAVAILABLE
    if isinstance(error, errors.StorageError) or (isinstance(error, OSError) and error.errno in NO_DISK):
        return 507, NO_ROOM
    if isinstance(error, OF_SQL) or type(error) is sql.DatabaseError:
        return 503, GONE
    return (503, UNAVAILABLE) if isinstance(error, errors.RectrioError) else (500, UNKNOWN)


def _invalid(error: RequestValidationError) -> str:
    told = [(".".join(map(str, e["loc"])) or "request", NOT_THERE.get(e["type"], e["msg"])) for e in error.errors()]
    found = [f"{place}: {message}"[:200] for place, message in told]
    more = f"; and {len(found) - MOST_INVALID} more" if len(found) > MOST_INVALID else ""
    return f"{'; '.join(found[:MOST_INVALID])}{more}."


def install(app: FastAPI) -> None:
    """Let an application answer every error with a problem, and say so in its OpenAPI description."""
    own = (UploadError, BusyError, errors.RectrioError)
    for kind in (HTTPException, RequestValidationError, *own, sql.SQLAlchemyError, OSError, Exception):
        app.add_exception_handler(kind, _answer)
    app.openapi = partial(_described, app)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    answer = of(error)
    if answer.status_code == 405:
        answer.headers["Allow"] = ", ".join(_methods(request))
    return answer


def _methods(request: Request) -> list[str]:
    """Return the methods that an address takes by any of its routes; the framework names those of the first alone."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    taken = [m for m in METHODS if any(r.matches({**request.scope, "method": m})[0] is Match.FULL for r in routes)]
    return taken or ["GET", "HEAD"]  # a file of the page


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description with a problem as the answer to whatever fails."""
    if app.openapi_schema:
        return app.openapi_schema
    described = FastAPI.openapi(app)
    _, models = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {name: model for name, model in models["$defs"].items() if name not in schemas}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operations = [o for path in described["paths"].values() for o in path.values() if isinstance(o, dict)]
    for operation in operations:
        answers = operation.get("responses", {})
        answers.pop("422", None)
        answers |= {"4XX": {"description": "The request was refused.", "content": content}}
        answers |= {"5XX": {"description": "The service cannot answer now.", "content": content}}
        if "security" in operation and not getattr(app.state, "keys_required", True):
            operation["security"].append({})  # in OpenAPI: or none
    return described
