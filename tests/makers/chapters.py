"""Tiny chapters for the tests of what runs and cleans them."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = "epochs = 2  # @param\nlr = 0.1  # @param"
RECORD = "from rectrio_lib import record\nrecord(dataset='toy', recall_at_1=0.9)"


def write_chapter(root: Path, name: str, *code: str, parameters: str | None = PARAMETERS) -> Path:
    """Write notebooks/<name>.ipynb: a title, a parameters cell (or none), and the given code."""
    cells = [new_markdown_cell(f"# Title of {name}"), *map(new_code_cell, code)]
    if parameters is not None:
        cells.insert(1, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (root / "notebooks" / "params").mkdir(parents=True, exist_ok=True)
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path
