"""Raw pictures from a publisher with our Fast DDS profile reach a node that has none."""

import os
import subprocess
import sys
import time

import pytest

rclpy = pytest.importorskip("rclpy")

PUBLISHER = """
import array, time, rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("camera")
out = node.create_publisher(Image, "picture", qos_profile_sensor_data)
picture = Image(height=480, width=640, encoding="rgb8", step=1920, data=array.array("B", bytes(921600)))
while True:
    out.publish(picture)
    time.sleep(0.1)
"""
LEAST = 40


def test_raw_pictures_arrive(unused_ros_domain, monkeypatch):
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    from vipra_ros.graph import PROFILE_VARIABLES, environment

    if "fastrtps" not in os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"):
        pytest.skip("the profile is for Fast DDS")
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    context = rclpy.Context()
    camera = subprocess.Popen([sys.executable, "-c", PUBLISHER],
                              env={**os.environ, **environment("sim", simulated=True)})
    try:
        rclpy.init(args=[], context=context, domain_id=unused_ros_domain)
        node = rclpy.create_node("listener", context=context)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        arrived = []
        node.create_subscription(Image, "picture", lambda m: arrived.append(len(m.data)), qos_profile_sensor_data)
        until = time.monotonic() + 30  # the usual 512 KiB of shared memory let one in thirty through
        while len(arrived) < LEAST and time.monotonic() < until:
            executor.spin_once(timeout_sec=0.1)
        assert len(arrived) >= LEAST and set(arrived) == {921600}
    finally:
        camera.kill()
        camera.wait()
        rclpy.try_shutdown(context=context)
