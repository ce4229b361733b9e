"""The application: routes, page and documentation, behind access and shield."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.staticfiles import StaticFiles

import rectrio_lib
from rectrio_lib.app import upkeep
from rectrio_lib.app.learning.routes import Learner
from rectrio_lib.app.learning.routes import routes as learning_routes
from rectrio_lib.app.routes import PAGE, routes
from rectrio_lib.app.service import Service
from rectrio_lib.app.taste import recommending
from rectrio_lib.app.taste.routes import routes as taste_routes
from rectrio_lib.app.web import metrics, problems
from rectrio_lib.app.web.access import Access
from rectrio_lib.app.web.shield import Shield
from rectrio_lib.search.collection import Collection

TYPES = {"text/javascript": ".js", "application/manifest+json": ".webmanifest", "image/svg+xml": ".svg"}


def create_app(
    collection: Collection,
    engine: Engine,
    host: str = "127.0.0.1",
    allowed_hosts: Iterable[str] = (),
    redis_url: str = "",
    batch: int = 32,
    threads: int = 1,
    frames: Iterable[str] = (),
    **access: Any,
) -> FastAPI:
    """Return the application that serves a collection.

    Args:
        collection: as opened.
        engine: see `database.open_database`.
        host: the address that it will listen on; beyond this machine keys are required.
        allowed_hosts: further names that it goes by.
        redis_url: where several processes count rates together.
        batch: most queries that are encoded at once; 1 switches batching off.
        threads: see `Generation`.
        frames: origins that may show the page in a frame.
        **access: further arguments of `Access`.
    """
    service = Service(collection, engine, batch, threads)
    for kind, ending in TYPES.items():  # which Windows may call text/plain, so that browsers refuse them
        mimetypes.add_type(kind, ending)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loads = [asyncio.to_thread(load) for load in (service.warm_up, recommending.warm_up)]
        tasks = [asyncio.create_task(task) for task in (upkeep.keep_up(service), *loads)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(SQLAlchemyError):  # the database is away, and the service ends
            await service.searches.flush()

    app = FastAPI(title="RecTrio", version=rectrio_lib.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.learner = service, Learner(service)
    app.include_router(routes)
    app.include_router(taste_routes)
    app.include_router(learning_routes)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.mount("/docs", StaticFiles(packages=[("fastapi_swagger", "resources")]), name="docs")
    app.add_middleware(metrics.Counted)
    problems.install(app)
    app.state.access = Access(engine, host, allowed_hosts, redis_url, **access)
    app.state.access.install(app)
    app.add_middleware(Shield, host=host, allowed_hosts=tuple(allowed_hosts), frames=tuple(frames))
    return app
