"""How a chapter hands over its results: `record` in its last cell."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import html_table, plain_table
from rectrio_lib.evaluation.evaluation import Evaluation

if TYPE_CHECKING:  # it takes a second to import, in every chapter
    import nbformat

RECORD_MIME = "application/vnd.rectrio.record+json"
QUICK = "quick"
PER_QUERY = ("recall_at_1", "map_at_r", "knn_accuracy")  # what is kept of every query
DISTRIBUTIONS = {"rectrio": ["rectrio"], "torch": ["torch"], "faiss": ["faiss-cpu", "faiss"], "numpy": ["numpy"]}


def recorded(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    """Return what `record` left in the outputs of an executed notebook."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return [o.data[RECORD_MIME] for o in outputs if RECORD_MIME in o.get("data", {})]


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return the first level-one heading of a notebook, or an empty string."""
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    heading = re.search(r"^# +(.+)$", prose, re.MULTILINE)
    return heading.group(1).strip() if heading else ""


def scalars(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the single numbers and words among an entry's values."""
    return {k: v for k, v in entry["values"].items() if not isinstance(v, dict | list)}


def record(
    *, dataset: str, seed: int | None = None, stand_in: bool = False, queries: Evaluation | None = None, **values: Any
) -> None:
    """Show a chapter's results and hand them to the runner; called once, in the last cell.

    Args:
        dataset: what the results were measured on.
        seed: the seed they hold for.
        stand_in: whether generated data or random weights took the place of the real ones.
        queries: figures of every query behind the main figure, which `rectrio compare` pairs with those of another run.
        **values: numbers, strings, lists, dicts and NumPy arrays; `tables` is {title: [{column: value}, ...]}.

    Raises:
        ArgumentError: if a value is not finite, or of a type that JSON does not know.
    """
    from IPython.display import display

    entry = {
        "dataset": dataset,
        "seed": seed,
        "stand_in": bool(stand_in),
        "versions": _versions(),
        "device": _device(),
        "values": {name: _plain(value, name) for name, value in values.items()},
    }
    if queries is not None:
        labels = "\n".join(map(str, queries.labels))
        kept = {name: queries.scores[name] for name in PER_QUERY if name in queries.scores}
        scores = {name: [None if v != v else round(v, 4) for v in map(float, column)] for name, column in kept.items()}
        entry["queries"] = {"fingerprint": hashlib.sha256(labels.encode()).hexdigest()[:16], "scores": scores}
    figures = [{"result": name, "value": v} for name, v in scalars(entry).items()]
    caption = f"{dataset}{' (STAND-IN, not real data)' if stand_in else ''}"
    tables = {caption: figures, **entry["values"].get("tables", {})}
    shown = {
        "text/plain": "\n\n".join(f"{title}\n{plain_table(rows)}" for title, rows in tables.items()),
        "text/html": "".join(html_table(rows, title) for title, rows in tables.items()),
    }
    display({RECORD_MIME: entry, **shown}, raw=True)


def _plain(value: Any, name: str) -> Any:
    """Turn a value into what JSON holds; `name` says in errors where it is."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(v, f"{name}[{key!r}]") for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"record: {name} is {value}: a result must be a finite number.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArgumentError(f"record: {name} is a {type(value).__name__}: use numbers, strings, lists and dicts.")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name, distributions in DISTRIBUTIONS.items():
        found = (d.version for wanted in distributions for d in metadata.distributions(name=wanted))
        versions[name] = next(found, "not installed")
    return versions


def _device() -> str:
    torch = sys.modules.get("torch")  # a chapter that never imported it did not compute with it
    if torch and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch and torch.backends.mps.is_available():
        return "Apple GPU"
    return f"CPU, {torch.get_num_threads() if torch else os.cpu_count()} threads"
