"""A camera and a clock that can be spoilt, for the fault table."""

from __future__ import annotations

import array
import random
import threading
import time
from collections.abc import Callable

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

#: Hz of the images, which is that of the shipped data sets, and of /clock; px.
RATE, TICKS, WIDTH = 15.0, 50.0, 32


class Camera:
    """Publishes small pictures that change, from a thread of its own.

    Args:
        clock: s, what the images are stamped with.

    Attributes:
        drop: share of images lost. delay: s they are late. twice: each comes twice. frozen: the picture does not
        change. stamped: the stamp does not.
    """

    def __init__(self, node: Node, name: str, clock: Callable[[], float]):
        self._out = node.create_publisher(CompressedImage, f"camera/{name}/image_raw/compressed",
                                          qos_profile_sensor_data)
        self._clock, self._ending = clock, threading.Event()
        self._count, self._stamp = 0, 0.0
        self.well()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def well(self) -> None:
        """Nothing is wrong with it."""
        self.drop, self.delay, self.twice, self.frozen, self.stamped = 0.0, 0.0, False, False, False
        self._held: list[tuple[float, CompressedImage]] = []  # due (monotonic s), image

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / RATE, time.monotonic())
            held = self._held  # `well` begins another one
            if random.random() >= self.drop:
                held += [(time.monotonic() + self.delay, self._see())] * (1 + self.twice)
            while held and held[0][0] <= time.monotonic():
                self._out.publish(held.pop(0)[1])

    def _see(self) -> CompressedImage:
        self._count += not self.frozen
        if not self.stamped:
            self._stamp = self._clock()
        picture = np.zeros((WIDTH, WIDTH, 3), np.uint8)
        picture[:, : 1 + self._count % (WIDTH - 1)] = 200
        image = CompressedImage(format="jpeg", data=array.array("B", cv2.imencode(".jpg", picture)[1].tobytes()))
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(round(self._stamp * 1e9), 10**9)
        return image


class SimulatedClock:
    """Real time on /clock, from a thread of its own; it can stand still.

    Time goes on where it stood, as a simulator's does that was paused.
    """

    def __init__(self, node: Node):
        self._out = node.create_publisher(Clock, "/clock", 1)
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._stood, self._since = 0.0, None  # s in all; when it was paused
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def now(self) -> float:
        """s."""
        with self._lock:
            return (time.time() if self._since is None else self._since) - self._stood

    def pause(self, paused: bool) -> None:
        """Stand still, or go on."""
        with self._lock:
            if paused:
                self._since = self._since or time.time()
            elif self._since is not None:
                self._stood, self._since = self._stood + time.time() - self._since, None

    def __enter__(self) -> SimulatedClock:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._ending.wait(1 / TICKS):
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(round(self.now() * 1e9), 10**9)
            self._out.publish(message)
