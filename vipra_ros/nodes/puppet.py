"""A policy that can be spoilt: chunks along a known path, from a process of its own. For the fault table.

Reads words from standard input, one a line: `well`, `delay S`, `drop SHARE`, `twice`, `nan`, `jump S`, `freeze`.
"""

from __future__ import annotations

import random
import sys
import threading
import time

import numpy as np

#: Hz of chunks, s between rows; rad and Hz of the path about the home pose.
RATE, PERIOD, SIZE, SWING = 4.0, 1 / 15, 0.25, 0.15
#: s without a word of the executor's epoch before the first chunk.
SETTLE = 0.5


def path(home: np.ndarray, t: float) -> np.ndarray:
    """rad (7,) at `t` s."""
    return home + SIZE * np.array([1, 0.3, 1, 0.3, 1, 0.5, 1]) * np.sin(2 * np.pi * SWING * t)


def publish() -> None:
    """Publish until standard input ends."""
    import rclpy

    from vipra_ros.control.profile import load_profile
    from vipra_ros.msg import ActionChunk, ExecutorStatus

    rclpy.init()
    node, profile, spoilt = rclpy.create_node("puppet"), load_profile("fr3"), ["well"]
    epoch, name, ids, frozen = [0], f"puppet-{random.randrange(10**6)}", 0, None
    publisher = node.create_publisher(ActionChunk, "policy/chunk", 1)
    node.create_subscription(ExecutorStatus, "executor/status", lambda m: epoch.__setitem__(0, m.epoch), 10)

    def listen() -> None:
        for line in sys.stdin:
            spoilt[:] = line.split() or ["well"]
        rclpy.try_shutdown()

    threading.Thread(target=listen, daemon=True).start()
    due = time.monotonic() + SETTLE
    while rclpy.ok():
        rclpy.spin_once(node, timeout_sec=0.01)
        if time.monotonic() < due:
            continue
        due = time.monotonic() + 1 / RATE
        word, value = spoilt[0], float(spoilt[1]) if len(spoilt) > 1 else 0.0
        if word == "drop" and random.random() < value:
            continue
        now = time.time()
        shift = {"delay": -value, "jump": value}.get(word, 0.0)
        frozen = (frozen or now) if word == "freeze" else None
        stamp = (frozen or now) + shift
        rows = np.array([np.append(path(profile.home_q, stamp + (k + 1) * PERIOD), 1.0) for k in range(14)])
        if word == "nan":
            rows[:] = np.nan
        ids += 1
        message = ActionChunk(
            chunk_id=ids, policy_id=name, epoch=epoch[0], action_space="joint_position", step_period=PERIOD,
            joint_names=list(profile.joint_names), horizon=14, execute_steps=7, action_size=8,
            actions=rows[:7].ravel().tolist(), lookahead=rows[7:].ravel().tolist(), instruction="fault table")
        message.header.stamp.sec, message.header.stamp.nanosec = int(stamp), int(stamp % 1 * 1e9)
        for _ in range(2 if word == "twice" else 1):
            publisher.publish(message)
            time.sleep(0.01)


if __name__ == "__main__":
    publish()
