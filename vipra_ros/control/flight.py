"""The flight recorder's memory: the last seconds of the executor, in a ring that never grows.

The control loop writes one row a pass into memory that exists already, and keeps chunks and changes of state in
bounded queues. Nothing here waits, locks or touches a disk; `data/incident.py` writes it down from a thread of its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.guard import Fault, Machine
from vipra_ros.control.profile import JOINTS
from vipra_ros.control.reference import Reference

#: s that are kept, and s after a fault that belong to it: how the arm came to rest.
KEPT, AFTER = 20.0, 1.0
#: Hz, the fastest loop that fits KEPT; chunks and changes kept, many times what a sane system makes.
FASTEST, CHUNKS, CHANGES = 500.0, 1500, 1000
#: Numbers in a chunk beyond which its rows are not kept: it was refused for its size.
LARGEST = 2048
#: Columns of a row before the seven vectors of joints.
SCALARS = ("time", "state", "limited", "epoch", "opening", "width", "limiter_active", "tracking_error")
#: The vectors: reference q, dq, ddq; measured q, dq; commanded to the motors q_d, dq_d.
VECTORS = ("q_ref", "dq_ref", "ddq_ref", "q", "dq", "q_d", "dq_d")
#: Rows at the old end that may be overwritten while they are copied.
_TORN = 8


@dataclass(frozen=True)
class Change:
    """Another state or other reasons, from `time` (s, monotonic) on."""

    time: float
    state: int
    text: str
    reasons: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class Flight:
    """A copy of what is remembered; times in s on the monotonic clock.

    Attributes:
        rows: float64 (N, 8 + 7 * 7), columns :data:`SCALARS`, then :data:`VECTORS`, NaN where there was nothing.
        chunks: (time, chunk, what became of it) of every chunk that was offered.
        changes: of the state, the reasons and the robot's own error.
        faults: latched at the time of the copy.
    """

    rows: np.ndarray
    chunks: tuple[tuple[float, ActionChunk, str], ...]
    changes: tuple[Change, ...]
    faults: tuple[Fault, ...]

    def column(self, name: str) -> np.ndarray:
        """(N,) of a scalar, (N, 7) of a vector."""
        if name in SCALARS:
            return self.rows[:, SCALARS.index(name)]
        begin = len(SCALARS) + JOINTS * VECTORS.index(name)
        return self.rows[:, begin : begin + JOINTS]


class FlightRecorder:
    """The ring; every method but :meth:`copy` is for the core, under its lock.

    Args:
        rate: Hz of the loop.
    """

    def __init__(self, rate: float = FASTEST):
        self._rows = np.full((int(KEPT * rate) + 2 * _TORN, len(SCALARS) + JOINTS * len(VECTORS)), np.nan)
        self._count = 0
        self._chunks: deque[tuple[float, ActionChunk, str]] = deque(maxlen=CHUNKS)
        self._changes: deque[Change] = deque(maxlen=CHANGES)
        self._faults: tuple[Fault, ...] = ()
        self._said: tuple = ()
        #: Faults that began, and the time of the last; a writer compares.
        self.incidents, self.fault_time = 0, float("nan")

    def offered(self, now: float, chunk: ActionChunk, verdict: Any) -> None:
        """A chunk came; `verdict` says itself what became of it."""
        if np.size(chunk.actions) + np.size(chunk.lookahead) > LARGEST:
            chunk = replace(chunk, actions=np.zeros((0, 0)), lookahead=np.zeros((0, 0)))
        self._chunks.append((now, chunk, str(verdict) if not verdict else "accepted"))

    def passed(
        self,
        now: float,
        machine: Machine,
        reference: Reference | None,
        state: RobotState,
        epoch: int,
        opening: float,
        limiter_active: float,
        tracking_error: float,
    ) -> None:
        """One pass of the loop ended so."""
        row = self._rows[self._count % len(self._rows)]
        row[0], row[1], row[2], row[3] = now, machine.state, 0 if reference is None else reference.limited(now), epoch
        row[4], row[5], row[6], row[7] = opening, state.gripper_width, limiter_active, tracking_error
        joints = row[len(SCALARS) :].reshape(len(VECTORS), JOINTS)
        joints[:3] = np.nan if reference is None else reference.at(now)
        for k, value in enumerate((state.q, state.dq, state.q_d, state.dq_d), 3):
            joints[k] = value if np.shape(value) == (JOINTS,) else np.nan
        self._count += 1
        said = (machine.state, machine.reasons, state.error)
        if said != self._said:
            self._said = said
            self._changes.append(Change(now, int(machine.state), machine.state.name, machine.reasons, state.error))
        if machine.faults and not self._faults:
            self.incidents, self.fault_time = self.incidents + 1, now
        self._faults = machine.faults

    def copy(self) -> Flight:
        """What is remembered now, from any thread. The loop goes on meanwhile: rows it may have torn are left out."""
        before, size = self._count, len(self._rows)
        rows = self._rows.copy()
        oldest = max(0, self._count + _TORN - size)
        rows = rows[np.arange(min(oldest, before), before) % size]
        since = rows[-1, 0] - KEPT if len(rows) else -np.inf
        return Flight(
            rows,
            tuple(c for c in _listed(self._chunks) if c[0] >= since),
            tuple(c for c in _listed(self._changes) if c.time >= since),
            self._faults,
        )


def _listed(queue: deque) -> list:
    """The queue as a list, though another thread appends: that raises RuntimeError, and then it is tried again."""
    while True:
        try:
            return list(queue)
        except RuntimeError:
            continue
