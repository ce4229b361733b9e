"""Timing contenders in turns, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np

from rectrio_lib.core.errors import ArgumentError


def time_in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 7, warm: bool = False
) -> dict[str, np.ndarray]:
    """Run every contender once a round, and return its seconds (rounds,).

    Each runs once before the clock starts, for caches and lazy loading. A round begins with another contender than the
    round before, so that none always runs after the same neighbour. Garbage is collected between rounds, not in them.

    Args:
        contenders: what to run, by name.
        rounds: how often.
        warm: run each once directly before it is timed, so that the processor's caches hold its data, not another's.

    Raises:
        ArgumentError: if there is no contender or no round.
    """
    if not contenders or rounds < 1:
        raise ArgumentError(f"{len(contenders)} contenders and rounds={rounds}: both should be at least 1.")
    names, seconds = list(contenders), {name: np.empty(rounds) for name in contenders}
    for run in contenders.values():
        run()
    collecting = gc.isenabled()
    try:
        for turn in range(rounds):
            gc.collect()
            gc.disable()
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if warm:
                    contenders[name]()
                started = time.perf_counter()
                contenders[name]()
                seconds[name][turn] = time.perf_counter() - started
    finally:
        if collecting:
            gc.enable()
    return seconds


def ratios(seconds: Mapping[str, np.ndarray], baseline: str) -> dict[str, np.ndarray]:
    """Divide the seconds of each contender by those of the baseline in the same round.

    Raises:
        ArgumentError: if the baseline is none of the contenders.
    """
    if baseline not in seconds:
        raise ArgumentError(f"{baseline!r} was not timed: the baseline should be one of {', '.join(seconds)}.")
    return {name: taken / seconds[baseline] for name, taken in seconds.items()}


def with_spread(values: np.ndarray) -> str:
    """Write values as their median and quartiles, such as "1.02 (0.98 to 1.07)"."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
