import errno
import os
import re
import subprocess
import sys

import pytest
from makers.chapters import RECORD, write_chapter
from makers.commands import rectrio

from rectrio_lib import __version__
from rectrio_lib.chapters import clean, results, runner
from rectrio_lib.core import errors

ENTRY = {"dataset": "toy", "stand_in": False, "values": {"recall_at_1": 0.91}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for variable in ("RECTRIO_OUTPUTS", "RECTRIO_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    write_chapter(tmp_path, "01_first", RECORD)
    write_chapter(tmp_path, "02_second", RECORD)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """Stand in the place of the runner and keep what it was asked for."""
    calls = []

    def run_chapters(chapters, profile, overrides, processes):
        calls.append(([c.name for c in chapters], profile, overrides, processes))
        return {c.name: ENTRY for c in chapters}

    monkeypatch.setattr(runner, "run_chapters", run_chapters)
    return calls


def raising(error):
    def run_chapters(*arguments):
        raise error

    return run_chapters


def test_a_full_disk_is_one_sentence(project, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "page.html")
    monkeypatch.setattr(runner, "run_chapters", raising(full))
    result = rectrio("run")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "page.html" in result.stderr and full.strerror in result.stderr


def test_version_is_the_package_version():
    result = rectrio("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"rectrio {__version__}")


def test_help_answers_without_the_heavy_libraries():
    code = (
        "import sys; from typer.testing import CliRunner; from rectrio_lib.cli.app import app;"
        "assert 'clean-notebooks' in CliRunner().invoke(app, ['--help']).stdout;"
        "print({'torch', 'papermill', 'nbformat', 'pandas', 'faiss'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_run_hands_over_chapters_profile_and_parameters(project, asked):
    chosen = "--only", "01", "--only", "2", "--profile", "full"
    result = rectrio("run", *chosen, "-p", "epochs=3", "-p", "lr=0.5", "--processes", "2")
    assert result.exit_code == 0, result.output
    assert asked == [(["01_first", "02_second"], "full", {"epochs": "3", "lr": "0.5"}, 2)]


def test_run_without_options_runs_everything_as_committed(project, asked):
    rectrio("run")
    rectrio("run", "--from", "02")
    assert asked == [(["01_first", "02_second"], None, {}, None), (["02_second"], None, {}, None)]


def test_run_ends_with_the_results_and_where_to_look(project, asked):
    (project / "outputs" / "figures").mkdir(parents=True)
    output = rectrio("run", "--only", "02").stdout
    assert re.search(r"02_second +toy +recall_at_1 +0\.910", output)
    for place in ("notebooks/index.html", "figures", "results.json"):
        assert str(project / "outputs" / place) in output


@pytest.mark.parametrize(
    "error",
    [e("too bad.") for e in (errors.ArgumentError, errors.MissingPackageError, errors.ChapterError)],
)
def test_a_known_error_is_one_line_on_stderr(project, monkeypatch, error):
    monkeypatch.setattr(runner, "run_chapters", raising(error))
    result = rectrio("run")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "rectrio: too bad.\n")


def test_debug_shows_where_an_error_comes_from(project, monkeypatch):
    monkeypatch.setenv("RECTRIO_DEBUG", "1")
    error = errors.ArgumentError("too bad.")
    monkeypatch.setattr(runner, "run_chapters", raising(error))
    assert rectrio("run").exception is error


def test_a_wrong_option_is_not_called_a_bug(project):
    result = rectrio("run", "--unknown")
    assert result.exit_code == 2 and "issues" not in result.stderr


@pytest.mark.parametrize(
    "command", ["build", "compare", "embed", "export", "index", "publish", "keys add", "keys link", "keys remove"]
)
def test_a_command_without_its_argument_says_which_is_missing(project, command):
    result = rectrio(*command.split())
    assert result.exit_code == 2 and "Missing argument" in result.stderr


def test_an_unknown_error_is_not_hidden(project, monkeypatch):
    error = KeyError("a mistake of ours")
    monkeypatch.setattr(runner, "run_chapters", raising(error))
    result = rectrio("run")
    assert result.exception is error
    (line,) = result.stderr.splitlines()
    assert "https://github.com/rectrio/rectrio/issues" in line


def test_ctrl_c_ends_with_a_sentence_and_130(project, monkeypatch):
    monkeypatch.setattr(runner, "run_chapters", raising(KeyboardInterrupt()))
    result = rectrio("run")
    assert (result.exit_code, result.stderr) == (
        130,
        "rectrio: stopped by Ctrl-C; what finished before is kept.\n",
    )


def test_a_wrong_number_is_told_in_one_line(project):
    result = rectrio("run", "--only", "07")
    assert (result.exit_code, result.stderr) == (1, "rectrio: There is no chapter 07: there are 01, 02.\n")


def test_publish_writes_the_results_and_the_page(project):
    table = {"seed": 0, "device": "CPU", "versions": {}, "profile": "full"}
    values = {"values": {"tables": {"Recall": [{"recall@1": 0.93}]}}}
    results.add_result("01_first", {**ENTRY, **table, **values})
    result = rectrio("publish", "full")
    assert result.exit_code == 0, result.output
    assert (project / "outputs" / "published" / "full.json").exists()
    assert "| 0.930 |" in (project / "outputs" / "published" / "README.md").read_text(encoding="utf-8")


def test_clean_notebooks_says_what_changed(project):
    clean.clean(project / "notebooks" / "02_second.ipynb")
    result = rectrio("clean-notebooks")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["cleaned    01_first.ipynb", "unchanged  02_second.ipynb"]


def test_clean_notebooks_names_chapters_whose_checks_compare_nothing(project):
    write_chapter(project, "02_second", f"{clean.CHECKED}\nprint(1)", RECORD)
    result = rectrio("clean-notebooks")
    assert result.exit_code == 1
    assert "02_second: checked cells have no output" in result.stderr
    assert "rectrio run --only 02" in result.stderr
