"""Limits that the robot reports itself, in the URDF it hands out at connect: where stricter, they win."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import JOINTS, RobotProfile

#: Places between two position limits at which two laws are compared.
PLACES = 400
#: rad/s by which the robot's law may be the stricter one: a hundredth of what is used, and rounding in its file.
SLACK = 0.01


def tighten(profile: RobotProfile, urdf: str) -> RobotProfile:
    """`profile` with the position and velocity limits of `urdf` (the first seven revolute joints) where stricter.

    libfranka's `Robot::getRobotModel` and its `<limit>` and `<position_based_velocity_limits>` tags.

    Raises:
        ConfigError: the URDF has no seven limited joints, or allows less speed near a limit than the profile.
    """
    try:
        joints = [j for j in ElementTree.fromstring(urdf).iter("joint") if j.get("type") == "revolute"][:JOINTS]
        rows = [[float(j.find("limit").get(key)) for key in ("lower", "upper", "velocity")] for j in joints]
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"the robot's own description cannot be read ({error}); update its system image") from None
    if len(rows) < JOINTS:
        raise ConfigError(f"the robot describes {len(rows)} revolute joints; expected {JOINTS}, check the robot")
    low, high, speed = np.array(rows).T
    tightened = profile.tightened(q_min=low, q_max=high, velocity=speed)
    for k, joint in enumerate(joints):
        law = joint.find("position_based_velocity_limits")
        if law is not None:
            values = (float(law.get("velocity_offset")), float(law.get("deceleration_limit")))
            _compare(tightened, k, low[k], high[k], *values)
    return tightened


def _compare(p: RobotProfile, k: int, low: float, high: float, offset: float, deceleration: float) -> None:
    """Two such laws cross and neither is the stricter one; up to the speed that the reference uses ours must be."""
    q = np.tile(p.home_q, (PLACES, 1))
    q[:, k] = np.linspace(p.lower[k], p.upper[k], PLACES)
    down, up = p.velocity_bounds(q)
    used = p.limits[0][k]
    for ours, room in ((up[:, k], high - q[:, k]), (-down[:, k], q[:, k] - low)):
        theirs = np.sqrt(2 * deceleration * np.maximum(0.0, room)) - offset
        worst = int(np.argmax(np.minimum(ours, used) - theirs))
        if min(ours[worst], used) > theirs[worst] + SLACK:
            raise ConfigError(
                f"{p.joint_names[k]}: the robot allows {max(0.0, theirs[worst]):.2f} rad/s at {q[worst, k]:.2f} rad, "
                f"the profile {ours[worst]:.2f}; copy velocity_offset {offset}, velocity_deceleration {deceleration} "
                f"into the profile"
            )
