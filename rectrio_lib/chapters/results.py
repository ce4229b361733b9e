"""What runs leave behind: outputs/results.json, the newest of each chapter, and outputs/runs/, every one."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from rectrio_lib.chapters.record import scalars
from rectrio_lib.core import files
from rectrio_lib.core.errors import DataError
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
    name = hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=4).hexdigest()
    path = outputs / "runs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{chapter}-{name}.json"
    files.write_json(path, kept)
    files.write_json(outputs / "results.json", dict(sorted({**read_results(), **kept}.items())))
    return path


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the single figures of {chapter: entry} as aligned text; stand-ins are marked."""
    rows = []
    for chapter, entry in results.items():
        head = {"chapter": chapter, "data": entry["dataset"] + " (STAND-IN)" * entry["stand_in"]}
        rows += [{**head, "result": key, "value": value} for key, value in scalars(entry).items()]
    return plain_table(rows) if rows else "No figures were recorded."
