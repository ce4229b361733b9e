"""Executed notebooks as web pages."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import jinja2
import nbformat

from rectrio_lib.chapters.chapter import chapter_paths
from rectrio_lib.chapters.record import recorded, title_of

TEMPLATE = Path(__file__).with_name("index.html")
SCRIPTS = ("requirejs", "mathjax", "mermaidjs")  # nbconvert's page loads them from elsewhere
PAGE = "{% extends 'lab/index.html.j2' %}" + "".join(f"{{% block html_head_js_{n} %}}{{% endblock %}}" for n in SCRIPTS)


def write_pages(executed: Path) -> None:
    """Render an executed notebook in outputs/notebooks to HTML beside it, and index.html over all that lie there."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)  # Colab writes it without the state that the exporter looks for
    page, _ = _exporter().from_notebook_node(notebook, {"metadata": {"name": title_of(notebook)}})
    executed.with_suffix(".html").write_text(page, encoding="utf-8")
    copies = [executed.parent / path.name for path in chapter_paths()]
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True, trim_blocks=True)
    index = template.render(rows=[_row(path) for path in copies if path.exists()])
    (executed.parent / "index.html").write_text(index, encoding="utf-8")


def _exporter() -> Any:
    """Make nbconvert's exporter with formulas in MathML, which browsers draw without anything from another host."""
    from nbconvert import HTMLExporter  # slow to import, and not needed by `record`
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    try:
        from latex2mathml.converter import convert
    except ImportError:  # on Colab; the page then asks the web for MathJax
        return HTMLExporter()

    def formula(latex: str, display: str = "inline") -> str:
        try:
            return convert(latex, display=display)
        except Exception:  # whatever a half-written formula meets: the page shows it as it was written
            return f"<code>{html.escape(latex)}</code>"

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return formula(body, "block")

        def inline_math(self, body: str) -> str:
            return formula(body)

    class Exporter(HTMLExporter):
        def markdown2html(self, source: str) -> str:
            return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)

    return Exporter(extra_loaders=[jinja2.DictLoader({"page.html.j2": PAGE})], template_file="page.html.j2")


def _row(executed: Path) -> dict[str, Any]:
    notebook = nbformat.read(executed, as_version=4)
    records = recorded(notebook)  # the last cell records: without it the chapter did not get to its end
    return {
        "name": executed.stem,
        "title": title_of(notebook) or executed.stem,
        "seconds": notebook.metadata.get("papermill", {}).get("duration") or 0.0,
        "status": "stopped" if not records else "stand-in" if records[-1]["stand_in"] else "done",
    }
