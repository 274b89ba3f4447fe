"""Is this chunk fit to be looked at? Finiteness first, then shape, meaning, time and origin.

Nothing here moves anything and nothing raises on bad content: every refusal is a :class:`Verdict` with
a reason and a sentence that says what to do.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

from vipra_ros.control.chunk import ACTION_SPACES, ActionChunk
from vipra_ros.control.profile import JOINTS, RobotProfile


class Reason(enum.Enum):
    """Why a chunk was accepted or refused."""

    ACCEPTED = "accepted"
    NOT_FINITE = "not finite"
    SHAPE = "wrong shape"
    ACTION_SPACE = "wrong action space"
    JOINT_NAMES = "wrong joint names"
    HORIZON = "wrong horizon"
    STEP_PERIOD = "wrong step period"
    STALE = "stale"
    FUTURE = "from the future"
    OLD_ID = "old chunk id"
    EPOCH = "old epoch"
    RANGE = "out of range"
    LEASE = "another policy is served"
    NOT_READY = "not ready"
    LATE = "too late"
    START = "too far from the arm"


@dataclass(frozen=True)
class Verdict:
    """Reason and text; true when the chunk was accepted."""

    reason: Reason
    text: str = ""

    def __bool__(self) -> bool:
        return self.reason is Reason.ACCEPTED

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.text}" if self.text else self.reason.value


ACCEPTED = Verdict(Reason.ACCEPTED)


@dataclass(frozen=True)
class Bounds:
    """What a chunk may say. Ages in s, ranges in rad and m."""

    action_space: str = "joint_position"
    max_age: float = 1.5
    future: float = 0.1
    range_margin: float = 0.2
    joint_step: float = 0.5
    ee_step: float = 0.1
    ee_turn: float = 0.5
    min_period: float = 0.01
    max_period: float = 0.5
    max_rows: int = 128
    lease: float = 3.0


class Validator:
    """Checks chunks; remembers only what it has accepted.

    Args:
        profile: the robot.
        bounds: what is allowed.
    """

    def __init__(self, profile: RobotProfile, bounds: Bounds):
        self.profile, self.bounds = profile, bounds
        self.forget()

    def forget(self) -> None:
        """Give the lease back: the next policy may begin, with any chunk id."""
        self._holder: tuple[str, str] | None = None
        self._last_id, self._renewed, self._form = -1, -math.inf, None

    @property
    def holder(self) -> str:
        """The policy served: its process and checkpoint, empty when none."""
        return "/".join(x for x in self._holder if x) if self._holder else ""

    def serves(self, chunk: ActionChunk) -> bool:
        """Whether the chunk is of the policy whose chunk was accepted last, or there was none."""
        return self._holder is None or self._same_holder(chunk)

    def check(self, chunk: ActionChunk, now: float, epoch: int) -> Verdict:
        """Judge `chunk` at `now` (s, the clock of its stamp); never raises."""
        try:
            actions = np.asarray(chunk.actions, dtype=float)
            ahead = np.asarray(chunk.lookahead, dtype=float)
            stamp, period = float(chunk.stamp), float(chunk.step_period)
            number, chunk_epoch = int(chunk.chunk_id), int(chunk.epoch)
            names = tuple(str(n) for n in chunk.joint_names)
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            return Verdict(
                Reason.SHAPE,
                f"the chunk cannot be read as numbers ({error}); send float64 rows of equal length",
            )
        for test in (  # in this order: each may rely on the ones before
            lambda: self._finite(actions, ahead, stamp, period),
            lambda: self._shape(chunk, actions, ahead, names),
            lambda: self._time(stamp, period, now),
            lambda: self._origin(chunk, number, chunk_epoch, now, epoch),
            lambda: self._range(actions, ahead),
        ):
            refusal = test()
            if refusal is not None:
                return refusal
        return ACCEPTED

    def accept(self, chunk: ActionChunk, now: float) -> None:
        """Remember a chunk that was taken over."""
        self._holder, self._last_id, self._renewed = self._who(chunk), int(chunk.chunk_id), now
        self._form = self._shape_of(chunk)

    # --- the checks, in order ------------------------------------------------------------------------------

    def _finite(self, actions: np.ndarray, ahead: np.ndarray, stamp: float, period: float) -> Verdict | None:
        for name, values in (("actions", actions), ("lookahead", ahead)):
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                where = ", ".join(str(int(i)) for i in bad[0])
                return Verdict(
                    Reason.NOT_FINITE,
                    f"{name}[{where}] is {values[tuple(bad[0])]}; the whole chunk is "
                    f"refused, check the checkpoint's statistics",
                )
        for name, value in (("stamp", stamp), ("step_period", period)):
            if not math.isfinite(value):
                return Verdict(Reason.NOT_FINITE, f"{name} is {value}; give a time in s")
        return None

    def _shape(self, chunk: ActionChunk, actions: np.ndarray, ahead: np.ndarray, names: tuple) -> Verdict | None:
        b, p = self.bounds, self.profile
        if chunk.action_space not in ACTION_SPACES or chunk.action_space != b.action_space:
            return Verdict(
                Reason.ACTION_SPACE,
                f"{str(chunk.action_space)[:40]!r} came, this executor takes {b.action_space!r}; "
                f"set action_space or load another checkpoint",
            )
        width = (6 if b.action_space == "ee_delta" else JOINTS) + 1
        if actions.ndim != 2 or actions.shape[1] != width or len(actions) == 0:
            return Verdict(Reason.SHAPE, f"actions have shape {actions.shape}; send (rows >= 1, {width})")
        if ahead.size and (ahead.ndim != 2 or ahead.shape[1] != width):
            return Verdict(Reason.SHAPE, f"lookahead has shape {ahead.shape}; send (rows, {width}) or nothing")
        if len(actions) + len(ahead) > b.max_rows:
            return Verdict(Reason.HORIZON, f"{len(actions) + len(ahead)} rows; at most {b.max_rows} are taken")
        expected = () if b.action_space == "ee_delta" else p.joint_names
        if names != expected and not (names == p.joint_names and not expected):
            return Verdict(
                Reason.JOINT_NAMES,
                f"{str(list(names))[:200]} came, {p.name} has {list(expected)} in this order; use a checkpoint of this "
                f"robot",
            )
        if self._form is not None and self._same_holder(chunk) and self._shape_of(chunk) != self._form:
            return Verdict(
                Reason.HORIZON,
                f"rows and period became {self._shape_of(chunk)} from {self._form}; a policy "
                f"keeps its horizon and rate",
            )
        return None

    def _time(self, stamp: float, period: float, now: float) -> Verdict | None:
        b = self.bounds
        if not b.min_period <= period <= b.max_period:
            return Verdict(Reason.STEP_PERIOD, f"{period} s; give {b.min_period} to {b.max_period} s")
        if now - stamp > b.max_age:
            return Verdict(
                Reason.STALE,
                f"the observation is {now - stamp:.3f} s old, at most {b.max_age} s are "
                f"allowed; speed up the policy or compare the clocks of both hosts",
            )
        if stamp - now > b.future:
            return Verdict(
                Reason.FUTURE,
                f"the observation lies {stamp - now:.3f} s ahead; synchronise the hosts' clocks",
            )
        return None

    def _origin(self, chunk: ActionChunk, number: int, chunk_epoch: int, now: float, epoch: int) -> Verdict | None:
        if chunk_epoch < epoch:
            return Verdict(
                Reason.EPOCH,
                f"epoch {chunk_epoch}, the executor is at {epoch}; made before a recovery "
                f"or reset, read epoch from executor/status",
            )
        if self._holder is None or now - self._renewed > self.bounds.lease:
            return None
        if not self._same_holder(chunk):
            return Verdict(
                Reason.LEASE,
                f"{'/'.join(self._who(chunk))[:80]} came while {self.holder[:80]} is served; stop one of "
                f"them, the lease ends after {self.bounds.lease} s of silence",
            )
        if number <= self._last_id:
            return Verdict(Reason.OLD_ID, f"chunk {number} after {self._last_id}; repeated or reordered on the way")
        return None

    def _range(self, actions: np.ndarray, ahead: np.ndarray) -> Verdict | None:
        b, p = self.bounds, self.profile
        rows = np.vstack([actions, ahead]) if ahead.size else actions
        body, gripper = rows[:, :-1], rows[:, -1]
        if b.action_space == "joint_position":
            low, high = np.asarray(p.q_min) - b.range_margin, np.asarray(p.q_max) + b.range_margin
        elif b.action_space == "joint_delta":
            low, high = np.full(JOINTS, -b.joint_step), np.full(JOINTS, b.joint_step)
        else:
            high = np.array([b.ee_step] * 3 + [b.ee_turn] * 3)
            low = -high
        bad = np.argwhere((body < low) | (body > high))
        if len(bad):
            row, column = (int(i) for i in bad[0])
            return Verdict(
                Reason.RANGE,
                f"row {row}, column {column} is {body[row, column]:.4g}, sane is "
                f"{low[column]:.4g} to {high[column]:.4g}; are the actions de-normalised?",
            )
        if np.abs(gripper).max() > 2.0:
            return Verdict(
                Reason.RANGE, f"gripper value {gripper[np.abs(gripper).argmax()]:.4g}; +1 is open, -1 closed"
            )
        return None

    # --- identity ------------------------------------------------------------------------------------------

    @staticmethod
    def _who(chunk: ActionChunk) -> tuple[str, str]:
        return str(chunk.policy_id), str(chunk.checkpoint)

    def _same_holder(self, chunk: ActionChunk) -> bool:
        return self._holder == self._who(chunk)

    @staticmethod
    def _shape_of(chunk: ActionChunk) -> tuple[int, int, float]:
        return len(chunk.actions), len(chunk.lookahead), round(float(chunk.step_period), 6)
