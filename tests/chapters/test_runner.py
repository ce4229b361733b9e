import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from makers.chapters import RECORD, write_chapter
from nbclient.exceptions import DeadKernelError

from rectrio_lib.chapters import record, runner
from rectrio_lib.chapters.chapter import read_chapter, select_chapters
from rectrio_lib.core import errors, files
from rectrio_lib.core.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run two chapters for real: one that records, and one that misses what it needs."""
    root, logged = tmp_path_factory.mktemp("a {project} of {0}"), []  # braces are no fields to fill
    first = write_chapter(
        root,
        "01_first",
        "import os, sys, warnings\nfrom rectrio_lib import record",
        "from rectrio_lib.training.loop import CollapseWarning\nwarnings.warn('of no interest')",
        "for _ in range(2):\n    warnings.warn('Collapse at step 40: 0.001', CollapseWarning)",
        "record(dataset='toy', seed=3, epochs=epochs, lr=lr, python=sys.executable,"
        " folder=os.path.basename(os.getcwd()), quiet=os.environ['RECTRIO_QUIET'])",
    )
    before = first.read_bytes()
    write_chapter(
        root,
        "02_second",
        "print('so far')",
        "from rectrio_lib import load_dataset\nload_dataset('toy')",
    )
    spec = root / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["no-such-python"], "display_name": "of the user", "language": "python"}))
    files.write_json(root / "outputs" / "results.json", {"07_other": {"kept": True}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("RECTRIO_OUTPUTS", raising=False)
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        patch.setattr(runner.LOG, "handle", logged.append)
        with pytest.raises(errors.MissingArtefactError) as missing:
            runner.run_chapters(select_chapters(), overrides={"lr": 0.5})
    assert first.read_bytes() == before, "the committed notebook was written to"
    results = json.loads((root / "outputs" / "results.json").read_text(encoding="utf-8"))
    return SimpleNamespace(
        pages=root / "outputs" / "notebooks", results=results, missing=str(missing.value), logged=logged
    )


def test_parameters_reach_the_chapter_and_the_entry_says_which_were_used(ran):
    entry = ran.results["01_first"]
    assert (entry["values"]["epochs"], entry["values"]["lr"]) == (2, 0.5)
    assert entry["parameters"] == {"epochs": 2, "lr": 0.5}


def test_the_entry_holds_all_that_is_needed_to_judge_it(ran):
    entry = ran.results["01_first"]
    assert (entry["dataset"], entry["seed"], entry["stand_in"], entry["profile"]) == (
        "toy",
        3,
        False,
        "quick",
    )
    assert set(entry["versions"]) == {"python", "rectrio", "torch", "faiss", "numpy"}
    assert entry["duration_seconds"] > 0
    assert entry["device"]


def test_every_run_is_kept_beside_the_newest_of_each_chapter(ran):
    (run,) = (ran.pages.parent / "runs").glob("*.json")
    assert "-01_first-" in run.name
    assert json.loads(run.read_text(encoding="utf-8")) == {"01_first": ran.results["01_first"]}


def test_entries_of_other_chapters_are_kept(ran):
    assert ran.results["07_other"] == {"kept": True}


def test_chapters_run_in_this_interpreter_whatever_kernels_the_user_has(ran):
    assert ran.results["01_first"]["values"]["python"] == sys.executable


def test_chapters_run_in_the_notebooks_folder_with_progress_bars_off(ran):
    values = ran.results["01_first"]["values"]
    assert (values["folder"], values["quiet"]) == ("notebooks", "1")


def test_a_missing_artefact_ends_the_run_with_its_own_sentence(ran):
    assert "no data set 'toy'" in ran.missing and "`rectrio run --only 01`" in ran.missing
    assert "02_second" not in ran.results


def test_executed_notebooks_are_rendered_even_if_they_failed(ran):
    assert "Title of 01_first" in (ran.pages / "01_first.html").read_text(encoding="utf-8")
    assert "so far" in (ran.pages / "02_second.html").read_text(encoding="utf-8")


def test_the_index_links_every_page_and_tells_finished_from_stopped(ran):
    _, _, first, second = (ran.pages / "index.html").read_text(encoding="utf-8").split("<tr>")
    assert 'href="01_first.html">Title of 01_first' in first
    assert ">done<" in first
    assert 'href="02_second.html">Title of 02_second' in second
    assert ">stopped<" in second


def test_a_collapse_in_a_chapter_is_told_to_whoever_runs_it_from_the_shell(ran):
    (message,) = [record.getMessage() for record in ran.logged if record.levelname == "WARNING"]
    assert "Collapse at step 40: 0.001" in message and "01" in message


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECTRIO_OUTPUTS", raising=False)
    return read_chapter(write_chapter(tmp_path, "01_first", RECORD))


def papermill_raising(error):
    def execute_notebook(*args, **settings):
        raise error

    return execute_notebook


@pytest.mark.parametrize("message", ["division by zero\nmore", "\n  division by zero\n"])
def test_an_error_in_a_chapter_says_chapter_cell_reason_and_where_to_look(chapter, monkeypatch, message):
    error = papermill.PapermillExecutionError(5, 4, "1 / 0", "ZeroDivisionError", message, ["long"])
    monkeypatch.setattr(papermill, "execute_notebook", papermill_raising(error))
    with pytest.raises(errors.ChapterError) as refused:
        runner.run_chapters([chapter])
    copy = str(Workspace().outputs / "notebooks" / "01_first.ipynb")
    words = ("01_first", "[4]", "ZeroDivisionError: division by zero", copy)
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value)


def test_a_dead_kernel_is_told_in_a_sentence(chapter, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", papermill_raising(DeadKernelError("died")))
    with pytest.raises(errors.ChapterError, match=r"01_first.*kernel died"):
        runner.run_chapters([chapter])


def test_a_chapter_that_does_not_record_is_refused(chapter, monkeypatch):
    silent = nbformat.read(chapter.path, as_version=4)
    monkeypatch.setattr(papermill, "execute_notebook", lambda *args, **settings: silent)
    with pytest.raises(errors.ChapterError, match=r"record\(\) 0 times"):
        runner.run_chapters([chapter])


def recorded_notebook():
    """Return what papermill leaves of a chapter that recorded."""
    entry = {"dataset": "toy", "seed": 0, "stand_in": False, "versions": {}, "device": "CPU", "values": {}}
    shown = nbformat.v4.new_output("display_data", data={record.RECORD_MIME: entry})
    cells = [nbformat.v4.new_code_cell("record()", outputs=[shown])]
    return nbformat.v4.new_notebook(cells=cells, metadata={"papermill": {"duration": 1.0}})


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_entry_names_the_commit_and_whether_files_differ_from_it(chapter, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *args, **settings: recorded_notebook())
    assert "commit" not in runner.run_chapters([chapter])["01_first"]
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost"]
    for command in (["init", "-q"], ["add", "notebooks"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    commit = runner.run_chapters([chapter])["01_first"]["commit"]
    assert len(commit) >= 7 and head.startswith(commit)
    chapter.path.write_text(chapter.path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert runner.run_chapters([chapter])["01_first"]["commit"] == f"{commit}-dirty"


def test_a_wrong_parameter_is_refused_before_anything_runs(chapter, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", papermill_raising(AssertionError("it ran")))
    with pytest.raises(errors.ArgumentError, match="epoch"):
        runner.run_chapters([chapter], overrides={"epoch": 3})


def test_processes_are_for_chapters_that_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_chapter(tmp_path, "01_first", RECORD)
    write_chapter(tmp_path, "02_second", "import rectrio_lib as rt", "rt.fit()")
    with pytest.raises(errors.ArgumentError, match=r"Chapter 01 trains nothing .*: 02 do"):
        runner.run_chapters(select_chapters(["01"]), processes=2)
    with pytest.raises(errors.ArgumentError, match="processes=1000"):
        runner.run_chapters(select_chapters(["02"]), processes=1000)


def test_processes_reach_the_chapters(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECTRIO_OUTPUTS", str(tmp_path / "outputs"))
    told = "record(dataset='toy', processes=rt.core.workspace.processes())"
    write_chapter(tmp_path, "02_second", "import rectrio_lib as rt\nfrom rectrio_lib import record", "# rt.fit()", told)
    assert runner.run_chapters(select_chapters(), processes=1)["02_second"]["values"]["processes"] == 1
