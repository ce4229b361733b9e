"""Results for the reader: outputs/published/<profile>.json, and the page of tables that is made from these files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rectrio_lib.chapters.record import QUICK
from rectrio_lib.chapters.results import read_results
from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import markdown_table
from rectrio_lib.core.workspace import Workspace

_HEAD = """# Published results

`rectrio publish` writes this page from the JSON files beside it, which also hold every parameter, and from
[remarks.md](remarks.md). Edit those. Choices were made on validation images; test images only report.
"""


def publish(name: str) -> Path:
    """Copy the results of one profile to outputs/published/<name>.json, and write the page of all published tables.

    Chapters that were published before and have no newer result are kept.

    Args:
        name: a profile; "quick" is the committed parameters.

    Returns:
        The page.

    Raises:
        ArgumentError: if nothing was run with this profile, or a result comes from stand-in data.
    """
    results = {chapter: e for chapter, e in read_results().items() if e["profile"] == name}
    if not results:
        raise ArgumentError(
            f"results.json holds nothing of profile {name!r}: run `rectrio run --profile {name}` first."
        )
    if generated := [chapter for chapter, e in results.items() if e["stand_in"]]:
        raise ArgumentError(
            f"{', '.join(generated)} ran on stand-in data, and stand-in figures are never published: "
            "point RECTRIO_DATA at the real data and run again."
        )
    # The folder is committed, so it stays in the checkout wherever RECTRIO_OUTPUTS points.
    folder = Workspace().root / "outputs" / "published"
    before = _profiles(folder).get(name, {})
    files.write_json(folder / f"{name}.json", dict(sorted({**before, **results}.items())))
    page = folder / "README.md"
    page.write_text(published_page(folder), encoding="utf-8", newline="\n")
    return page


def published_page(folder: Path) -> str:
    """Return all tables of the JSON files in a folder as one Markdown page, and its remarks.md at the end."""
    parts = [_HEAD]
    for name, entries in _profiles(folder).items():
        parts.append(f"## Profile {name}: `make run{'' if name == QUICK else f' PROFILE={name}'}`\n")
        for chapter, entry in entries.items():
            tables = entry["values"].get("tables", {})
            if tables:
                parts.append(f"### Chapter {chapter}\n\n<sub>{_provenance(entry)}</sub>\n")
            parts += [f"**{title}**\n\n{markdown_table(rows)}\n" for title, rows in tables.items()]
    parts += [remarks.read_text(encoding="utf-8") for remarks in folder.glob("remarks.md")]
    return "\n".join(parts)


def _profiles(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _provenance(entry: dict[str, Any]) -> str:
    seed = [] if entry["seed"] is None else [f"seed {entry['seed']}"]
    commit = [f"commit {entry['commit']}"] if "commit" in entry else []
    versions = [f"{package} {version}" for package, version in entry["versions"].items()]
    return f"{', '.join([entry['dataset'], *seed, entry['device'], *versions, *commit])}."
