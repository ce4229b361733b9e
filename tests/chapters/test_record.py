import subprocess
import sys

import nbformat
import numpy as np
import pytest
from makers.chapters import write_chapter
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbformat.warnings import DuplicateCellId

from rectrio_lib.chapters import clean, record
from rectrio_lib.core.errors import ArgumentError

pytestmark = pytest.mark.slow

CHECKED_PRINT = "# NBVAL_CHECK_OUTPUT\nprint('two')"
CHECKED_HTML = "# NBVAL_CHECK_OUTPUT\nfrom IPython.display import HTML\nHTML('<b>bold</b>')"
UNCHECKED = "print('changes with every run')"


@pytest.fixture
def shown(monkeypatch):
    """Collect what `record` displays."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_record_hands_over_plain_json(shown):
    record.record(dataset="toy", seed=1, a=np.float32(0.5), b=np.int64(3), c=np.arange(2), d={"x": (1, 2)}, e=None)
    entry = shown[0][record.RECORD_MIME]
    assert entry["values"] == {"a": 0.5, "b": 3, "c": [0, 1], "d": {"x": [1, 2]}, "e": None}
    assert type(entry["values"]["b"]) is int
    assert (entry["dataset"], entry["seed"], entry["stand_in"]) == ("toy", 1, False)


def test_record_says_which_versions_and_device(shown):
    record.record(dataset="toy")
    entry = shown[0][record.RECORD_MIME]
    assert entry["versions"]["numpy"] == np.__version__
    assert entry["versions"]["python"] == sys.version.split()[0]
    assert "not installed" not in entry["versions"].values()
    assert entry["device"]


def test_record_shows_figures_and_tables_and_marks_stand_ins(shown):
    record.record(dataset="toy", stand_in=True, recall=0.98765, tables={"By class": [{"class": "<bag>", "n": 1200}]})
    for kind in ("text/plain", "text/html"):
        assert all(word in shown[0][kind] for word in ("STAND-IN", "recall", "0.988", "By class", "1,200"))
    assert "&lt;bag&gt;" in shown[0]["text/html"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), [1.0, float("nan")]])
def test_record_refuses_what_is_not_finite(shown, value):
    with pytest.raises(ArgumentError, match=r"recall.* (nan|inf)"):
        record.record(dataset="toy", recall=value)
    assert not shown


def test_record_refuses_what_json_cannot_hold(shown):
    with pytest.raises(ArgumentError, match=r"model\['net'\]"):
        record.record(dataset="toy", model={"net": object()})


def executed_copy(notebook):
    """What a finished run of the little chapter leaves behind."""
    executed = nbformat.from_dict(notebook)
    _, printed, shown, unchecked, last = (c for c in executed.cells if c.cell_type == "code")
    printed.outputs = [
        new_output("stream", name="stdout", text="two\n"),
        new_output("stream", name="stderr", text="a warning\n"),
        new_output("display_data", data={"image/png": "AAAA"}),
    ]
    html = {"text/plain": "<IPython.core.display.HTML object>", "text/html": "<b>bold</b>"}
    shown.outputs = [new_output("execute_result", data=html, execution_count=17)]
    unchecked.outputs = [new_output("stream", name="stdout", text="at noon\n")]
    last.outputs = [new_output("display_data", data={record.RECORD_MIME: {}})]
    for cell in executed.cells:
        cell.metadata.papermill = {"duration": 1}
    executed.metadata.widgets = {}
    return executed


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECTRIO_OUTPUTS", raising=False)
    path = write_chapter(tmp_path, "01_first", CHECKED_PRINT, CHECKED_HTML, UNCHECKED, "a = 1", "")
    (tmp_path / "outputs" / "notebooks").mkdir(parents=True)
    return path


def read(path):
    return nbformat.read(path, as_version=4)


def save_executed(path, executed):
    nbformat.write(executed, path.parents[1] / "outputs" / "notebooks" / path.name)


def clean_executed(path):
    """Drop the empty cell as the committed form does, then clean with a finished run at hand."""
    clean.clean(path)
    save_executed(path, executed_copy(read(path)))
    return clean.clean(path)


def test_clean_keeps_the_text_of_checked_cells_only(chapter):
    assert clean_executed(chapter)
    _, printed, shown, unchecked, last = (c for c in read(chapter).cells if c.cell_type == "code")
    assert [o.text for o in printed.outputs] == ["two\n"]
    assert shown.outputs[0].data["text/html"] == "<b>bold</b>"
    assert shown.outputs[0].execution_count == 3
    assert unchecked.outputs == last.outputs == []


def test_clean_numbers_cells_drops_empty_ones_and_all_noise(chapter):
    notebook = executed_copy(clean.cleaned(read(chapter)))
    notebook.metadata.colab = {"provenance": []}
    result = clean.cleaned(notebook)
    code = [c for c in result.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == [1, 2, 3, 4, 5]
    assert set(result.metadata) == {"kernelspec", "language_info"}
    assert [dict(c.metadata) for c in result.cells] == [{}, {"tags": ["parameters"]}, {}, {}, {}, {}]


def test_clean_keeps_cell_ids_and_changes_nothing_the_second_time(chapter):
    ids = [c.id for c in read(chapter).cells]
    assert clean_executed(chapter)
    assert [c.id for c in read(chapter).cells] == ids[:-1]
    assert not clean.clean(chapter)
    (chapter.parents[1] / "outputs" / "notebooks" / chapter.name).unlink()
    assert not clean.clean(chapter), "without a run at hand the stored outputs stay"


@pytest.mark.parametrize("change", ["other source", "other parameters", "unfinished"])
def test_clean_takes_no_outputs_from_another_run(chapter, change):
    clean_executed(chapter)
    executed = executed_copy(read(chapter))
    executed.cells[2].outputs[0].text = "three\n"
    if change == "other source":
        executed.cells[-1].source = "a = 2"
    elif change == "other parameters":
        executed.cells.insert(2, new_code_cell("epochs = 9", metadata={"tags": ["injected-parameters"]}))
    else:
        executed.cells[-1].outputs = []
    save_executed(chapter, executed)
    assert not clean.clean(chapter)


def test_a_checked_cell_without_output_is_found(chapter):
    clean.clean(chapter)
    assert clean.checked_without_output(chapter)
    clean_executed(chapter)
    assert not clean.checked_without_output(chapter)


def test_cells_with_equal_ids_get_their_own():
    notebook = new_notebook(cells=[new_code_cell("a = 1", id="same"), new_code_cell("b = 2")])
    notebook.cells[1].id = "same"
    with pytest.warns(DuplicateCellId):
        ids = [c.id for c in clean.cleaned(notebook).cells]
    assert ids[0] == "same"
    assert len(set(ids)) == 2


def test_nbval_compares_a_cleaned_notebook(chapter):
    clean_executed(chapter)
    altered = read(chapter)
    altered.cells[3].outputs[0].data["text/html"] = "<b>other</b>"
    altered.cells[2].outputs[0].text = "three\n"
    nbformat.write(altered, chapter.with_name("02_altered.ipynb"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "-rA",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run([*command, "notebooks"], capture_output=True, text=True, check=False)
    outcomes = sorted(line.split(" - ")[0] for line in result.stdout.splitlines() if line[:6] in ("PASSED", "FAILED"))
    passed = [f"PASSED notebooks/01_first.ipynb::Cell {i}" for i in range(5)]
    passed += [f"PASSED notebooks/02_altered.ipynb::Cell {i}" for i in (0, 3, 4)]
    assert outcomes == [*(f"FAILED notebooks/02_altered.ipynb::Cell {i}" for i in (1, 2)), *passed], result.stdout


def test_cleaning_joins_a_text_that_came_in_pieces():
    cell = new_code_cell(CHECKED_PRINT)
    cell.outputs = [new_output("stream", name="stdout", text=text) for text in ("tw", "o\n")]
    (left,) = clean.cleaned(new_notebook(cells=[cell])).cells[0].outputs
    assert left.text == "two\n"
