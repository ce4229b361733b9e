"""The committed form of a notebook: no noise, no outputs but the text that nbval compares."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import nbformat

from rectrio_lib.chapters.record import recorded
from rectrio_lib.core.workspace import Workspace

CHECKED = "# NBVAL_CHECK_OUTPUT"
COLAB = ("accelerator",)  # what Colab reads of a notebook's metadata: whether to open it on a GPU


def clean(path: Path) -> bool:
    """Normalise a committed notebook in place; see `cleaned`.

    Outputs come from outputs/notebooks if the same source was run there with the committed parameters.

    Returns:
        Whether the file changed.
    """
    before = path.read_text(encoding="utf-8")
    copy_path = Workspace().outputs / "notebooks" / path.name
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
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    kept = {key: notebook.metadata[key] for key in COLAB if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict({**kept, "kernelspec": kernel, "language_info": {"name": "python"}})
    code = _code_cells(notebook)
    ran = _code_cells(executed) if executed and recorded(executed) else []
    same = [c.source for c in ran] == [c.source for c in code]
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags" and v})
    for number, (cell, source) in enumerate(zip(code, ran if same else code, strict=True), 1):
        cell.execution_count = number
        cell.outputs = _texts(source.outputs, number) if is_checked(cell) else []
    return notebook


def is_checked(cell: nbformat.NotebookNode) -> bool:
    """Return whether nbval compares the output of a code cell."""
    return cell.source.partition("\n")[0].strip() == CHECKED


def checked_without_output(path: Path) -> bool:
    """Return whether a notebook has a checked cell that nbval would compare with nothing."""
    return any(is_checked(c) and not c.outputs for c in _code_cells(nbformat.read(path, as_version=4)))


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def _texts(outputs: Iterable[nbformat.NotebookNode], number: int) -> list[nbformat.NotebookNode]:
    """Keep standard output and the text of displayed values; images, warnings and errors go."""
    kept = []
    for output in outputs:
        data = {kind: text for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
        if output.output_type == "stream" and output.name == "stdout":
            if kept and kept[-1].output_type == "stream":  # the kernel cuts a long text where it happens to
                kept[-1].text += output.text
            else:
                kept.append(nbformat.v4.new_output("stream", name="stdout", text=output.text))
        elif output.output_type == "execute_result" and data:
            kept.append(nbformat.v4.new_output("execute_result", data=data, execution_count=number))
        elif data:
            kept.append(nbformat.v4.new_output("display_data", data=data))
    return kept
