"""The watchdogs: each compares the monotonic clock, or the arm, with what is allowed, in the consumer's loop.

None of them depends on a message arriving; silence is what they are for.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from vipra_ros.control.chunk import RobotState
from vipra_ros.control.guard import FaultCode
from vipra_ros.control.profile import JOINTS
from vipra_ros.control.reference import Reference
from vipra_ros.control.settings import ExecutorSettings

#: rad and s; how far the arm's generator may be from the reference, and how much it may be behind.
STRAY, STRAY_TIME = 0.02, 0.03


class LimiterGuard:
    """Trips when most of the last rows could not be reached: the policy asks for what cannot be done.

    Args:
        share: of the rows, 1 switches the guard off.
        window: s.
        least: rows below which nothing is judged.
    """

    def __init__(self, share: float, window: float, least: int = 20):
        self.share, self.window, self.least = share, window, least
        self._seen: deque[tuple[float, bool]] = deque()

    def note(self, now: float, limited: bool) -> None:
        """A row was executed."""
        self._seen.append((now, limited))

    def clear(self) -> None:
        """Forget the window."""
        self._seen.clear()

    def active(self, now: float) -> float:
        """Share of limited rows in the window, 0 when there are none."""
        while self._seen and now - self._seen[0][0] > self.window:
            self._seen.popleft()
        return sum(x for _, x in self._seen) / len(self._seen) if self._seen else 0.0

    def trips(self, now: float) -> bool:
        """Whether to hold."""
        return self.share < 1.0 and self.active(now) >= self.share and len(self._seen) >= self.least


class TrackingGuard:
    """Trips when |commanded - measured| of a joint exceeds `limit` (rad) for `hold` s."""

    def __init__(self, limit: float, hold: float):
        self.limit, self.hold = limit, hold
        self._since = math.inf
        self.error = float("nan")

    def clear(self) -> None:
        """Begin anew."""
        self._since, self.error = math.inf, float("nan")

    def trips(self, now: float, commanded: np.ndarray, measured: np.ndarray) -> bool:
        """Take one comparison (7,) and (7,) rad."""
        self.error = float(np.max(np.abs(commanded - measured)))
        self._since = min(self._since, now) if self.error > self.limit else math.inf
        return now - self._since >= self.hold


class Watchdogs:
    """All of them; every method returns what to do about, and nothing when all is well."""

    def __init__(self, settings: ExecutorSettings):
        self.settings = settings
        self.tracking = TrackingGuard(settings.tracking_limit, settings.tracking_time)
        self.limiter = LimiterGuard(settings.limiter_share, settings.limiter_window)
        self.deadman = self.chunk = self.stamp = math.nan  # s: last renewal, last chunk, its observation

    def clear(self) -> None:
        """A motion begins anew."""
        self.tracking.clear()
        self.limiter.clear()

    def loop(self, passed: float) -> list[tuple[FaultCode, str]]:
        """`passed`: s since the last pass of the loop."""
        s = self.settings
        if passed > s.overrun_fault:
            return [
                (
                    FaultCode.OVERRUN,
                    f"the loop paused {passed:.3f} s, allowed are {s.overrun_fault} s; free the "
                    f"processor or raise overrun_fault",
                )
            ]
        return []

    def robot(self, now: float, state: RobotState, reference: Reference | None) -> list[tuple[FaultCode, str]]:
        """The arm: its age, its errors, its distance from the command."""
        s, faults = self.settings, []
        if not usable(state):
            return [
                (
                    FaultCode.MEASURED,
                    f"q = {np.asarray(state.q).tolist()}{', ' * bool(state.error)}{state.error}; "
                    f"check the robot's connection",
                )
            ]
        age = now - state.time
        if age > s.state_timeout:
            faults.append(
                (
                    FaultCode.STATE_AGE,
                    f"the last robot state is {age:.3f} s old, allowed are "
                    f"{s.state_timeout} s; check the network to the robot",
                )
            )
        if state.error:
            faults.append((FaultCode.ROBOT, f"{state.error}; look at the arm, then call executor/recover"))
        if reference is not None:
            commanded = reference.at(min(now, state.time))[0]
            if self.tracking.trips(now, commanded, np.asarray(state.q)):
                faults.append(
                    (
                        FaultCode.TRACKING,
                        f"a joint is {self.tracking.error:.3f} rad from its command, "
                        f"allowed are {s.tracking_limit} rad; look for contact, or the arm "
                        f"was moved by hand",
                    )
                )
        return faults

    def input(self, now: float) -> str:
        """Chunks and observations."""
        s = self.settings
        if now - self.chunk > s.chunk_timeout:
            return f"no acceptable chunk for {now - self.chunk:.2f} s; check the policy"
        if now - self.stamp > s.observation_timeout:
            return f"the newest observation is {now - self.stamp:.2f} s old; check the cameras"
        return ""

    def held(self, now: float) -> bool:
        """Whether the dead-man is held, or none is asked for."""
        return self.settings.deadman_timeout == 0 or now - self.deadman <= self.settings.deadman_timeout

    def trips(self, now: float) -> str:
        """What holds the arm until the operator arms again."""
        if not self.held(now):
            return f"dead-man silent for {now - self.deadman:.2f} s; hold it, then call executor/arm"
        if self.limiter.trips(now):
            return (
                f"limits kept the arm far from {100 * self.limiter.active(now):.0f} % of the rows in "
                f"{self.settings.limiter_window} s; the policy asks for more than the arm may do, slow it"
            )
        return ""


def usable(state: RobotState) -> bool:
    """Whether positions and velocities are seven finite numbers each."""
    q, dq = np.asarray(state.q, float), np.asarray(state.dq, float)
    return q.shape == dq.shape == (JOINTS,) and bool(np.isfinite(q).all() and np.isfinite(dq).all())


def strays(now: float, state: RobotState, reference: Reference) -> bool:
    """Whether the arm's own generator has left the reference and is to be brought back.

    It does when control cycles were lost just before a row: too late to slow down for it, it turns back and comes
    again, 0.2 s later. Between the waypoints of a motion it is off by less, because it goes its own way there.
    """
    if not reference.moving(now) or not usable(state):
        return False
    q, dq, _ = reference.at(min(now, state.time))
    return bool(np.abs(np.asarray(state.q_d, float) - q).max() > STRAY + STRAY_TIME * np.abs(dq).max())
