"""Forward kinematics, Jacobian and inverse kinematics from a profile's DH table; numpy only.

Transforms follow the modified (Craig) convention: frame i is reached from frame i-1 by
Rot_x(alpha(i-1)) Trans_x(a(i-1)) Rot_z(theta(i)) Trans_z(d(i)). Everything is in the robot's base
frame, in m and rad, and takes any leading dimensions.
"""

from __future__ import annotations

import numpy as np

from vipra_ros.control.profile import JOINTS, RobotProfile


class IkError(ValueError):
    """A pose cannot be reached; the message says by how much and what to do."""


def frames(profile: RobotProfile, q: np.ndarray) -> np.ndarray:
    """All frames along the arm: joints 1 to 7, flange, TCP.

    Args:
        q: joint positions (..., 7).

    Returns:
        (..., 9, 4, 4) homogeneous transforms from the base.
    """
    q = np.asarray(q, float)
    cos, sin = np.cos(q), np.sin(q)
    links = np.zeros((*q.shape, 4, 4))
    ca, sa = np.cos(profile.dh_alpha), np.sin(profile.dh_alpha)
    d, a = np.asarray(profile.dh_d), np.asarray(profile.dh_a)
    links[..., 0, 0], links[..., 0, 1], links[..., 0, 3] = cos, -sin, a
    links[..., 1, 0], links[..., 1, 1], links[..., 1, 2], links[..., 1, 3] = sin * ca, cos * ca, -sa, -d * sa
    links[..., 2, 0], links[..., 2, 1], links[..., 2, 2], links[..., 2, 3] = sin * sa, cos * sa, ca, d * ca
    links[..., 3, 3] = 1.0
    out = np.empty((*q.shape[:-1], JOINTS + 2, 4, 4))
    pose = links[..., 0, :, :]
    out[..., 0, :, :] = pose
    for i in range(1, JOINTS):
        pose = pose @ links[..., i, :, :]
        out[..., i, :, :] = pose
    pose = pose @ _along_z(profile.flange, 0.0)
    out[..., JOINTS, :, :] = pose
    out[..., JOINTS + 1, :, :] = pose @ _along_z(profile.tcp, profile.tcp_rotation)
    return out


def forward(profile: RobotProfile, q: np.ndarray, frame: str = "tcp") -> np.ndarray:
    """Pose (..., 4, 4) of the TCP (or of the "flange") at joint positions `q` (..., 7)."""
    return frames(profile, q)[..., _index(frame), :, :]


def jacobian(profile: RobotProfile, q: np.ndarray, frame: str = "tcp") -> np.ndarray:
    """Geometric Jacobian (..., 6, 7): rows vx vy vz wx wy wz in the base frame, per rad/s of each joint."""
    return _jacobian(frames(profile, q), _index(frame))


def solve(
    profile: RobotProfile,
    pose: np.ndarray,
    q0: np.ndarray,
    *,
    posture: np.ndarray | None = None,
    frame: str = "tcp",
    iterations: int = 200,
    tolerance: float = 1e-8,
    damping: float = 1e-2,
    posture_gain: float = 0.02,
) -> tuple[np.ndarray, np.ndarray]:
    """Damped least squares from `q0`, kept within the position limits less their margin.

    Args:
        pose: wanted pose (4, 4).
        q0: start (7,); the solution stays on its branch.
        posture: pulled towards in the Jacobian's null space; `q0` when None.
        tolerance: m and rad; the iteration ends when the pose error's norm is below.

    Returns:
        q (7,) and the remaining error (6,): translation in m, rotation vector in rad.
    """
    pose, index = np.asarray(pose, float), _index(frame)
    q = np.clip(np.asarray(q0, float), profile.lower, profile.upper)
    posture = np.asarray(q0 if posture is None else posture, float)
    best, best_error = q, np.full(6, np.inf)
    free = np.ones(JOINTS)
    for _ in range(iterations):
        chain = frames(profile, q)
        error = pose_error(chain[index], pose)
        if np.linalg.norm(error) < np.linalg.norm(best_error):
            best, best_error = q, error
        if np.linalg.norm(error) < tolerance:
            break
        matrix = _jacobian(chain, index) * free  # a joint held at its limit takes no part
        # Damping in proportion to the error: quadratic convergence near the goal, calm far from it.
        weight = damping**2 * min(1.0, float(error @ error) + 1e-9) + 1e-10
        gram = matrix @ matrix.T + weight * np.eye(6)
        inverse = np.linalg.solve(gram, matrix).T
        pull = posture_gain * free * (posture - q)
        step = inverse @ error + pull - inverse @ (matrix @ pull)
        longest = float(np.max(np.abs(step)))
        wanted = q + step * min(1.0, 0.3 / longest) if longest > 0 else q
        q = np.clip(wanted, profile.lower, profile.upper)
        free = np.where((wanted != q) & (np.abs(step) > 0), 0.0, 1.0)
    return best, best_error


def ik(
    profile: RobotProfile,
    pose: np.ndarray,
    q0: np.ndarray,
    *,
    posture: np.ndarray | None = None,
    accuracy: float = 1e-4,
    frame: str = "tcp",
) -> np.ndarray:
    """Joint positions (7,) that bring the TCP to `pose` (4, 4), near `q0`.

    Raises:
        IkError: the remaining error exceeds `accuracy` (m and rad).
    """
    q, error = solve(profile, pose, q0, posture=posture, frame=frame, tolerance=min(1e-8, accuracy))
    if not np.linalg.norm(error) <= accuracy:
        place = ", ".join(f"{v:.3f}" for v in np.asarray(pose)[:3, 3])
        raise IkError(
            f"pose at ({place}) m is missed by {1e3 * np.linalg.norm(error[:3]):.1f} mm and "
            f"{np.linalg.norm(error[3:]):.3f} rad; choose one within reach of {profile.name}"
        )
    return q


def pose_error(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(..., 6) from `pose` to `goal` (..., 4, 4): translation (m) and rotation vector (rad), base frame."""
    turn = goal[..., :3, :3] @ np.swapaxes(pose[..., :3, :3], -1, -2)
    return np.concatenate([goal[..., :3, 3] - pose[..., :3, 3], rotation_vector(turn)], axis=-1)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (..., 3) of a rotation matrix (..., 3, 3); exact up to and at half a turn."""
    r = np.asarray(rotation, float)
    axis = 0.5 * np.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1)
    sin = np.linalg.norm(axis, axis=-1, keepdims=True)
    cos = 0.5 * (np.trace(r, axis1=-2, axis2=-1)[..., None] - 1.0)
    angle = np.arctan2(sin, cos)
    small = sin < 1e-6
    scaled = axis * np.where(small, 1.0, angle / np.where(small, 1.0, sin))
    if np.any(small & (cos < 0)):  # near half a turn the antisymmetric part vanishes: use R + I = 2 n n^T
        outer = 0.5 * (r + np.eye(3))
        k = np.argmax(np.einsum("...ii->...i", outer), axis=-1)[..., None, None]
        column = np.take_along_axis(outer, np.broadcast_to(k, (*k.shape[:-2], 3, 1)), axis=-1)[..., 0]
        column = column / np.linalg.norm(column, axis=-1, keepdims=True)
        column = column * np.where(np.sum(column * axis, -1, keepdims=True) < 0, -1.0, 1.0)
        scaled = np.where(small & (cos < 0), angle * column, scaled)
    return scaled


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of axis times angle (3,), by Rodrigues' formula."""
    vector = np.asarray(vector, float)
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * skew + second * skew @ skew


def _jacobian(chain: np.ndarray, index: int) -> np.ndarray:
    axes = chain[..., :JOINTS, :3, 2]
    arms = chain[..., index, None, :3, 3] - chain[..., :JOINTS, :3, 3]
    return np.swapaxes(np.concatenate([np.cross(axes, arms), axes], axis=-1), -1, -2)


def _along_z(distance: float, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0, 0.0], [s, c, 0.0, 0.0], [0.0, 0.0, 1.0, distance], [0.0, 0.0, 0.0, 1.0]])


def _index(frame: str) -> int:
    try:
        return {"flange": JOINTS, "tcp": JOINTS + 1}[frame]
    except KeyError:
        raise IkError(f"frame {frame!r} is unknown; use 'tcp' or 'flange'") from None
