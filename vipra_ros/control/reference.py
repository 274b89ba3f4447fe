"""The limited reference: a piecewise trajectory of joint position, C2 by construction.

Immutable. Each segment is ruckig's profile for all joints or for each joint alone, cut at the
segment's end; the next begins in exactly that state. Before its first segment the reference rests at
its start, behind its last at the end.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from vipra_ros.control.chunk import Waypoint

#: rad/s and rad/s^2 below which a state counts as rest.
REST_VELOCITY, REST_ACCELERATION = 1e-6, 1e-3


class Limited(enum.IntFlag):
    """What the limiter changed about a row."""

    NO = 0
    POSITION = 1  # the target lay beyond a position limit less its margin
    WORKSPACE = 2  # the target lay outside the workspace box or under the table's clearance
    REACH = 4  # velocity, acceleration or jerk limits kept the row from being reached in time
    BRAKE = 8  # some joint braked because following the target was not safe
    FAR = 16  # REACH, and by so much that the policy asks for another arm than this one
    SELF = 32  # the target lay too near another link of the arm


@dataclass(frozen=True)
class State:
    """Position (rad), velocity and acceleration of all joints at `time` (s), each (7,)."""

    time: float
    q: np.ndarray
    dq: np.ndarray
    ddq: np.ndarray

    @property
    def at_rest(self) -> bool:
        """No joint moves or is about to."""
        return bool(np.all(np.abs(self.dq) < REST_VELOCITY) and np.all(np.abs(self.ddq) < REST_ACCELERATION))


@dataclass(frozen=True)
class Segment:
    """One piece from `start` to `end` (s): one 7-joint ruckig trajectory, or seven of one joint.

    `limited` says what the limiter did, `row` whether it ends at a row of a chunk (not a stop).
    """

    start: float
    end: float
    profiles: tuple[Any, ...]
    limited: Limited = Limited.NO
    row: bool = True

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position, velocity, acceleration at `time`, clipped to the piece."""
        t = min(max(time, self.start), self.end) - self.start
        if len(self.profiles) == 1:
            return tuple(np.array(x) for x in self.profiles[0].at_time(t))
        values = [p.at_time(t) for p in self.profiles]
        return tuple(np.array([v[k][0] for v in values]) for k in range(3))


@dataclass(frozen=True)
class Reference:
    """Where the arm is commanded to be, at any time. See the module's text."""

    origin: State
    segments: tuple[Segment, ...] = ()
    _starts: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", [s.start for s in self.segments])

    @classmethod
    def rest(cls, time: float, q: np.ndarray) -> Reference:
        """Standing still at `q` (7,) from `time` on."""
        return cls(State(time, np.array(q, float), np.zeros(7), np.zeros(7)))

    @property
    def end(self) -> float:
        """s, when the last piece ends."""
        return self.segments[-1].end if self.segments else self.origin.time

    @cached_property
    def final(self) -> State:
        """The state at the end; at rest for every reference the limiter hands out."""
        if not self.segments:
            return self.origin
        return State(self.end, *self.segments[-1].at(self.end))

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Commanded position (rad), velocity and acceleration at `time` (s), each (7,)."""
        if self.segments and self.origin.time <= time <= self.end:
            return self.segments[max(0, bisect_right(self._starts, time) - 1)].at(time)
        state = self.origin if time < self.origin.time or not self.segments else self.final
        if time == state.time:
            return state.q, state.dq, state.ddq
        return state.q, np.zeros(7), np.zeros(7)

    def state(self, time: float) -> State:
        """:meth:`at` as a :class:`State`."""
        return State(time, *self.at(time))

    def limited(self, time: float) -> Limited:
        """What the limiter did about the piece that runs at `time`."""
        if not self.segments or not self.origin.time <= time <= self.end:
            return Limited.NO
        return self.segments[max(0, bisect_right(self._starts, time) - 1)].limited

    def moving(self, time: float) -> bool:
        """Whether pieces are left at `time`."""
        return bool(self.segments) and time < self.end

    def boundary(self, time: float, tolerance: float = 1e-6) -> float | None:
        """End of the row that is running at `time`, or None inside a stop, at rest or behind the end.

        A row that ends within `tolerance` of `time` counts, so a change on the beat loses nothing.
        """
        for segment in self.segments:
            if segment.row and segment.start - tolerance <= time and time <= segment.end + tolerance:
                return segment.end
        return None

    def cut(self, time: float) -> tuple[Reference, State]:
        """The pieces before `time`, the running one cut there, and the state to go on from.

        A boundary within rounding of `time` is taken itself, so nothing is lost between the two.
        """
        kept = [s for s in self.segments if s.end <= time + 1e-9]
        if len(kept) < len(self.segments):
            cut = self.segments[len(kept)]
            if cut.start < time - 1e-9:
                kept.append(replace(cut, end=time))
        head = Reference(self.origin, tuple(kept))
        return head, (head.final if abs(head.end - time) <= 1e-6 else head.state(time))

    def since(self, time: float) -> Reference:
        """Forget the pieces that ended before `time`."""
        keep = next((i for i, s in enumerate(self.segments) if s.end >= time), len(self.segments))
        if not keep:
            return self
        start = self.segments[keep - 1].end
        return Reference(State(start, *self.segments[keep - 1].at(start)), self.segments[keep:])

    def joined(self, segments: Sequence[Segment]) -> Reference:
        """With more pieces at the end."""
        return Reference(self.origin, self.segments + tuple(segments))

    @property
    def waypoints(self) -> tuple[Waypoint, ...]:
        """Points for the arm's own generator: the end of every row, and where the stop ends."""
        return self.waypoints_after(-np.inf)

    def waypoints_after(self, time: float) -> tuple[Waypoint, ...]:
        """The waypoints later than `time` (s).

        A stop is one waypoint: towards rest the arm's generator has room to be late, on the way it has not.
        """
        return tuple(Waypoint(s.end, *s.at(s.end)) for s in self.segments if s.end > time)
