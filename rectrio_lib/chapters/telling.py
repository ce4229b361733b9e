"""What a chapter's cells say: sentences with figures, checks that nbval compares, and whether somebody is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rectrio_lib.core.errors import RectrioError
from rectrio_lib.core.workspace import quiet


def say(text: str) -> None:
    """Show a sentence as Markdown; its figures are computed, so it holds for other data and parameters too."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def check(claim: str, value: ArrayLike, expected: ArrayLike = True, within: float = 0.0) -> None:
    """Print whether a claim holds: `claim: True`, or both values where it does not.

    The line names no figure as long as the claim holds, so that it is the same on every machine.

    Args:
        claim: such as "recall@1 by hand".
        value: what was found, a number or an array.
        expected: what it must be, of the same shape; True for a condition.
        within: the largest difference allowed.
    """
    value, expected = np.asarray(value), np.asarray(expected)
    holds, limit = bool(np.array_equal(value, expected)), ""
    if within:
        same, limit = value.shape == expected.shape, f" (within {within:g})"
        holds = same and bool(np.allclose(value, expected, rtol=0, atol=within))
    print(f"{claim}{limit}: {holds}" if holds else f"{claim}{limit}: {holds}, {value} instead of {expected}")


def interactive() -> bool:
    """Return whether widgets make sense: a person runs the chapter, neither papermill nor a test does."""
    unattended = quiet() or "PYTEST_VERSION" in os.environ
    return not unattended and find_spec("ipywidgets") is not None


def explore(show: Callable[..., Any], **controls: Any) -> None:
    """Give a person sliders and boxes for the arguments of a function that draws; do nothing where nobody is there.

    It draws again when a control is released or left. What it cannot answer, it says in the error's sentence.

    Args:
        show: what to call with the values; returns a figure or a table. Its defaults are what the controls begin with.
        controls: {argument: what `ipywidgets.interact` makes a control of, such as (0, 9), a list, or a text; or the
            type `bytes`, a button to upload a file, which gives its content, at first nothing}.
    """
    if not interactive():
        return
    import matplotlib.pyplot as plt
    from IPython.display import display
    from ipywidgets import FileUpload  # an optional package, and slow to import
    from ipywidgets import interactive as controlled
    from matplotlib.figure import Figure

    uploads = {name: FileUpload(accept="image/*") for name, control in controls.items() if control is bytes}

    @wraps(show)
    def answer(**values: Any) -> None:
        values |= {name: _uploaded(values[name]) for name in uploads}
        try:
            shown = show(**values)
        except RectrioError as error:
            print(error)
            return
        display(shown)  # here: ipywidgets does not recognise the inline backend of matplotlib 3.9 and later
        if isinstance(shown, Figure):
            plt.close(shown)

    panel = controlled(answer, **controls | uploads)
    for control in panel.children[:-1]:
        if hasattr(control, "continuous_update"):
            control.continuous_update = False
    display(panel)


def _uploaded(value: Any) -> bytes:
    """Return the content of the last uploaded file; ipywidgets 7, which Colab has, names files, 8 has them in a row."""
    files = list(value.values() if isinstance(value, dict) else value)
    return bytes(files[-1]["content"]) if files else b""
