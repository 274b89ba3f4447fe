"""The life that nodes share."""

import signal
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


#: A node that waits for something that is not there.
WAITING = """
import signal, time
from vipra_ros.nodes.run import serve

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup

def make():
    print("waiting", flush=True)
    for _ in range(600):  # a signal just before a sleep does not cut it short
        time.sleep(0.1)

serve(None, "waiting", make)
"""


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
def test_a_node_that_waits_for_its_arm_ends_when_it_is_told_to(unused_ros_domain, number):
    child = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(number)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 0 and said == ""


#: What a terminal that goes does to a node that lives.
HANGING_UP = """
import os, signal, sys
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
from vipra_ros.nodes.run import begin
ending = begin(None)
os.kill(os.getpid(), signal.SIGHUP)
print(ending.is_set())
"""


@pytest.mark.parametrize(("before", "ends"), (("SIG_DFL", "True"), ("SIG_IGN", "False")))
def test_a_terminal_that_goes_ends_a_node_in_order_but_under_nohup(unused_ros_domain, before, ends):
    done = subprocess.run([sys.executable, "-c", HANGING_UP, before], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ends, done.stderr
