"""What every committed chapter keeps to."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from rectrio_lib.chapters import chapter, clean

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PROFILES = sorted((ROOT / "notebooks" / "params").glob("*.yaml"))


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_chapters_and_all_are_found_by_the_runner(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert PATHS
    assert chapter.chapter_paths() == PATHS
    assert len({path.stem[:2] for path in PATHS}) == len(PATHS), "two chapters have the same number"


def test_one_cell_holds_the_parameters_literals_only(path):
    assert chapter.read_chapter(path).parameters


def test_every_parameter_has_a_form_comment(code):
    cell = next(cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    lines = cell.source.splitlines()
    bare = [lines[s.end_lineno - 1] for s in ast.parse(cell.source).body if "# @param" not in lines[s.end_lineno - 1]]
    assert not bare


def test_the_first_cell_has_title_and_colab_badge(path, notebook):
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    repository = re.search(r'^Repository = "https://github\.com/([^"]+)"', pyproject, re.MULTILINE)[1]
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.search(r"^# \S", first.source, re.MULTILINE)
    assert f"(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name})" in first.source


def test_the_kernel_is_python3(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_stored_outputs_are_text_without_errors(code):
    outputs = [output for cell in code for output in cell.outputs]
    assert all(o.output_type != "error" and o.get("name") != "stderr" for o in outputs)
    assert all(kind.startswith("text/") for o in outputs for kind in o.get("data", {}))


def test_no_picture_is_embedded(path):
    text = path.read_text(encoding="utf-8")
    assert "data:image" not in text
    assert "<svg" not in text
    assert '"attachments"' not in text


def test_nbval_has_something_to_compare(path, code):
    checked = [cell for cell in code if clean.is_checked(cell)]
    assert checked
    assert all(cell.outputs for cell in checked), f"run `rectrio run --only {path.stem[:2]}`, `rectrio clean-notebooks`"


def test_every_check_marker_is_the_first_line_of_its_cell(code):
    assert all(clean.is_checked(cell) for cell in code if "NBVAL_CHECK_OUTPUT" in cell.source)
    assert not any(re.search(r"NBVAL_(IGNORE|SKIP|RAISES)", cell.source) for cell in code)


def test_execution_counts_run_from_one(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_code_cells_are_short(code):
    sizes = [len(cell.source.splitlines()) for cell in code]
    assert max(sizes[1:]) <= 30
    assert sum(size >= 20 for size in sizes[1:]) <= 0.1 * len(sizes)  # the first one prepares Colab


def test_a_chapter_is_read_in_one_sitting(notebook, code):
    """At most 45 cells and 250 lines of code, without Colab's cell and the parameters, blank lines and comments."""
    told = [cell for cell in code[1:] if "parameters" not in cell.metadata.get("tags", [])]
    lines = [line.strip() for cell in told for line in cell.source.splitlines()]
    assert len(notebook.cells) <= 45
    assert len([line for line in lines if line and not line.startswith("#")]) <= 250


def test_prose_goes_with_the_code(notebook, code):
    assert len(notebook.cells) - len(code) >= len(code) / 2


WORDS = ("by chance", "equal to the byte", "not to be had", "is to be found", "second thoughts")


def test_the_prose_keeps_to_plain_technical_english(notebook):
    text = " ".join(" ".join(cell.source for cell in notebook.cells).lower().split())
    assert [word for word in WORDS if word in text] == []


def test_the_last_code_cell_records(code):
    assert "rt.record(" in code[-1].source
    assert not any(re.search(r"^rt\.record\(", cell.source, re.MULTILINE) for cell in code[:-1])


def test_cell_ids_are_unique(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_the_chapter_is_clean(path, notebook):
    cleaned = nbformat.writes(clean.cleaned(notebook)) + "\n"
    assert path.read_text(encoding="utf-8") == cleaned, "run `rectrio clean-notebooks`"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_profiles_name_existing_chapters_and_parameters(monkeypatch, profile):
    monkeypatch.chdir(ROOT)
    assert yaml.safe_load(profile.read_text(encoding="utf-8")), "an empty profile is the quick one"
    chapter.choose_parameters(chapter.select_chapters(), profile.stem)


def test_there_is_a_full_profile():
    assert "full" in [path.stem for path in PROFILES]


def test_pages_can_draw_the_formulas(notebook):
    convert = pytest.importorskip("latex2mathml.converter").convert
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    formulas = [block or line for block, line in re.findall(r"\$\$(.+?)\$\$|(?<![\\$`])\$([^$\n]+)\$", text, re.DOTALL)]
    assert [latex for latex in formulas if "\\" in convert(latex)] == []
