"""Micro-batches."""

import asyncio
import threading
import time

import numpy as np
import pytest

from rectrio_lib.app.batching import Batcher, BusyError


def run(work):
    return asyncio.run(work())


def test_what_comes_together_is_encoded_together_and_goes_back_to_its_sender():
    seen = []

    def encode(items):
        seen.append(len(items))
        return np.array(items) * 2

    async def work():
        batcher = Batcher(encode, most=8)
        answers = await asyncio.gather(*(batcher(number) for number in range(20)))
        return answers

    assert run(work) == [2 * number for number in range(20)]
    assert sum(seen) == 20
    assert max(seen) == 8
    assert len(seen) == 3


def test_one_at_a_time_where_batching_is_off():
    seen = []

    async def work():
        batcher = Batcher(lambda items: seen.append(len(items)) or np.array(items), most=1)
        await asyncio.gather(*(batcher(number) for number in range(3)))

    run(work)
    assert seen == [1, 1, 1]


def test_too_many_are_refused_at_once_and_the_others_answered():
    async def work():
        batcher = Batcher(lambda items: np.array(items), most=2, waiting=4)
        answers = await asyncio.gather(*(batcher(number) for number in range(9)), return_exceptions=True)
        return answers

    answers = run(work)
    assert [a for a in answers if not isinstance(a, BusyError)] == [0, 1, 2, 3]
    assert sum(isinstance(a, BusyError) for a in answers) == 5


def test_an_error_reaches_everybody_of_the_batch_and_the_next_one_works():
    def encode(items):
        if "bad" in items:
            raise ValueError("bad")
        return items

    async def work():
        batcher = Batcher(encode)
        failed = await asyncio.gather(batcher("bad"), batcher("good"), return_exceptions=True)
        fine = await batcher("good")
        return failed, fine

    failed, fine = run(work)
    assert [type(error) for error in failed] == [ValueError, ValueError]
    assert fine == "good"


def test_a_client_that_goes_away_disturbs_nobody():
    async def work():
        batcher = Batcher(lambda items: time.sleep(0.05) or np.array(items))
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        answer = await stays
        with pytest.raises(asyncio.CancelledError):
            await gone
        return answer

    assert run(work) == 2


def test_several_batches_are_under_way_at_once():
    both = threading.Barrier(2, timeout=10)

    def encode(items):
        both.wait()  # passes if two threads are here together
        return np.array(items)

    async def work():
        batcher = Batcher(encode, most=3, threads=2)
        return await asyncio.gather(*(batcher(number) for number in range(6)))

    assert run(work) == list(range(6))
