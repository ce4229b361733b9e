import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from makers.chapters import write_chapter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rectrio_lib.chapters import pages, publish, record, results
from rectrio_lib.core import errors, tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECTRIO_OUTPUTS", raising=False)
    return tmp_path


def entry(profile="full", stand_in=False, **values):
    return {
        "dataset": "fashion-mnist",
        "seed": 0,
        "stand_in": stand_in,
        "versions": {"python": "3.12.1", "torch": "2.8.0"},
        "device": "CPU, 2 threads",
        "profile": profile,
        "parameters": {},
        "duration_seconds": 1.0,
        "values": values,
    }


def read_published(project, name):
    return json.loads((project / "outputs" / "published" / f"{name}.json").read_text(encoding="utf-8"))


def test_results_of_other_chapters_stay_when_one_is_added(project):
    assert results.read_results() == {}
    results.add_result("02_b", entry(a=1))
    results.add_result("01_a", entry(a=2))
    results.add_result("02_b", entry(a=3))
    assert {k: e["values"]["a"] for k, e in results.read_results().items()} == {"01_a": 2, "02_b": 3}
    assert list(results.read_results()) == ["01_a", "02_b"]


def test_publish_copies_the_results_of_its_profile_only(project):
    results.add_result("01_a", entry(a=1))
    results.add_result("02_b", entry("quick", a=2))
    publish.publish("full")
    assert read_published(project, "full") == {"01_a": entry(a=1)}


def test_publish_keeps_what_was_published_before_and_not_run_since(project):
    results.add_result("01_a", entry(a=1))
    publish.publish("full")
    (project / "outputs" / "results.json").unlink()
    results.add_result("02_b", entry(b=1))
    publish.publish("full")
    assert read_published(project, "full") == {"01_a": entry(a=1), "02_b": entry(b=1)}


def test_publish_writes_to_the_checkout_wherever_outputs_go(project, monkeypatch):
    monkeypatch.setenv("RECTRIO_OUTPUTS", "elsewhere")
    results.add_result("01_a", entry(a=1))
    page = publish.publish("full")
    assert page == project / "outputs" / "published" / "README.md"
    assert page.is_file() and page.with_name("full.json").is_file()


def test_publish_refuses_stand_ins_and_writes_nothing(project):
    results.add_result("01_a", entry(a=1))
    results.add_result("02_b", entry(stand_in=True))
    with pytest.raises(errors.ArgumentError, match="02_b"):
        publish.publish("full")
    assert not (project / "outputs" / "published").exists()


def test_publish_refuses_a_profile_that_was_not_run(project):
    results.add_result("01_a", entry("quick"))
    with pytest.raises(errors.ArgumentError, match="'full'"):
        publish.publish("full")


def test_the_page_holds_the_tables_in_chapter_order_and_how_each_was_measured(project):
    rows = [
        {"way": "trained", "recall@1": 0.93},
        {"way": "raw | pixels", "recall@1": 0.841234, "note": "floor"},
    ]
    results.add_result("02_b", entry(recall=0.9, tables={"Against raw pixels": rows}))
    results.add_result("01_a", entry(pictures=70_000))
    results.add_result("03_c", entry(tables={"One": [{"a": 1}], "Two": [{"b": 2}]}) | {"commit": "abc1234"})
    lines = publish.publish("full").read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith(("#", "**"))]
    assert headings[1:] == [
        "## Profile full: `make run PROFILE=full`",
        "### Chapter 02_b",
        "**Against raw pixels**",
        "### Chapter 03_c",
        "**One**",
        "**Two**",
    ]
    assert "| trained | 0.930 |  |" in lines and "| raw \\| pixels | 0.841 | floor |" in lines
    assert "<sub>fashion-mnist, seed 0, CPU, 2 threads, python 3.12.1, torch 2.8.0.</sub>" in lines
    assert "<sub>fashion-mnist, seed 0, CPU, 2 threads, python 3.12.1, torch 2.8.0, commit abc1234.</sub>" in lines


def test_the_page_holds_every_profile_and_ends_with_the_remarks(project):
    results.add_result("01_a", entry("quick", tables={"Quick": [{"a": 1}]}))
    publish.publish("quick")
    (project / "outputs" / "published" / "remarks.md").write_text("## Remarks\n\nA word.\n", encoding="utf-8")
    results.add_result("01_a", entry("full", tables={"Full": [{"a": 2}]}))
    text = publish.publish("full").read_text(encoding="utf-8")
    assert "## Profile quick: `make run`\n" in text
    assert text.index("**Full**") < text.index("**Quick**")
    assert text.endswith("\n## Remarks\n\nA word.\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.93456, "0.935"),
        (0.0001234, "0.00012"),
        (0.0, "0.000"),
        (1234.5, "1,234"),
        (70_000, "70,000"),
        (True, "True"),
    ],
)
def test_values_are_written_for_people(value, shown):
    assert tables.show(value) == shown


def test_the_results_table_marks_stand_ins_and_leaves_out_lists():
    table = results.results_table({"01_a": entry(stand_in=True, recall=0.5, curve=[1, 2])})
    assert table.splitlines()[1].split() == ["01_a", "fashion-mnist", "(STAND-IN)", "recall", "0.500"]
    assert len(table.splitlines()) == 2


def test_a_notebook_with_widgets_from_colab_is_rendered(project):
    write_chapter(project, "01_a")
    shown = new_output("display_data", data={record.RECORD_MIME: entry(stand_in=True), "text/html": "<i>seen</i>"})
    notebook = new_notebook(
        cells=[new_markdown_cell("# A & B"), new_code_cell("record()", outputs=[shown])],
        metadata={"widgets": {}, "papermill": {"duration": 2.5}},
    )
    executed = project / "outputs" / "notebooks" / "01_a.ipynb"
    executed.parent.mkdir(parents=True)
    nbformat.write(notebook, executed)
    pages.write_pages(executed)
    assert "<i>seen</i>" in executed.with_suffix(".html").read_text(encoding="utf-8")
    index = (executed.parent / "index.html").read_text(encoding="utf-8")
    assert all(word in index for word in ("A &amp; B", "2.5", ">stand-in<", 'href="01_a.html"'))


def test_a_page_draws_formulas_without_asking_another_host_and_shows_broken_ones_as_written(project):
    write_chapter(project, "01_a")
    executed = project / "outputs" / "notebooks" / "01_a.ipynb"
    executed.parent.mkdir(parents=True)
    text = "# A\n\n$$ \\frac{1}{x_1} $$\n\nfor $x_1 < 2$, `$HOME`, and $\\frac$."
    nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), executed)
    pages.write_pages(executed)
    page = executed.with_suffix(".html").read_text(encoding="utf-8")
    assert page.count("<math") == 2 and "<mfrac>" in page and "<code>$HOME</code>" in page
    assert "<code>\\frac</code>" in page
    assert not re.search(r"<script|(src|href)=.http", page)


def test_without_the_converter_a_page_is_made_all_the_same(project, monkeypatch):
    write_chapter(project, "01_a")
    executed = project / "outputs" / "notebooks" / "01_a.ipynb"
    executed.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A\n\n$x_1$")]), executed)
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    pages.write_pages(executed)
    assert "$x_1$" in executed.with_suffix(".html").read_text(encoding="utf-8")


def test_the_index_leaves_out_copies_of_chapters_that_are_gone(project):
    folder = project / "outputs" / "notebooks"
    folder.mkdir(parents=True)
    for name in ("01_a", "02_gone"):
        nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {name}")]), folder / f"{name}.ipynb")
    write_chapter(project, "01_a")
    pages.write_pages(folder / "01_a.ipynb")
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert "01_a.html" in index
    assert "02_gone" not in index


def test_the_committed_page_is_what_the_committed_files_give():
    folder = ROOT / "outputs" / "published"
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page == publish.published_page(folder), "run `rectrio publish NAME` and commit outputs/published/README.md"


def test_every_published_chapter_exists_and_names_its_versions():
    folder = ROOT / "outputs" / "published"
    chapters = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    for path in folder.glob("*.json"):
        entries = json.loads(path.read_text(encoding="utf-8"))
        assert entries.keys() <= chapters
        assert all(e["versions"]["rectrio"] and e["profile"] == path.stem for e in entries.values())
