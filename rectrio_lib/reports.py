"""What runs leave for the reader: results.json, the README's tables, and executed notebooks as web pages."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from rectrio_lib import resources

RECORD_MIME = "application/vnd.rectrio.record+json"
QUICK = "quick"
Rows = Sequence[dict[str, Any]]

_MARKED = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
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


def recorded(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    """Return what `record` left in the outputs of an executed notebook."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return [o.data[RECORD_MIME] for o in outputs if RECORD_MIME in o.get("data", {})]


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return the first level-one heading of a notebook, or an empty string."""
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    heading = re.search(r"^# +(.+)$", prose, re.MULTILINE)
    return heading.group(1).strip() if heading else ""


def read_results() -> dict[str, dict[str, Any]]:
    """Return outputs/results.json, {chapter: entry}; empty if nothing has run."""
    path = resources.outputs_root() / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_result(chapter: str, entry: dict[str, Any]) -> None:
    """Put one chapter's entry into outputs/results.json; other chapters keep theirs."""
    results = {**read_results(), chapter: entry}
    resources.write_json(resources.outputs_root() / "results.json", dict(sorted(results.items())))


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
        raise ValueError(f"results.json holds nothing of profile {name!r}: run `rectrio run --profile {name}` first.")
    generated = [chapter for chapter, e in results.items() if e["stand_in"]]
    if generated:
        raise ValueError(
            f"{', '.join(generated)} ran on stand-in data, and stand-in figures are never published: "
            "point RECTRIO_DATA at the real data and run again."
        )
    path = _published(name)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    resources.write_json(path, dict(sorted({**before, **results}.items())))
    return path


def _published(name: str) -> Path:
    # The folder is committed, so it stays in the checkout wherever RECTRIO_OUTPUTS points.
    return resources.project_root() / "outputs" / "published" / f"{name}.json"


def marked(text: str) -> list[str]:
    """Return the names that `<!-- results:NAME -->` markers in `text` ask for."""
    return [name for _, name, _ in _MARKED.findall(text)]


def fill_tables(text: str) -> str:
    """Return `text` with published tables between each `<!-- results:NAME -->` and `<!-- /results -->`.

    Raises:
        ValueError: if a marker is not closed, or names what was never published.
    """
    if text.count("<!-- results:") != len(marked(text)):
        raise ValueError("A `<!-- results:NAME -->` is not followed by its `<!-- /results -->`.")
    return _MARKED.sub(lambda found: f"{found[1]}{published_tables(found[2])}{found[3]}", text)


def update_readme() -> Path:
    """Write the published tables into README.md."""
    readme = resources.project_root() / "README.md"
    filled = fill_tables(readme.read_text(encoding="utf-8"))
    readme.write_text(filled, encoding="utf-8", newline="\n")
    return readme


def published_tables(name: str) -> str:
    """Return what chapters recorded as `tables`, as Markdown, each chapter followed by how it was run."""
    path = _published(name)
    if not path.exists():
        raise ValueError(f"{path} is missing, but a README marker asks for it: run `rectrio publish {name}`.")
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


def markdown_table(rows: Rows) -> str:
    """Return rows {column: value} as a Markdown table."""
    columns, cells = _grid(rows)
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines)


def html_table(rows: Rows, caption: str = "") -> str:
    """Return rows {column: value} as an HTML table."""
    columns, cells = _grid(rows)
    lines = [(columns, "th"), *((line, "td") for line in cells)]
    body = "".join(f"<tr>{''.join(f'<{t}>{html.escape(c)}</{t}>' for c in line)}</tr>" for line, t in lines)
    return f"<table><caption>{html.escape(caption)}</caption>{body}</table>"


def plain_table(rows: Rows) -> str:
    """Return rows {column: value} as aligned text."""
    columns, cells = _grid(rows)
    lines = [columns, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _grid(rows: Rows) -> tuple[list[str], list[list[str]]]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return columns, [[show(row.get(column, "")) for column in columns] for row in rows]


def show(value: Any) -> str:
    """Write a value for people: three decimals, fewer for large numbers, thousands separated."""
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            return f"{value:.2g}"
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def scalars(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the single numbers and words among an entry's values."""
    return {k: v for k, v in entry["values"].items() if not isinstance(v, dict | list)}


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the single figures of {chapter: entry} as aligned text; stand-ins are marked."""
    rows = [
        {
            "chapter": chapter,
            "data": entry["dataset"] + " (STAND-IN)" * entry["stand_in"],
            "result": key,
            "value": v,
        }
        for chapter, entry in results.items()
        for key, v in scalars(entry).items()
    ]
    return plain_table(rows) if rows else "No figures were recorded."


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
    committed = sorted((resources.project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    copies = [executed.parent / path.name for path in committed]
    rows = "\n".join(_index_row(path) for path in copies if path.exists())
    (executed.parent / "index.html").write_text(_PAGE.format(rows=rows), encoding="utf-8")


def _index_row(executed: Path) -> str:
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
