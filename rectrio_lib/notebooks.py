"""What every chapter is made with: `record` for its results, `clean` for its committed form."""

from __future__ import annotations

import copy
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat

from rectrio_lib import reports, resources

CHECKED = "# NBVAL_CHECK_OUTPUT"


def record(*, dataset: str, seed: int | None = None, stand_in: bool = False, **values: Any) -> None:
    """Show a chapter's results and hand them to the runner; called once, in the last cell.

    Args:
        dataset: what the results were measured on.
        seed: the seed they hold for.
        stand_in: whether generated data took the place of the real ones.
        **values: numbers, strings, lists and dicts; NumPy scalars and arrays are converted. `tables`, a dict
            {title: [{column: value}, ...]}, becomes tables here and, once published, in the README.

    Raises:
        ValueError: if a value is not finite, or not to be had in JSON.
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
    figures = [{"result": name, "value": v} for name, v in reports.scalars(entry).items()]
    caption = f"{dataset}{' (STAND-IN, not real data)' if stand_in else ''}"
    tables = {caption: figures, **entry["values"].get("tables", {})}
    shown = {
        "text/plain": "\n\n".join(f"{title}\n{reports.plain_table(rows)}" for title, rows in tables.items()),
        "text/html": "".join(reports.html_table(rows, title) for title, rows in tables.items()),
    }
    display({reports.RECORD_MIME: entry, **shown}, raw=True)


def _plain(value: Any, name: str) -> Any:
    """Turn a value into what JSON holds; `name` says in errors where it is."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(v, f"{name}[{key!r}]") for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"record: {name} is {value}: a result must be a finite number.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"record: {name} is a {type(value).__name__}: use numbers, strings, lists and dicts.")


def _versions() -> dict[str, str]:
    installed = {
        "rectrio": ("rectrio",),
        "torch": ("torch",),
        "faiss": ("faiss-cpu", "faiss"),
        "numpy": ("numpy",),
    }
    return {"python": platform.python_version(), **{k: _version(names) for k, names in installed.items()}}


def _version(distributions: Iterable[str]) -> str:
    """Return the version of the first that is installed: pip and conda name FAISS differently."""
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _device() -> str:
    torch = sys.modules.get("torch")  # a chapter that never imported it did not compute with it
    if torch and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch and torch.backends.mps.is_available():
        return "Apple GPU"
    return f"CPU, {torch.get_num_threads() if torch else os.cpu_count()} threads"


def clean(path: Path) -> bool:
    """Normalise a committed notebook in place; see `cleaned`.

    Outputs come from outputs/notebooks if the same source was run there with the committed parameters.

    Returns:
        Whether the file changed.
    """
    before = path.read_text(encoding="utf-8")
    copy_path = resources.outputs_root() / "notebooks" / path.name
    executed = nbformat.read(copy_path, as_version=4) if copy_path.exists() else None
    after = nbformat.writes(cleaned(nbformat.reads(before, as_version=4), executed)) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8", newline="\n")
    return after != before


def cleaned(notebook: nbformat.NotebookNode, executed: nbformat.NotebookNode | None = None) -> nbformat.NotebookNode:
    """Return a notebook as we commit it: no noise, no outputs but the text that nbval compares.

    Code cells are numbered from 1, because nbval compares nothing in a cell without a count. Empty cells go.

    Args:
        notebook: any notebook of format 4.
        executed: a finished run; used if its code is the same, cell by cell.
    """
    _, notebook = nbformat.validator.normalize(nbformat.v4.upgrade(copy.deepcopy(notebook)))
    notebook.cells = [c for c in notebook.cells if c.source.strip()]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    code = _code_cells(notebook)
    ran = _code_cells(executed) if executed and reports.recorded(executed) else []
    same = [c.source for c in ran] == [c.source for c in code]
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags" and v})
    for number, (cell, source) in enumerate(zip(code, ran if same else code, strict=True), 1):
        cell.execution_count = number
        cell.outputs = _texts(source.outputs, number) if is_checked(cell) else []
    return notebook


def is_checked(cell: nbformat.NotebookNode) -> bool:
    """Tell whether nbval compares the output of a code cell."""
    return cell.source.partition("\n")[0].strip() == CHECKED


def checked_without_output(path: Path) -> bool:
    """Tell whether a notebook has a checked cell that nbval would compare with nothing."""
    return any(is_checked(c) and not c.outputs for c in _code_cells(nbformat.read(path, as_version=4)))


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def _texts(outputs: Iterable[nbformat.NotebookNode], number: int) -> list[nbformat.NotebookNode]:
    """Keep standard output and the text of displayed values; pictures, warnings and errors go."""
    kept = []
    for output in outputs:
        data = {kind: text for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
        if output.output_type == "stream" and output.name == "stdout":
            if kept and kept[-1].output_type == "stream":  # the kernel cuts a long text where it happens to
                kept[-1].text += output.text
                continue
            kept.append(nbformat.v4.new_output("stream", name="stdout", text=output.text))
        elif output.output_type == "execute_result" and data:
            kept.append(nbformat.v4.new_output("execute_result", data=data, execution_count=number))
        elif data:
            kept.append(nbformat.v4.new_output("display_data", data=data))
    return kept
