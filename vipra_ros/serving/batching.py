"""Many robots, one network: observations that are there at the same time are answered in one pass over the weights.

A pass over one observation is bound by reading the weights, or by the operations around the matrix products, so that
one over several costs little more. The price is waiting: the first of a batch waits for others at most `bound` s, and
not at all when everybody who is connected has asked already, so a single robot never waits. While a pass is under way
those that arrive form the next batch. An engine that takes one observation at a time is asked in the order of arrival.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vipra_ros.policy.observation import Observation, Prediction

#: Observations answered in one pass, and s that the first of them waits for the others.
MOST, BOUND = 8, 0.005


@dataclass(frozen=True)
class Answer:
    """A prediction, s from the question to the pass, s of the pass, and how many observations it answered."""

    prediction: Prediction
    waited: float
    thought: float
    together: int


@dataclass
class _Asked:
    observation: Observation
    seed: int | None
    future: asyncio.Future
    arrived: float
    began: float = 0.0


class Batcher:
    """Asks an engine from one thread. All methods belong to the event loop that runs `serve`.

    Args:
        engine: `infer`, and with `batches` true `infer_many`, as of `vipra_ros.policy.torch_engine.TorchEngine`.
        askers: how many could ask now; a batch of so many need not wait for more.
        bound: s; 0 waits for nobody.
        most: observations in one pass; 1 switches batching off.
    """

    def __init__(self, engine: object, askers: Callable[[], int], bound: float = BOUND, most: int = MOST):
        self.engine, self.bound, self.askers = engine, bound, askers
        self.most = most if getattr(engine, "batches", False) else 1
        self.passes = 0
        self._waiting: deque[_Asked] = deque()
        self._arrived = asyncio.Event()
        self._thinker = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def ask(self, observation: Observation, seed: int | None) -> Answer:
        """The engine's answer, or its error. A question whose task is cancelled before its pass is never put."""
        asked = _Asked(observation, seed, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(asked)
        self._arrived.set()
        return await asked.future

    async def serve(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._gather()
                found = await loop.run_in_executor(self._thinker, self._think, batch)
                ended = time.perf_counter()
                for asked, one in zip(batch, found):
                    if asked.future.done():  # hung up meanwhile
                        continue
                    if isinstance(one, Exception):
                        asked.future.set_exception(one)
                    else:
                        times = asked.began - asked.arrived, ended - asked.began
                        asked.future.set_result(Answer(one, *times, len(batch)))
        finally:
            self._thinker.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> list[_Asked]:
        """The next batch: at least one question whose asker still waits."""
        while True:
            while self._waiting and self._waiting[0].future.done():
                self._waiting.popleft()
            self._arrived.clear()
            count = len(self._waiting)
            left = self._waiting[0].arrived + self.bound - time.perf_counter() if count else None
            if count and (count >= min(self.most, self.askers()) or left <= 0):
                batch = [self._waiting.popleft() for _ in range(min(count, self.most))]
                if batch := [asked for asked in batch if not asked.future.done()]:
                    return batch
                continue
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                pass

    def _think(self, batch: Sequence[_Asked]) -> list[Prediction | Exception]:
        """In the engine's thread."""
        now = time.perf_counter()
        self.passes += 1
        for asked in batch:
            asked.began = now
        if len(batch) > 1:
            try:
                return self.engine.infer_many([a.observation for a in batch], [a.seed for a in batch])
            except Exception:  # one of them is at fault; asked alone, each gets what it deserves
                pass
        found: list[Prediction | Exception] = []
        for asked in batch:
            try:
                found.append(self.engine.infer(asked.observation, asked.seed))
            except Exception as error:  # the next request may be a better one; the asker reads the text
                found.append(error)
        return found
