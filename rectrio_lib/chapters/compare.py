"""Two kept runs of a chapter side by side: what differed, and what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from rectrio_lib.chapters.record import scalars
from rectrio_lib.chapters.results import Entry, find_run
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.tables import plain_table, show
from rectrio_lib.evaluation.evaluation import Evaluation, paired_interval

CONTEXT = ("dataset", "seed", "stand_in", "profile", "device", "commit")  # of an entry, besides parameters and versions


def compare_runs(one: str, other: str) -> str:
    """Return two runs of one chapter as text: differing parameters, then figures and their differences.

    Args:
        one: a run as `results.find_run` takes it.
        other: another one.

    Raises:
        MissingArtefactError: if there are no such runs.
        ArgumentError: if a name fits several, or the runs are the same or of different chapters.
    """
    runs = [find_run(name) for name in (one, other)]
    (first, chapter, a), (second, other_chapter, b) = runs
    if first == second:
        raise ArgumentError(f"{one} and {other} are the same run, {first}: name two.")
    if chapter != other_chapter:
        raise ArgumentError(
            f"{first} and {second} are runs of different chapters, whose figures mean different things."
        )
    changed = differing(a, b)
    parts = [f"A  {first}\nB  {second}", plain_table(changed) if changed else "No parameter differs."]
    figures = difference_of_figures(a, b)
    return "\n\n".join([*parts, plain_table(figures) if figures else "No figures were recorded."])


def differing(a: Entry, b: Entry) -> list[dict[str, Any]]:
    """Return rows of what two entries were run with, as far as it differs: parameters first, then the surroundings."""

    def settings(entry: Entry) -> dict[str, Any]:
        around = {key: entry.get(key, "") for key in CONTEXT}
        return {**entry.get("parameters", {}), **around, **entry.get("versions", {})}

    ours, theirs = settings(a), settings(b)
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name, "") != theirs.get(name, "")]
    return [{"differs": name, "A": str(ours.get(name, "")), "B": str(theirs.get(name, ""))} for name in names]


def difference_of_figures(a: Entry, b: Entry) -> list[dict[str, Any]]:
    """Return a row for each figure of either entry; with a paired 95 % interval where both kept their queries."""
    ours, theirs = scalars(a), scalars(b)
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        pair = [values.get(name, "") for values in (ours, theirs)]
        row = {"figure": name, "A": show(pair[0]), "B": show(pair[1]), "B - A": ""}
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair):
            row["B - A"] = f"{pair[1] - pair[0]:+.4f}" if float in map(type, pair) else f"{pair[1] - pair[0]:+,}"
        rows.append(row)
    return rows + _paired(a.get("queries"), b.get("queries"))


def _paired(a: Entry | None, b: Entry | None) -> list[dict[str, Any]]:
    """Compare query by query, if both runs asked the same ones."""
    if not a or not b or a["fingerprint"] != b["fingerprint"]:
        return []
    rows = []
    for name in a["scores"].keys() & b["scores"].keys():
        scores = [np.array(run["scores"][name], np.float64) for run in (a, b)]
        evaluations = [Evaluation(np.arange(len(values)), {name: values}) for values in scores]
        low, high = paired_interval(evaluations[1], evaluations[0], name, by_label=False)
        means = [evaluation.means()[name] for evaluation in evaluations]
        row = {"figure": f"{name}, query by query", "A": show(means[0]), "B": show(means[1])}
        rows.append({**row, "B - A": f"{means[1] - means[0]:+.4f}", "95 % interval": f"{low:+.4f} to {high:+.4f}"})
    return sorted(rows, key=lambda row: row["figure"])
