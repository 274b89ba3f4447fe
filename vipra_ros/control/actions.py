"""Action rows of every action space, and the way home, become absolute joint rows."""

from __future__ import annotations

import numpy as np
import ruckig

from vipra_ros.control import kinematics
from vipra_ros.control.profile import JOINTS, RobotProfile

#: Iterations of the inverse kinematics for one row; rows are a step apart, so few suffice. And for one behind a row
#: that is out of reach by more than MISSED (m, rad): the executor waits for all rows, its operator's stop included.
ROW_ITERATIONS, MISSED_ITERATIONS, MISSED = 12, 3, 5e-3


def absolute(profile: RobotProfile, action_space: str, rows: np.ndarray, base: np.ndarray, skip: int) -> np.ndarray:
    """Absolute joint positions (H, 7) of action rows (H, A), gripper column ignored.

    Args:
        action_space: one of ACTION_SPACES.
        base: rad (7,), the command that the first row still to come starts from.
        skip: rows that come too late; increments among them are lost, not made up by a jump. So are those of `ee_delta`
            that lead out of reach.
    """
    body = rows[:, :-1]
    if action_space == "joint_position":
        return body.copy()
    out = np.tile(base, (len(rows), 1))
    if action_space == "joint_delta":
        out[skip:] = base + np.cumsum(body[skip:], axis=0)
        return out
    q, reached = np.clip(base, profile.lower, profile.upper), True  # an arm beyond its margin comes back first
    pose = kinematics.forward(profile, q)
    for k in range(skip, len(rows)):
        wanted = pose.copy()
        wanted[:3, 3] += body[k, :3]
        wanted[:3, :3] = kinematics.rotation_matrix(body[k, 3:6]) @ pose[:3, :3]
        there, error = kinematics.solve(
            profile,
            wanted,
            q,
            posture=profile.home_q,
            iterations=ROW_ITERATIONS if reached else MISSED_ITERATIONS,
            tolerance=1e-5,
            posture_gain=0.005,
        )
        if reached := bool(np.linalg.norm(error) < MISSED):
            pose, q = wanted, there
        out[k] = q
    return out


#: Rows of the way home, planned at once, while an operator's stop waits; s between those of a short way.
HOME_ROWS, HOME_PERIOD = 200, 1 / 15


def way_home(profile: RobotProfile, q: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """Rows (n, 7) from `q` (7,) straight to the home pose, and the s between them.

    Planned with `share` of the velocity limit and half the others, so the limiter has nothing to change;
    two rows more than needed let it settle.
    """
    velocity, acceleration, jerk = profile.limits
    i = ruckig.InputParameter(JOINTS)
    i.current_position, i.target_position = np.clip(q, profile.lower, profile.upper), profile.home_q
    i.max_velocity, i.max_acceleration, i.max_jerk = share * velocity, 0.5 * acceleration, 0.5 * jerk
    trajectory = ruckig.Trajectory(JOINTS)
    ruckig.Ruckig(JOINTS).calculate(i, trajectory)
    period = max(HOME_PERIOD, trajectory.duration / HOME_ROWS)
    count = max(1, int(np.ceil(trajectory.duration / period))) + 2
    rows = [trajectory.at_time(min((k + 1) * period, trajectory.duration))[0] for k in range(count)]
    return np.array(rows), period
