"""Actions as increments: what `control.actions.absolute` adds up again."""

from __future__ import annotations

import numpy as np

from vipra_ros.control import kinematics
from vipra_ros.control.chunk import ACTION_SPACES
from vipra_ros.control.profile import RobotProfile
from vipra_ros.data.resample import EpisodeError

EE_NAMES = ("x", "y", "z", "rx", "ry", "rz")


def increments(
    before: np.ndarray, after: np.ndarray, space: str, names: tuple[str, ...], profile: RobotProfile | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows that lead from the commands `before` (N, J) to `after` (N, J), rad, and the names of their columns.

    joint_delta: rad (N, J). ee_delta: (N, 6), translation (m) and rotation vector (rad) of the TCP in the base
    frame, the rotation applied from the left.

    Raises:
        EpisodeError: no such space, or the arm is not the profile's.
    """
    if space == "joint_delta":
        return after - before, names
    if space != "ee_delta":
        raise EpisodeError(f"action space {space!r}: choose one of {', '.join(ACTION_SPACES)}")
    if profile is None or names != profile.joint_names:
        raise EpisodeError(
            f"ee_delta needs the arm's geometry, but joints {', '.join(names)} are not those of profile "
            f"{profile.name if profile else 'none'}; choose the profile, or rename the joints in the topic map"
        )
    return kinematics.pose_error(kinematics.forward(profile, before), kinematics.forward(profile, after)), EE_NAMES
