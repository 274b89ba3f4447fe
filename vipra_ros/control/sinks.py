"""The last hop as protocols, and the one that moves nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.reference import Reference

#: How the limited reference gets to the arm: robot/arm.py, robot/velocity.py, robot/impedance.py, nodes/trajectory.py.
SINKS = ("waypoints", "velocity", "impedance", "trajectory")


class MotionSink(Protocol):
    """Takes limited references: robot/arm.py, the stepped simulation, a preview."""

    def stream(self, waypoints: Sequence[Waypoint], now: float) -> None:
        """Replace what is running by these waypoints, the last of which is at rest. Never blocks."""

    def stop(self, now: float) -> None:
        """Give up control; an arm that still moves brakes by its own limits. Never blocks."""


class FollowSink(MotionSink, Protocol):
    """A sink that samples the reference instead of being handed its waypoints."""

    def follow(self, reference: Reference, state: RobotState, now: float) -> None:
        """Called at every pass while the arm is under control, moving or not. Never blocks."""


class HandSink(Protocol):
    """Takes openings: +1 open, -1 closed."""

    def command(self, opening: float) -> None:
        """Begin to move there. Never blocks."""

    def cancel(self) -> float:
        """Withdraw what has not begun; the opening that stands, NaN when none was asked for. Never blocks."""

    def forgot(self) -> bool:
        """Whether an opening that was asked for will not come, since this was asked last. Never blocks."""


class PreviewSink:
    """Dry run: the same code up to here, then a callback (or nothing) instead of an arm."""

    def __init__(self, show: Callable[[Sequence[Waypoint]], None] | None = None):
        self._show = show
        self.waypoints: tuple[Waypoint, ...] = ()
        self.stops = 0

    def stream(self, waypoints: Sequence[Waypoint], now: float) -> None:
        """Remember and show."""
        del now
        self.waypoints = tuple(waypoints)
        if self._show:
            self._show(self.waypoints)

    def stop(self, now: float) -> None:
        """Count."""
        del now
        self.waypoints, self.stops = (), self.stops + 1


class PreviewHand:
    """A hand that only remembers."""

    def __init__(self) -> None:
        self.commands: list[float] = []

    def command(self, opening: float) -> None:
        """Remember."""
        self.commands.append(opening)

    def cancel(self) -> float:
        """Nothing waits."""
        return self.commands[-1] if self.commands else float("nan")

    def forgot(self) -> bool:
        """Nothing is."""
        return False


class PreviewArm:
    """An arm that is always where it is commanded to be: what a dry run measures.

    Args:
        q: rad (7,), where it is before the first command.
        clock: monotonic time in s.
    """

    def __init__(self, q: np.ndarray, clock: Callable[[], float]):
        self._q, self._clock = q, clock
        self.core = None  # set to the ExecutorCore whose reference it follows

    def state(self) -> RobotState:
        """The commanded state now."""
        now = self._clock()
        reference = self.core.reference() if self.core is not None else None
        q, dq = (self._q, np.zeros_like(self._q)) if reference is None else reference.at(now)[:2]
        return RobotState(now, q, dq, q, dq, in_control=True)

    def close(self) -> None:
        """Nothing to let go of."""
