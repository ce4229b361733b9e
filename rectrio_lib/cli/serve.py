"""The commands about the service: start it, build its index anew, and say who may use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from rectrio_lib.cli.collections import RANDOM, Moved, Opened
from rectrio_lib.cli.output import escaped, say
from rectrio_lib.core.errors import ArgumentError, needing

if TYPE_CHECKING:  # imported by the commands that need them, see `app`
    from sqlalchemy import Engine

keys = typer.Typer(no_args_is_help=True, help="Make, list and remove the keys that programs and people need.")
Name = Annotated[str, typer.Argument(help="Who gets it: letters, digits and . _ @ -", show_default=False)]
Scope = Annotated[str, typer.Option(help="search, write and admin, joined by commas.")]
Rate = Annotated[str, typer.Option(help="How many requests it is good for, such as 60/minute.", show_default=False)]
Days = Annotated[float | None, typer.Option(help="How long it is valid; else until it is removed.", show_default=False)]


def serve(
    name: Opened = "",
    host: Annotated[str, typer.Option(help="To listen on; beyond this machine callers need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="To listen on; 0: any that is free.")] = 8000,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A further name of the service, such as that of a proxy.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; each holds encoder and index once more.")] = 1,
    folder: Moved = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve some products or drawings, without training.")] = False,
) -> None:
    """Open a page, and a REST API, on a collection: search, upload, filter."""
    with needing("The service", "app"):
        from rectrio_lib.app import server
    from rectrio_lib.search.collection import Collection

    if demo:
        from rectrio_lib.report.demo import NAME, run_demo

        run_demo()
        name = NAME
    shop = Collection.open(name, folder)
    if shop.random_weights:
        say(RANDOM, err=True)
    if shop.place and not shop.place.there():
        gone = "its images are found but cannot be shown (--folder DIR says where they are)."
        say(f"{shop.uri} is gone: {gone}", err=True)

    def started(address: str) -> None:
        say(f"Serving    {shop.name}: {len(shop.index):,} images")
        say(f"Page       {address}")
        say(f"API        {address.partition('session?')[0]}docs")
        say("Ctrl-C ends it.", err=True)

    server.serve(shop, host, port, allowed_host or (), workers, started)


def reindex(name: Opened = "") -> None:
    """Build the index of a served collection anew, with what was uploaded and without what was removed."""
    with needing("The service", "app"):
        from rectrio_lib.app import generation, upkeep
    from rectrio_lib.search.collection import Collection

    shop = Collection.open(name)
    upkeep.reindex(generation.Generation.of(shop, database()))
    say(f"Index      {shop.name}: {Collection.open(shop.name).index.info()}")


@keys.command("add")
def add_key(name: Name, scope: Scope = "search", rate: Rate = "", days: Days = None) -> None:
    """Make a key and print it, once: only its hash is kept."""
    engine = database()
    from rectrio_lib.app.web import access

    say(access.add_key(engine, name, scope, rate, days))
    say("Send it as `Authorization: Bearer KEY`. It cannot be shown again.", err=True)


@keys.command("link")
def add_link(
    name: Name,
    scope: Scope = "search",
    rate: Rate = "",
    minutes: Annotated[float, typer.Option(help="How long the link is valid.")] = 15,
    address: Annotated[str, typer.Option(help="Where the page is.")] = "http://127.0.0.1:8000/",
) -> None:
    """Print a link that opens the page in one browser, once, for somebody without a key."""
    if not address.startswith(("http://", "https://")):
        raise ArgumentError(f"--address {address} should begin with https:// or http://, as links do.")
    engine = database()
    from rectrio_lib.app.web import access

    say(f"{address.rstrip('/')}/session?token={access.new_link(engine, name, scope, rate, minutes)}")


@keys.command("list")
def list_keys() -> None:
    """List the keys, without their secrets."""
    engine = database()
    from rectrio_lib.app.web import access
    from rectrio_lib.core import tables

    rows = [{name: _shown(value) for name, value in key.items()} for key in access.list_keys(engine)]
    say(tables.plain_table(rows) if rows else "none")


@keys.command("remove")
def remove_key(name: Name) -> None:
    """Remove a key, the sessions of that name, and their history."""
    engine = database()
    from rectrio_lib.app.web import access

    access.remove_key(engine, name)
    say(f"removed  {name}")


def database() -> Engine:
    """Open the database of the service, which RECTRIO_DATABASE names; MissingPackageError without its packages."""
    with needing("The service", "app"):
        from rectrio_lib.app.records.database import open_database
    return open_database(os.environ.get("RECTRIO_DATABASE", ""))


def _shown(value: object) -> str:
    return value.isoformat(" ", "minutes") if hasattr(value, "isoformat") else escaped(str(value or "-"))
