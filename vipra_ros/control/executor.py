"""The executor core: the one path from chunk to arm, without ROS, without franky, without a clock.

    offer:  chunk -> validate -> absolute joints -> timeline
    tick:   watchdogs -> state machine -> timeline -> limiter -> sink, hand

Thread-safe: `offer` and the operator's commands may come from other threads than `tick`. `now` is
always the monotonic clock in s, and chunk stamps must be on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.flight import FlightRecorder
from vipra_ros.control.guard import Event, FaultCode, Machine, State
from vipra_ros.control.intake import Intake
from vipra_ros.control.limits import Limiter
from vipra_ros.control.opening import Opening
from vipra_ros.control.operator import Operator, Result
from vipra_ros.control.profile import RobotProfile
from vipra_ros.control.reference import Limited, Reference
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.control.sinks import HandSink, MotionSink
from vipra_ros.control.status import NAN, ExecutorStatus, Telemetry
from vipra_ros.control.timeline import Timeline
from vipra_ros.control.validate import Validator
from vipra_ros.control.watch import Watchdogs, strays, usable

__all__ = ["ExecutorCore", "ExecutorSettings", "Result"]

#: s of past reference that is kept, for the tracking guard and late states.
HISTORY = 1.0
#: rad; the home pose counts as reached within.
HOME_TOLERANCE = 0.01
#: s; a longer motion is handed to the arm again, so that its clock and ours cannot drift apart.
RESTREAM = 0.5
#: s between two corrections.
CORRECTION = 0.06
_RUNS = (State.ARMED, State.RUNNING, State.HOLD, State.STOPPING)


class ExecutorCore(Intake, Operator):
    """See the module's text.

    Args:
        profile: the robot.
        settings: see :class:`ExecutorSettings`.
        sink, hand: the last hop.
        recover_robot: clears the arm's error state (may block about 1 s), returns an error or "".
        name: what the status calls the robot.
        dry_run: only reported.
        flight: remembers the last seconds; None remembers nothing.
    """

    def __init__(
        self,
        profile: RobotProfile,
        settings: ExecutorSettings,
        sink: MotionSink,
        hand: HandSink,
        *,
        recover_robot: Callable[[], str] | None = None,
        name: str = "",
        dry_run: bool = False,
        flight: FlightRecorder | None = None,
    ):
        self.profile, self.settings = profile, settings
        self.sink, self.hand = sink, hand
        self._follow = getattr(sink, "follow", None)  # of a sink that samples the reference at every pass
        self.limiter = Limiter(profile, settings.speed, getattr(sink, "reaction", 0.0))
        self.timeline = Timeline(settings.mode, settings.blending, settings.ensemble_decay)
        self.validator = Validator(profile, settings.bounds())
        self.machine = Machine()
        self.epoch = 0
        self._recover_robot, self._name, self._dry_run = recover_robot, name or profile.name, dry_run
        self.flight = flight
        self._lock = threading.RLock()
        self.telemetry = Telemetry()
        self._watch = Watchdogs(settings)
        self._reference: Reference | None = None
        self._state: RobotState | None = None
        self._tick_time = self._counted = self._streamed = NAN
        self._dirty = self._homing = self._braking = self._seen = False
        self._void = -np.inf  # s: a chunk that answers an older observation was made before the arm was stopped
        self._ramp = (0.0, 0.0)  # s: full start_speed until, full limit from
        self._opening = Opening(settings.gripper_threshold, settings.gripper_dwell)
        self._fresh: list[float] = []  # stamps of chunks whose first row has not been sent
        self._chunk: ActionChunk | None = None

    # --- the loop ------------------------------------------------------------------------------------------

    def tick(self, now: float, state: RobotState) -> None:
        """One pass: call at a steady rate with the newest robot state."""
        with self._lock:
            try:
                self._tick(now, state)
                if self._follow and (self._braking or self.machine.state in _RUNS) and self._reference:
                    self._send(lambda: self._follow(self._reference, state, now), now)
            except Exception as error:
                self._fault(FaultCode.INTERNAL, f"{type(error).__name__}: {error}; report it with the log", now)
            if self.flight is not None:
                active, error = self._watch.limiter.active(now), self._watch.tracking.error
                self.flight.passed(
                    now, self.machine, self._reference, state, self.epoch, self.opening, active, error
                )

    def _tick(self, now: float, state: RobotState) -> None:
        passed = now - self._tick_time if np.isfinite(self._tick_time) else 0.0
        self._tick_time = now
        self.telemetry.ticks.note(now)
        self._look_at_robot(now, state, passed)
        machine = self.machine
        if machine.state in (State.IDLE, State.FAULT) and not (self._reference and self._reference.moving(now)):
            if self._braking:
                self._braking = False
                self._send(lambda: self.sink.stop(now), now)
            self._follow_measured(now)
            return
        if machine.state is State.FAULT:
            return  # the limited stop of a fault is under way
        self._look_at_input(now)
        self._count_rows(now)
        if machine.state is State.RUNNING:
            self.telemetry.stall.note(now, passed, self._reference.boundary(now) is None and not self._homing)
            if self._dirty:
                self._replan(now)
            elif self._reference.moving(now) and now - self._streamed > RESTREAM:
                self._stream(now)
            elif now - self._streamed > CORRECTION and strays(now, state, self._reference):
                self._stream(now)
            self._drive_hand(now)
            self.timeline.expire(now)
            if self._homing and not self._reference.moving(now):
                self._arrive(now)
        if machine.state is State.STOPPING and not self._reference.moving(now):
            machine.fire(Event.AT_REST)
            if machine.state is State.IDLE:
                self._send(lambda: self.sink.stop(now), now)

    def _look_at_robot(self, now: float, state: RobotState, passed: float) -> None:
        runs = self.machine.state in _RUNS
        self.telemetry.overruns += passed > self.settings.overrun_warning
        self._seen = usable(state)
        if self._seen:
            self._state = state
        if runs:
            for code, text in self._watch.loop(passed) + self._watch.robot(now, state, self._reference):
                self._fault(code, text, now)

    def _look_at_input(self, now: float) -> None:
        running = self.machine.state is State.RUNNING and not self._homing
        if running and (why := self._watch.input(now)):
            self._stop_for(Event.STALE, now, why)
        if self.machine.state in (State.ARMED, State.RUNNING) and (why := self._watch.trips(now)):
            self._stop_for(Event.TRIP, now, why)

    def _count_rows(self, now: float) -> None:
        for segment in self._reference.segments:
            if segment.row and segment.end <= now + 1e-9 and not segment.end <= self._counted + 1e-9:
                limited = segment.limited is not Limited.NO
                self._counted = segment.end
                self.telemetry.limited += limited
                self.telemetry.actions.note(segment.end)
                if not self._homing and segment.end > self._ramp[1]:
                    # Kept inside the workspace is no overload: sliding along the table is a policy's right.
                    overload = bool(segment.limited & (Limited.FAR | Limited.BRAKE))
                    self._watch.limiter.note(segment.end, overload)

    def _replan(self, now: float) -> None:
        self._dirty = False
        start, _ = self._commit(now)
        times, q, dq = self.timeline.targets(start, self._reference.at(start)[0])
        self._reference = self.limiter.extend(
            self._reference.since(now - HISTORY), start, times, q, dq, self._scale(times)
        )
        self._stream(now)
        for stamp in self._fresh:
            self.telemetry.delays.note(now - stamp)
        self._fresh.clear()

    def _drive_hand(self, now: float) -> None:
        if self.hand.forgot():  # connected anew: the row that runs says what it is to do
            self._opening.forget()
        row = self.timeline.running(now)
        if row is None or self._homing or row.time - self.timeline.period > now + 1e-6:
            return
        if self._opening.changes(now, row.gripper):
            self._send(lambda: self.hand.command(self._opening.value), now)

    # --- motions -------------------------------------------------------------------------------------------

    def _stream(self, now: float) -> None:
        points = self._reference.waypoints_after(now)
        self._streamed = now
        if points:
            self._send(lambda: self.sink.stream(points, now), now)

    def _send(self, action: Callable[[], None], now: float) -> bool:
        """Whether the arm's side took it; else it is a fault."""
        try:
            action()
            return True
        except Exception as error:
            self._fault(
                FaultCode.SINK,
                f"{type(error).__name__}: {error}; look at the arm, then call executor/recover",
                now,
            )
            return False

    def _stop_for(self, event: Event, now: float, reason: str = "") -> None:
        """Take the event; if it ends a motion, brake within the limits."""
        moving = self._reference is not None and self._reference.moving(now)
        before = self.machine.state
        if not self.machine.fire(event, reason):
            return
        self._quiet()
        if event is not Event.STALE:
            self._void = now
        if before is State.RUNNING and moving:
            self._brake(now)

    def _brake(self, now: float) -> None:
        """Come to rest within the limits, from whatever the reference says now."""
        self._reference = self.limiter.stop(self._reference.since(now - HISTORY), now)
        if self._reference.waypoints_after(now):
            self._stream(now)
        else:  # at rest between two rows: nothing to brake, but the sink has what comes behind them
            self._send(lambda: self.sink.stop(now), now)

    def _quiet(self) -> None:
        self.timeline.clear()
        self._dirty = self._homing = False
        self._fresh.clear()
        self._opening.settle(self.hand.cancel())

    def _fault(self, code: FaultCode, text: str, now: float) -> None:
        first = self.machine.state is not State.FAULT
        self.machine.fault(code, text, now)
        if not first:
            return
        self._quiet()
        self._void = now
        if code not in (FaultCode.ROBOT, FaultCode.SINK) and self._reference and self._reference.moving(now):
            self._braking = True
            self._brake(now)  # a failure here is latched too, and the sink is then told to stop below
            if not any(f.code is FaultCode.SINK for f in self.machine.faults):
                return
        if self._reference:
            self._reference = Reference.rest(now, self._reference.at(now)[0])
        try:
            self.sink.stop(now)
        except Exception as error:
            self.machine.fault(FaultCode.SINK, f"{type(error).__name__}: {error}; use the emergency stop", now)

    def _follow_measured(self, now: float) -> None:
        if self._seen:  # the last pose from before a loss is not where the arm came to rest
            self._reference = Reference.rest(now, self._seed())
            self._watch.tracking.clear()

    def _seed(self) -> np.ndarray:
        """Where the arm is commanded to be: q_d, unless it is no use (not in control, far off, a compliant arm)."""
        q, q_d = np.asarray(self._state.q, float), np.asarray(self._state.q_d, float)
        usable = not getattr(self.sink, "compliant", False) and (
            q_d.shape == q.shape and np.all(np.isfinite(q_d)) and np.abs(q_d - q).max() < self.settings.tracking_limit
        )
        return q_d if usable else q

    def _arrive(self, now: float) -> None:
        self._homing = False
        self.timeline.clear()
        miss = float(np.abs(self._reference.at(now)[0] - self.profile.home_q).max())
        if miss <= HOME_TOLERANCE:
            self.machine.fire(Event.HOMED, "at home; call executor/arm")
            self._send(lambda: self.sink.stop(now), now)
        else:
            self.machine.fire(
                Event.TRIP,
                f"home is missed by {miss:.2f} rad, the workspace is in the way; guide the arm by hand",
            )

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
        return self._opening.value

    @property
    def status(self) -> ExecutorStatus:
        """Everything ExecutorStatus.msg holds, at the time of the last tick."""
        with self._lock:
            now, machine, chunk, rows = self._tick_time, self.machine, self._chunk, self.timeline.executable()
            running = machine.state is State.RUNNING and chunk is not None
            return self.telemetry.status(
                now,
                state=int(machine.state),
                state_text=machine.state.name,
                reasons=machine.reasons,
                robot=self._name,
                dry_run=self._dry_run,
                epoch=self.epoch,
                in_control=bool(self._state and self._state.in_control and not self._state.error),
                task_id=int(chunk.task_id) if running else 0,
                instruction=chunk.instruction if running else "",
                observation_age=now - self._watch.stamp,
                chunk_age=now - self._watch.chunk,
                state_age=now - self._state.time if self._state else NAN,
                queue=len(rows),
                queue_time=max(0.0, rows[-1].time - now) if rows else 0.0,
                late=self.timeline.late,
                faults=machine.fault_count,
                limiter_active=self._watch.limiter.active(now),
                tracking_error=self._watch.tracking.error,
            )
