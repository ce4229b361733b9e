"""A click on a Colab badge: the first cell, profiles in an open notebook, and what Colab brings."""

import ast
import os
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rectrio_lib as rt
from rectrio_lib.chapters import chapter, telling
from rectrio_lib.core.errors import ArgumentError

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
(BROUGHT,) = (ROOT / ".ci").glob("colab-*.txt")


@pytest.fixture
def cell(notebook):
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["colab"]
    return first.source


def needed(cell, name):
    return ast.literal_eval(re.search(rf"^{name} = (.+?)  # ", cell, re.MULTILINE | re.DOTALL)[1])


def brought():
    lines = BROUGHT.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins.items()}


def test_the_first_cell_is_the_same_in_all_chapters_but_for_what_they_need(cell):
    def bare(source):
        return re.sub(r"^(before|packages) = .+?  # ", r"\1", source, flags=re.MULTILINE | re.DOTALL)

    common = nbformat.read(PATHS[0], as_version=4).cells[1].source
    assert bare(cell) == bare(common)
    assert set(needed(common, "packages").split()) <= set(needed(cell, "packages").split())


def test_it_makes_earlier_chapters_only(path, cell):
    before = needed(cell, "before")
    numbers = re.findall(r"\d\d", before)
    assert before == " ".join(f"--only {number}" for number in numbers)
    assert numbers == sorted(number for number in numbers if number < path.stem[:2])
    assert set(numbers) <= {p.stem[:2] for p in PATHS}


@pytest.mark.parametrize(("cloned", "drive"), [(False, False), (True, True)])
def test_it_clones_once_and_installs_what_is_missing_alone(cell, monkeypatch, tmp_path, cloned, drive):
    done, mounted, checkout = [], [], tmp_path / "rectrio"
    shell = InteractiveShell()
    monkeypatch.setattr(shell, "system", lambda command: (checkout.mkdir(exist_ok=True), done.append(command)))
    shell.register_magic_function(lambda line: done.append(f"pip {line}"), magic_name="pip")
    colab = SimpleNamespace(drive=SimpleNamespace(mount=mounted.append))
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace(colab=colab))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("RECTRIO_OUTPUTS", "elsewhere")
    monkeypatch.chdir(tmp_path)
    if cloned:
        checkout.mkdir()
    source = cell.replace("/content/rectrio", str(checkout))
    shell.run_cell(source.replace("keep_in_drive = False", f"keep_in_drive = {drive}")).raise_error()

    before, packages = needed(cell, "before"), needed(cell, "packages")
    assert done == [
        *["git clone -q https://github.com/rectrio/rectrio {checkout}"] * (not cloned),
        f"pip install -q {packages}",
        f"pip install -q --no-deps {checkout}",
        *["rectrio run {before} --profile {profile}"] * bool(before),
    ]
    assert (Path.cwd(), mounted) == (checkout, ["/content/drive"] * drive)
    assert os.environ["RECTRIO_OUTPUTS"] == ("/content/drive/MyDrive/rectrio" if drive else "elsewhere")


def test_it_does_nothing_elsewhere(cell, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    shell = InteractiveShell()
    monkeypatch.setattr(shell, "system", lambda command: pytest.fail(command))
    before = Path.cwd()
    shell.run_cell(cell).raise_error()
    assert Path.cwd() == before


def test_what_trains_opens_on_a_gpu(path, notebook, cell):
    code = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    trains = "02" in needed(cell, "before") or re.search(r"rt\.fit\(|two_phase\.", code)
    assert (notebook.metadata.get("accelerator") == "GPU") or not trains


def test_colab_satisfies_every_floor_and_lacks_what_the_first_cell_installs(cell):
    here, installed = brought(), {canonicalize_name(name) for name in needed(cell, "packages").split()}
    wanted = map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["lab"]])
    spared = ("jupyterlab", "latex2mathml")  # not used there
    wanted = {canonicalize_name(r.name): r.specifier for r in wanted if r.name not in spared}
    assert installed.isdisjoint(here)
    assert wanted.keys() - installed <= here.keys()
    low = {name: here[name] for name, floor in wanted.items() if name in here and not floor.contains(here[name])}
    assert low == {}


def test_a_profile_changes_the_parameters_of_the_open_notebook(path, notebook, monkeypatch):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    at = next(i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", []))
    assert code[at + 1].source.splitlines()[0] == f'rt.use_profile(profile, "{path.stem[:2]}", globals())'
    monkeypatch.chdir(ROOT)
    names = dict(chapter.read_chapter(path).parameters)
    monkeypatch.setenv("RECTRIO_QUIET", "0")
    rt.use_profile("full", path.stem[:2], names)
    assert names == chapter.read_chapter(path).parameters | chapter.read_profile("full").get(path.stem, {})


@pytest.fixture
def training(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RECTRIO_QUIET", "0")
    (found,) = chapter.select_chapters(["02"])
    return dict(found.parameters)


def test_a_profile_leaves_what_was_changed_by_hand_and_says_what_it_changes(training, monkeypatch):
    told = []
    monkeypatch.setattr(telling, "say", told.append)
    training["epochs"] = 7
    rt.use_profile("full", "02", training)
    assert (training["epochs"], training["seeds"]) == (7, [0, 1, 2])
    assert "seeds = [0, 1, 2]" in told[0] and "epochs = " not in told[0].replace("compare_epochs", "")


def test_the_quick_profile_and_papermill_change_nothing(training, monkeypatch):
    before = dict(training)
    rt.use_profile("quick", "02", training)
    monkeypatch.setenv("RECTRIO_QUIET", "1")  # as the runner sets it
    rt.use_profile("full", "02", training)
    assert training == before


def test_an_unknown_profile_is_refused(training):
    with pytest.raises(ArgumentError, match=r"quickly.*quick"):
        rt.use_profile("quickly", "02", training)
