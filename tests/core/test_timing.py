import gc

import numpy as np
import pytest

from rectrio_lib.core import errors, timing


@pytest.fixture(autouse=True)
def little_garbage():
    """Keep the objects of all other tests out of the collections, which would take a second each."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the contenders move."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def contender(name, cost, clock, calls):
    def run():
        calls.append((name, gc.isenabled()))
        clock[0] += cost * len(calls)  # every call takes longer than the one before: the machine slows down

    return run


def test_contenders_take_turns_and_the_first_run_is_not_counted(clock):
    calls = []
    costs = {"a": 1.0, "b": 2.0, "c": 4.0}
    seconds = timing.time_in_turns({name: contender(name, cost, clock, calls) for name, cost in costs.items()}, 4)
    assert "".join(name for name, _ in calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert seconds["a"].tolist() == [4.0, 9.0, 11.0, 13.0]
    assert seconds["b"].tolist() == [10.0, 14.0, 24.0, 28.0]
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_warm_contenders_run_once_uncounted_before_each_time(clock):
    calls = []
    runs = {name: contender(name, cost, clock, calls) for name, cost in {"a": 1.0, "b": 2.0}.items()}
    seconds = timing.time_in_turns(runs, 2, warm=True)
    assert "".join(name for name, _ in calls) == "ab" + "aabb" + "bbaa"
    assert (seconds["a"].tolist(), seconds["b"].tolist()) == ([4.0, 10.0], [12.0, 16.0])


def test_garbage_is_not_collected_while_the_clock_runs(clock):
    calls = []
    timing.time_in_turns({"a": contender("a", 1.0, clock, calls)}, 3)
    assert [collecting for _, collecting in calls[1:]] == [False, False, False]
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_error():
    runs = iter([None])
    with pytest.raises(StopIteration):
        timing.time_in_turns({"a": lambda: next(runs)}, 2)
    assert gc.isenabled()


def test_ratios_are_taken_within_a_round():
    seconds = {"ours": np.array([1.0, 10.0, 2.0]), "other": np.array([2.0, 20.0, 1.0])}
    relative = timing.ratios(seconds, "ours")
    assert relative["other"].tolist() == [2.0, 2.0, 0.5]
    assert relative["ours"].tolist() == [1.0, 1.0, 1.0]


def test_values_are_written_as_median_and_quartiles():
    assert timing.with_spread(np.array([1.0, 2.0, 3.0, 4.0, 50.0])) == "3.00 (2.00 to 4.00)"


@pytest.mark.parametrize(("contenders", "rounds"), [({}, 1), ({"a": lambda: None}, 0)])
def test_nothing_to_time_is_refused(contenders, rounds):
    with pytest.raises(errors.ArgumentError, match=f"rounds={rounds}"):
        timing.time_in_turns(contenders, rounds)


def test_an_unknown_baseline_is_refused():
    with pytest.raises(errors.ArgumentError, match="hnswlib"):
        timing.ratios({"faiss": np.ones(2)}, "hnswlib")
