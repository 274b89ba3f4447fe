"""What a person with a leader arm would do in the simulated scene: the scripted expert's way, as leader poses.

Everything follows from the task and the seed of the scene, so no simulator is asked where its cubes are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.control import kinematics
from vipra_ros.control.profile import RobotProfile
from vipra_ros.sim import expert, tasks

#: s between poses.
PERIOD = 0.04


@dataclass(frozen=True)
class Demonstration:
    """Poses of the leader.

    Attributes:
        instruction: of the scene.
        rows: (N, 8), joints in rad and gripper (+1 open, -1 closed); row k is due (k + 1) PERIOD after the start.
    """

    instruction: str
    rows: np.ndarray

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.rows) * PERIOD


def demonstrate(profile: RobotProfile, task: str, seed: int, q: np.ndarray) -> Demonstration:
    """The expert's way from the pose `q` (7,) rad through the scene of (task, seed).

    Raises:
        ConfigError: there is no such task, or the way leaves the arm's reach from this pose.
    """
    try:
        start = tasks.sample_start(task, seed)
        x, y, yaw = start.cubes[start.goal.colour]
        tool = kinematics.forward(profile, q)
        way = expert.legs(start.goal, np.array([x, y, tasks.CUBE_SIZE / 2]), yaw, tool[:3, 3])
        turned = float(np.arctan2(tool[1, 0], tool[0, 0]))

        def ik(pose: np.ndarray, near: np.ndarray) -> np.ndarray:
            return kinematics.ik(profile, pose, near)

        rows = expert.rows(way, tool[:3, 3], np.asarray(q, float), PERIOD, ik, turned)
    except ValueError as error:  # of the task or the kinematics
        raise ConfigError(f"demonstration of {task}, seed {seed}: {error}") from None
    return Demonstration(start.goal.instruction, rows)
