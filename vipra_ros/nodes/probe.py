"""Listens to cameras for the doctor: what arrives, when, and what the middleware says of its publishers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import cv2
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, ReliabilityPolicy, qos_check_compatible, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from vipra_ros.doctor.cameras import Sample
from vipra_ros.nodes.spinner import lone_node

COMPRESSED, RAW = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"
#: s in which publishers must have been found.
DISCOVERY = 3.0


class _Ear:
    """One camera topic: its type is what its publishers say, else what its name says."""

    def __init__(self, node: Node, topic: str):
        self.node, self.topic = node, topic
        self.arrivals, self.ages, self.digests, self.sizes, self.last = [], [], [], [], None
        kinds = {info.topic_type for info in node.get_publishers_info_by_topic(topic)}
        compressed = COMPRESSED in kinds or not kinds and topic.endswith("compressed")
        kind = CompressedImage if compressed else Image
        node.create_subscription(kind, topic, self._take, qos_profile_sensor_data)

    def _take(self, message: CompressedImage | Image) -> None:
        now, stamp = self.node.get_clock().now().nanoseconds * 1e-9, message.header.stamp
        self.arrivals.append(time.monotonic())
        self.ages.append(now - stamp.sec - stamp.nanosec * 1e-9)
        self.digests.append(hashlib.blake2b(message.data, digest_size=8).digest())
        self.sizes.append(len(message.data))
        self.last = message

    def sample(self, seconds: float, end: float) -> Sample:
        """What was heard in `seconds` s until `end`, monotonic s."""
        infos = self.node.get_publishers_info_by_topic(self.topic)
        reliable = [i.qos_profile.reliability == ReliabilityPolicy.RELIABLE for i in infos]
        kinds = ["reliable" if r else "best_effort" for r in reliable]
        return Sample(self.topic, seconds, self.arrivals, self.ages, self.digests, self.sizes, _shape(self.last),
                      len(infos), kinds, _mismatch(infos), end - self.arrivals[-1] if self.arrivals else 0.0)


def _mismatch(infos: Sequence) -> str:
    """Why nodes that subscribe as ours do would not hear these publishers; empty when they do."""
    for info in infos:
        if info.topic_type not in (COMPRESSED, RAW):
            return f"it carries {info.topic_type}, no images"
        verdict, why = qos_check_compatible(info.qos_profile, qos_profile_sensor_data)
        if verdict == QoSCompatibility.ERROR:
            return " ".join(why.split())
    return ""


def _shape(message: CompressedImage | Image | None) -> tuple[int, int]:
    """(height, width), (0, 0) for what cannot be decoded."""
    if isinstance(message, Image):
        return message.height, message.width
    if message is None or not len(message.data):
        return 0, 0
    picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    return (0, 0) if picture is None else picture.shape[:2]


def listen(topics: Sequence[str], seconds: float) -> list[Sample]:
    """What was heard of each topic in `seconds` s, in a ROS context of its own."""
    node = lone_node("doctor")
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    try:
        names, invalid = [], []
        for topic in topics:
            try:
                names.append(node.resolve_topic_name(topic))
            except RuntimeError as error:  # rclpy's RCLError; behind the reason it names a place in its sources
                why = str(error).removeprefix("failed to resolve name: ").partition(", at /")[0]
                invalid.append(Sample(topic, seconds, invalid=why))
        end = time.monotonic() + DISCOVERY
        while time.monotonic() < end and not all(node.get_publishers_info_by_topic(n) for n in names):
            executor.spin_once(timeout_sec=0.05)
        ears = [_Ear(node, name) for name in names]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        return [*invalid, *(ear.sample(seconds, end) for ear in ears)]
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=node.context)
