"""When the next observation is taken, so that chunks neither pile up nor leave the arm waiting.

Pure: times in s on the clock of the camera stamps go in, a due time comes out. The node and the fast
evaluation share it.

`async`: a chunk answers an observation at t0 and carries rows until t0 + execute * period. The next one has
to arrive `margin` rows before they run out, and it arrives one latency after its own observation (median
from observation to publication), so that one is due at

    t0 + (execute - ceil(latency / period) - margin) * period,

at least one row later, and no sooner than `LEAST_GAP` latencies: a machine kept at full load by its own
policy answers later, asks to be asked sooner, and ends in a spiral. `sync`: the next observation is taken
when the executor has run out of rows; the arm stands still while the policy thinks.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

MODES = ("async", "sync")
#: Latencies remembered; at two chunks a second about half a minute.
WINDOW = 64


#: Least time between two observations, in latencies; a third of the processor is left to everything else.
LEAST_GAP = 1.5


def replan_steps(execute: int, latency: float, period: float, margin: int = 1) -> int:
    """Rows between two observations in `async` mode; at least 1.

    Args:
        execute: rows of a chunk that are executed.
        latency: s from an observation to the arrival of its chunk.
        period: s between rows.
        margin: rows that are still queued when the next chunk arrives.
    """
    wanted = execute - math.ceil(latency / period - 1e-9) - margin
    return max(1, wanted, math.ceil(LEAST_GAP * latency / period - 1e-9))


class Latency:
    """Percentiles of the last durations (s)."""

    def __init__(self, window: int = WINDOW):
        self._values: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """Take in one duration."""
        self._values.append(seconds)

    def percentile(self, p: float) -> float:
        """Percentile `p` (0..100) in s, NaN before the first."""
        return float(np.percentile(self._values, p)) if self._values else math.nan


class Scheduler:
    """Says when the next observation is due.

    Args:
        execute, period, margin: see :func:`replan_steps`.
        mode: "async" or "sync".
        rate: most chunks per second; 0 sets no bound but the rows themselves.

    Raises:
        ValueError: unknown mode, or a rate at which the rows run out between two chunks.
    """

    def __init__(self, execute: int, period: float, mode: str = "async", rate: float = 0.0, margin: int = 1):
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: choose {' or '.join(MODES)}")
        slowest = 1.0 / (execute * period)
        if mode == "async" and rate and rate < slowest - 1e-9:
            raise ValueError(
                f"rate {rate} Hz: {execute} rows of {period:.3f} s run out in between; give "
                f"at least {slowest:.2f} Hz, 0 for automatic, or mode sync"
            )
        self.execute, self.period, self.mode, self.rate, self.margin = execute, period, mode, rate, margin
        self.latency = Latency()
        self._last: float | None = None

    def reset(self) -> None:
        """The next observation is due at once: start, another instruction, the executor armed anew."""
        self._last = None

    def due(self, queue_empty_since: float | None = None) -> float:
        """Earliest stamp of the next observation, s; -inf for at once, inf for not yet.

        Args:
            queue_empty_since: when the executor said that it has no rows left, None while it has (`sync`).
        """
        if self._last is None:
            return -math.inf
        paced = self._last + 1.0 / self.rate if self.rate else -math.inf
        if self.mode == "sync":
            return math.inf if queue_empty_since is None else max(queue_empty_since, paced)
        latency = self.latency.percentile(50)
        rows = replan_steps(self.execute, 0.0 if math.isnan(latency) else latency, self.period, self.margin)
        return max(self._last + rows * self.period, paced)

    def published(self, stamp: float, latency: float) -> None:
        """A chunk for the observation at `stamp` went out `latency` s after it."""
        self._last = stamp
        self.latency.add(latency)
