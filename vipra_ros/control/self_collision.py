"""How near the arm comes to itself: the distance between capsules around its links.

The capsules are those Franka describes its arms by (franka_description, robots/common/franka_arm.xacro and
end_effectors/common/franka_hand.xacro, without their safety distance). A pair counts when its links are three joints
apart or more: nearer ones touch by construction and are kept apart by joint limits. The hand counts as link 7.

Distance of two segments: C. Ericson, Real-Time Collision Detection (2005), section 5.1.9.
"""

from __future__ import annotations

import numpy as np

from vipra_ros.control.profile import JOINTS, RobotProfile

#: Joints between two links that can collide.
APART = 3
#: m^2; a segment shorter than the root of this is a point, two are parallel below it.
TINY = 1e-12


class SelfCollision:
    """Measures the least distance between links that can meet.

    Args:
        profile: its capsules and their clearance; without capsules every position is clear.
    """

    def __init__(self, profile: RobotProfile):
        capsules = profile.capsules
        self._link = np.array([c.link for c in capsules], int)
        self._ends = np.array([(c.start, c.end) for c in capsules], float).reshape(-1, 2, 3)
        moved = np.minimum(self._link, JOINTS)
        first, second = np.nonzero(moved[None] - moved[:, None] >= APART)
        self._first, self._second = first, second
        radius = np.array([c.radius for c in capsules], float)
        self._reach = radius[first] + radius[second]
        self._clearance = profile.self_clearance

    def excess(self, frames: np.ndarray) -> np.ndarray:
        """m (...) by which the nearest pair is closer than the clearance; -inf without capsules.

        Args:
            frames: transforms (..., 9, 4, 4) along the arm, of kinematics.frames.
        """
        if not len(self._first):
            return np.full(frames.shape[:-3], -np.inf)
        return self._clearance - self.distances(frames).min(-1)

    def distances(self, frames: np.ndarray) -> np.ndarray:
        """m (..., pairs) between the surfaces of each pair; negative where they overlap."""
        base = np.broadcast_to(np.eye(4), (*frames.shape[:-3], 1, 4, 4))
        pose = np.concatenate([base, frames[..., : JOINTS + 1, :, :]], -3)[..., self._link, :, :]
        ends = np.einsum("...cij,cej->...cei", pose[..., :3, :3], self._ends) + pose[..., None, :3, 3]
        a, b = ends[..., self._first, :, :], ends[..., self._second, :, :]
        return _apart(a[..., 0, :], a[..., 1, :], b[..., 0, :], b[..., 1, :]) - self._reach


def _apart(p1: np.ndarray, q1: np.ndarray, p2: np.ndarray, q2: np.ndarray) -> np.ndarray:
    """Distance (...) of the segments p1 q1 and p2 q2, each (..., 3)."""
    d1, d2, r = q1 - p1, q2 - p2, p1 - p2
    a, b, e = _dot(d1, d1), _dot(d1, d2), _dot(d2, d2)
    c, f = _dot(d1, r), _dot(d2, r)
    area = a * e - b * b
    s = np.where(area > TINY, np.clip((b * f - c * e) / np.maximum(area, TINY), 0.0, 1.0), 0.0)
    t = np.clip((b * s + f) / np.maximum(e, TINY), 0.0, 1.0)
    s = np.clip((b * t - c) / np.maximum(a, TINY), 0.0, 1.0)
    gap = r + s[..., None] * d1 - t[..., None] * d2
    return np.sqrt(_dot(gap, gap))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", a, b)
