"""What a policy hands to the executor, and what the executor hands to the arm.

Time is data: a chunk carries the stamp of the observation it answers and its step period, so the
target time of row k is `stamp + (k + 1) * step_period`, whatever the network and the GPU did.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: The gripper value is the last column of every action: +1 fully open, -1 closed.
GRIPPER_CONVENTION = "open=+1,closed=-1"
#: Absolute joint positions (rad); their increments; pose increments in the base frame per step (m, rad).
#: The gripper is the last column of each.
ACTION_SPACES = ("joint_position", "joint_delta", "ee_delta")


@dataclass(frozen=True)
class ActionChunk:
    """One answer of a policy: `execute_steps` rows to run, the rest to look at and blend with.

    Attributes:
        actions: float64 (K, A), the rows to execute; A = joints (or 6) + 1 gripper.
        lookahead: float64 (H - K, A), never executed on its own.
        stamp: s, time of the observation answered, on the clock the cameras are stamped with.
        step_period: s between rows.
        chunk_id: grows by one with every chunk of one policy process.
        task_id: changes with the instruction; rows of two tasks are never blended.
        checkpoint: first 16 hex digits of the checkpoint's SHA-256.
        policy_id: the process that answers; the executor serves one at a time.
        epoch: the executor's recovery epoch the policy last saw; older ones are discarded.
    """

    stamp: float
    chunk_id: int
    step_period: float
    actions: np.ndarray
    lookahead: np.ndarray
    action_space: str = "joint_position"
    joint_names: tuple[str, ...] = ()
    task_id: int = 0
    instruction: str = ""
    checkpoint: str = ""
    epoch: int = 0
    policy_id: str = ""

    @property
    def horizon(self) -> int:
        """Rows predicted, executed and not."""
        return len(self.actions) + len(self.lookahead)

    def target_time(self, k: int) -> float:
        """s, when row `k` is to be reached."""
        return self.stamp + (k + 1) * self.step_period


@dataclass(frozen=True)
class RobotState:
    """Measured and commanded state of the arm at `time` (s, monotonic clock of the executor host)."""

    time: float
    q: np.ndarray
    dq: np.ndarray
    q_d: np.ndarray
    dq_d: np.ndarray
    gripper_width: float = float("nan")
    in_control: bool = False
    error: str = ""


@dataclass(frozen=True)
class Waypoint:
    """A point of the limited reference: joint position (rad) and velocity (rad/s) at `time` (s)."""

    time: float
    q: np.ndarray
    dq: np.ndarray
    ddq: np.ndarray = field(default_factory=lambda: np.zeros(7))
