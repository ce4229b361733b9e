"""What the command prints: safe for any terminal, whatever file names and labels hold."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import typer

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # escape sequences, reversed text


def say(text: Any, err: bool = False) -> None:
    """Print text; control characters but line ends are shown escaped, as is what the code page lacks."""
    stream = sys.stderr if err else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    typer.echo("\n".join(map(escaped, str(text).split("\n"))), err=err)


def escaped(value: Any) -> Any:
    """Return text with its control characters escaped; anything else as it is."""
    return UNSAFE.sub(lambda found: ascii(found[0])[1:-1], value) if isinstance(value, str) else value


def say_json(content: dict[str, Any]) -> None:
    """Print JSON as UTF-8, whatever the code page."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    typer.echo(json.dumps(content, ensure_ascii=False))


def program() -> str:
    """Return how to start this program again: as it was started, if `rectrio` alone is not found."""
    if shutil.which("rectrio"):
        return "rectrio"
    started = Path(sys.argv[0])
    return f"{sys.executable} -m rectrio_lib.cli" if started.suffix == ".py" else sys.argv[0]
