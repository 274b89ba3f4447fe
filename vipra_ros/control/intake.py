"""The way in: what becomes of a chunk that is offered, before anything moves.

    validate -> is it for now? -> absolute joints -> is the arm near enough? -> timeline

Part of :class:`vipra_ros.control.executor.ExecutorCore`, kept apart from its loop.
"""

from __future__ import annotations

import numpy as np

from vipra_ros.control.actions import absolute
from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.guard import Event, FaultCode, State
from vipra_ros.control.timeline import LEAST_STEP
from vipra_ros.control.validate import ACCEPTED, Reason, Verdict


class Intake:
    """Takes chunks over; attributes are those of the core."""

    def offer(self, chunk: ActionChunk, now: float) -> Verdict:
        """Take a chunk or say why not. Never raises on bad content."""
        with self._lock:
            verdict = self.validator.check(chunk, now, self.epoch)
            if verdict:
                try:
                    verdict = self._take(chunk, now)
                except Exception as error:  # a defect of ours must stop the arm, not the process
                    self._fault(FaultCode.INTERNAL, f"{type(error).__name__}: {error}; report it with the log", now)
                    verdict = Verdict(Reason.NOT_READY, self.machine.reasons[-1])
            if not verdict:
                self.telemetry.last_rejection = str(verdict)
                self.telemetry.rejected += verdict.reason is not Reason.NOT_READY
            if self.flight is not None:
                self.flight.offered(now, chunk, verdict)
            return verdict

    def _take(self, chunk: ActionChunk, now: float) -> Verdict:
        machine = self.machine
        if machine.state not in (State.ARMED, State.RUNNING) or self._homing:
            what = "on its way home" if self._homing else machine.state.name
            return Verdict(Reason.NOT_READY, f"the executor is {what}; call executor/arm when it stands still")
        if chunk.stamp < self._void:
            return Verdict(
                Reason.STALE, f"made of what was seen {self._void - chunk.stamp:.2f} s before the arm was stopped"
            )
        if machine.state is State.RUNNING and not self.validator.serves(chunk):
            return Verdict(
                Reason.LEASE, f"{self.validator.holder[:80]} moves the arm; another policy begins when it stands"
            )
        commit, on_grid = self._commit(now)
        actions, ahead = np.asarray(chunk.actions, float), np.asarray(chunk.lookahead, float)
        rows = np.vstack([actions, ahead]) if ahead.size else actions
        times = chunk.stamp + chunk.step_period * np.arange(1, len(rows) + 1)
        late = int(np.sum(times < commit + LEAST_STEP * chunk.step_period)) if self.settings.mode == "async" else 0
        if late >= len(actions):
            self.timeline.late += len(actions)
            excess = commit + LEAST_STEP * chunk.step_period - times[len(actions) - 1]
            return Verdict(
                Reason.LATE,
                f"the last of {len(actions)} rows comes {excess:.3f} s too late to change the plan; answer "
                f"sooner, this took {now - chunk.stamp:.3f} s",
            )
        base = self._reference.at(commit)[0]
        if self.settings.mode == "sync" and self.timeline.executable():
            base = self.timeline.executable()[-1].q
        q = absolute(self.profile, chunk.action_space, rows, base, late)
        if machine.state is State.ARMED:
            distance = float(np.abs(q[late] - base).max())
            if distance > self.settings.start_distance and self.settings.start_action == "refuse":
                joint = self.profile.joint_names[int(np.abs(q[late] - base).argmax())]
                return Verdict(
                    Reason.START,
                    f"the first target is {distance:.2f} rad away at {joint}, allowed are "
                    f"{self.settings.start_distance} rad; bring the arm nearer (executor/home) "
                    f"or set start_action to blend",
                )
            self._begin_ramp(now, distance)
        added = self.timeline.add(
            stamp=float(chunk.stamp),
            period=float(chunk.step_period),
            q=q,
            gripper=rows[:, -1],
            execute=len(actions),
            chunk_id=int(chunk.chunk_id),
            task_id=int(chunk.task_id),
            commit=commit,
            on_grid=on_grid,
        )
        if not added.used:
            return Verdict(
                Reason.LATE, f"no row falls behind the {commit - now:.3f} s that are committed; answer sooner"
            )
        self.validator.accept(chunk, now)
        machine.fire(Event.CHUNK)
        self._chunk, self._watch.chunk, self._watch.stamp = chunk, now, float(chunk.stamp)
        self.telemetry.accepted += 1
        self.telemetry.chunks.note(now)
        self._fresh.append(float(chunk.stamp))
        if np.isfinite(added.boundary_step):
            self.telemetry.boundary_step = added.boundary_step
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

    def _commit(self, now: float) -> tuple[float, bool]:
        """From when on the motion may change, and whether that is a time of the running row grid."""
        boundary = self._reference.boundary(now)
        return (now, False) if boundary is None else (boundary, True)
