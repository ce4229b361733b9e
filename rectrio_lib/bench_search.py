"""Search measured: this library's index against bare FAISS, usearch and hnswlib at equal recall, in one run."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from unittest import mock

import faiss
import numpy as np
import pandas as pd

from rectrio_lib import bench_peers, kinds, plots, tuning
from rectrio_lib.bench_peers import Contender, of_library
from rectrio_lib.indexing import Index
from rectrio_lib.kinds import TOP_K

OURS = "rectrio"
BUILT_FOR = 0.95  # the recall that the index is asked for, and at which the ratio is taken
LEVELS = (0.95, 0.99)  # of recall at which contenders are compared
ASKED = (0.90, 0.95, 0.99)
SIZES = (10_000, 100_000, 1_000_000)
FEWEST = 1_000
QUERIES, TIMED, BATCH, ROUNDS = 2_000, 500, 1_000, 7


def bench_search(count: int = 1_000_000, dim: int = 128) -> dict:
    """Measure the index of kind "auto" built for recall 0.95 among clustered vectors, see `bench_peers.draw`.

    Peers build graphs of as many links with as much care. For each level of recall, the search parameter of every
    contender is the least that reaches it on the same queries. All are in memory together, 4.5 kB a vector of length
    128, so that they can answer in turn. The figure goes to outputs/figures/bench_search.png.

    Args:
        count: vectors to search among.
        dim: their length.

    Returns:
        {"setting", "contenders": see `compare`, "ratio": see `ratio`, "asked": see `promises`, "sizes": see `grow`,
        "overhead": see `overhead`, "load": see `first_answer`}.

    Raises:
        ValueError: if there are too few vectors, or they are too short.
    """
    if count < FEWEST or dim < 2:
        raise ValueError(f"count={count}, dim={dim}: take {FEWEST:,} vectors of length 2, or more.")
    vectors, queries, others = bench_peers.make_world(count, dim, QUERIES)
    exam, missing = tuning.Exam(queries, vectors), bench_peers.not_installed()
    started = time.perf_counter()
    index = _build(vectors)
    took, effort = time.perf_counter() - started, index.effort
    contenders = [of_library(index)]
    contenders[0].name, contenders[0].seconds = OURS, took
    contenders += [_timed(name, build, vectors) for name, (at, build) in bench_peers.PEERS.items() if at not in missing]
    rows = compare(contenders, exam)
    del contenders  # gigabytes
    index.effort = effort
    figure = plots.recall_against_latency(pd.DataFrame(rows).rename(columns={"name": "kind"}))
    plots.save_figure(figure, "bench_search")
    return {
        "setting": {
            "vectors": f"{count:,} of length {dim} in {bench_peers.count_clusters(count):,} clusters",
            "index": index.info(),
            "graphs": f"{bench_peers.LINKS} links a vector, {kinds.EF_CONSTRUCTION} looked at for each new one",
            "queries": f"{len(queries):,}, the first {min(TIMED, len(queries)):,} of them timed in {ROUNDS} rounds",
            "threads": f"1 for a query, {faiss.omp_get_max_threads()} to build and for batches",
            "not_installed": missing,
        },
        "contenders": rows,
        "ratio": ratio(rows),
        "asked": promises(index, tuning.Exam(others, vectors), exam),
        "sizes": grow(index, exam),
        "overhead": overhead(index, queries),
        "load": first_answer(index, queries[:1]),
    }


def _build(vectors: np.ndarray) -> Index:
    rows = pd.DataFrame({"image_id": np.arange(len(vectors)).astype(str)})
    return Index.build("auto", vectors, rows, "bench", BUILT_FOR)


def _timed(name: str, build: Callable[[np.ndarray], Contender], vectors: np.ndarray) -> Contender:
    started = time.perf_counter()
    contender = build(vectors)
    contender.name, contender.seconds = name, time.perf_counter() - started
    return contender


# --- single queries at equal recall


def compare(contenders: Sequence[Contender], exam: tuning.Exam) -> list[dict]:
    """Time single queries of all contenders at equal recall.

    Returns:
        A row a contender and level: name, level (recall to reach), reached, setting, recall_at_10, ms and p95_ms of a
        query, build_seconds (of this library with tuning), bytes_per_vector on disk.
    """
    rows, trials = [], []
    for contender in contenders:
        size = round(contender.size() / len(exam.among), 1)
        for level in LEVELS:
            effort, recall = least_effort(contender, exam, level)
            setting = f"{contender.parameter} {effort}" if contender.parameter else "exact"
            row = {"name": contender.name, "level": level, "reached": recall >= level, "setting": setting}
            row |= {"recall_at_10": round(recall, 5), "build_seconds": round(contender.seconds, 1)}
            rows.append(row | {"bytes_per_vector": size})
            trials.append((contender, effort))
    seconds = clock(trials, _one_by_one(exam.queries))
    return [row | _milliseconds(taken) for row, taken in zip(rows, seconds, strict=True)]


def least_effort(contender: Contender, exam: tuning.Exam, level: float) -> tuple[int, float]:
    """Return the least effort that reaches a recall on the exam's queries, else the greatest; and its recall."""

    @cache
    def recall(effort: int) -> float:
        contender.set_effort(effort)
        return float(exam.shares(contender.search(exam.queries)).mean())

    enough = next((effort for effort in contender.efforts if recall(effort) >= level), contender.efforts[-1])
    tried = range(max(contender.efforts[0], enough // 2), enough + 1)
    effort = tried[min(bisect_left(tried, level, key=recall), len(tried) - 1)]
    return effort, recall(effort)


def ratio(rows: Sequence[dict]) -> float | None:
    """Return this library's time over that of the quickest peer at recall BUILT_FOR; None where one is missing."""
    times = {row["name"]: row["ms"] for row in rows if row["level"] == BUILT_FOR and row["reached"]}
    ours = times.pop(OURS, None)
    return round(ours / min(times.values()), 3) if ours and times else None


def clock(trials: Sequence[tuple[Contender, int]], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Let contenders answer in turn, round after round: a slow moment of the machine hits all of them alike.

    Args:
        trials: T contenders, each with its effort.
        parts: P arrays of queries, each asked at once; where they hold one query, FAISS gets one thread.

    Returns:
        Seconds (T, P), the median over the rounds.
    """
    seconds, threads = np.empty((ROUNDS, len(trials), len(parts))), faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if len(parts[0]) == 1 else threads)
    try:
        for turn in seconds:
            for (contender, effort), taken in zip(trials, turn, strict=True):
                contender.set_effort(effort)
                contender.search(parts[0])  # not counted: the caches hold what the one before it needed
                for i, part in enumerate(parts):
                    started = time.perf_counter()
                    contender.search(part)
                    taken[i] = time.perf_counter() - started
    finally:
        faiss.omp_set_num_threads(threads)
    return np.median(seconds, axis=0)


def _one_by_one(queries: np.ndarray) -> list[np.ndarray]:
    return list(queries[:TIMED, None])


def _milliseconds(seconds: np.ndarray) -> dict[str, float]:
    p50, p95 = 1000 * np.quantile(seconds, (0.5, 0.95))
    return {"ms": round(float(p50), 4), "p95_ms": round(float(p95), 4)}


# --- this library alone


def promises(index: Index, others: tuning.Exam, exam: tuning.Exam) -> list[dict]:
    """Tell how much of what was asked for is found by queries that played no part in tuning.

    For the recall that the index was built for, the effort is the one it came with; for the rest it is tuned again.

    Args:
        index: its effort is left as it is.
        others: queries to tune with, not in the index, as those that `Index.build` holds out.
        exam: queries to find out with.

    Returns:
        Rows asked, reached (None if the kind cannot be sure of so much), effort.
    """
    built, rows = index.effort, []
    for asked in ASKED:
        index.effort, reached = built, None
        try:
            if asked != BUILT_FOR and kinds.effort_name(index.kind):
                tuning.find_effort(index, others, asked)
            reached = round(float(exam.take(index).mean()), 5)
        except tuning.RecallOutOfReach as error:
            print(error)
        rows.append({"asked": asked, "reached": reached, "effort": index.effort})
    index.effort = built
    return rows


def grow(index: Index, exam: tuning.Exam) -> list[dict]:
    """Measure a query among ever more of the vectors, up to all that are in the index.

    Returns:
        Rows vectors, kind, recall_at_10, ms, p95_ms.
    """
    sizes = [size for size in SIZES if size < len(index)]
    indexes = [*(_build(exam.vectors[:size]) for size in sizes), index]
    exams = [*(tuning.Exam(exam.queries, exam.vectors[:size]) for size in sizes), exam]
    seconds = clock([(of_library(each), each.effort) for each in indexes], _one_by_one(exam.queries))
    rows = []
    for each, questions, taken in zip(indexes, exams, seconds, strict=True):
        recall = round(float(questions.take(each).mean()), 5)
        rows.append({"vectors": len(each), "kind": each.kind, "recall_at_10": recall, **_milliseconds(taken)})
    return rows


def overhead(index: Index, queries: np.ndarray) -> dict[str, float]:
    """Measure what `Index.search` takes beyond the FAISS call inside it.

    Returns:
        microseconds of a query asked alone; percent of batches of BATCH queries.
    """
    trials = [(of_library(index), index.effort), (bench_peers.inside(index), index.effort)]
    ours, bare = clock(trials, _one_by_one(queries))
    ours_batch, bare_batch = clock(trials, [queries[i : i + BATCH] for i in range(0, len(queries), BATCH)])
    percent = 100 * float(ours_batch.sum() / bare_batch.sum() - 1)
    return {"microseconds": round(1e6 * float(np.median(ours - bare)), 1), "percent": round(percent, 2)}


def first_answer(index: Index, query: np.ndarray) -> dict[str, float]:
    """Save an index, and let a new process map it and ask one query (1, dim); its imports are not counted.

    Returns:
        seconds of both, and of each: load, search, from files that the system still has in memory; and of what comes
        later, when rows are shown: read_rows.
    """
    away = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with away as folder, mock.patch.dict(os.environ, RECTRIO_OUTPUTS=folder):
        index.save("bench")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            return fresh.submit(_open_and_ask, "bench", query).result()


def _open_and_ask(name: str, query: np.ndarray) -> dict[str, float]:
    times = [time.perf_counter()]
    index = Index.load(name)
    times.append(time.perf_counter())
    index.search(query, TOP_K)
    times.append(time.perf_counter())
    _ = index.rows
    times.append(time.perf_counter())
    load, search, rows = np.diff(times).round(5).tolist()
    return {"seconds": round(load + search, 5), "load": load, "search": search, "read_rows": rows}


def print_search(outcome: dict) -> None:
    """Print what `bench_search` measured as tables, and the ratio."""
    from rectrio_lib.reports import plain_table

    setting = dict(outcome["setting"])
    missing = setting.pop("not_installed")
    for name, value in setting.items():
        print(f"{name}: {value}")
    if missing:
        print(f"{', '.join(missing)} left out, not installed: pip install 'rectrio[bench]'")
    print(f"\n{plain_table(outcome['contenders'])}")
    found = f"recall {BUILT_FOR} not reached" if outcome["ratio"] is None else f"ratio: {outcome['ratio']}"
    print(f"{found} (time of {OURS} over that of the best peer, one query, recall {BUILT_FOR})")
    print(f"\nrecall asked and reached\n{plain_table(outcome['asked'])}")
    print(f"\na query among ever more vectors\n{plain_table(outcome['sizes'])}")
    spent, load = outcome["overhead"], outcome["load"]
    print(f"\noverhead: {spent['microseconds']} µs a query, {spent['percent']} % in batches of {BATCH:,}")
    print(
        f"a new process answers after {load['seconds']} s (load {load['load']} s, search {load['search']} s); "
        f"it reads the rows in {load['read_rows']} s"
    )
