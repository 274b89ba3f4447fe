"""Several arms behind one policy: each has a namespace with its executor, joints and chunks of its own.

The policy's loop knows one arm. Here the arms are made into one for it: it hears one executor, which is ready when all
are, and one vector of joints; its chunk is cut into one per arm. All carry the stamp of the same observation, and rows
are due by that stamp: that is what starts them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import JointState

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.msg import ActionChunk as ChunkMessage
from vipra_ros.msg import ExecutorStatus
from vipra_ros.nodes import convert
from vipra_ros.nodes.quality import COMMAND, LATCHED
from vipra_ros.policy.loop import EXECUTOR_TIMEOUT, READY, PolicyLoop
from vipra_ros.policy.plan import Plan

#: s between the joints of two arms that still make one observation.
APART = 0.1


class Arms:
    """Topics of all arms of `loop.plan`, made one.

    Args:
        node: makes publishers and subscriptions.
        vector: (JointState, names) -> joints and the gripper's opening (n + 1,), or None if the message lacks one.
        since: ns of a stamp -> s on the loop's clock.
    """

    def __init__(self, node: Node, loop: PolicyLoop, vector: Callable, since: Callable[[int], float]):
        plan: Plan = loop.plan
        self._loop, self._vector, self._since = loop, vector, since
        each = len(plan.joint_names) // len(plan.arms)
        self._names = [plan.joint_names[k * each : (k + 1) * each] for k in range(len(plan.arms))]
        self._said: list[tuple[float, int, int, int] | None] = [None] * len(plan.arms)  # when, state, epoch, queue
        self._joints: list[tuple[float, np.ndarray] | None] = [None] * len(plan.arms)
        self._epochs: dict[int, tuple[int, ...]] = {}  # of all arms together -> of each
        self._out = []
        for k, arm in enumerate(plan.arms):
            self._out.append(node.create_publisher(ChunkMessage, f"{arm}/policy/chunk", COMMAND))
            node.create_subscription(ExecutorStatus, f"{arm}/executor/status", self._status_of(k), LATCHED)
            node.create_subscription(JointState, f"{arm}/joint_states", self._joints_of(k), qos_profile_sensor_data)

    def publish(self, chunk: ActionChunk, stamp: Time) -> None:
        """Each arm's columns to its executor."""
        epochs = self._epochs.get(chunk.epoch, (0,) * len(self._out))
        width = len(self._names[0]) + 1
        for k, (out, epoch, names) in enumerate(zip(self._out, epochs, self._names)):
            own = slice(k * width, (k + 1) * width)
            part = replace(chunk, actions=chunk.actions[:, own], lookahead=chunk.lookahead[:, own],
                           joint_names=names, epoch=epoch)
            out.publish(convert.chunk_message(part, stamp))

    def _status_of(self, k: int) -> Callable[[ExecutorStatus], None]:
        def heard(message: ExecutorStatus) -> None:
            now = time.monotonic()
            self._said[k] = now, message.state, message.epoch, message.queue
            # While one is silent nothing is passed on: to the loop the executor is gone, which is right.
            if all(s is not None and now - s[0] < EXECUTOR_TIMEOUT for s in self._said):
                self._loop.executor(*self._together())

        return heard

    def _together(self) -> tuple[int, int, int]:
        _, states, epochs, queues = zip(*self._said)
        idle = [s for s in states if s not in READY]
        self._epochs[sum(epochs)] = epochs
        return idle[0] if idle else max(states), sum(epochs), min(queues)

    def _joints_of(self, k: int) -> Callable[[JointState], None]:
        def heard(message: JointState) -> None:
            vector = self._vector(message, self._names[k])
            if vector is None:
                return
            stamp = self._since(convert.nanoseconds(message.header.stamp))
            self._joints[k] = stamp, vector
            if k == 0 and all(j is not None and abs(stamp - j[0]) < APART for j in self._joints):
                self._loop.joints(stamp, np.concatenate([j[1] for j in self._joints]))

        return heard
