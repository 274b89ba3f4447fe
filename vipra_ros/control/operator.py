"""What the operator may ask of the executor: arm, stop, hold, home, recover, reset, and the dead-man.

The commands are part of :class:`vipra_ros.control.executor.ExecutorCore`, kept apart from its loop. Each
answers at once with a :class:`Result`; a refusal says what to do instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vipra_ros.control.actions import way_home
from vipra_ros.control.guard import Event, State
from vipra_ros.control.reference import Reference

#: rad/s; arming needs an arm that stands still.
STILL = 0.05
#: s in which the loop reads an arm that was connected anew.
POSE_TIMEOUT = 0.5


@dataclass(frozen=True)
class Result:
    """Answer to an operator's command."""

    success: bool
    message: str


class Operator:
    """The commands; attributes are those of the core."""

    def arm(self, now: float) -> Result:
        """Make ready: the next acceptable chunk starts the motion."""
        with self._lock:
            if not self.machine.can(Event.ARM):
                return self._refused("arm")
            if obstacle := self._obstacle(now):
                return Result(False, obstacle)
            if not self._watch.held(now):
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
                if not self._send(lambda: self.sink.stop(now), now):
                    return self._unheard()
                return Result(True, f"already in {self.machine.state.name}; the arm was told to stop once more")
            self._stop_for(Event.STOP, now)
            if self.machine.state is State.IDLE:
                self._send(lambda: self.sink.stop(now), now)
            if self.machine.state is State.FAULT:
                return self._unheard()
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
            if obstacle := self._obstacle(now):
                return Result(False, obstacle)
            if not self._watch.held(now):
                return Result(False, "the dead-man is not held; hold it while the arm goes home")
            if self.machine.state is State.IDLE:
                self._reference = Reference.rest(now, self._seed())
            self._fresh_start()
            self._void = now
            share = 0.9 * self.settings.home_speed * self.settings.speed
            rows, period = way_home(self.profile, self._reference.at(now)[0], share)
            self.machine.fire(Event.HOME)
            self._homing = self._dirty = True
            self.timeline.add(
                stamp=now,
                period=period,
                q=rows,
                gripper=np.zeros(len(rows)),
                execute=len(rows),
                chunk_id=-1,
                task_id=-1,
                commit=now,
                on_grid=False,
            )
            if self.settings.home_gripper == "open":
                self._opening.set(now, 1.0)
                self._send(lambda: self.hand.command(1.0), now)
            return Result(True, f"going home in {len(rows) * period:.1f} s")

    def recover(self, now: float) -> Result:
        """Leave FAULT: clear the arm's error, start over from the measured pose. Never resumes by itself.

        In IDLE too, where nothing is latched, an arm with an error or without a connection is set right.
        """
        with self._lock:
            well = self.machine.state is State.IDLE and self._seen and not self._state.error
            if well or not self.machine.can(Event.RECOVER):
                return self._refused("recover")
        if self._recover_robot is not None:
            try:
                error = self._recover_robot()  # may block: without the lock, the machine stays in FAULT
            except Exception as failure:
                error = str(failure)
            if error:
                return Result(False, f"the robot does not recover: {error}")
            self._await_pose()
        with self._lock:
            if not self._seen:
                return Result(False, "the arm's pose cannot be read; check the connection to the robot")
            if not self.machine.fire(Event.RECOVER):  # armed meanwhile, by arm_on_start
                return Result(False, f"the executor is {self.machine.state.name} by now; call executor/stop first")
            self._new_epoch()
            return Result(True, "recovered; call executor/arm to go on")

    def reset(self, now: float) -> Result:
        """Forget the episode: rows, lease, last gripper command; chunks in flight become void."""
        with self._lock:
            if not self.machine.can(Event.RESET):
                return self._refused("reset")
            if self.machine.state is not State.IDLE and not self._send(lambda: self.sink.stop(now), now):
                return self._unheard()
            self.machine.fire(Event.RESET)
            self._new_epoch()
            self._opening.forget()
            return Result(True, "reset; call executor/arm to go on")

    def deadman(self, now: float) -> None:
        """The operator holds the dead-man."""
        self._watch.deadman = now

    def _obstacle(self, now: float) -> str:
        state = self._state
        if not self._seen or now - state.time > self.settings.state_timeout:
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
        elif self._homing and what in ("arm", "go home"):
            remedy = "it is on its way home; wait until it stands (IDLE)"
        return Result(False, f"cannot {what} in {self.machine.state.name}; {remedy}")

    def _unheard(self) -> Result:
        return Result(False, f"the arm could not be told: {self.machine.reasons[-1]}; use the emergency stop")

    def _await_pose(self) -> None:
        """Wait for the first pass of the loop that reads an arm which has just been reconnected."""
        end = time.monotonic() + POSE_TIMEOUT
        while not self._seen and time.monotonic() < end:
            time.sleep(0.01)

    def _fresh_start(self) -> None:
        self._quiet()
        self.validator.forget()
        self._watch.clear()
        self._counted = self._tick_time  # the rows of the motion before have been counted

    def _new_epoch(self) -> None:
        self.epoch += 1
        self._fresh_start()
        if self._seen:
            self._reference = Reference.rest(self._state.time, self._seed())
