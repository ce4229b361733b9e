"""A small application behind the real gate and shield, and the databases that these need."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, File, Request, UploadFile
from sqlalchemy import Engine
from starlette.testclient import TestClient

from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.web import access, problems, shield


def database(folder: Path) -> Engine:
    return open_database(f"sqlite:///{folder / 'service.sqlite'}")


def small_app(
    engine: Engine,
    host: str = "127.0.0.1",
    allowed_hosts: tuple[str, ...] = (),
    shielded: dict | None = None,
    **options: Any,
) -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def page() -> str:
        return "page"

    @app.get("/health")
    async def health() -> str:
        return "well"

    @app.get("/who")
    async def who(caller: Annotated[access.Caller, Depends(access.allow("search"))]) -> dict:
        return {"name": caller.name, "scopes": sorted(caller.scopes)}

    @app.post("/write")
    async def write(_: Annotated[access.Caller, Depends(access.allow("write"))]) -> str:
        return "written"

    @app.post("/json")
    async def json_body(
        values: Annotated[list[int], Body()], _: Annotated[Any, Depends(access.allow("search"))]
    ) -> int:
        return sum(values)

    @app.post("/files")
    async def files(file: Annotated[UploadFile, File()], _: Annotated[Any, Depends(access.allow("write"))]) -> int:
        return len(await file.read())

    @app.post("/stream")
    async def stream(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @app.get("/fails")
    async def fails() -> None:
        raise app.state.error

    app.state.access = access.Access(engine, host, allowed_hosts, **options)
    app.state.access.install(app)
    app.add_middleware(shield.Shield, host=host, allowed_hosts=allowed_hosts, **(shielded or {}))
    return app


def browser(app: FastAPI, address: str = "http://127.0.0.1", client: str = "127.0.0.1", **options: Any) -> TestClient:
    return TestClient(app, base_url=address, client=(client, 50_000), **options)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
