"""Notebook software is an extra: only chapters need it, and say so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rectrio_lib.chapters import runner
from rectrio_lib.core.errors import MissingPackageError

ROOT = Path(__file__).parents[2]


def test_only_chapters_import_notebook_software():
    software = re.compile(r"^\s*(?:import|from) (nbformat|nbconvert|nbclient|papermill|ipykernel|jupyter\w*)\b", re.M)
    users = [path for path in (ROOT / "rectrio_lib").rglob("*.py") if software.search(path.read_text(encoding="utf-8"))]
    assert users
    assert {path.parent.name for path in users} == {"chapters"}


def test_running_chapters_without_papermill_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(MissingPackageError, match=r"papermill.*rectrio\[lab\]"):
        runner.run_chapters([])


def test_command_line_without_notebook_software_ends_in_one_sentence():
    code = "import sys; sys.modules['nbformat'] = None; from rectrio_lib.cli.app import app; app(['run'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rectrio[lab]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
