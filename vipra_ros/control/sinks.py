"""The last hop as protocols, and the one that moves nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from vipra_ros.control.chunk import Waypoint


class MotionSink(Protocol):
    """Takes limited references: robot/arm.py, the stepped simulation, a preview."""

    def stream(self, waypoints: Sequence[Waypoint], now: float) -> None:
        """Replace what is running by these waypoints, the last of which is at rest. Never blocks."""

    def stop(self, now: float) -> None:
        """Give up control; an arm that still moves brakes by its own limits. Never blocks."""


class HandSink(Protocol):
    """Takes openings: +1 open, -1 closed."""

    def command(self, opening: float) -> None:
        """Begin to move there. Never blocks."""


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
