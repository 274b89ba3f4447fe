"""The life that nodes share."""

import subprocess
import sys

import pytest

pytest.importorskip("rclpy")

#: A node that looks alive: its loop goes on when a callback has raised, but no service would be answered.
NODE = """
from rclpy.node import Node
from vipra_ros.nodes.run import serve

class Deaf(Node):
    failure = None

    def __init__(self):
        super().__init__("deaf")
        self.create_timer(0.05, lambda: 1 / 0)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        print("put away", flush=True)

print("failure:", serve(None, "deaf", Deaf)[1], flush=True)
"""


def test_a_node_whose_callbacks_have_died_ends(unused_ros_domain):
    done = subprocess.run([sys.executable, "-c", NODE], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["put away", "failure: division by zero"], done.stderr
