"""Where the arm may be: a box for the TCP, a clearance over the table, and a distance between its own links."""

from __future__ import annotations

import numpy as np

from vipra_ros.control import kinematics
from vipra_ros.control.profile import RobotProfile
from vipra_ros.control.self_collision import SelfCollision

#: rad and m; numerical slack of the checks.
SLACK = 1e-6
#: m; the workspace is planned smaller by this, for what the checks between their points cannot see.
WORKSPACE_RESERVE = 2e-3


class WorkspaceCheck:
    """Measures by how much joint positions are outside, and moves them inside."""

    def __init__(self, profile: RobotProfile):
        self.profile, self._self = profile, SelfCollision(profile)

    def inside(self, q0: np.ndarray, q: np.ndarray) -> np.ndarray:
        """The position near `q` with the nearest TCP inside; else from `q0` towards it as far as allowed."""
        p, box = self.profile, self.profile.workspace
        low = np.maximum(box.low, [-np.inf, -np.inf, box.floor + box.tcp_clearance]) + WORKSPACE_RESERVE + 1e-4
        high = np.asarray(box.high) - WORKSPACE_RESERVE - 1e-4
        moved = q.copy()
        for _ in range(5):
            chain = kinematics.frames(p, moved)
            tcp = chain[-1, :3, 3]
            lack = np.clip(tcp, low, high) - tcp
            if np.abs(lack).max() < 1e-9:
                break
            matrix = kinematics.jacobian(p, moved)  # keep the orientation, correct the place
            step = matrix.T @ np.linalg.solve(matrix @ matrix.T + 1e-4 * np.eye(6), np.concatenate([lack, np.zeros(3)]))
            moved = np.clip(moved + np.clip(step, -0.2, 0.2), p.lower, p.upper)
        if (self.excess(moved[None]) <= SLACK).all():
            return moved
        shares = np.linspace(0.0, 1.0, 17)[:, None]
        way = np.clip(q0 + shares * (q - q0), p.lower, p.upper)
        excess = self.excess(way)
        bad = np.flatnonzero((excess > np.maximum(excess[0], 0.0) + SLACK).any(-1))
        return way[max(0, bad[0] - 1)] if len(bad) else way[-1]

    def excess(self, q: np.ndarray) -> np.ndarray:
        """(n, 2) m by which positions (n, 7) are wrong: the worst point outside the box or under its clearance over
        the table, the nearest two links under their clearance from each other."""
        box, frames = self.profile.workspace, kinematics.frames(self.profile, q)
        place = frames[..., 4:, :3, 3]  # joints 5, 6, 7, flange, TCP
        tcp = place[..., -1, :]
        outside = np.stack(
            [
                np.max(np.asarray(box.low) - tcp, -1),
                np.max(tcp - np.asarray(box.high), -1),
                box.floor + box.tcp_clearance - tcp[..., 2],
                box.floor + box.link_clearance - np.min(place[..., :-1, 2], -1),
            ],
            -1,
        )
        return np.stack([np.max(outside, -1), self._self.excess(frames)], -1) + WORKSPACE_RESERVE
