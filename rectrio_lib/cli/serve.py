"""The commands about the service: who may use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from rectrio_lib.cli.output import escaped, say
from rectrio_lib.core.errors import MissingPackageError

if TYPE_CHECKING:  # imported by the commands that need them, see `app`
    from sqlalchemy import Engine

keys = typer.Typer(no_args_is_help=True, help="Make, list and remove the keys that programs and people need.")
Name = Annotated[str, typer.Argument(help="Who gets it: letters, digits and . _ @ -", show_default=False)]
Scope = Annotated[str, typer.Option(help="search, write and admin, joined by commas.")]
Rate = Annotated[str, typer.Option(help="How many requests it is good for, such as 60/minute.", show_default=False)]
Days = Annotated[float | None, typer.Option(help="How long it is valid; else until it is removed.", show_default=False)]


@keys.command("add")
def add_key(
    name: Name,
    scope: Scope = "search",
    rate: Rate = "",
    days: Days = None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    engine = database()
    from rectrio_lib.app import access

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
    engine = database()
    from rectrio_lib.app import access

    say(f"{address.rstrip('/')}/session?token={access.new_link(engine, name, scope, rate, minutes)}")


@keys.command("list")
def list_keys() -> None:
    """List the keys, without their secrets."""
    engine = database()
    from rectrio_lib.app import access
    from rectrio_lib.core import tables

    rows = [{name: _shown(value) for name, value in key.items()} for key in access.list_keys(engine)]
    say(tables.plain_table(rows) if rows else "none")


@keys.command("remove")
def remove_key(name: Name) -> None:
    """Remove a key, the sessions of that name, and their history."""
    engine = database()
    from rectrio_lib.app import access

    access.remove_key(engine, name)
    say(f"removed  {name}")


def database() -> Engine:
    """Open the database of the service, which RECTRIO_DATABASE names; MissingPackageError without its packages."""
    try:
        from rectrio_lib.app.database import open_database
    except ModuleNotFoundError as error:
        said = "The service needs packages that are not installed: pip install 'rectrio[app]'."
        raise MissingPackageError(f"{said} (Missing: {error.name}.)") from error
    return open_database(os.environ.get("RECTRIO_DATABASE", ""))


def _shown(value: object) -> str:
    return value.isoformat(" ", "minutes") if hasattr(value, "isoformat") else escaped(str(value or "-"))
