"""Which waypoints a motion is made of, so that the arm's own generator keeps their times and the robot's law.

A waypoint with a velocity can be reached later than at once only by a little: with acceleration a in time T the
mean speed falls by at most a T / 4. Who needs more must turn back and come again, 0.1 to 0.5 s late (ruckig calls
what lies between a blocked interval; Berscheid and Kroeger, RSS 2021). A motion takes over some ms earlier or later
than it was planned for, so near waypoints are left out, and of the others those that would be reached late: the arm,
already under way, goes to the next one, for which it has more room. With that room the generator may also be faster
in between than the row it left out, and near a joint limit, where an FR3 must be slow, that would be a reflex.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ruckig

from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.profile import JOINTS, RobotProfile

#: s; a motion begins with a later waypoint than this if there is one.
LEAST_GAP = 0.1
#: s from sending a motion to its takeover, typically.
TAKEOVER = 0.008
#: s; a waypoint reached this late is on time.
ON_TIME = 0.01
#: Share of the robot's velocity limit at a position that the way to a waypoint may reach; the limiter's rows reach
#: 0.9. Looked at every SAMPLE s.
LAWFUL, SAMPLE = 0.96, 0.01
#: rad/s that count as the limit where the robot allows none at all.
CREEP = 0.02


class Feasible:
    """Asks ruckig, which is the arm's generator too, how a waypoint would be reached."""

    def __init__(self, profile: RobotProfile):
        self._profile = profile
        self._otg, self._ask = ruckig.Ruckig(JOINTS), ruckig.InputParameter(JOINTS)
        self._way = ruckig.Trajectory(JOINTS)
        limits = [list(x) for x in profile.arm_limits]
        self._ask.max_velocity, self._ask.max_acceleration, self._ask.max_jerk = limits
        self._top = profile.arm_limits[0]
        # rad, beyond which a joint's velocity limit is below what the generator may go anyway
        far = np.zeros(JOINTS)
        if profile.velocity_offset:
            far = (self._top / LAWFUL + profile.velocity_offset) ** 2 / (2 * np.asarray(profile.velocity_deceleration))
        self._slow = np.asarray(profile.q_min) + far, np.asarray(profile.q_max) - far

    def lateness(self, q: np.ndarray, dq: np.ndarray, to: Waypoint, seconds: float) -> float:
        """s by which an arm at `q` (rad) and `dq` (rad/s), each (7,), misses `to` in `seconds`; infinite: it cannot."""
        ask = self._ask
        ask.current_position, ask.current_velocity = list(q), list(np.clip(dq, -self._top, self._top))
        ask.target_position, ask.target_velocity = list(to.q), list(to.dq)
        ask.minimum_duration = max(seconds, 1e-3)
        try:
            self._otg.calculate(ask, self._way)
        except ruckig.RuckigError:  # how ruckig says that there is no way
            return np.inf
        return self._way.duration - ask.minimum_duration

    def speed(self) -> float:
        """Highest share of the robot's velocity limit at its place, on the way that `lateness` was last asked about."""
        extrema = self._way.position_extrema
        reach = np.array([(e.min, e.max) for e in extrema])
        if np.all(reach[:, 0] > self._slow[0]) and np.all(reach[:, 1] < self._slow[1]):
            return 0.0  # too far from the joint limits for them to matter, as nearly always
        times = np.arange(SAMPLE, self._way.duration, SAMPLE)  # where it begins is no choice of ours
        q, dq, _ = (np.array(x) for x in zip(*(self._way.at_time(t) for t in (*times, self._way.duration))))
        low, high = self._profile.velocity_bounds(q)
        return float(np.max(np.where(dq > 0, dq, -dq) / np.maximum(np.where(dq > 0, high, -low), CREEP)))

    def choose(self, waypoints: Sequence[Waypoint], state: RobotState | None, now: float) -> list[Waypoint]:
        """Those waypoints that are reached in time, one after the other, and the last, which is at rest.

        Args:
            waypoints: in order, the last at rest.
            state: newest commanded state of the arm, if known.
            now: s, when the motion is sent.
        """
        ahead = [w for w in waypoints if w.time > now] or list(waypoints[-1:])
        first = next((k for k, w in enumerate(ahead) if w.time - now > LEAST_GAP), len(ahead) - 1)
        if state is None or not np.all(np.isfinite((state.q_d, state.dq_d))):
            return ahead[first:]
        time, dq, chosen = now + TAKEOVER, state.dq_d, []
        q = state.q_d + dq * (time - state.time)
        while ahead:
            speeds = []
            for k, waypoint in enumerate(ahead):
                late = self.lateness(q, dq, waypoint, waypoint.time - time)
                speeds.append(self.speed() if late < np.inf else np.inf)
                if late < ON_TIME and speeds[k] < LAWFUL and k >= first:
                    break
            else:  # none in time: late but at rest, unless that is too fast
                k = len(ahead) - 1 if speeds[-1] < LAWFUL else first + int(np.argmin(speeds[first:]))
            chosen.append(ahead[k])
            time, q, dq = ahead[k].time, ahead[k].q, ahead[k].dq
            ahead, first = ahead[k + 1 :], 0
        return chosen
