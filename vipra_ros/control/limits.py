"""The online limiter: any finite target rows become a reference within every limit.

Row by row, ruckig goes state to state (target position and velocity, no acceleration) in the row's
own time. A row that cannot be reached in time is not waited for: the motion is cut at the row's time
and goes on to the next one, so time is kept and a limit costs accuracy, never delay.

Why nothing leaves the limits: every row ends in a state from which braking stays inside the position
margins and the workspace and keeps links apart. The next row is accepted only if its own end is such a
state; otherwise the joints concerned brake, which the row before has shown to be safe. Velocity,
acceleration and jerk are ruckig's constraints; the velocity constraint shrinks towards the position limits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ruckig

from vipra_ros.control.profile import JOINTS, RobotProfile
from vipra_ros.control.reference import Limited, Reference, Segment, State
from vipra_ros.control.workspace import SLACK, WorkspaceCheck

#: Share of the acceleration that the approach to a limit plans with; the rest covers jerk and the row grid.
APPROACH = 0.65
#: Share of the robot's own position-dependent velocity limit that is used.
VELOCITY_SHARE = 0.9
#: rad; a row that ends further from its target counts as limited.
MISSED = 2e-3
#: rad; a row missed by more is an overload. Two chunks that disagree a little miss rows by less, all the time.
FAR_MISSED = 0.05
#: s; up to this row period a joint far from its limits needs no look at them.
FAR_PERIOD = 0.2
#: Points of a braking motion that are checked, as shares of its time.
BRAKE_SHARES = (0.25, 0.5, 0.75, 1.0)
#: rad/s; ruckig wants a positive velocity limit, this one is "as good as zero".
CREEP = 1e-3


class Limiter:
    """Turns target rows into a :class:`Reference`; keeps no state between calls.

    Args:
        profile: the robot.
        speed: share (0, 1] of the profile's velocity limit; acceleration and jerk stay, so stops stay short.
        reaction: s that the last hop may go on by itself before it brakes: limits are approached more slowly.
    """

    def __init__(self, profile: RobotProfile, speed: float = 1.0, reaction: float = 0.0):
        self.profile, self.reaction = profile, reaction
        velocity, self.acceleration, self.jerk = profile.limits
        self.velocity = velocity * speed
        self._workspace = WorkspaceCheck(profile)
        self._approach = APPROACH * self.acceleration
        self._all, self._one = ruckig.Ruckig(JOINTS), ruckig.Ruckig(1)
        self._input = ruckig.InputParameter(JOINTS)
        self._input.synchronization = ruckig.Synchronization.Time
        self._input.max_acceleration, self._input.max_jerk = self.acceleration, self.jerk
        self._input.target_acceleration = np.zeros(JOINTS)
        rooms = np.linspace(0.0, 3.0, 301)[:, None] * np.ones(JOINTS)
        free = self._brakeable(rooms, FAR_PERIOD + reaction) >= self.velocity
        self._far = rooms[np.argmax(free, axis=0), np.arange(JOINTS)]  # rad; further away only the cap counts

    def extend(
        self,
        reference: Reference,
        start: float,
        times: Sequence[float],
        q: np.ndarray,
        dq: np.ndarray,
        scale: np.ndarray | None = None,
    ) -> Reference:
        """Replace everything after `start` by the rows given, ending in a stop.

        Args:
            reference: what is commanded so far.
            start: s, from where on it changes; the state there is kept.
            times: s (n,), when the rows are to be reached, growing, all after `start`.
            q, dq: rad and rad/s (n, 7), the rows.
            scale: (n,) share of the velocity limit for each row, for a slow start.
        """
        head, begin = reference.cut(start)
        q, dq, flags = self._targets(begin.q, np.asarray(q, float), np.asarray(dq, float))
        scale = np.ones(len(times)) if scale is None else scale
        segments, state, checked = [], begin, False
        while len(segments) < len(times):
            for i in range(len(segments), len(times)):
                segment = self._row(state, float(times[i]), q[i], dq[i], float(scale[i]), flags[i])
                if checked and not self._clear(state, [segment])[0]:
                    segment = self._brake(state, float(times[i]), flags[i] | Limited.BRAKE)
                segments.append(segment)
                state = State(segment.end, *segment.at(segment.end))
            if checked or not segments:
                break
            clear = self._clear(begin, segments)
            if all(clear):
                break
            # From the first row that would leave the workspace on, look at every row before going on.
            del segments[clear.index(False) :]
            state = State(segments[-1].end, *segments[-1].at(segments[-1].end)) if segments else begin
            checked = True
        return self._stopped(head.joined(segments), state)

    def stop(self, reference: Reference, time: float) -> Reference:
        """Brake as fast as the limits allow from `time` on, each joint for itself."""
        return self._stopped(*reference.cut(time))

    def stop_time(self, speed: float | None = None) -> float:
        """s of a stop from `speed` (rad/s, the velocity limit when None), at most: v/a + 2 a/j."""
        speed = float(np.max(self.velocity)) if speed is None else speed
        a, j = float(np.min(self.acceleration)), float(np.min(self.jerk))
        return speed / a + 2 * a / j

    # --- targets -------------------------------------------------------------------------------------------

    def _targets(self, q0: np.ndarray, q: np.ndarray, dq: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Limited]]:
        """Rows inside position margins and workspace and off the arm, with velocities that the limits allow there."""
        p = self.profile
        clipped = np.minimum(np.maximum(q, p.lower), p.upper)
        beyond = np.abs(clipped - q) > SLACK
        flags = [Limited.POSITION if b.any() else Limited.NO for b in beyond]
        dq = np.where(beyond, 0.0, dq)
        wrong = self._workspace.excess(clipped) > SLACK if len(q) else np.zeros((0, 2), bool)
        for i in np.flatnonzero(wrong.any(1)):
            clipped[i] = self._workspace.inside(clipped[i - 1] if i else q0, clipped[i])
            dq[i] = 0.0
            for flag in np.array([Limited.WORKSPACE, Limited.SELF])[wrong[i]]:
                flags[i] |= Limited(flag)
        # Symmetric in time: a row entered from beyond the limit is as impossible as one left to it.
        room = np.minimum(*self._allowed(clipped, 0.0))
        return clipped, np.minimum(np.maximum(dq, -room), room), flags

    # --- one row -------------------------------------------------------------------------------------------

    def _allowed(self, q: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
        """Largest speeds (..., 7) down and up at `q` that can be braked a row of `period` s later.

        From v^2 = 2 a (distance - v T): v = -a T + sqrt((a T)^2 + 2 a distance); likewise the robot's own
        (v + offset)^2 = 2 dec (distance - v T).
        """
        p = self.profile
        below, above = q - p.lower, p.upper - q
        if period <= FAR_PERIOD and (below > self._far).all() and (above > self._far).all():
            return self.velocity, self.velocity
        period += self.reaction
        return self._brakeable(below, period), self._brakeable(above, period)

    def _brakeable(self, room: np.ndarray, period: float) -> np.ndarray:
        p, step = self.profile, self._approach * period
        room = np.maximum(0.0, room)
        speed = np.minimum(self.velocity, np.sqrt(step * step + 2 * self._approach * room) - step)
        if p.velocity_offset:
            off, dec = np.asarray(p.velocity_offset), np.asarray(p.velocity_deceleration)
            lag = off + dec * period
            own = np.sqrt(np.maximum(0.0, lag * lag - off * off + 2 * dec * (room + p.position_margin))) - lag
            speed = np.minimum(speed, VELOCITY_SHARE * np.maximum(0.0, own))
        return speed

    def _row(self, state: State, time: float, q: np.ndarray, dq: np.ndarray, scale: float, flag: Limited) -> Segment:
        period = time - state.time
        down, up = (np.maximum(CREEP, np.minimum(scale * self.velocity, x)) for x in self._allowed(state.q, period))
        dq = np.minimum(np.maximum(dq, -0.999 * down), 0.999 * up)
        i = self._input
        i.control_interface = ruckig.ControlInterface.Position
        i.current_position, i.current_velocity, i.current_acceleration = state.q, state.dq, state.ddq
        i.target_position, i.target_velocity = q, dq
        i.max_velocity, i.min_velocity, i.minimum_duration = up, -down, period
        trajectory = ruckig.Trajectory(JOINTS)
        try:
            if self._all.calculate(i, trajectory) == ruckig.Result.Working and trajectory.duration <= period + 1e-6:
                segment = Segment(state.time, time, (trajectory,), flag)
                if self._holds(state, segment).all():
                    return segment
        except ruckig.RuckigError:
            pass  # the joints are tried one by one below
        segment = self._each(state, time, q, dq, up, down, np.zeros(JOINTS, bool), flag)
        safe = self._holds(state, segment)
        if not safe.all():
            segment = self._each(state, time, q, dq, up, down, ~safe, flag | Limited.BRAKE)
        missed = np.abs(segment.at(time)[0] - q).max()
        if missed > MISSED:
            flags = segment.limited | Limited.REACH | (Limited.FAR if missed > FAR_MISSED else Limited.NO)
            segment = Segment(segment.start, segment.end, segment.profiles, flags)
        return segment

    def _each(
        self,
        state: State,
        time: float,
        q: np.ndarray,
        dq: np.ndarray,
        up: np.ndarray,
        down: np.ndarray,
        brake: np.ndarray,
        flag: Limited,
        row: bool = True,
    ) -> Segment:
        """Every joint by itself, cut at `time`; the joints in the mask `brake` come to rest instead."""
        profiles = []
        for k in range(JOINTS):
            profile = (
                None
                if brake[k]
                else self._nearest(state, k, float(q[k]), float(dq[k]), up[k], down[k], time - state.time)
            )
            profiles.append(profile or self._single(state, k, None, 0.0, up[k], down[k], None))
        return Segment(state.time, time, tuple(profiles), flag, row)

    def _nearest(
        self, state: State, k: int, q: float, dq: float, up: float, down: float, period: float
    ) -> ruckig.Trajectory | None:
        """A way to a joint's row in its time; if there is none, the one that is nearest to it then and a period later.

        The fastest way to position and velocity is no good when it is late: it may begin by turning back, to come again
        with a run-up. Others hurry as fast as they may, or care for the velocity, corrected by what is missing, only.
        """
        way = self._single(state, k, q, dq, up, down, period)
        if way is not None and way.duration <= period + 1e-6:
            return way

        def missed(way: ruckig.Trajectory) -> float:
            at, speed = (x[0] for x in way.at_time(period)[:2])
            return abs(at - q) + abs(at - q + (speed - dq) * period)

        steady = self._single(state, k, None, dq, up, down, None)
        lack = q - steady.at_time(period)[0][0]
        speeds = (dq + lack / period, up if lack > 0 else -down)
        ways = [self._single(state, k, None, float(np.clip(v, -0.999 * down, 0.999 * up)), up, down, None)
                for v in speeds]
        return min([*([way] if way is not None else []), steady, *ways], key=missed)

    def _single(
        self, state: State, k: int, q: float | None, dq: float, up: float, down: float, period: float | None
    ) -> ruckig.Trajectory | None:
        i = ruckig.InputParameter(1)
        i.current_position, i.current_velocity = [float(state.q[k])], [float(state.dq[k])]
        i.current_acceleration = [float(np.clip(state.ddq[k], -self.acceleration[k], self.acceleration[k]))]
        i.max_acceleration, i.max_jerk = [float(self.acceleration[k])], [float(self.jerk[k])]
        i.max_velocity, i.min_velocity = [float(up)], [-float(down)]
        i.target_velocity, i.target_acceleration = [dq], [0.0]
        if q is None:
            i.control_interface = ruckig.ControlInterface.Velocity
        else:
            i.target_position, i.minimum_duration = [q], period
        trajectory = ruckig.Trajectory(1)
        try:
            if self._one.calculate(i, trajectory) != ruckig.Result.Working:
                raise ruckig.RuckigError("no profile")
        except ruckig.RuckigError:
            if q is None:
                raise
            return None
        return trajectory

    def _brake(self, state: State, time: float, flag: Limited) -> Segment:
        none = np.zeros(JOINTS)
        return self._each(state, time, none, none, self.velocity, self.velocity, np.ones(JOINTS, bool), flag)

    def _stopped(self, reference: Reference, state: State) -> Reference:
        if state.at_rest:
            return reference
        none = np.zeros(JOINTS)
        segment = self._each(
            state,
            state.time,
            none,
            none,
            self.velocity,
            self.velocity,
            np.ones(JOINTS, bool),
            Limited.NO,
            row=False,
        )
        end = state.time + max(p.duration for p in segment.profiles)
        return reference.joined([Segment(state.time, end, segment.profiles, Limited.NO, row=False)])

    # --- checks --------------------------------------------------------------------------------------------

    def _halt(self, dq: np.ndarray, ddq: np.ndarray) -> np.ndarray:
        """rad (..., 7), signed way from a state to rest when braking as fast as the limits allow.

        An acceleration in the direction of motion first falls to zero (v0 a/j + a^3/3j^2), then the
        trapezoid from v1 = v0 + a^2/2j takes v1/2 (v1/A + A/j).
        """
        sign = np.where(dq == 0, np.sign(ddq), np.sign(dq))
        speed, push = np.abs(dq), np.maximum(0.0, sign * ddq)
        ramp = push / self.jerk
        top = speed + 0.5 * push * ramp
        first = ramp * (speed + push * ramp / 3)
        return sign * (first + 0.5 * top * (top / self.acceleration + self.acceleration / self.jerk))

    def _holds(self, state: State, segment: Segment) -> np.ndarray:
        """(7,) whether each joint stays inside its position margins and the robot's own velocity limit, and
        whether it can brake inside from the segment's end."""
        p = self.profile
        low, high = np.minimum(p.lower, state.q) - SLACK, np.maximum(p.upper, state.q) + SLACK
        span = segment.end - segment.start
        points = [segment.at(segment.start + share * span) for share in (0.33, 0.67, 1.0)]
        q, dq = np.array([x[0] for x in points]), np.array([x[1] for x in points])
        good = np.all((q >= low) & (q <= high), 0)
        near = np.any(q - p.lower < self._far) or np.any(p.upper - q < self._far)
        if p.velocity_offset and near:
            slow, fast = p.velocity_bounds(q)
            good &= np.all((dq <= np.maximum(0.97 * fast, CREEP)) & (dq >= np.minimum(0.97 * slow, -CREEP)), 0)
        rest = q[-1] + self._halt(dq[-1], points[-1][2])
        return good & (rest >= low) & (rest <= high)

    def _clear(self, state: State, segments: Sequence[Segment]) -> list[bool]:
        """Whether each segment, and braking from its end, stays inside and off the arm itself (or gets no worse)."""
        points = [state.q[None]]
        for segment in segments:
            half = segment.at(0.5 * (segment.start + segment.end))[0]
            points.append(np.vstack([half, self._braking(*segment.at(segment.end))]))
        excess = self._workspace.excess(np.concatenate(points))
        wrong = (excess[1:] > np.maximum(excess[0], 0.0) + SLACK).any(1)
        return list(~wrong.reshape(-1, 2 + len(BRAKE_SHARES)).any(1))

    def _braking(self, q: np.ndarray, dq: np.ndarray, ddq: np.ndarray) -> np.ndarray:
        """(1 + shares, 7) positions while braking; the way is bent, as some joints rest first."""
        way = self._halt(dq, ddq)
        sign, time = (
            np.sign(way),
            np.sqrt(2 * np.abs(way) / self.acceleration),
        )  # of a constant deceleration over the same way
        t = np.minimum(np.asarray(BRAKE_SHARES)[:, None] * time.max(), time)
        return np.vstack([q, q + sign * self.acceleration * t * (time - 0.5 * t)])
