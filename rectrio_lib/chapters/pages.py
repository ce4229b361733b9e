"""Executed notebooks as web pages."""

from __future__ import annotations

import html
from pathlib import Path

import nbformat

from rectrio_lib.chapters.record import recorded, title_of
from rectrio_lib.core.workspace import Workspace

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>RecTrio: executed notebooks</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 3rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ padding: .6rem .8rem; text-align: left }}
tr {{ border-bottom: 1px solid #ddd }} td:nth-child(3), th:nth-child(3) {{ text-align: right }}
a {{ color: #0b5cad; text-decoration: none }} a:hover {{ text-decoration: underline }}
.done {{ color: #1a7f37 }} .stopped {{ color: #b42318; font-weight: 600 }} .stand-in {{ color: #9a6700 }}
</style></head><body><h1>Executed notebooks</h1>
<table><tr><th>No.</th><th>Chapter</th><th>Seconds</th><th>Status</th><th>File</th></tr>
{rows}
</table><p><a href="../results.json">results.json</a> holds every recorded figure.</p></body></html>
"""
_ROW = (
    '<tr><td>{number}</td><td><a href="{name}.html">{title}</a></td><td>{seconds:.1f}</td>'
    '<td class="{status}">{status}</td><td><a href="{name}.ipynb">notebook</a></td></tr>'
)


def write_pages(executed: Path) -> None:
    """Render one executed notebook to HTML beside it, and index.html over all that lie there.

    Args:
        executed: path of the executed notebook in outputs/notebooks.
    """
    from nbconvert import HTMLExporter  # slow to import, and not needed by `record`

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)  # Colab writes it without the state that the exporter looks for
    page, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": title_of(notebook)}})
    executed.with_suffix(".html").write_text(page, encoding="utf-8")
    committed = sorted((Workspace().root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    copies = [executed.parent / path.name for path in committed]
    rows = "\n".join(_page_row(path) for path in copies if path.exists())
    (executed.parent / "index.html").write_text(_PAGE.format(rows=rows), encoding="utf-8")


def _page_row(executed: Path) -> str:
    notebook = nbformat.read(executed, as_version=4)
    records = recorded(notebook)  # the last cell records: without it the chapter did not get to its end
    status = "stopped" if not records else "stand-in" if records[-1]["stand_in"] else "done"
    return _ROW.format(
        number=executed.stem[:2],
        name=executed.stem,
        title=html.escape(title_of(notebook) or executed.stem),
        seconds=notebook.metadata.get("papermill", {}).get("duration") or 0.0,
        status=status,
    )
