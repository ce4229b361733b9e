"""Executed notebooks as web pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import nbformat

from rectrio_lib.chapters.chapter import chapter_paths
from rectrio_lib.chapters.record import recorded, title_of

TEMPLATE = Path(__file__).with_name("index.html")


def write_pages(executed: Path) -> None:
    """Render an executed notebook in outputs/notebooks to HTML beside it, and index.html over all that lie there."""
    from nbconvert import HTMLExporter  # slow to import, and not needed by `record`

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)  # Colab writes it without the state that the exporter looks for
    page, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": title_of(notebook)}})
    executed.with_suffix(".html").write_text(page, encoding="utf-8")
    copies = [executed.parent / path.name for path in chapter_paths()]
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True, trim_blocks=True)
    index = template.render(rows=[_row(path) for path in copies if path.exists()])
    (executed.parent / "index.html").write_text(index, encoding="utf-8")


def _row(executed: Path) -> dict[str, Any]:
    notebook = nbformat.read(executed, as_version=4)
    records = recorded(notebook)  # the last cell records: without it the chapter did not get to its end
    return {
        "name": executed.stem,
        "title": title_of(notebook) or executed.stem,
        "seconds": notebook.metadata.get("papermill", {}).get("duration") or 0.0,
        "status": "stopped" if not records else "stand-in" if records[-1]["stand_in"] else "done",
    }
