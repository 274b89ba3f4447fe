"""What the executor says about itself: the mirror of ExecutorStatus.msg, and the meters behind it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

#: s over which rates and fractions are taken.
WINDOW = 5.0
#: Values that percentiles are of.
KEPT = 200
NAN = float("nan")


@dataclass(frozen=True)
class ExecutorStatus:
    """Field by field as in ExecutorStatus.msg; ages in s, rates in Hz, NaN where there is no value yet."""

    state: int = 0
    state_text: str = "IDLE"
    reasons: tuple[str, ...] = ()
    robot: str = ""
    dry_run: bool = False
    in_control: bool = False
    epoch: int = 0
    task_id: int = 0
    instruction: str = ""
    observation_age: float = NAN
    chunk_age: float = NAN
    state_age: float = NAN
    chunk_rate: float = 0.0
    action_rate: float = 0.0
    state_rate: float = 0.0
    queue: int = 0
    queue_time: float = 0.0
    accepted: int = 0
    rejected: int = 0
    last_rejection: str = ""
    late: int = 0
    limited: int = 0
    overruns: int = 0
    faults: int = 0
    limiter_active: float = 0.0
    stall_fraction: float = 0.0
    boundary_step: float = NAN
    tracking_error: float = NAN
    obs_to_action_p50: float = NAN
    obs_to_action_p95: float = NAN
    obs_to_action_p99: float = NAN


class Rate:
    """Events per second over the last :data:`WINDOW`."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def note(self, now: float) -> None:
        """Something happened."""
        self._times.append(now)

    def value(self, now: float) -> float:
        """Hz; intervals between the first and the last event of the window."""
        while self._times and now - self._times[0] > WINDOW:
            self._times.popleft()
        span = self._times[-1] - self._times[0] if len(self._times) > 1 else 0.0
        return (len(self._times) - 1) / span if span > 0 else 0.0


class Share:
    """Fraction of time that something was true over the last :data:`WINDOW`."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, float, bool]] = deque()
        self.total = self.true = 0.0  # s since the start

    def note(self, now: float, duration: float, true: bool) -> None:
        """A piece of `duration` s ended at `now`."""
        self._pieces.append((now, duration, true))
        self.total += duration
        self.true += duration * true

    def value(self, now: float) -> float:
        """0 to 1; 0 when nothing was seen."""
        while self._pieces and now - self._pieces[0][0] > WINDOW:
            self._pieces.popleft()
        total = sum(d for _, d, _ in self._pieces)
        return sum(d for _, d, true in self._pieces if true) / total if total > 0 else 0.0


class Percentiles:
    """Percentiles of the last :data:`KEPT` values."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=KEPT)

    def note(self, value: float) -> None:
        """One more value."""
        self._values.append(value)

    def value(self) -> tuple[float, float, float]:
        """50th, 95th and 99th percentile, NaN when empty."""
        if not self._values:
            return NAN, NAN, NAN
        return tuple(float(x) for x in np.percentile(list(self._values), (50, 95, 99)))


class Telemetry:
    """Counts and meters of the core; :meth:`status` needs what only the core knows."""

    def __init__(self) -> None:
        self.accepted = self.rejected = self.limited = self.overruns = 0
        self.last_rejection, self.boundary_step = "", NAN
        self.chunks, self.actions, self.ticks = Rate(), Rate(), Rate()
        self.stall, self.delays = Share(), Percentiles()

    def status(self, now: float, **known: object) -> ExecutorStatus:
        """Everything together at `now`."""
        p50, p95, p99 = self.delays.value()
        return ExecutorStatus(
            chunk_rate=self.chunks.value(now),
            action_rate=self.actions.value(now),
            state_rate=self.ticks.value(now),
            accepted=self.accepted,
            rejected=self.rejected,
            last_rejection=self.last_rejection,
            limited=self.limited,
            overruns=self.overruns,
            stall_fraction=self.stall.value(now),
            boundary_step=self.boundary_step,
            obs_to_action_p50=p50,
            obs_to_action_p95=p95,
            obs_to_action_p99=p99,
            **known,
        )
