"""A policy that can be spoilt: the policy node with a network that knows one path. For the fault table.

Everything but the network is the node's own: cameras, history of frames, pace, chunks, status. Reads words from stdin,
one a line: `well`, `nan`, `drop SHARE`, `twice`, `late S`, `jump S`, `think S`, `grip`, `besteffort`.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from dataclasses import replace

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import QoSProfile, ReliabilityPolicy

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.profile import load_profile
from vipra_ros.msg import ActionChunk as ChunkMessage
from vipra_ros.nodes.policy import PolicyNode
from vipra_ros.nodes.run import serve
from vipra_ros.policy.observation import Observation, Prediction
from vipra_ros.policy.plan import Plan

#: s between rows, rows predicted and executed; rad and Hz of the path about the home pose.
PERIOD, HORIZON, EXECUTE, SIZE, SWING = 1 / 15, 14, 7, 0.2, 0.2
#: s between two changes of the hand while it is to grip.
GRIP = 1.5
CAMERA = "front"
UNHEARD = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def path(home: np.ndarray, t: float) -> np.ndarray:
    """rad (7,) at `t` s."""
    return home + SIZE * np.array([1, 0.3, 1, 0.3, 1, 0.5, 1]) * np.sin(2 * np.pi * SWING * t)


class Puppet(PolicyNode):
    """The policy node around a path; it is its own engine."""

    failure = None

    def __init__(self) -> None:
        self._spoilt, self._home = ("well", 0.0), load_profile("fr3").home_q
        self._out = None  # the publisher that nobody hears
        super().__init__()
        threading.Thread(target=self._hear, daemon=True).start()
        print("ready", flush=True)

    def _load(self) -> tuple[object, Plan]:
        names, self._engine_text = load_profile("fr3").joint_names, "puppet"
        return self, Plan((CAMERA,), PERIOD, 2, EXECUTE, "joint_position", names, "puppet")

    def warm_up(self) -> None:
        """There is nothing to warm up."""

    def infer(self, observation: Observation, seed: int | None) -> Prediction:
        """Where the path is at the times of the rows: the same for every policy, whenever it was started."""
        del seed
        word, value = self._spoilt
        if word == "think":
            print("thinks", flush=True)
            time.sleep(value)
        begin = observation.stamp + self._origin * 1e-9
        grip = -1.0 if word == "grip" and time.monotonic() % (2 * GRIP) < GRIP else 1.0
        rows = [np.append(path(self._home, begin + (k + 1) * PERIOD), grip) for k in range(HORIZON)]
        return Prediction(np.array(rows) * (np.nan if word == "nan" else 1.0))

    def _publish(self, chunk: ActionChunk) -> None:
        word, value = self._spoilt
        if word == "drop" and random.random() < value:
            return
        self._choose(word == "besteffort")
        if word == "late":
            time.sleep(value)
        super()._publish(replace(chunk, stamp=chunk.stamp + value) if word == "jump" else chunk)
        if word == "twice":
            time.sleep(0.01)
            super()._publish(chunk)

    def _choose(self, unheard: bool) -> None:
        """In the thread that publishes; no event callbacks: the other thread may be waiting for one that ends."""
        if unheard and self._out is None:
            events = PublisherEventCallbacks(use_default_callbacks=False)
            self._out = self.create_publisher(ChunkMessage, "policy/chunk", UNHEARD, event_callbacks=events)
            self._heard, self._chunk_out = self._chunk_out, self._out
        elif not unheard and self._out is not None:
            self._chunk_out = self._heard
            self.destroy_publisher(self._out)
            self._out = None

    def _hear(self) -> None:
        for line in sys.stdin:
            word, *value = line.split() or ["well"]
            self._spoilt = word, float(value[0]) if value else 0.0


def main(args: list[str] | None = None) -> None:
    """Publish until a signal."""
    serve(args, "puppet", Puppet)


if __name__ == "__main__":
    main()
