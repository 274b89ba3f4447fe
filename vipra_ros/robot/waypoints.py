"""Which waypoints a motion is made of, so that the arm's own generator keeps their times.

A waypoint with a velocity can be reached later than at once only by a little: with acceleration a in time T the
mean speed falls by at most a T / 4. Who needs more must turn back and come again, 0.1 to 0.5 s late (ruckig calls
what lies between a blocked interval; Berscheid and Kroeger, RSS 2021). A motion takes over some ms earlier or later
than it was planned for, so near waypoints are left out, and of the others those that would be reached late: the arm,
already under way, goes to the next one, for which it has more room.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ruckig

from vipra_ros.control.chunk import RobotState, Waypoint

#: s; nearer waypoints are left out without asking, unless there is no other.
LEAST_GAP = 0.15
#: s from sending a motion to its takeover, typically.
TAKEOVER = 0.008
#: s; a waypoint reached this late is on time.
ON_TIME = 0.01


class Feasible:
    """Asks ruckig, which is the arm's generator too, when a waypoint would be reached.

    Args:
        limits: (velocity, acceleration, jerk) of the arm's generator, each (7,), rad and s.
    """

    def __init__(self, limits: tuple[np.ndarray, np.ndarray, np.ndarray]):
        n = len(limits[0])
        self._otg, self._ask, self._way = ruckig.Ruckig(n), ruckig.InputParameter(n), ruckig.Trajectory(n)
        self._ask.max_velocity, self._ask.max_acceleration, self._ask.max_jerk = (list(x) for x in limits)

    def lateness(self, q: np.ndarray, dq: np.ndarray, to: Waypoint, seconds: float) -> float:
        """s by which an arm at `q` (rad) and `dq` (rad/s), each (7,), misses `to` in `seconds`; infinite: it cannot."""
        ask = self._ask
        ask.current_position, ask.current_velocity = list(q), list(np.clip(dq, *self._bounds))
        ask.target_position, ask.target_velocity = list(to.q), list(to.dq)
        ask.minimum_duration = max(seconds, 1e-3)
        try:
            self._otg.calculate(ask, self._way)
        except ruckig.RuckigError:  # how ruckig says that there is no way
            return np.inf
        return self._way.duration - ask.minimum_duration

    @property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        top = np.asarray(self._ask.max_velocity)
        return -top, top

    def choose(self, waypoints: Sequence[Waypoint], state: RobotState | None, now: float) -> list[Waypoint]:
        """Those waypoints that are reached in time, one after the other, and the last, which is at rest.

        Args:
            waypoints: in order, the last at rest.
            state: newest commanded state of the arm, if known.
            now: s, when the motion is sent.
        """
        due = [w for w in waypoints if w.time - now > LEAST_GAP] or list(waypoints[-1:])
        if state is None or not np.all(np.isfinite((state.q_d, state.dq_d))):
            return due
        time, dq = now + TAKEOVER, state.dq_d
        q = state.q_d + dq * (time - state.time)
        chosen = []
        for waypoint in due[:-1]:
            if self.lateness(q, dq, waypoint, waypoint.time - time) < ON_TIME:
                chosen.append(waypoint)
                time, q, dq = waypoint.time, waypoint.q, waypoint.dq
        return [*chosen, due[-1]]
