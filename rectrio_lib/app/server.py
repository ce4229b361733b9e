"""Doors to the service: a process of its own, or a thread of a notebook's kernel."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pandas as pd
import uvicorn
from uvicorn.supervisors import Multiprocess

from rectrio_lib.app.application import create_app
from rectrio_lib.app.records.database import open_database
from rectrio_lib.app.records.judgements import Judgements
from rectrio_lib.core.device import best_device
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.data.image_files import cores
from rectrio_lib.search.collection import Collection

START_SECONDS = 60
QUIET = {"log_level": "warning", "server_header": False}
NOTEBOOKS = ("http://localhost:*", "http://127.0.0.1:*", "https://*.googleusercontent.com", "vscode-webview:")


def make_app(collection: Collection, host: str = "127.0.0.1", **options: Any) -> Any:
    """Return the application, with the database and redis that RECTRIO_DATABASE and RECTRIO_REDIS name."""
    engine = open_database(os.environ.get("RECTRIO_DATABASE", ""), collection.workspace)
    return create_app(collection, engine, host, redis_url=os.environ.get("RECTRIO_REDIS", ""), **options)


def feedback(collection: Collection) -> pd.DataFrame:
    """Return what was said of the images of a collection, see `Collection.feedback`."""
    engine = open_database(os.environ.get("RECTRIO_DATABASE", ""), collection.workspace)
    try:
        said = Judgements(engine, collection.name).frame()
    finally:
        engine.dispose()
    rows = collection.index.rows
    return said.merge(rows[[name for name in ("image_id", "path", "label") if name in rows]], how="left", on="image_id")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes any that is free.

    Raises:
        ArgumentError: if the address is in use, or not of this machine.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0].rstrip(".")
        raise ArgumentError(f"{host}:{port} cannot be listened on ({reason}): choose another port (--port).") from error
    # asyncio does so only for sockets that it opened itself; without, every answer waits 40 ms for an acknowledgement
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address_of(listening: socket.socket, host: str) -> str:
    """Return the address of the page, as this machine's browser takes it."""
    name = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}/"


def serve(
    collection: Collection,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: Iterable[str] = (),
    workers: int = 1,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a collection until Ctrl-C.

    Args:
        collection: as opened.
        host: to listen on; beyond this machine callers need keys.
        port: to listen on; 0 takes any that is free.
        allowed_hosts: further names that the service goes by, such as that of a proxy.
        workers: processes that serve; each holds encoder and index once more, and sees the others' changes in a second.
        started: called with the address once it answers; where keys are needed it opens a session, once.

    Raises:
        ArgumentError: if the address cannot be listened on, or keys are needed and there is none.
    """
    settings = {"host": host, "allowed_hosts": list(allowed_hosts), "workers": workers}
    settings["threads"] = max(1, cores() // workers) if best_device() == "cpu" else 1
    app, listening = make_app(collection, **settings), listen(host, port)
    address = address_of(listening, host)
    if app.state.access.required:
        address += f"session?token={app.state.access.new_link('page')}"
    if workers == 1:
        return _Server(uvicorn.Config(app, **QUIET), started, address).run(sockets=[listening])
    place = (collection.name, collection.uri, collection.workspace)
    config = uvicorn.Config(partial(app_of_worker, *place, **settings), factory=True, workers=workers, **QUIET)
    started(address)
    Multiprocess(config, [listening]).run()


def app_of_worker(name: str, folder: str, workspace: Workspace, **settings: Any) -> Any:
    """Return the application of one of several processes."""
    return make_app(Collection.open(name, folder, workspace), **settings)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[str], None], address: str):
        super().__init__(config)
        self._call, self._address = started, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._call(self._address)


class NotebookService:
    """A service in a thread of this process; in a notebook it shows its page.

    Attributes:
        address: of the page.
    """

    def __init__(self, collection: Collection, port: int = 0, height: int = 800):
        self.height = height
        app = make_app(collection, frames=NOTEBOOKS)
        listening = listen("127.0.0.1", port)
        self.address, self.port = address_of(listening, "127.0.0.1"), listening.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app, **QUIET))
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.02)

    def stop(self) -> None:
        """End the service."""
        self._server.should_exit = True
        self._thread.join()

    def __repr__(self) -> str:
        return f"The page is at {self.address} until the kernel ends, or `stop()` is called."

    def _ipython_display_(self) -> None:
        """Show the page below the cell, in Jupyter and in Colab."""
        from IPython.display import IFrame, display

        try:
            from google.colab import output
        except ImportError:
            display({"text/plain": repr(self)}, raw=True)
            display(IFrame(self.address, "100%", self.height, extras=['allow="camera"']))
        else:
            output.serve_kernel_port_as_iframe(self.port, height=str(self.height))
