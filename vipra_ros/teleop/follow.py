"""From the leader arm's readings to chunks for the executor: align, engage, follow.

Nothing is sent before the leader stands where the follower stands. Then the difference that is left fades out
over `engage_time`. The follower runs a fixed time behind the leader: rows are positions the leader has been at,
and only the last one is extrapolated, by one period. So the rows around the instant at which the executor can
still change its plan are measured ones with measured velocities, and the arm moves smoothly at 25 Hz.

The hand stays as it is until the trigger has once said the same: a leader that was put down opens its trigger, and
what the arm holds would fall when it engages again.

Pure and single-threaded; all times are of one monotonic clock, s.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

import numpy as np

from vipra_ros.config import param
from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.guard import State as ExecutorState
from vipra_ros.control.profile import RobotProfile

#: What stands in a chunk's checkpoint field: a person, no policy.
CHECKPOINT = "gello"
#: s; the follower's state and the executor's status may be this old.
FOLLOWER_AGE, STATUS_AGE = 0.5, 1.0
#: rad/s; slower motions say nothing about the lag.
MOVING = 0.1
#: s after the engagement, before the lag is measured.
SETTLING = 0.3
#: of [-1, 1]; a trigger beyond it says the same as the hand.
AGREES = 0.5


@dataclass(frozen=True)
class FollowSettings:
    """How the follower follows."""

    rate: float = param(25.0, doc="reads of the leader, and chunks, per second", unit="Hz", low=5.0, high=100.0)
    align_threshold: float = param(
        0.2, doc="largest difference of a joint between both arms at the start", unit="rad", low=0.02, high=0.5
    )
    engage_time: float = param(
        1.5, doc="time over which the difference at the start fades out", unit="s", low=0.1, high=10.0
    )
    lag_steps: int = param(3, doc="periods that the follower runs behind; fewer are less smooth", low=2, high=4)
    late_read: float = param(0.08, doc="a read that takes longer sends no chunk", unit="s", low=0.005, high=0.5)
    largest_gap: float = param(
        0.25, doc="silence of the leader after which it must be aligned again", unit="s", low=0.05, high=2.0
    )


class Phase(enum.Enum):
    """Where teleoperation stands."""

    LOST = "lost"  # no readings of the leader
    WAITING = "waiting"  # for follower or executor
    ALIGNING = "aligning"
    FOLLOWING = "following"


def misalignment(names: tuple[str, ...], leader: np.ndarray, follower: np.ndarray, threshold: float) -> str:
    """Which joints are off, the worst first, by how much and which way to move the leader; empty when aligned."""
    off = np.asarray(leader) - np.asarray(follower)
    bad = [int(i) for i in np.argsort(-np.abs(off)) if not abs(off[i]) <= threshold]
    return ", ".join(f"{names[i]} is off by {off[i]:+.2f} rad" for i in bad)


class Follow:
    """See the module's text.

    Args:
        profile: the follower.
        settings: see :class:`FollowSettings`.
        policy_id: identifies this process to the executor.
    """

    def __init__(self, profile: RobotProfile, settings: FollowSettings, policy_id: str):
        self.profile, self.settings, self.policy_id = profile, settings, policy_id
        self.period = 1.0 / settings.rate
        self.phase, self.text = Phase.LOST, "no reading of the leader yet"
        self.sent = 0
        self._samples: deque[tuple[float, np.ndarray, float]] = deque(maxlen=16)  # time, joints, opening
        self._duration = 0.0
        self._follower: tuple[float, np.ndarray] | None = None
        self._executor: tuple[float, ExecutorState, int] | None = None
        self._offset, self._engaged_at, self._task = np.zeros(len(profile.joint_names)), 0.0, 0
        self._lags: deque[float] = deque(maxlen=250)
        self._hand: float | None = None  # +1 open, -1 closed, as it stands
        self._held: float | None = None  # sent in the trigger's place

    # --- in ------------------------------------------------------------------------------------------------

    def reading(self, time: float, q: np.ndarray, opening: float, duration: float = 0.0) -> None:
        """The leader: joints (7,) in rad, opening in [0, 1]; `duration` of the read in s."""
        if self._samples and time - self._samples[-1][0] > self.settings.largest_gap:
            self.lost(f"the leader was silent for {time - self._samples[-1][0]:.2f} s; align it again")
        self._samples.append((time, np.asarray(q, float), float(opening)))
        self._duration = duration

    def follower(self, time: float, q: np.ndarray) -> None:
        """The arm's measured joints (7,) in rad."""
        self._follower = (time, np.asarray(q, float))
        settled = self.phase is Phase.FOLLOWING and time > self._engaged_at + self.settings.engage_time + SETTLING
        if settled and len(self._samples) > 1:
            (t0, q0, _), (t1, q1, _) = self._samples[-2], self._samples[-1]
            velocity = (q1 - q0) / (t1 - t0)
            fast = float(velocity @ velocity)
            if fast > MOVING**2:
                ahead = q1 + velocity * (time - t1) - self._follower[1]
                self._lags.append(float(ahead @ velocity) / fast)

    def hand(self, opening: float) -> None:
        """How the follower's hand stands: +1 open, -1 closed or holding something."""
        self._hand = opening

    def executor(self, time: float, state: ExecutorState, epoch: int) -> None:
        """The executor's status."""
        self._executor = (time, state, epoch)

    def lost(self, why: str) -> None:
        """The leader cannot be read any more: forget it; aligning begins anew."""
        self._samples.clear()
        self._set(Phase.LOST, why)

    @property
    def lag(self) -> tuple[float, float]:
        """s, median and 95th percentile of how far the follower is behind the leader; NaN before it moved."""
        return tuple(np.percentile(self._lags, (50, 95)).tolist()) if self._lags else (float("nan"),) * 2

    # --- out -----------------------------------------------------------------------------------------------

    def chunk(self, now: float) -> ActionChunk | None:
        """The chunk to send now, None when nothing may be sent: `phase` and `text` say why."""
        obstacle = self._obstacle(now)
        if obstacle:
            if self.phase is not Phase.LOST or self._samples:
                self._set(Phase.WAITING, obstacle)
            return None
        stamp, leader, _ = self._samples[-1]
        _, state, epoch = self._executor
        rows, openings = self._rows(stamp)
        if self.phase is not Phase.FOLLOWING or state is ExecutorState.ARMED:
            off = misalignment(self.profile.joint_names, leader, self._follower[1], self.settings.align_threshold)
            if off:
                self._set(Phase.ALIGNING, f"move the leader to where the arm stands: {off}")
                return None
            if self.phase is not Phase.FOLLOWING:
                self._task += 1
                self._lags.clear()
            # Until the executor has taken a chunk and runs, every chunk begins at the arm.
            self._offset, self._engaged_at = rows[0] - self._follower[1], now
            self._held = self._hand
        grip = 2 * openings - 1
        if self._held is not None and (grip * self._held > AGREES).all():  # rows of before the pull, too
            self._held = None
        if max(self._duration, now - stamp) > self.settings.late_read:
            self.text = f"a read took {max(self._duration, now - stamp):.3f} s; no chunk was sent"
            return None
        hint = {None: "", 1.0: "; the hand stays open until the trigger is let go once",
                -1.0: "; the hand stays closed until the trigger is pulled once"}[self._held]
        self._set(Phase.FOLLOWING, f"the arm follows the leader{hint}")
        times = stamp + self.period * np.arange(1, len(rows) + 1)
        left = np.clip(1.0 - (times - self._engaged_at) / self.settings.engage_time, 0.0, 1.0)
        fade = left * left * (3 - 2 * left)
        rows = np.clip(rows - fade[:, None] * self._offset, self.profile.lower, self.profile.upper)
        self.sent += 1
        return ActionChunk(
            stamp=stamp,
            chunk_id=self.sent,
            step_period=self.period,
            actions=np.column_stack([rows, grip if self._held is None else np.full(len(rows), self._held)]),
            lookahead=np.zeros((0, rows.shape[1] + 1)),
            joint_names=self.profile.joint_names,
            task_id=self._task,
            checkpoint=CHECKPOINT,
            epoch=epoch,
            policy_id=self.policy_id,
        )

    def _rows(self, stamp: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows (lag_steps + 1, 7) and openings: those of the leader `lag_steps` periods before each row is due."""
        count = self.settings.lag_steps + 1
        times = stamp + self.period * (np.arange(1, count + 1) - self.settings.lag_steps)
        t, q, opening = (np.array(x) for x in zip(*self._samples))
        if len(t) > 1:
            ahead = q[-1] + (q[-1] - q[-2]) / (t[-1] - t[-2]) * self.period
            t, q = np.append(t, t[-1] + self.period), np.vstack([q, ahead])
            opening = np.append(opening, opening[-1])
        rows = np.column_stack([np.interp(times, t, q[:, j]) for j in range(q.shape[1])])
        return rows, np.interp(times, t, opening)

    def _obstacle(self, now: float) -> str:
        """Why nothing can be sent, whatever the leader does; empty when there is nothing."""
        if not self._samples:
            return self.text or "no reading of the leader"
        if self._follower is None or now - self._follower[0] > FOLLOWER_AGE:
            return "joint_states of the arm are missing; start the executor"
        if self._executor is None or now - self._executor[0] > STATUS_AGE:
            return "executor/status is missing; start the executor"
        state = self._executor[1]
        if state not in (ExecutorState.ARMED, ExecutorState.RUNNING):
            return f"the executor is {state.name}; call executor/arm (in FAULT executor/recover first)"
        return ""

    def _set(self, phase: Phase, text: str) -> None:
        self.phase, self.text = phase, text
