"""What arrives besides pictures: the health of a camera's stream and the recent joints. Stamps in s."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from statistics import median

import numpy as np

#: A gap of this many usual image periods counts as images lost; below it is jitter.
GAP = 1.6
#: s; a longer gap is a camera that was switched off, not images lost on the way.
PAUSE = 2.0
#: Images whose spacing gives the rate.
WINDOW = 60


class StreamMonitor:
    """Rate and lost images of one camera, by the stamps of its images."""

    def __init__(self) -> None:
        self._stamps: deque[float] = deque(maxlen=WINDOW)
        self.received = self.lost = 0

    def image(self, stamp: float) -> None:
        """An image with this stamp arrived; stamps that do not grow say nothing."""
        if self._stamps and stamp <= self._stamps[-1]:
            if stamp < self._stamps[-1] - PAUSE:  # the clock was set back
                self._stamps.clear()
            else:
                return
        if len(self._stamps) >= 5:
            usual, gap = median(np.diff(self._stamps)), stamp - self._stamps[-1]
            if GAP * usual < gap < PAUSE:
                self.lost += round(gap / usual) - 1
        self._stamps.append(stamp)
        self.received += 1

    def rate(self, now: float) -> float:
        """Hz; 0 when nothing has come for long, NaN before the second image."""
        if len(self._stamps) < 2:
            return math.nan
        if now - self._stamps[-1] > PAUSE:
            return 0.0
        return (len(self._stamps) - 1) / (self._stamps[-1] - self._stamps[0])

    def age(self, now: float) -> float:
        """s since the newest stamp, NaN before the first."""
        return now - self._stamps[-1] if self._stamps else math.nan


class JointHistory:
    """The last measured joint vectors (n + 1,): joints in rad, then the gripper's opening in [-1, 1]."""

    def __init__(self, keep: float = 2.0):
        self._keep = keep
        self._stamps: list[float] = []
        self._vectors: list[np.ndarray] = []

    def add(self, stamp: float, vector: np.ndarray) -> None:
        """Take in one vector; one that is older than the last is dropped, a clock set back starts anew."""
        if self._stamps and stamp <= self._stamps[-1]:
            if stamp > self._stamps[-1] - self._keep:
                return
            self._stamps, self._vectors = [], []
        self._stamps.append(stamp)
        self._vectors.append(np.asarray(vector, float))
        if len(self._stamps) > 64 and self._stamps[0] < stamp - self._keep:
            first = bisect_left(self._stamps, stamp - self._keep)
            del self._stamps[:first], self._vectors[:first]

    def age(self, now: float) -> float:
        """s since the newest vector, NaN before the first."""
        return now - self._stamps[-1] if self._stamps else math.nan

    def at(self, stamp: float, count: int, period: float) -> np.ndarray | None:
        """Vectors (count, n + 1) nearest to stamp - (count - 1) period .. stamp, oldest first; or None."""
        if not self._stamps:
            return None
        return np.stack([self._vectors[i] for i in self._distances(stamp, count, period).argmin(axis=1)])

    def gap(self, stamp: float, count: int, period: float) -> float:
        """s, the largest distance of these vectors from their times, but for times before the first vector."""
        nearest = self._distances(stamp, count, period).min(axis=1)
        known = stamp - period * np.arange(count - 1, -1, -1) >= self._stamps[0]
        known[-1] = True
        return float(nearest[known].max())

    def _distances(self, stamp: float, count: int, period: float) -> np.ndarray:
        times = stamp - period * np.arange(count - 1, -1, -1)
        return np.abs(np.asarray(self._stamps) - times[:, None])

    def problem(self, now: float, stamp: float, count: int, period: float, stale: float, tolerance: float) -> str:
        """Why these vectors are not those of a frame at `stamp` (NaN: of none), with the remedy."""
        if not (age := self.age(now)) <= stale:
            seen = "none seen yet" if math.isnan(age) else f"newest is {age:.2f} s old (limit {stale:g} s)"
            return f"joint_states: {seen}; start the executor"
        if not math.isnan(stamp) and (gap := self.gap(stamp, count, period)) > tolerance:
            return (f"joint_states: nearest is {gap:.3f} s from the frame (tolerance {tolerance:g} s); compare the "
                    "clocks of camera and executor")
        return ""
