import json
import os
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from index_maker import nearest
from typer.testing import CliRunner

from rectrio_lib import bench_peers, bench_search, cli, kinds, tuning
from rectrio_lib.bench_peers import Contender

VECTORS, QUERIES, OTHERS = bench_peers.make_world(3_000, 16, 200)
TRUTH = nearest(VECTORS, QUERIES, 10)[0]
NAMES = ["rectrio", "faiss HNSW32", "faiss HNSW32,SQfp16"]


@pytest.fixture(scope="module")
def exam():
    return tuning.Exam(QUERIES, VECTORS)


@pytest.fixture(scope="module")
def graph():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "FLAT_ROWS", 1_000)
        return bench_search._build(VECTORS)


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(bench_search, "TIMED", 5)
    monkeypatch.setattr(bench_search, "ROUNDS", 2)


@pytest.fixture(scope="module")
def measured(away_from_the_checkout):
    """The whole benchmark in small, without usearch and hnswlib: what it returned, and what it left."""
    sizes = {"QUERIES": 200, "TIMED": 5, "BATCH": 100, "ROUNDS": 2, "SIZES": (1_000,)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(bench_search, name, value)
        patch.setattr(kinds, "FLAT_ROWS", 1_000)
        patch.setattr(bench_peers, "find_spec", lambda name: True if name == "faiss" else None)
        outcome = bench_search.bench_search(3_000, 16)
    outputs = Path(os.environ["RECTRIO_OUTPUTS"])
    return outcome, sorted(path.relative_to(outputs).as_posix() for path in outputs.rglob("*") if path.is_file())


def naive_recall(search):
    return np.mean([len(np.intersect1d(a, b)) for a, b in zip(search(QUERIES), TRUTH, strict=True)]) / 10


class Knowing:
    """Finds as many of the true neighbours as a quarter of its effort, `most` at most."""

    def __init__(self, exam, most=10):
        self.order, self.most = nearest(exam.vectors, exam.queries, len(exam.vectors))[0], most

    def search(self, queries):
        right = min(self.effort // 4, self.most)
        return np.hstack([self.order[:, :right], self.order[:, right - 10 :] if right < 10 else self.order[:, :0]])

    def contender(self, name=""):
        return Contender(self.search, lambda e: setattr(self, "effort", e), "care", [10, 20, 40, 50], name=name)


# --- equal recall


@pytest.mark.parametrize(("level", "least"), [(0.05, 10), (0.45, 20), (0.65, 28), (0.75, 32), (0.95, 40)])
def test_the_least_effort_is_found_that_reaches_a_level(exam, level, least):
    effort, recall = bench_search.least_effort(Knowing(exam).contender(), exam, level)
    assert (effort, recall) == (least, pytest.approx(least // 4 / 10))


def test_a_level_that_is_never_reached_is_told_and_makes_no_ratio(exam, brief):
    rows = bench_search.compare([Knowing(exam, 9).contender("rectrio"), Knowing(exam).contender("peer")], exam)
    reached = {(row["name"], row["level"]): (row["reached"], row["setting"]) for row in rows}
    assert reached["rectrio", 0.95] == (False, "care 50")
    assert reached["peer", 0.95] == (True, "care 40")
    assert bench_search.ratio(rows) is None


@pytest.mark.parametrize("name", ["faiss HNSW32", "rectrio"])
def test_recall_in_the_rows_is_true_and_less_effort_finds_too_little(name, graph, exam, brief):
    ours, built = name == "rectrio", graph.effort
    contender = bench_peers.of_library(graph) if ours else bench_peers.PEERS[name][1](VECTORS)
    for row in bench_search.compare([contender], exam):
        effort = int(row["setting"].split()[1])
        contender.set_effort(effort)
        # float16 may swap neighbours whose products differ by its rounding
        assert row["recall_at_10"] == pytest.approx(naive_recall(contender.search), abs=1e-3 if ours else 1e-5)
        assert row["reached"] and row["recall_at_10"] >= row["level"]
        if effort > contender.efforts[0]:
            contender.set_effort(effort - 1)
            assert naive_recall(contender.search) < row["level"] + 1e-3
    graph.effort = built


def test_the_ratio_is_taken_from_the_rows_at_one_recall():
    rows = [
        {"name": name, "level": level, "reached": reached, "ms": ms}
        for name, level, reached, ms in [
            *[("rectrio", 0.95, True, 0.06), ("rectrio", 0.99, True, 0.9), ("a", 0.95, True, 0.05)],
            *[("b", 0.95, True, 0.08), ("c", 0.95, False, 0.01), ("a", 0.99, True, 0.02)],
        ]
    ]
    assert bench_search.ratio(rows) == 1.2
    assert bench_search.ratio(rows[:2]) is None
    assert bench_search.ratio(rows[2:]) is None


# --- the clock


@pytest.fixture
def time_of(monkeypatch):
    """Replace the clock by one that only contenders move; return a way to make them, and the order they were asked."""
    now, asked = [0.0], []
    monkeypatch.setattr(bench_search, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(bench_search, "ROUNDS", 3)

    def make(name, seconds):
        def search(part):
            asked.append((name, int(part[0, 0]), faiss.omp_get_max_threads()))
            now[0] += seconds * (100 if 4 <= len(asked) <= 9 else 1)  # some slow moments

        return Contender(search, lambda effort: asked.append((name, "effort", effort)), "", [1])

    return make, asked


def test_contenders_are_asked_in_turn_and_slow_moments_do_not_count(time_of):
    make, asked = time_of
    parts = [np.full((1, 2), i) for i in range(2)]
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    seconds = bench_search.clock([(make("a", 1.0), 11), (make("b", 3.0), 12)], parts)
    assert faiss.omp_get_max_threads() == 2
    faiss.omp_set_num_threads(before)
    np.testing.assert_allclose(seconds, [[1, 1], [3, 3]])
    turn = [(name, *call) for name, e in (("a", 11), ("b", 12)) for call in (("effort", e), (0, 1), (0, 1), (1, 1))]
    assert asked == 3 * turn


def test_batches_keep_all_threads_and_an_error_gives_them_back(time_of):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    make, asked = time_of
    bench_search.clock([(make("a", 1.0), 1)], [np.zeros((3, 2))])
    assert {threads for _, part, threads in asked if part == 0} == {2}

    def fail(part):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        bench_search.clock([(Contender(fail, lambda effort: None, "", [1]), 1)], [np.zeros((1, 2))])
    assert faiss.omp_get_max_threads() == 2
    faiss.omp_set_num_threads(before)


def test_overhead_is_the_difference_of_queries_and_the_share_of_batches(graph, monkeypatch):
    times = iter([np.array([[5e-5, 7e-5, 9e-5], [4e-5, 5e-5, 5e-5]]), np.array([[0.5, 0.6], [0.5, 0.5]])])
    monkeypatch.setattr(bench_search, "clock", lambda trials, parts: next(times))
    assert bench_search.overhead(graph, QUERIES) == {"microseconds": 20.0, "percent": 10.0}


# --- this library alone


def test_what_was_asked_for_is_compared_with_what_new_queries_find(graph, exam):
    built = graph.effort
    rows = bench_search.promises(graph, tuning.Exam(OTHERS, VECTORS), exam)
    assert graph.effort == built
    assert [row["asked"] for row in rows] == [0.90, 0.95, 0.99]
    assert [row["effort"] for row in rows] == sorted(row["effort"] for row in rows)
    assert rows[1]["effort"] == built and rows[2]["effort"] > built
    for row in rows:
        graph.effort = row["effort"]
        found = naive_recall(lambda queries: graph.search(queries, 10)[1])
        assert row["reached"] == pytest.approx(found, abs=1e-3)
    graph.effort = built


def test_a_promise_that_cannot_be_made_has_no_figure(graph, exam, monkeypatch):
    def refuse(index, exam, recall):
        raise tuning.RecallOutOfReach("too much.")

    monkeypatch.setattr(tuning, "find_effort", refuse)
    rows = bench_search.promises(graph, exam, exam)
    assert [row["reached"] is None for row in rows] == [True, False, True]


# --- the whole


def test_every_contender_that_is_there_is_measured_and_missing_ones_are_named(measured, capsys):
    outcome, _ = measured
    assert [row["name"] for row in outcome["contenders"]] == [name for name in NAMES for _ in range(2)]
    assert outcome["setting"]["not_installed"] == ["hnswlib", "usearch"]
    for row in outcome["contenders"]:
        assert row["recall_at_10"] >= row["level"] and 0 < row["ms"] <= row["p95_ms"]
    sizes = {row["name"]: row["bytes_per_vector"] for row in outcome["contenders"]}
    eight = 8  # bytes for its place: a graph lies in an order of its own
    assert sizes["rectrio"] == pytest.approx(sizes["faiss HNSW32,SQfp16"] + eight, rel=0.01)
    best = min(row["ms"] for row in outcome["contenders"] if row["level"] == 0.95 and row["name"] != "rectrio")
    assert outcome["ratio"] == round(outcome["contenders"][0]["ms"] / best, 3)
    bench_search.print_search(outcome)
    printed = capsys.readouterr().out
    assert "hnswlib, usearch left out, not installed: pip install 'rectrio[bench]'" in printed
    assert f"ratio: {outcome['ratio']} " in printed and "faiss HNSW32,SQfp16" in printed


def test_sizes_grow_up_to_the_whole_index(measured):
    small, whole = measured[0]["sizes"]
    assert (small["vectors"], small["kind"], small["recall_at_10"]) == (1_000, "flat", 1.0)
    assert (whole["vectors"], whole["kind"]) == (3_000, "hnsw")
    assert whole["recall_at_10"] == measured[0]["asked"][1]["reached"] >= 0.9


def test_a_new_process_answers_and_only_the_figure_is_left(measured):
    outcome, files = measured
    load = outcome["load"]
    assert min(load.values()) > 0
    assert load["seconds"] == pytest.approx(load["load"] + load["search"])
    assert files == ["figures/bench_search.png"]


@pytest.mark.parametrize(("count", "dim"), [(999, 8), (5_000, 1)])
def test_too_few_or_too_short_vectors_are_refused(count, dim):
    with pytest.raises(ValueError, match=f"count={count}, dim={dim}: take 1,000 vectors of length 2, or more"):
        bench_search.bench_search(count, dim)


def test_the_command_passes_its_options_on_and_json_is_one_object(measured, monkeypatch):
    def stand_in(count, dim):
        print("measuring")
        return {**measured[0], "asked_for": [count, dim]}

    monkeypatch.setattr(bench_search, "bench_search", stand_in)
    result = CliRunner().invoke(cli.app, ["bench", "search", "--count", "4000", "--dim", "8", "--json"])
    assert json.loads(result.stdout) == {**measured[0], "asked_for": [4000, 8]}
    assert "recall asked and reached" in CliRunner().invoke(cli.app, ["bench", "search"]).stdout
