"""What runs leave behind: outputs/results.json, the newest of each chapter, and outputs/runs/, every one."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from rectrio_lib.chapters.record import scalars
from rectrio_lib.core import files
from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.core.tables import plain_table
from rectrio_lib.core.workspace import Workspace

Entry = dict[str, Any]


def read_results() -> dict[str, Entry]:
    """Return outputs/results.json, {chapter: entry}; empty if nothing has run."""
    path = Workspace().outputs / "results.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: delete it, and run the chapters again.") from error


def add_result(chapter: str, entry: Entry) -> Path:
    """Put a chapter's entry into outputs/results.json, where other chapters keep theirs, and among all runs.

    Returns:
        Its own file, outputs/runs/<time>-<chapter>-<hash>.json, which no later run replaces.
    """
    outputs, kept = Workspace().outputs, {chapter: entry}
    newest = {chapter: {key: value for key, value in entry.items() if key != "queries"}}  # thousands of numbers
    name = hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=4).hexdigest()
    path = outputs / "runs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{chapter}-{name}.json"
    files.write_json(path, kept)
    files.write_json(outputs / "results.json", dict(sorted({**read_results(), **newest}.items())))
    return path


def find_run(name: str) -> tuple[str, str, Entry]:
    """Find a run among outputs/runs/.

    Args:
        name: how its file's name, or the hash at the end of that, begins; or a chapter's number, such as 02, for the
            newest run of it, 02~1 for the one before, and so on.

    Returns:
        The name of its file without the suffix, its chapter, and its entry.

    Raises:
        MissingArtefactError: if there is no such run; the message lists the newest.
        ArgumentError: if several begin so.
        DataError: if its file is damaged.
    """
    folder = Workspace().outputs / "runs"
    paths = sorted(folder.glob("*-*-*-*.json"))  # by time
    if not paths:
        raise MissingArtefactError(f"{folder} holds no runs: `rectrio run` keeps every one there.")
    if numbered := re.fullmatch(r"(\d\d?)(?:~(\d+))?", name):
        of_chapter = [p for p in paths if p.stem.split("-")[2].startswith(f"{int(numbered[1]):02}_")]
        found = of_chapter[::-1][int(numbered[2] or 0) :][:1]
    else:
        found = [path for path in paths if path.stem.startswith(name) or path.stem.rpartition("-")[2].startswith(name)]
    if not found:
        newest = ", ".join(path.stem for path in paths[:-6:-1])
        raise MissingArtefactError(f"There is no run {name!r} in {folder}. The newest: {newest}.")
    if len(found) > 1:
        raise ArgumentError(
            f"{name!r} fits {len(found)} runs: {', '.join(path.stem for path in found)}. Write more of it."
        )
    try:
        ((chapter, entry),) = json.loads(found[0].read_text(encoding="utf-8")).items()
        return found[0].stem, chapter, {**entry, "values": dict(entry["values"])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{found[0]} is damaged: delete it, and run the chapter again.") from error


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the single figures of {chapter: entry} as aligned text; stand-ins are marked."""
    rows = []
    for chapter, entry in results.items():
        head = {"chapter": chapter, "data": entry["dataset"] + " (STAND-IN)" * entry["stand_in"]}
        rows += [{**head, "result": key, "value": value} for key, value in scalars(entry).items()]
    return plain_table(rows) if rows else "No figures were recorded."
