import os
import subprocess
import sys
from datetime import UTC, datetime

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from rectrio_lib.chapters import telling
from rectrio_lib.chapters.telling import check, say
from rectrio_lib.core.errors import ArgumentError


@pytest.mark.parametrize(
    ("value", "expected", "within", "printed"),
    [
        (True, True, 0.0, "it: True\n"),
        (np.bool_(False), True, 0.0, "it: False, False instead of True\n"),
        (0.5000001, 0.5, 1e-6, "it (within 1e-06): True\n"),
        (0.51, 0.5, 1e-6, "it (within 1e-06): False, 0.51 instead of 0.5\n"),
        ([1, 2], [1, 2], 0.0, "it: True\n"),
        ([1.0, np.nan], [1.0, 2.0], 0.1, "it (within 0.1): False, [ 1. nan] instead of [1. 2.]\n"),
    ],
)
def test_a_check_prints_whether_it_holds_and_both_values_if_not(capsys, value, expected, within, printed):
    check("it", value, expected, within)
    assert capsys.readouterr().out == printed


def test_an_array_is_no_substitute_for_a_number(capsys):
    check("it", [0.5, 0.5], 0.5, 0.1)
    assert "False" in capsys.readouterr().out


def test_a_sentence_is_shown_as_markdown(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    say("**0.89** of 2,000")
    assert [s.data for s in shown] == ["**0.89** of 2,000"]


@pytest.mark.parametrize(
    ("extra", "found"), [({}, "True"), ({"RECTRIO_QUIET": "1"}, "False"), ({"PYTEST_VERSION": "9"}, "False")]
)
def test_widgets_are_for_people(extra, found):
    pytest.importorskip("ipywidgets")
    base = {k: v for k, v in os.environ.items() if k not in ("RECTRIO_QUIET", "PYTEST_VERSION")}
    code = "from rectrio_lib.chapters.telling import interactive; print(interactive())"
    done = subprocess.run([sys.executable, "-c", code], env=base | extra, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


def test_nobody_there_means_no_widget_and_no_call(monkeypatch):
    monkeypatch.setattr(telling, "interactive", lambda: False)
    telling.explore(pytest.fail, k=(1, 9))


def test_a_control_that_is_released_draws_again_and_errors_become_sentences(monkeypatch, capsys):
    pytest.importorskip("ipywidgets")
    shown, calls, before = [], [], plt.get_fignums()  # what other tests left open
    monkeypatch.setattr(telling, "interactive", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)

    def show(text, k=7):
        if not text:
            raise ArgumentError("There is nothing to search for: type a word.")
        calls.append((text, k))
        return plt.figure()

    telling.explore(show, text="coat", k=(1, 9))
    words, number, _ = shown[-1].children
    assert not words.continuous_update and not number.continuous_update
    number.value = 2
    words.value = "dress"
    assert calls == [("coat", 7), ("coat", 2), ("dress", 2)]
    figures = [item for item in shown if isinstance(item, Figure)]
    assert len(figures) == len(calls) and plt.get_fignums() == before
    words.value = ""
    assert "type a word" in capsys.readouterr().out


def test_an_uploaded_file_arrives_as_its_content(monkeypatch):
    pytest.importorskip("ipywidgets")
    shown, got = [], []
    monkeypatch.setattr(telling, "interactive", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    telling.explore(lambda photo: got.append(photo), photo=bytes)
    upload, _ = shown[-1].children
    now = datetime.now(UTC)
    file = {"name": "b.png", "type": "image/png", "size": 1, "last_modified": now, "content": memoryview(b"\x03")}
    before, upload.value = list(got), (file,)
    assert before == [b""] and got[-1] == b"\x03"


def test_uploads_are_read_from_the_widgets_of_colab_too():
    assert telling._uploaded({}) == b""
    assert telling._uploaded({"a.png": {"content": b"\x01"}, "b.png": {"content": b"\x02\x03"}}) == b"\x02\x03"
