"""Chunks on the time axis: which row is due when, what is late, how two chunks are joined.

The queue holds target rows on one grid of times. A chunk whose rows fall between the grid's times is
interpolated onto it. Rows up to the commit time are out of reach: they have been executed or are being
executed, so no row is executed twice and time never runs backwards. In `async` mode row k is due at
stamp + (k + 1) period whatever the delay was, and rows due before the commit time are dropped as late.
In `sync` mode the observation is taken at rest, so the chunk begins when it arrives and nothing is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

MODES = ("sync", "async")
BLENDINGS = ("none", "linear", "ensemble")
#: A first row nearer than this share of the period counts as late: no arm gets there in time.
LEAST_STEP = 0.3
#: Predictions of one instant that the ensemble remembers.
ENSEMBLE_DEPTH = 8
_EPS = 1e-6


@dataclass
class Row:
    """A target: joints (7,) in rad and gripper in [-1, 1] at `time` (s).

    `executable` is False for lookahead rows: they shape blending and the last velocity, nothing else.
    """

    time: float
    q: np.ndarray
    gripper: float
    chunk_id: int
    task_id: int
    stamp: float
    executable: bool
    predictions: list[np.ndarray] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Added:
    """What became of a chunk: rows queued and rows late; `boundary_step` (rad) is the largest joint
    difference between the old and the new plan where they first meet."""

    used: int
    late: int
    blended: int = 0
    flushed: int = 0
    boundary_step: float = float("nan")


class Timeline:
    """The queue of target rows.

    Args:
        mode: "sync" or "async".
        blending: "none", "linear" (over the overlap) or "ensemble" (weights exp(-decay i), i = 0 the oldest).
        decay: of the ensemble.
    """

    def __init__(self, mode: str = "async", blending: str = "linear", decay: float = 0.01):
        if mode not in MODES or blending not in BLENDINGS:
            raise ValueError(f"mode {mode!r} / blending {blending!r}: choose from {MODES} and {BLENDINGS}")
        self.mode, self.blending, self.decay = mode, blending, decay
        self.period = float("nan")
        self._rows: list[Row] = []
        self._passed: Row | None = None  # the last row that was due: where the next velocity comes from
        self.executed = self.late = 0

    # --- writing -------------------------------------------------------------------------------------------

    def add(
        self,
        *,
        stamp: float,
        period: float,
        q: np.ndarray,
        gripper: np.ndarray,
        execute: int,
        chunk_id: int,
        task_id: int,
        commit: float,
        on_grid: bool,
    ) -> Added:
        """Put a chunk on the time axis.

        Args:
            stamp: s, time of its observation; period: s between rows.
            q: rad (H, 7) absolute rows, lookahead included; gripper: (H,); execute: rows to execute.
            commit: s, the first instant that may still change.
            on_grid: whether `commit` is a time of the running grid; else the grid is laid anew on the chunk.

        Returns:
            What was done; `used` is 0 if every row came too late, and then nothing changed.
        """
        self.expire(commit)
        flushed = 0
        flush = bool(self._rows) and (self._rows[-1].task_id != task_id or abs(period - self.period) > _EPS)
        queued = [] if flush else self._rows
        if self.mode == "sync":
            base = max([commit] + [r.time for r in queued if r.executable])
            queued = [r for r in queued if r.executable]
        else:
            base = stamp
        times = base + period * np.arange(1, len(q) + 1)
        first = commit + LEAST_STEP * period
        late = int(np.sum(times[:execute] < first - _EPS))
        last_time = times[execute - 1] if execute else -math.inf
        if self.mode == "async" and queued:
            grid = _grid(queued[0].time, period, max(first, times[0]), times[-1])
        elif self.mode == "async" and on_grid:
            grid = _grid(commit, period, max(first, times[0]), times[-1])
        else:
            grid = times[times >= first - _EPS]
        if not len(grid) or grid[0] > last_time + _EPS:
            self.late += late
            return Added(0, late)
        if flush:
            flushed = len(self._rows)
        values = np.column_stack([q, gripper])
        on_times = np.array([np.interp(grid, times, values[:, c]) for c in range(values.shape[1])]).T
        new = [
            Row(float(t), v[:-1], float(v[-1]), chunk_id, task_id, stamp, bool(t <= last_time + _EPS), [v])
            for t, v in zip(grid, on_times)
        ]
        step, blended = self._join(queued, new)
        self.period = period
        self.late += late
        return Added(sum(r.executable for r in new), late, blended, flushed, step)

    def _join(self, old: list[Row], new: list[Row]) -> tuple[float, int]:
        """Replace the overlap by the blend and everything behind by the new rows."""
        begin = new[0].time
        ahead = [r for r in old if r.time < begin - _EPS]
        behind = [r for r in old if r.time >= begin - _EPS]
        if behind:
            step = float(np.abs(new[0].q - behind[0].q).max())
        else:
            before = ahead[-1] if ahead else self._passed
            step = float(np.abs(new[0].q - before.q).max()) if before is not None else float("nan")
        pairs = list(zip(new, behind)) if self.blending != "none" else []
        for i, (row, other) in enumerate(pairs):
            if self.blending == "linear":
                weight = (i + 1) / (len(pairs) + 1)
                value = weight * row.predictions[-1] + (1 - weight) * np.append(other.q, other.gripper)
            else:
                row.predictions = (other.predictions + row.predictions)[-ENSEMBLE_DEPTH:]
                weights = np.exp(-self.decay * np.arange(len(row.predictions)))
                value = weights @ np.array(row.predictions) / weights.sum()
            row.q, row.gripper = value[:-1], float(value[-1])
        self._rows = ahead + new
        return step, len(pairs)

    def expire(self, now: float) -> list[Row]:
        """Take the rows due by `now` out of the queue; the executable ones count as executed.

        Lookahead rows that come due unreplaced are forgotten.
        """
        due = [r for r in self._rows if r.time <= now + _EPS]
        if due:
            self._rows = self._rows[len(due) :]
            done = [r for r in due if r.executable]
            self.executed += len(done)
            if done:
                self._passed = done[-1]
            return done
        return []

    def clear(self) -> int:
        """Forget every row; returns how many executable ones were dropped."""
        dropped = sum(r.executable for r in self._rows)
        self._rows, self._passed = [], None
        return dropped

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def rows(self) -> tuple[Row, ...]:
        """The queue, lookahead included."""
        return tuple(self._rows)

    def running(self, now: float) -> Row | None:
        """The executable row that is being executed, or comes next; a chunk may have taken it out of the queue."""
        if self._passed is not None and self._passed.time > now + _EPS:
            return self._passed
        return next((r for r in self._rows if r.executable and r.time > now + _EPS), None)

    def executable(self) -> tuple[Row, ...]:
        """The rows that may be executed: what the limiter gets and what is published as committed."""
        return tuple(r for r in self._rows if r.executable)

    def committed(self, now: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Times (n,) and rows (n, 8) of the next `count` steps that will be executed whatever comes:
        what a policy that fills in the rest (real-time chunking) conditions on."""
        rows = [r for r in self._rows if r.executable and r.time > now][:count]
        return (
            np.array([r.time for r in rows]),
            np.array([np.append(r.q, r.gripper) for r in rows]).reshape(len(rows), -1),
        )

    def targets(self, start: float, q_start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The executable rows after `start` for the limiter: times (n,), q (n, 7), velocities (n, 7).

        Velocities are central differences, limited so that the motion between two rows does not leave the
        interval they span (Fritsch-Carlson): zero where the slopes disagree, at most three times the smaller.
        The row behind the last one is the lookahead's; without it the motion goes on at the last slope in
        `async` mode and comes to rest in `sync` mode.
        """
        rows = [r for r in self._rows if r.time > start + LEAST_STEP * self.period - _EPS]
        count = sum(r.executable for r in rows)
        if not count:
            return np.zeros(0), np.zeros((0, 7)), np.zeros((0, 7))
        times, q = np.array([r.time for r in rows]), np.array([r.q for r in rows])
        before = self._before(start)
        t_prev, q_prev = (before.time, before.q) if before is not None else (start, q_start)
        slopes = np.diff(np.vstack([q_prev, q]), axis=0) / np.diff(np.append(t_prev, times))[:, None]
        if self.mode == "sync":
            after = np.vstack([slopes[1:count], np.zeros((1, q.shape[1]))])
        elif len(rows) > count:
            after = slopes[1 : count + 1]
        else:
            after = np.vstack([slopes[1:count], slopes[-1:]])
        own = slopes[:count]
        agree = np.sign(own) == np.sign(after)
        bound = 3 * np.minimum(np.abs(own), np.abs(after))
        return times[:count], q[:count], np.where(agree, np.clip(0.5 * (own + after), -bound, bound), 0.0)

    def _before(self, start: float) -> Row | None:
        candidates: Iterable[Row] = ([self._passed] if self._passed is not None else []) + self._rows
        last = [r for r in candidates if r.executable and r.time <= start + _EPS]
        # An older row says nothing about the slope into the next one.
        return last[-1] if last and start - last[-1].time < 1.5 * self.period else None


def _grid(origin: float, period: float, low: float, high: float) -> np.ndarray:
    first = math.ceil((low - origin) / period - _EPS)
    last = math.floor((high - origin) / period + _EPS)
    return origin + period * np.arange(first, last + 1)
