"""Shared by the control tests: an independent judge of emitted samples, and a virtual arm around the core.

The judge is written from libfranka's rate_limiting.h and the FCI documentation (differences of 1 kHz
samples), from the DH table written out again, from the meshes of the links (hulls.py), and from nothing of ours.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.executor import ExecutorCore, ExecutorSettings
from vipra_ros.control.profile import load_profile
from vipra_ros.control.sinks import PreviewHand, PreviewSink

sys.path.insert(0, str(Path(__file__).parent))
from hulls import nearest

T = 1 / 15
FR3_MAX = np.array([2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196])
FR3_MIN = np.array([-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196])


def fr3_velocity_limits(q):
    """computeUpperLimitsJointVelocity / computeLowerLimitsJointVelocity of libfranka, (n, 7)."""
    upper = np.stack(
        [
            np.minimum(2.62, np.maximum(0, -0.30 + np.sqrt(np.maximum(0, 12.0 * (2.75010 - q[:, 0]))))),
            np.minimum(2.62, np.maximum(0, -0.20 + np.sqrt(np.maximum(0, 5.17 * (1.79180 - q[:, 1]))))),
            np.minimum(2.62, np.maximum(0, -0.20 + np.sqrt(np.maximum(0, 7.00 * (2.90650 - q[:, 2]))))),
            np.minimum(2.62, np.maximum(0, -0.30 + np.sqrt(np.maximum(0, 8.00 * (-0.1458 - q[:, 3]))))),
            np.minimum(5.26, np.maximum(0, -0.35 + np.sqrt(np.maximum(0, 34.0 * (2.81010 - q[:, 4]))))),
            np.minimum(4.18, np.maximum(0, -0.35 + np.sqrt(np.maximum(0, 11.0 * (4.52050 - q[:, 5]))))),
            np.minimum(5.26, np.maximum(0, -0.35 + np.sqrt(np.maximum(0, 34.0 * (3.01960 - q[:, 6]))))),
        ],
        1,
    )
    lower = np.stack(
        [
            np.maximum(-2.62, np.minimum(0, 0.30 - np.sqrt(np.maximum(0, 12.0 * (2.750100 + q[:, 0]))))),
            np.maximum(-2.62, np.minimum(0, 0.20 - np.sqrt(np.maximum(0, 5.17 * (1.791800 + q[:, 1]))))),
            np.maximum(-2.62, np.minimum(0, 0.20 - np.sqrt(np.maximum(0, 7.00 * (2.906500 + q[:, 2]))))),
            np.maximum(-2.62, np.minimum(0, 0.30 - np.sqrt(np.maximum(0, 8.00 * (3.048100 + q[:, 3]))))),
            np.maximum(-5.26, np.minimum(0, 0.35 - np.sqrt(np.maximum(0, 34.0 * (2.810100 + q[:, 4]))))),
            np.maximum(-4.18, np.minimum(0, 0.35 - np.sqrt(np.maximum(0, 11.0 * (-0.54092 + q[:, 5]))))),
            np.maximum(-5.26, np.minimum(0, 0.35 - np.sqrt(np.maximum(0, 34.0 * (3.019600 + q[:, 6]))))),
        ],
        1,
    )
    return lower, upper


def tcp(q):
    """Place of the hand's TCP (n, 3), m, by Franka's published DH table."""
    rows = [
        (0, 0.333, 0),
        (0, 0, -np.pi / 2),
        (0, 0.316, np.pi / 2),
        (0.0825, 0, np.pi / 2),
        (-0.0825, 0.384, -np.pi / 2),
        (0, 0, np.pi / 2),
        (0.088, 0, np.pi / 2),
    ]
    pose = np.tile(np.eye(4), (len(q), 1, 1))
    for (a, d, alpha), angle in zip(rows, q.T):
        turn_x = np.array(
            [
                [1, 0, 0, a],
                [0, np.cos(alpha), -np.sin(alpha), 0],
                [0, np.sin(alpha), np.cos(alpha), 0],
                [0, 0, 0, 1],
            ]
        )
        turn_z = np.tile(np.eye(4), (len(q), 1, 1))
        turn_z[:, 0, 0] = turn_z[:, 1, 1] = np.cos(angle)
        turn_z[:, 1, 0], turn_z[:, 0, 1], turn_z[:, 2, 3] = np.sin(angle), -np.sin(angle), d
        pose = pose @ turn_x @ turn_z
    return pose[:, :3, 3] + pose[:, :3, 2] * (0.107 + 0.1034)


def violations(q, dt=0.001):
    """What 1 kHz position samples (n, 7) of an FR3 reference do wrong; empty when nothing.

    Velocities, accelerations and jerks are the differences the robot itself would form. Checked against
    the robot's limits and against the stricter ones that ROBOT-side clamps promise (2.0, 7, 3500 times 0.6).
    """
    wrong = []

    def check(name, excess, slack):
        if len(excess) and excess.max() > slack:
            k, joint = np.unravel_index(int(excess.argmax()), excess.shape)
            wrong.append(f"{name}: joint {joint + 1} by {excess.max():.3g} at {k * dt:.3f} s")

    check("position margin", np.maximum(q - (FR3_MAX - 0.05), (FR3_MIN + 0.05) - q), 1e-4)
    v = np.diff(q, axis=0) / dt
    low, high = fr3_velocity_limits(q[1:])
    check("position-dependent velocity", np.maximum(v - high, low - v), 1e-6)
    check("velocity", np.abs(v) - 1.2, 1e-6)
    a = np.diff(v, axis=0) / dt
    check("acceleration", np.abs(a) - 4.2, 1e-4)
    check("jerk", np.abs(np.diff(a, axis=0) / dt) - 2100.0, 0.5)
    place = tcp(q)
    check(
        "workspace",
        np.maximum(np.array([0.20, -0.55, 0.005]) - place, place - np.array([0.80, 0.55, 0.85])),
        1e-3,
    )
    distance, links = nearest(q[::20])
    k = int(distance.argmin()) if len(distance) else 0
    if len(distance) and distance[k] < 0.05 - 1e-3:
        wrong.append(f"links {links[k]} {distance[k]:.3f} m from each other at {20 * k * dt:.3f} s")
    return wrong


@dataclass
class Rig:
    """The core with a virtual arm that follows perfectly, sampled at 1 kHz as it goes."""

    settings: ExecutorSettings = field(default_factory=ExecutorSettings)
    q0: np.ndarray | None = None
    start: float = 100.0

    def __post_init__(self):
        self.profile = load_profile("fr3")
        self.streamed = []
        self.sink, self.hand = PreviewSink(self.streamed.append), PreviewHand()
        self.core = ExecutorCore(self.profile, self.settings, self.sink, self.hand)
        self.now, self.samples, self._count, self.ids = self.start, [], 0, 0
        self.q0 = self.profile.home_q if self.q0 is None else self.q0
        self.state_time = None  # set: the robot state stops being renewed
        self.error, self.offset = "", np.zeros(7)
        self.core.tick(self.now, self.state())

    def state(self):
        """What the arm reports now."""
        reference = self.core.reference()
        q, dq = (self.q0, np.zeros(7)) if reference is None else reference.at(self.now)[:2]
        return RobotState(
            self.now if self.state_time is None else self.state_time,
            q + self.offset,
            dq,
            q,
            dq,
            in_control=True,
            error=self.error,
        )

    def tick(self, dt=0.01):
        """Let time pass, sample what was commanded meanwhile, then one pass of the loop."""
        end = self.now + dt
        while self.start + self._count * 0.001 <= end:
            self.samples.append(self.core.reference().at(self.start + self._count * 0.001)[0])
            self._count += 1
        self.now = end
        self.core.tick(self.now, self.state())

    def run(self, seconds, dt=0.01):
        """Ticks for a while."""
        for _ in range(round(seconds / dt)):
            self.tick(dt)

    def chunk(self, path=None, execute=7, horizon=14, gripper=1.0, **changes):
        """A chunk whose row k is `path(t)` at its target time t; `path` None stays at home."""
        self.ids += 1
        stamp = changes.pop("stamp", self.now)
        times = stamp + T * np.arange(1, horizon + 1)
        rows = np.array([self.profile.home_q if path is None else path(t) for t in times])
        rows = np.column_stack([rows, np.full(horizon, gripper)])
        values = dict(
            stamp=stamp,
            chunk_id=self.ids,
            step_period=T,
            actions=rows[:execute],
            lookahead=rows[execute:],
            joint_names=self.profile.joint_names,
            epoch=self.core.epoch,
        )
        return ActionChunk(**(values | changes))

    def offer(self, *args, **changes):
        """Offer :meth:`chunk`."""
        return self.core.offer(self.chunk(*args, **changes), self.now)

    def arm(self):
        """Arm, and insist."""
        result = self.core.arm(self.now)
        assert result.success, result.message

    def wrong(self):
        """Violations of everything commanded so far."""
        return violations(np.array(self.samples))


@pytest.fixture
def make_rig():
    """Rig(...) by keyword."""
    return Rig


@pytest.fixture(name="violations")
def violations_fixture():
    """The independent judge."""
    return violations
