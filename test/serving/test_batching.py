"""Several robots, one engine: who waits for whom, and that company changes no answer."""

import asyncio
import dataclasses
import threading
import time

import numpy as np
import pytest

from vipra_ros.policy.observation import ObservationError
from vipra_ros.serving.batching import Batcher
from vipra_ros.serving.remote import RemoteEngine, Server

WORDS = ("reach above the red cube", "push the blue cube", "lift the green cube")


class Counting:
    """The real engine, noting what it is asked; `open` lets the passes begin."""

    def __init__(self, engine, batches=True):
        self.engine, self.checkpoint, self.batches = engine, engine.checkpoint, batches
        self.asked, self.open = [], threading.Event()
        self.open.set()

    def infer(self, observation, seed=None):
        self.open.wait(10)
        self.asked.append([seed])
        return self.engine.infer(observation, seed)

    def infer_many(self, observations, seeds):
        self.open.wait(10)
        self.asked.append(list(seeds))
        return self.engine.infer_many(observations, seeds)


def answers(engine, questions, bound=5.0, most=8, askers=None):
    """What a batcher answers to `questions` (observation, seed), asked at once; errors in their places."""

    async def run():
        batcher = Batcher(engine, lambda: len(questions) if askers is None else askers, bound, most)
        serving = asyncio.ensure_future(batcher.serve())
        try:
            return await asyncio.gather(*(batcher.ask(*q) for q in questions), return_exceptions=True)
        finally:
            serving.cancel()

    return asyncio.run(run())


def questions(observation, count):
    """Observations of other pictures and of instructions of other lengths, with their seeds."""
    rng = np.random.default_rng(1)
    size = observation.frames["front"].shape
    return [
        (dataclasses.replace(observation, frames={"front": rng.integers(0, 255, size, np.uint8)},
                             instruction=WORDS[i % len(WORDS)]), i)
        for i in range(count)
    ]  # fmt: skip


def test_answers_of_one_pass_are_those_of_each_alone(engine, observation):
    asked = questions(observation, 5)
    counting = Counting(engine)
    for (one, seed), answer in zip(asked, answers(counting, asked)):
        alone = engine.infer(one, seed).actions
        std = engine.normaliser.action_std
        assert np.abs((answer.prediction.actions - alone) / std).max() < 2e-5  # the tolerance of all engines
        assert answer.together == 5 and answer.prediction.seed == seed
    assert counting.asked == [[0, 1, 2, 3, 4]]


def test_an_engine_of_one_observation_is_asked_in_the_order_of_arrival(engine, observation):
    asked = questions(observation, 4)
    counting = Counting(engine, batches=False)
    found = answers(counting, asked)
    assert counting.asked == [[0], [1], [2], [3]]
    assert all(np.array_equal(a.prediction.actions, engine.infer(*q).actions) for q, a in zip(asked, found))


def test_a_pass_has_a_largest_size(engine, observation):
    counting = Counting(engine)
    answers(counting, questions(observation, 5), bound=0.05, most=2)
    assert counting.asked == [[0, 1], [2, 3], [4]]


def test_nobody_waits_longer_than_the_bound_and_one_alone_not_at_all(engine, observation):
    asked = questions(observation, 1)
    assert answers(engine, asked, bound=30.0, askers=1)[0].waited < 5.0
    began = time.perf_counter()
    answer = answers(engine, asked, bound=0.3, askers=2)[0]
    assert answer.waited >= 0.3 and answer.together == 1 and time.perf_counter() - began < 10.0


def test_one_bad_observation_spoils_no_other_answer(engine, observation):
    asked = questions(observation, 3)
    asked[1] = (dataclasses.replace(asked[1][0], frames={"front": np.zeros((1, 8, 8, 3), np.uint8)}), 1)
    found = answers(engine, asked)
    assert isinstance(found[1], ObservationError)
    for i in (0, 2):
        assert np.array_equal(found[i].prediction.actions, engine.infer(*asked[i]).actions)


def test_who_hung_up_is_not_asked_for(engine, observation):
    counting = Counting(engine)
    counting.open.clear()

    async def run():
        batcher = Batcher(counting, lambda: 1, 0.0, 8)
        serving = asyncio.ensure_future(batcher.serve())
        first, second, third = (asyncio.ensure_future(batcher.ask(*q)) for q in questions(observation, 3)[:3])
        await asyncio.sleep(0.1)  # all three wait: the first pass has begun with what was there, or is about to
        late = asyncio.ensure_future(batcher.ask(observation, 9))
        gone = asyncio.ensure_future(batcher.ask(observation, 8))
        await asyncio.sleep(0.05)
        gone.cancel()
        counting.open.set()
        await asyncio.gather(first, second, third, late)
        serving.cancel()

    asyncio.run(run())
    assert 8 not in sum(counting.asked, []) and counting.asked[-1] == [9]


@pytest.mark.parametrize("robots", [3])
def test_robots_that_ask_at_once_are_answered_in_one_pass_over_the_wire(serving, engine, observation, robots):
    counting = Counting(engine)
    with serving(counting) as (server, uri):
        remotes, asked, found = [RemoteEngine(Server(uri, deadline=20.0)) for _ in range(robots)], [], {}
        server._batcher.bound = 10.0  # they wait for each other, however slow the machine is
        asked = questions(observation, robots)
        threads = [
            threading.Thread(target=lambda i=i: found.__setitem__(i, remotes[i].infer(*asked[i])))
            for i in range(robots)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(counting.asked[0]) == list(range(robots)) and server.health()["passes"] == 1
    for i, (one, seed) in enumerate(asked):
        assert np.allclose(found[i].actions, engine.infer(one, seed).actions, atol=1e-6)
