"""The arm, through franky: the last hop of the one control path. Real and simulated arms differ by host only.

The limited reference is streamed as one JointWaypointMotion (position, velocity and time of every row)
that replaces the running one. franky's own generator, clamped to the profile's limits, goes from row to
row exactly as the limiter planned; the last waypoint is at rest, so an arm that hears nothing more stops.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from time import monotonic

import franky
import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.profile import JOINTS, RobotProfile
from vipra_ros.robot.claim import Claim
from vipra_ros.robot.reported import tighten
from vipra_ros.robot.waypoints import TAKEOVER, Feasible

#: What franky says when its generator finds no way through the waypoints in their times (error code -111), and how
#: many motions in a row may end so. The next one then goes straight to the last waypoint and rests, in no set time:
#: that has always been possible.
NO_WAY, PATIENCE = "Motion planner failed", 3
#: rad and rad/s; an arm so near the end of its motion has arrived. franky plans once more then, from there to there,
#: and now and then finds no way: nothing was refused, the motion is over.
ARRIVED, STILL = 0.01, 0.1
#: ms after its time at which a waypoint is given up for the next. Where the arm's loop loses a cycle, as without
#: real-time priority, franky plans its way to the waypoint anew, with the whole time that it had at first: without
#: an end to that, every lost cycle would leave the arm so much further behind.
SLACK = 2
#: Modes in which the robot follows nobody's commands, though it may report no error: all but Idle and Move.
MODES = {
    franky.RobotMode.Other: "a mode in which it does not move, as with locked joints",
    franky.RobotMode.UserStopped: "the user stop",
    franky.RobotMode.Guiding: "guiding by hand",
    franky.RobotMode.Reflex: "a reflex",
    franky.RobotMode.AutomaticErrorRecovery: "its own recovery from an error",
}
REALTIME = {"enforce": franky.RealtimeConfig.Enforce, "ignore": franky.RealtimeConfig.Ignore}


class ArmError(RuntimeError):
    """The arm cannot be used; the message says what to do."""


class Refusals:
    """Patience with motions that franky could not plan: some in a row are followed by another, more are an error."""

    def __init__(self) -> None:
        self.total = 0
        self.clear()

    def clear(self) -> None:
        """Nothing was refused; for a fresh start."""
        self.count, self.since, self.straight = 0, 0, False  # in a row, motions since, whether the next goes straight

    def refused(self) -> bool:
        """A motion was refused. Whether to be patient."""
        if self.count >= PATIENCE:
            return False
        self.count, self.since, self.straight = self.count + 1, 0, True
        self.total += 1
        return True

    def sending(self) -> bool:
        """A motion is sent. Whether it is the first behind a refused one."""
        self.since += 1
        if self.since > PATIENCE:
            self.count = 0
        straight, self.straight = self.straight, False
        return straight


class FrankyArm:
    """The only owner of the robot's control connection; a second one on the same host would hang.

    Args:
        profile: limits, payload, collision thresholds; the attribute of that name has the limits that the robot
            reports where those are stricter.
        host: address of the control unit.
        realtime: "enforce" on hardware (needs a real-time kernel), "ignore" in simulation.
        clock: monotonic time in s.

    Raises:
        ArmError: no connection.
        ConfigError: the profile does not fit the limits that the robot reports.
    """

    #: s; a motion takes over that much later at most, and between waypoints the generator may brake that much later.
    reaction = 0.05
    #: That this process alone drives the arm; `connect` sets it, `close` gives it back.
    claim: Claim | None = None

    def __init__(
        self,
        profile: RobotProfile,
        host: str,
        realtime: str = "enforce",
        clock: Callable[[], float] = monotonic,
    ):
        self.profile, self.host, self._clock = profile, host, clock
        if realtime not in REALTIME:
            raise ArmError(f"realtime_config {realtime!r}: choose enforce or ignore")
        self._realtime = realtime
        self._lock = threading.Lock()
        self._failure = ""
        self.refusals = Refusals()
        self._connect()

    def _connect(self) -> None:
        scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            robot = franky.Robot(
                self.host,
                relative_dynamics_factor=self.profile.dynamics_factor,
                realtime_config=REALTIME[self._realtime],
            )
        except Exception as error:
            hint = (
                "boot a PREEMPT_RT kernel, or realtime_config:=ignore for a simulated arm"
                if "realtime" in str(error).lower()
                else "unlock the joints, activate FCI, check the address; no other program may be connected"
            )
            raise ArmError(f"no arm at {self.host}: {error}; {hint}") from None
        finally:
            # libfranka lifts its caller to the highest real-time priority, and threads begun later inherit it: all
            # of this process would run before everything else, Python included. Only motions shall: see `_move`.
            self._highest = os.sched_getscheduler(0), os.sched_getparam(0)
            os.sched_setscheduler(0, *scheduling)
        self.profile = p = tighten(self.profile, robot.model_urdf)
        self._feasible = Feasible(p)
        self._last: RobotState | None = None
        self._tick, self._heard = -1, -np.inf  # ms on the robot's clock of the newest state, s on ours when it was new
        self._end: np.ndarray | None = None  # rad (7,), where the last motion through waypoints comes to rest
        for limit, clamp, own in (
            (robot.joint_velocity_limit, p.clamp_velocity, p.velocity),
            (robot.joint_acceleration_limit, p.clamp_acceleration, p.acceleration),
            (robot.joint_jerk_limit, p.clamp_jerk, p.jerk),
        ):
            # franky's own maxima are the Panda's; they can only be lowered
            limit.set(np.minimum.reduce([np.full(JOINTS, clamp), np.asarray(own, float), np.asarray(limit.max)]))
        robot.set_collision_behavior(list(p.collision_torque), list(p.collision_force))
        if p.load.mass > 0:
            robot.set_load(p.load.mass, list(p.load.centre), list(p.load.inertia))
        self._robot, self._failure = robot, ""

    # --- MotionSink ----------------------------------------------------------------------------------------

    def stream(self, waypoints: Sequence[Waypoint], now: float) -> None:
        """Replace the running motion. Times become durations in whole ms; rounding does not add up."""
        now = max(now, self._clock())  # planning took its time, and the machine may have paused us
        due = self._feasible.choose(waypoints, self._last, now)
        rest = self._motion(due[-1:], now, straight=True)
        motion = rest if self.refusals.sending() else self._motion(due, now)
        with self._lock:
            self._move(motion, rest)
            self._end = np.asarray(due[-1].q, float)

    def _motion(self, due: Sequence[Waypoint], now: float, straight: bool = False) -> franky.Motion:
        """Through `due`, each at its time; `straight`: in no set time."""
        points, begin, spent = [], now + TAKEOVER, 0
        for waypoint in due:
            duration = max(1, round(1000 * (waypoint.time - begin)) - spent)
            spent += duration
            time = {} if straight else dict(minimum_time=franky.Duration(duration))
            if waypoint is not due[-1]:  # the last is at rest: it is reached, however late
                time["max_total_duration"] = franky.Duration(duration + SLACK)
            target = franky.JointState(np.asarray(waypoint.q, float), np.asarray(waypoint.dq, float))
            points.append(franky.JointWaypoint(target, **time))
        return franky.JointWaypointMotion(points, return_when_finished=False)

    def stop(self, now: float) -> None:
        """Brake within franky's clamped limits and give up control."""
        del now
        self._brake(franky.JointStopMotion())

    def _brake(self, motion: franky.Motion) -> None:
        """Begin `motion`, a stop, where there is control to give up."""
        with self._lock:
            if self._robot is None:
                raise ArmError(self._failure or f"the arm at {self.host} was let go; start the executor again")
            if self._robot.is_in_control:
                self._move(motion)

    def _move(self, motion: franky.Motion, after: franky.Motion | None = None) -> None:
        """Begin `motion` (the lock is held). The thread that runs it inherits the priority of this moment.

        That the motion before could not be planned surfaces here too, when it comes between two looks at the state:
        then `after` begins instead, or `motion` once more.
        """
        own = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, *self._highest)
        try:
            self._robot.move(motion, asynchronous=True)
        except RuntimeError as error:
            if not self._excused(str(error)):
                raise
            straight = self.refusals.straight and self.refusals.sending()
            self._robot.move((straight and after) or motion, asynchronous=True)
        finally:
            os.sched_setscheduler(0, *own)

    def _excused(self, said: str) -> bool:
        """Whether an error says only that there was no way: the motion was over, or our patience lasts."""
        return NO_WAY in said and (self._arrived() or self.refusals.refused())

    def _arrived(self) -> bool:
        """Whether the arm rests where the last motion was to end."""
        if self._end is None:
            return False
        state = self._robot.state
        way, speed = np.abs(np.array(state.q_d) - self._end).max(), np.abs(np.array(state.dq_d)).max()
        return bool(way < ARRIVED and speed < STILL)

    # --- state ---------------------------------------------------------------------------------------------

    def state(self) -> RobotState:
        """Measured and commanded state now (about 1 ms), with the error that ended a motion, if any."""
        with self._lock:
            robot, now = self._robot, self._clock()
            nothing = np.full(JOINTS, np.nan)
            if robot is None:  # it was not found again
                return RobotState(now, nothing, nothing, nothing, nothing, error=self._failure)
            try:
                robot.poll_motion()
            except Exception as error:  # errors of asynchronous motions surface here, once
                said = str(error).strip().splitlines()[0]
                if self._excused(said):
                    said = "preempted"
                # A motion that made way for a newer one, or for our stop, is no error; a reflex says so in its words,
                # and so does the robot's own stop: "command preempted due to activated safety function".
                ours = "preempted" in said and "safety" not in said
                self._failure = self._failure or ("" if ours else said)
            try:
                state, control, errors = robot.state, robot.is_in_control, robot.has_errors
                tick, mode = state.time.to_msec(), MODES.get(state.robot_mode, "")
            except Exception as error:
                self._failure = f"connection lost: {error}"
                return RobotState(now, nothing, nothing, nothing, nothing, error=self._failure)
        text = self._failure
        if errors:
            text = _names(state.current_errors) or text or "unknown error"
        if tick != self._tick:  # in control, franky answers with the last state it has: silence is no new one
            self._tick, self._heard = tick, now
        self._last = RobotState(
            self._heard,
            np.array(state.q),
            np.array(state.dq),
            np.array(state.q_d),
            np.array(state.dq_d),
            in_control=bool(control),
            error=text or mode,
        )
        return self._last

    def recover(self) -> str:
        """Clear the error state (about 0.7 s); connect anew if the connection is gone. "" or why not."""
        self.refusals.clear()  # what was asked for before the fault is void, and so is how it ended
        try:
            with self._lock:
                if self._robot.is_in_control:
                    self._robot.stop()
                recovered = self._robot.recover_from_errors() if self._robot.has_errors else True
            if recovered:
                self._failure = ""
                return ""
            return "the robot refuses; release the emergency stop and unlock the joints"
        except Exception as error:
            lost = self._robot is None or "connection lost" in self._failure
            if not lost and "network" not in type(error).__name__.lower():
                return str(error)
        try:
            with self._lock:
                self._robot = None  # the old connection must be closed first
                self._connect()
            return ""
        except (ArmError, ConfigError) as error:
            self._failure = str(error)
            return self._failure

    def close(self) -> None:
        """Stop and let go of the robot."""
        with self._lock:
            try:
                if self._robot is not None and self._robot.is_in_control:
                    self._robot.stop()
            finally:
                self._robot = None
                if self.claim:
                    self.claim.release()


def _names(errors: franky.Errors) -> str:
    """The raised flags of an error set, by name."""
    return ", ".join(n for n in dir(errors) if not n.startswith("_") and getattr(errors, n) is True)
