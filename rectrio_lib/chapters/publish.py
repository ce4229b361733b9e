"""What runs leave for the reader: results.json, the README's tables, and executed notebooks as web pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rectrio_lib.chapters.results import read_results
from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import markdown_table
from rectrio_lib.core.workspace import Workspace

_MARKED = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def publish(name: str) -> Path:
    """Copy the results of one profile to outputs/published/<name>.json, from which the README's tables are made.

    Chapters that were published before and have no newer result are kept.

    Args:
        name: a profile; "quick" is the committed parameters.

    Raises:
        ValueError: if nothing was run with this profile, or a result comes from stand-in data.
    """
    results = {chapter: e for chapter, e in read_results().items() if e["profile"] == name}
    if not results:
        raise ArgumentError(
            f"results.json holds nothing of profile {name!r}: run `rectrio run --profile {name}` first."
        )
    generated = [chapter for chapter, e in results.items() if e["stand_in"]]
    if generated:
        raise ArgumentError(
            f"{', '.join(generated)} ran on stand-in data, and stand-in figures are never published: "
            "point RECTRIO_DATA at the real data and run again."
        )
    path = _published(name)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    files.write_json(path, dict(sorted({**before, **results}.items())))
    return path


def _published(name: str) -> Path:
    # The folder is committed, so it stays in the checkout wherever RECTRIO_OUTPUTS points.
    return Workspace().root / "outputs" / "published" / f"{name}.json"


def marked(text: str) -> list[str]:
    """Return the names that `<!-- results:NAME -->` markers in `text` ask for."""
    return [name for _, name, _ in _MARKED.findall(text)]


def fill_tables(text: str) -> str:
    """Return `text` with published tables between each `<!-- results:NAME -->` and `<!-- /results -->`.

    Raises:
        ValueError: if a marker is not closed, or names what was never published.
    """
    if text.count("<!-- results:") != len(marked(text)):
        raise ArgumentError("A `<!-- results:NAME -->` is not followed by its `<!-- /results -->`.")
    return _MARKED.sub(lambda found: f"{found[1]}{published_tables(found[2])}{found[3]}", text)


def update_readme() -> Path:
    """Write the published tables into README.md."""
    readme = Workspace().root / "README.md"
    filled = fill_tables(readme.read_text(encoding="utf-8"))
    readme.write_text(filled, encoding="utf-8", newline="\n")
    return readme


def published_tables(name: str) -> str:
    """Return what chapters recorded as `tables`, as Markdown, each chapter followed by how it was run."""
    path = _published(name)
    if not path.exists():
        raise ArgumentError(f"{path} is missing, but a README marker asks for it: run `rectrio publish {name}`.")
    entries = json.loads(path.read_text(encoding="utf-8"))
    blocks = []
    for chapter, entry in entries.items():
        tables = entry["values"].get("tables", {})
        blocks += [f"**{title}**\n\n{markdown_table(rows)}" for title, rows in tables.items()]
        if tables:
            blocks.append(_provenance(chapter, entry))
    return "\n" + "".join(f"{block}\n\n" for block in blocks)


def _provenance(chapter: str, entry: dict[str, Any]) -> str:
    seed = [] if entry["seed"] is None else [f"seed {entry['seed']}"]
    versions = [f"{package} {version}" for package, version in entry["versions"].items()]
    facts = [f"profile {entry['profile']}", entry["dataset"], *seed, entry["device"], *versions]
    return f"<sub>Chapter {chapter}: {', '.join(facts)}.</sub>"
