import json
import re

import numpy as np
import pytest
from makers.commands import rectrio, well

from rectrio_lib.chapters import compare, record, results
from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.evaluation.evaluation import Evaluation

LABELS = np.array(["ant", "bee"] * 500)


def entry(recall: float = 0.9, queries: Evaluation | None = None, monkeypatch=None, **parameters) -> dict:
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    record.record(dataset="toy", seed=0, queries=queries, recall=recall, images=1200, loss="triplet")
    made = bundles[0][record.RECORD_MIME]
    return {**made, "profile": "quick", "parameters": {"epochs": 2, "rate": 0.1, **parameters}}


@pytest.fixture
def keep(monkeypatch):
    """Keep runs, the first at 00:00:00, each a second later."""
    times = iter(f"20260101-00000{n}" for n in range(10))
    monkeypatch.setattr(results.time, "strftime", lambda form: next(times))

    def keep(chapter="02_second", **given):
        return results.add_result(chapter, entry(monkeypatch=monkeypatch, **given)).stem

    return keep


def evaluation(right: np.ndarray) -> Evaluation:
    return Evaluation(LABELS, {"recall_at_1": right.astype(float), "precision_at_1": right.astype(float)})


def rows(text: str) -> dict[str, list[str]]:
    """Return {first column: the others} of every line of several columns."""
    lines = [re.split(r"  +", line) for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 1}


def test_two_runs_are_compared_by_parameters_first_and_then_by_figures(keep):
    first, second = keep(recall=0.9), keep(recall=0.95, epochs=5)
    text = compare.compare_runs(first, second)
    shown = rows(text)
    assert (shown["A"], shown["B"]) == ([first], [second])
    assert shown["epochs"] == ["2", "5"] and "rate" not in shown and "dataset" not in shown
    assert shown["recall"] == ["0.900", "0.950", "+0.0500"]
    assert shown["images"] == ["1,200", "1,200", "+0"]
    assert shown["loss"] == ["triplet", "triplet"]
    assert text.index("epochs") < text.index("recall")
    assert "interval" not in text


def test_queries_are_compared_one_by_one(keep):
    rng = np.random.default_rng(0)
    right = rng.random(1000) < 0.8
    better = right | (rng.random(1000) < 0.1)
    first, second = keep(queries=evaluation(right)), keep(queries=evaluation(better))
    a, b, difference, interval = rows(compare.compare_runs(first, second))["recall_at_1, query by query"]
    assert (float(a), float(b)) == (round(right.mean(), 3), round(better.mean(), 3))
    assert float(difference) == pytest.approx(better.mean() - right.mean())
    low, high = map(float, interval.split(" to "))
    gain = better.astype(float) - right
    spread = 1.96 * gain.std() / 1000**0.5
    assert (low, high) == pytest.approx((gain.mean() - spread, gain.mean() + spread), abs=0.003)


def test_other_queries_are_not_paired(keep):
    one = evaluation(LABELS == "ant")
    other = Evaluation(LABELS[::-1], one.scores)
    assert "query by query" not in compare.compare_runs(keep(queries=one), keep(queries=other))


def test_skipped_queries_stay_skipped(keep):
    scores = np.where(LABELS == "ant", 1.0, np.nan)
    one = Evaluation(LABELS, {"recall_at_1": scores})
    first, second = keep(queries=one), keep(queries=one, recall=0.8)
    assert rows(compare.compare_runs(first, second))["recall_at_1, query by query"][:3] == ["1.000", "1.000", "+0.0000"]


def test_what_every_query_got_is_kept_with_the_run_but_not_in_results_json(keep):
    kept = keep(queries=evaluation(LABELS == "ant"))
    stored = results.find_run(kept)[2]["queries"]
    assert stored["scores"] == {"recall_at_1": (LABELS == "ant").astype(float).tolist()}
    assert "queries" not in results.read_results()["02_second"]


def test_a_run_is_found_by_name_hash_and_chapter(keep):
    oldest, middle, other, newest = keep(recall=0.1), keep(recall=0.2), keep("05_other"), keep(recall=0.3)
    wanted = {oldest: oldest, middle[:15]: middle, newest.rpartition("-")[2][:4]: newest}
    wanted |= {"02": newest, "2": newest, "02~1": middle, "02~2": oldest, "05": other}
    assert {name: results.find_run(name)[0] for name in wanted} == wanted
    name, chapter, found = results.find_run("05")
    assert (name, chapter, found["values"]["recall"]) == (other, "05_other", 0.9)


def test_names_that_fit_none_or_several_are_refused(keep):
    with pytest.raises(MissingArtefactError, match="rectrio run"):
        results.find_run("02")
    first, second = keep(), keep(recall=0.8)
    for name in ("03", "02~2", "nothing"):
        with pytest.raises(MissingArtefactError, match=rf"{name}.*{second}, {first}"):
            results.find_run(name)
    with pytest.raises(ArgumentError, match=rf"2 runs: {first}, {second}"):
        results.find_run("20260101")


def test_a_run_is_not_compared_with_itself_or_another_chapter(keep):
    one, other = keep(), keep("05_other")
    with pytest.raises(ArgumentError, match="same run"):
        compare.compare_runs(one, "02")
    with pytest.raises(ArgumentError, match="different chapters"):
        compare.compare_runs(one, other)


@pytest.mark.parametrize("text", ["{", "[]", '{"02_second": 3}', '{"02_second": {"values": 3}}', "{}"])
def test_a_damaged_run_is_named(keep, text):
    one = keep()
    (Workspace().outputs / "runs" / f"{one}.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=one):
        results.find_run("02")


def test_runs_from_before_queries_were_kept_can_be_compared(keep):
    one, other = keep(), keep(queries=evaluation(LABELS == "ant"), recall=0.95)
    path = Workspace().outputs / "runs" / f"{one}.json"
    old = json.loads(path.read_text(encoding="utf-8"))
    assert "queries" not in old["02_second"]
    assert rows(compare.compare_runs(one, other))["recall"][2] == "+0.0500"


def test_the_command_prints_the_comparison_and_one_sentence_for_an_error(keep):
    keep(), keep(recall=0.95)
    assert rows(well("compare", "02~1", "02"))["recall"] == ["0.900", "0.950", "+0.0500"]
    result = rectrio("compare", "02", "03")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
