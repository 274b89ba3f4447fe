"""The executor core: the one path from chunk to arm, without ROS, without franky, without a clock.

    offer:  chunk -> validate -> absolute joints -> timeline
    tick:   watchdogs -> state machine -> timeline -> limiter -> sink, hand

Thread-safe: `offer` and the operator's commands may come from other threads than `tick`. `now` is
always the monotonic clock in s, and chunk stamps must be on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ruckig

from vipra_ros.control.actions import absolute
from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.guard import Event, FaultCode, LimiterGuard, Machine, State, TrackingGuard
from vipra_ros.control.limits import Limiter
from vipra_ros.control.profile import JOINTS, RobotProfile
from vipra_ros.control.reference import Limited, Reference
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.control.sinks import HandSink, MotionSink
from vipra_ros.control.status import NAN, ExecutorStatus, Percentiles, Rate, Share
from vipra_ros.control.timeline import LEAST_STEP, Row, Timeline
from vipra_ros.control.validate import ACCEPTED, Reason, Validator, Verdict

__all__ = ["ExecutorCore", "ExecutorSettings", "Result"]

#: s of past reference that is kept, for the tracking guard and late states.
HISTORY = 1.0
#: s between the rows of the way home.
HOME_PERIOD = 1 / 15
#: rad; the home pose counts as reached within.
HOME_TOLERANCE = 0.01
#: rad/s; arming needs an arm that stands still.
STILL = 0.05
#: Waypoints nearer than this share of the row period are left to the next one: the arm is on its way there.
LEAST_GAP = 0.3
#: s; a longer motion is handed to the arm again, so that its clock and ours cannot drift apart.
RESTREAM = 0.5
_RUNS = (State.ARMED, State.RUNNING, State.HOLD, State.STOPPING)


@dataclass(frozen=True)
class Result:
    """Answer to an operator's command."""

    success: bool
    message: str


class ExecutorCore:
    """See the module's text.

    Args:
        profile: the robot.
        settings: see :class:`ExecutorSettings`.
        sink, hand: the last hop.
        recover_robot: clears the arm's error state (may block about 1 s), returns an error or "".
        name: what the status calls the robot.
        dry_run: only reported.
    """

    def __init__(self, profile: RobotProfile, settings: ExecutorSettings, sink: MotionSink, hand: HandSink, *,
                 recover_robot: Callable[[], str] | None = None, name: str = "", dry_run: bool = False):
        self.profile, self.settings = profile, settings
        self.sink, self.hand = sink, hand
        self.limiter = Limiter(profile, settings.speed)
        self.timeline = Timeline(settings.mode, settings.blending, settings.ensemble_decay)
        self.validator = Validator(profile, settings.bounds())
        self.machine = Machine()
        self.epoch = 0
        self._recover_robot, self._name, self._dry_run = recover_robot, name or profile.name, dry_run
        self._lock = threading.RLock()
        self._limiter_guard = LimiterGuard(settings.limiter_share, settings.limiter_window)
        self._tracking = TrackingGuard(settings.tracking_limit, settings.tracking_time)
        self._reference: Reference | None = None
        self._state: RobotState | None = None
        self._tick_time = self._chunk_time = self._stamp = self._deadman = self._counted = self._streamed = NAN
        self._dirty = self._homing = False
        self._ramp = (0.0, 0.0)                     # s: full start_speed until, full limit from
        self._opening, self._opened = NAN, -np.inf
        self._fresh: list[float] = []               # stamps of chunks whose first row has not been sent
        self._chunk: ActionChunk | None = None
        self._accepted = self._rejected = self._limited = self._overruns = 0
        self._rejection, self._boundary_step = "", NAN
        self._chunks, self._actions, self._ticks = Rate(), Rate(), Rate()
        self.stall, self._delays = Share(), Percentiles()

    # --- chunks --------------------------------------------------------------------------------------------

    def offer(self, chunk: ActionChunk, now: float) -> Verdict:
        """Take a chunk or say why not. Never raises on bad content."""
        with self._lock:
            verdict = self.validator.check(chunk, now, self.epoch)
            if verdict:
                try:
                    verdict = self._take(chunk, now)
                except Exception as error:   # a defect of ours must stop the arm, not the process
                    self._fault(FaultCode.INTERNAL, f"{type(error).__name__}: {error}; report it with the log", now)
                    verdict = Verdict(Reason.NOT_READY, self.machine.reasons[-1])
            if not verdict:
                self._rejection = str(verdict)
                self._rejected += verdict.reason is not Reason.NOT_READY
            return verdict

    def _take(self, chunk: ActionChunk, now: float) -> Verdict:
        machine = self.machine
        if machine.state not in (State.ARMED, State.RUNNING) or self._homing:
            what = "on its way home" if self._homing else machine.state.name
            return Verdict(Reason.NOT_READY, f"the executor is {what}; call executor/arm when it stands still")
        commit, on_grid = self._commit(now)
        actions, ahead = np.asarray(chunk.actions, float), np.asarray(chunk.lookahead, float)
        rows = np.vstack([actions, ahead]) if ahead.size else actions
        times = chunk.stamp + chunk.step_period * np.arange(1, len(rows) + 1)
        late = int(np.sum(times < commit + LEAST_STEP * chunk.step_period)) if self.settings.mode == "async" else 0
        if late >= len(actions):
            self.timeline.late += len(actions)
            return Verdict(Reason.LATE, f"all {len(actions)} rows were due before {commit - times[-1]:+.3f} s; the policy "
                                        f"answers {now - chunk.stamp:.3f} s after its observation")
        base = self._reference.at(commit)[0]
        if self.settings.mode == "sync" and self.timeline.executable():
            base = self.timeline.executable()[-1].q
        q = absolute(self.profile, chunk.action_space, rows, base, late)
        if machine.state is State.ARMED:
            distance = float(np.abs(q[late] - base).max())
            if distance > self.settings.start_distance and self.settings.start_action == "refuse":
                joint = self.profile.joint_names[int(np.abs(q[late] - base).argmax())]
                return Verdict(Reason.START, f"the first target is {distance:.2f} rad away at {joint}, allowed are "
                                             f"{self.settings.start_distance} rad; bring the arm nearer (executor/home) "
                                             f"or set start_action to blend")
            self._begin_ramp(now, distance)
        added = self.timeline.add(
            stamp=float(chunk.stamp), period=float(chunk.step_period), q=q, gripper=rows[:, -1], execute=len(actions),
            chunk_id=int(chunk.chunk_id), task_id=int(chunk.task_id), commit=commit, on_grid=on_grid)
        if not added.used:
            return Verdict(Reason.LATE, f"no row falls behind the {commit - now:.3f} s that are committed; answer sooner")
        self.validator.accept(chunk, now)
        machine.fire(Event.CHUNK)
        self._chunk, self._chunk_time, self._stamp = chunk, now, float(chunk.stamp)
        self._accepted += 1
        self._chunks.note(now)
        self._fresh.append(self._stamp)
        if np.isfinite(added.boundary_step):
            self._boundary_step = added.boundary_step
        self._dirty = True
        return ACCEPTED

    def _begin_ramp(self, now: float, distance: float) -> None:
        slow = self.settings.start_speed * float(np.min(self.limiter.velocity))
        approach = distance / slow if distance > self.settings.start_distance else 0.0
        self._ramp = (now + approach, now + approach + self.settings.start_ramp)

    def _scale(self, times: np.ndarray) -> np.ndarray:
        begin, end = self._ramp
        if self._homing:
            return np.full(len(times), self.settings.home_speed)
        if end <= begin:
            return np.where(times <= begin, self.settings.start_speed, 1.0)
        return np.interp(times, [begin, end], [self.settings.start_speed, 1.0])

    # --- the loop ------------------------------------------------------------------------------------------

    def tick(self, now: float, state: RobotState) -> None:
        """One pass: call at a steady rate with the newest robot state."""
        with self._lock:
            try:
                self._tick(now, state)
            except Exception as error:
                self._fault(FaultCode.INTERNAL, f"{type(error).__name__}: {error}; report it with the log", now)

    def _tick(self, now: float, state: RobotState) -> None:
        passed = now - self._tick_time if np.isfinite(self._tick_time) else 0.0
        self._tick_time = now
        self._ticks.note(now)
        self._watch_robot(now, state, passed)
        machine = self.machine
        if machine.state in (State.IDLE, State.FAULT) and not (self._reference and self._reference.moving(now)):
            self._follow_measured(now)
            return
        reference = self._reference
        if machine.state is State.RUNNING:
            self._watch_input(now)
        if machine.state in (State.ARMED, State.RUNNING):
            self._watch_trips(now)
        self._count_rows(now)
        if machine.state is State.RUNNING:
            self.stall.note(now, passed, reference.boundary(now) is None and not self._homing)
            if self._dirty:
                self._replan(now)
            elif self._reference.moving(now) and now - self._streamed > RESTREAM:
                self._stream(now)
            self._drive_hand(now)
            self.timeline.expire(now)
            if self._homing and not self._reference.moving(now):
                self._arrive(now)
        if machine.state is State.STOPPING and not self._reference.moving(now):
            machine.fire(Event.AT_REST)
            if machine.state is State.IDLE:
                self._send(lambda: self.sink.stop(now), now)

    def _watch_robot(self, now: float, state: RobotState, passed: float) -> None:
        s, runs = self.settings, self.machine.state in _RUNS
        if passed > s.overrun_warning:
            self._overruns += 1
        if runs and passed > s.overrun_fault:
            self._fault(FaultCode.OVERRUN, f"the loop paused {passed:.3f} s, allowed are {s.overrun_fault} s; free the "
                                           f"processor or raise overrun_fault", now)
        values = np.concatenate([np.asarray(state.q, float), np.asarray(state.dq, float)])
        if values.shape != (2 * JOINTS,) or not np.all(np.isfinite(values)):
            if runs:
                self._fault(FaultCode.MEASURED, f"q = {np.asarray(state.q).tolist()}; check the robot's connection", now)
            return
        self._state = state
        if not runs:
            return
        age = now - state.time
        if age > s.state_timeout:
            self._fault(FaultCode.STATE_AGE, f"the last robot state is {age:.3f} s old, allowed are {s.state_timeout} s; "
                                             f"check the network to the robot", now)
        if state.error:
            self._fault(FaultCode.ROBOT, f"{state.error}; look at the arm, then call executor/recover", now)
        if self._reference and self._tracking.trips(now, self._reference.at(min(now, state.time))[0], np.asarray(state.q)):
            self._fault(FaultCode.TRACKING, f"a joint is {self._tracking.error:.3f} rad from its command, allowed are "
                                            f"{s.tracking_limit} rad; look for contact, or the arm was moved by hand", now)

    def _watch_input(self, now: float) -> None:
        s = self.settings
        if self._homing:
            return
        if now - self._chunk_time > s.chunk_timeout:
            self._stop_for(Event.STALE, now, f"no acceptable chunk for {now - self._chunk_time:.2f} s; check the policy")
        elif now - self._stamp > s.observation_timeout:
            self._stop_for(Event.STALE, now, f"the newest observation is {now - self._stamp:.2f} s old; check the cameras")

    def _watch_trips(self, now: float) -> None:
        s = self.settings
        if s.deadman_timeout > 0 and not now - self._deadman <= s.deadman_timeout:
            self._stop_for(Event.TRIP, now, f"dead-man silent for {now - self._deadman:.2f} s; hold it, then call "
                                            f"executor/arm")
        elif self._limiter_guard.trips(now):
            share = self._limiter_guard.active(now)
            self._stop_for(Event.TRIP, now, f"limits changed {100 * share:.0f} % of the rows in {s.limiter_window} s; the "
                                            f"policy asks for more than the arm may do, slow it down")

    def _count_rows(self, now: float) -> None:
        for segment in self._reference.segments:
            if segment.row and segment.end <= now + 1e-9 and not segment.end <= self._counted + 1e-9:
                limited = segment.limited is not Limited.NO
                self._counted = segment.end
                self._limited += limited
                self._actions.note(segment.end)
                if not self._homing:
                    self._limiter_guard.note(segment.end, limited)

    def _commit(self, now: float) -> tuple[float, bool]:
        """From when on the motion may change, and whether that is a time of the running row grid."""
        boundary = self._reference.boundary(now)
        return (now, False) if boundary is None else (boundary, True)

    def _replan(self, now: float) -> None:
        self._dirty = False
        start, _ = self._commit(now)
        times, q, dq = self.timeline.targets(start, self._reference.at(start)[0])
        self._reference = self.limiter.extend(self._reference.since(now - HISTORY), start, times, q, dq,
                                              self._scale(times))
        self._stream(now)
        self._delays_until_sent(now)

    def _delays_until_sent(self, now: float) -> None:
        for stamp in self._fresh:
            self._delays.note(now - stamp)
        self._fresh.clear()

    def _drive_hand(self, now: float) -> None:
        row: Row | None = next((r for r in self.timeline.executable() if r.time > now + 1e-6), None)
        if row is None or self._homing or row.time - self.timeline.period > now + 1e-6:
            return
        threshold = self.settings.gripper_threshold
        wanted = 1.0 if row.gripper > threshold else -1.0 if row.gripper < -threshold else self._opening
        if np.isfinite(wanted) and wanted != self._opening and now - self._opened >= self.settings.gripper_dwell:
            self._opening, self._opened = wanted, now
            self._send(lambda: self.hand.command(wanted), now)

    # --- motions -------------------------------------------------------------------------------------------

    def _stream(self, now: float) -> None:
        period = self.timeline.period if np.isfinite(self.timeline.period) else HOME_PERIOD
        points = self._reference.waypoints_after(now, LEAST_GAP * period) or self._reference.waypoints_after(now)
        self._streamed = now
        if points:
            self._send(lambda: self.sink.stream(points, now), now)

    def _send(self, action: Callable[[], None], now: float) -> None:
        try:
            action()
        except Exception as error:
            self._fault(FaultCode.SINK, f"{type(error).__name__}: {error}; look at the arm, then call executor/recover", now)

    def _stop_for(self, event: Event, now: float, reason: str = "") -> None:
        """Take the event; if it ends a motion, brake within the limits."""
        moving = self._reference is not None and self._reference.moving(now)
        before = self.machine.state
        if not self.machine.fire(event, reason):
            return
        self._quiet()
        if before is State.RUNNING and moving:
            self._reference = self.limiter.stop(self._reference.since(now - HISTORY), now)
            self._stream(now)

    def _quiet(self) -> None:
        self.timeline.clear()
        self._dirty = self._homing = False
        self._fresh.clear()

    def _fault(self, code: FaultCode, text: str, now: float) -> None:
        first = self.machine.state is not State.FAULT
        self.machine.fault(code, text, now)
        if not first:
            return
        self._quiet()
        if code not in (FaultCode.ROBOT, FaultCode.SINK) and self._reference and self._reference.moving(now):
            self._reference = self.limiter.stop(self._reference, now)
            self._stream(now)   # a failure here is latched too, and the sink is then told to stop below
            if not any(f.code is FaultCode.SINK for f in self.machine.faults):
                return
        if self._reference:
            self._reference = Reference.rest(now, self._reference.at(now)[0])
        try:
            self.sink.stop(now)
        except Exception as error:
            self.machine.fault(FaultCode.SINK, f"{type(error).__name__}: {error}; use the emergency stop", now)

    def _follow_measured(self, now: float) -> None:
        if self._state is not None:
            self._reference = Reference.rest(now, self._seed())
            self._tracking.clear()

    def _seed(self) -> np.ndarray:
        """Where the arm is commanded to be: q_d, unless it is no use (not in control, far off)."""
        q, q_d = np.asarray(self._state.q, float), np.asarray(self._state.q_d, float)
        usable = q_d.shape == q.shape and np.all(np.isfinite(q_d)) and np.abs(q_d - q).max() < self.settings.tracking_limit
        return q_d if usable else q

    def _arrive(self, now: float) -> None:
        self._homing = False
        self.timeline.clear()
        miss = float(np.abs(self._reference.at(now)[0] - self.profile.home_q).max())
        if miss <= HOME_TOLERANCE:
            self.machine.fire(Event.HOMED, "at home; call executor/arm")
            self._send(lambda: self.sink.stop(now), now)
        else:
            self.machine.fire(Event.TRIP, f"home is missed by {miss:.2f} rad, the workspace is in the way; guide the arm "
                                          f"by hand")

    # --- the operator --------------------------------------------------------------------------------------

    def arm(self, now: float) -> Result:
        """Make ready: the next acceptable chunk starts the motion."""
        with self._lock:
            if not self.machine.can(Event.ARM):
                return self._refused("arm")
            if (obstacle := self._obstacle(now)):
                return Result(False, obstacle)
            if self.settings.deadman_timeout > 0 and not now - self._deadman <= self.settings.deadman_timeout:
                return Result(False, "the dead-man is not held; hold it while arming")
            if self.machine.state is not State.ARMED:
                if self.machine.state is State.IDLE:
                    self._reference = Reference.rest(now, self._seed())
                self._fresh_start()
            self.machine.fire(Event.ARM)
            return Result(True, "armed; the next acceptable chunk starts the motion")

    def stop(self, now: float) -> Result:
        """Limited stop, then IDLE. Never waits for anything."""
        with self._lock:
            if not self.machine.can(Event.STOP):
                self._send(lambda: self.sink.stop(now), now)
                return Result(True, f"already in {self.machine.state.name}; the arm was told to stop once more")
            self._stop_for(Event.STOP, now)
            if self.machine.state is State.IDLE:
                self._send(lambda: self.sink.stop(now), now)
            return Result(True, "stopping" if self.machine.state is State.STOPPING else "stopped")

    def hold(self, now: float) -> Result:
        """Limited stop, then HOLD: stays under control, chunks are refused until armed again."""
        with self._lock:
            if not self.machine.can(Event.HOLD):
                return self._refused("hold")
            self._stop_for(Event.HOLD, now, "held by the operator; call executor/arm to go on")
            return Result(True, "holding")

    def home(self, now: float) -> Result:
        """Go to the home pose through timeline and limiter like any chunk, then IDLE."""
        with self._lock:
            if not self.machine.can(Event.HOME):
                return self._refused("go home")
            if (obstacle := self._obstacle(now)):
                return Result(False, obstacle)
            if self.machine.state is State.IDLE:
                self._reference = Reference.rest(now, self._seed())
            self._fresh_start()
            rows = self._way_home(self._reference.at(now)[0])
            self.machine.fire(Event.HOME)
            self._homing = self._dirty = True
            self.timeline.add(stamp=now, period=HOME_PERIOD, q=rows, gripper=np.zeros(len(rows)), execute=len(rows),
                              chunk_id=-1, task_id=-1, commit=now, on_grid=False)
            return Result(True, f"going home in {len(rows) * HOME_PERIOD:.1f} s")

    def recover(self, now: float) -> Result:
        """Leave FAULT: clear the arm's error, start over from the measured pose. Never resumes by itself."""
        with self._lock:
            if not self.machine.can(Event.RECOVER):
                return self._refused("recover")
        if self._recover_robot is not None:
            try:
                error = self._recover_robot()   # may block: without the lock, the machine stays in FAULT
            except Exception as failure:
                error = str(failure)
            if error:
                return Result(False, f"the robot does not recover: {error}")
        with self._lock:
            self.machine.fire(Event.RECOVER)
            self._new_epoch()
            return Result(True, "recovered; call executor/arm to go on")

    def reset(self, now: float) -> Result:
        """Forget the episode: rows, lease, last gripper command; chunks in flight become void."""
        with self._lock:
            if not self.machine.can(Event.RESET):
                return self._refused("reset")
            if self.machine.state is not State.IDLE:
                self._send(lambda: self.sink.stop(now), now)
            self.machine.fire(Event.RESET)
            self._new_epoch()
            self._opening = NAN
            return Result(True, "reset; call executor/arm to go on")

    def deadman(self, now: float) -> None:
        """The operator holds the dead-man."""
        self._deadman = now

    def _obstacle(self, now: float) -> str:
        state = self._state
        if state is None or now - state.time > self.settings.state_timeout:
            return "no robot state; check the connection to the robot"
        if state.error:
            return f"the robot reports {state.error}; clear it, then try again"
        if np.abs(state.dq).max() > STILL:
            return f"the arm moves with {np.abs(state.dq).max():.2f} rad/s; wait until it stands still"
        return ""

    def _refused(self, what: str) -> Result:
        remedy = "call executor/recover first" if self.machine.state is State.FAULT else "stop first"
        if self.machine.state is State.IDLE:
            remedy = "call executor/arm first" if what == "hold" else "there is nothing to recover from"
        elif what == "recover":
            remedy = "there is no fault"
        return Result(False, f"cannot {what} in {self.machine.state.name}; {remedy}")

    def _fresh_start(self) -> None:
        self._quiet()
        self.validator.forget()
        self._limiter_guard.clear()
        self._tracking.clear()
        self._counted = NAN

    def _new_epoch(self) -> None:
        self.epoch += 1
        self._fresh_start()
        self._reference = None
        if self._state is not None:
            self._reference = Reference.rest(self._state.time, self._seed())

    def _way_home(self, q: np.ndarray) -> np.ndarray:
        velocity, acceleration, jerk = self.profile.limits
        i = ruckig.InputParameter(JOINTS)
        i.current_position, i.target_position = np.clip(q, self.profile.lower, self.profile.upper), self.profile.home_q
        i.max_velocity = 0.9 * self.settings.home_speed * self.settings.speed * velocity
        i.max_acceleration, i.max_jerk = 0.5 * acceleration, 0.5 * jerk
        trajectory = ruckig.Trajectory(JOINTS)
        ruckig.Ruckig(JOINTS).calculate(i, trajectory)
        count = max(1, int(np.ceil(trajectory.duration / HOME_PERIOD))) + 2   # two rows more let the limiter settle
        return np.array([trajectory.at_time(min((k + 1) * HOME_PERIOD, trajectory.duration))[0] for k in range(count)])

    # --- what others may see -------------------------------------------------------------------------------

    def reference(self) -> Reference | None:
        """The limited reference in force; None before the first robot state."""
        return self._reference

    def committed(self, now: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Times (n,) and rows (n, 8) of the next steps that will be executed whatever comes."""
        with self._lock:
            return self.timeline.committed(now, count)

    @property
    def opening(self) -> float:
        """Last gripper command, +1 or -1, NaN before the first."""
        return self._opening

    @property
    def status(self) -> ExecutorStatus:
        """Everything ExecutorStatus.msg holds, at the time of the last tick."""
        with self._lock:
            now, machine, chunk, rows = self._tick_time, self.machine, self._chunk, self.timeline.executable()
            running = machine.state is State.RUNNING and chunk is not None
            p50, p95, p99 = self._delays.value()
            return ExecutorStatus(
                state=int(machine.state), state_text=machine.state.name, reasons=machine.reasons, robot=self._name,
                dry_run=self._dry_run, in_control=bool(self._state and self._state.in_control and not self._state.error),
                epoch=self.epoch, task_id=int(chunk.task_id) if running else 0,
                instruction=chunk.instruction if running else "",
                observation_age=now - self._stamp, chunk_age=now - self._chunk_time,
                state_age=now - self._state.time if self._state else NAN,
                chunk_rate=self._chunks.value(now), action_rate=self._actions.value(now),
                state_rate=self._ticks.value(now), queue=len(rows), queue_time=max(0.0, rows[-1].time - now) if rows else 0.0,
                accepted=self._accepted, rejected=self._rejected, last_rejection=self._rejection,
                late=self.timeline.late, limited=self._limited, overruns=self._overruns, faults=machine.fault_count,
                limiter_active=self._limiter_guard.active(now), stall_fraction=self.stall.value(now),
                boundary_step=self._boundary_step, tracking_error=self._tracking.error,
                obs_to_action_p50=p50, obs_to_action_p95=p95, obs_to_action_p99=p99)
