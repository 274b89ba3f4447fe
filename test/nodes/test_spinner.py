"""A node in a thread: it is served, its end does not crash the process, and what a callback raised is kept."""

import subprocess
import sys
import time

import pytest

pytest.importorskip("rclpy")

from std_msgs.msg import String

from vipra_ros.nodes.spinner import Spinner, lone_node

#: Ends while messages arrive, again and again: with the context gone before the thread, most runs of this crash.
ENDS = """
import sys, threading, time
from std_msgs.msg import String
from vipra_ros.nodes.spinner import Spinner, lone_node
for _ in range(30):
    node = lone_node("busy", int(sys.argv[1]))
    talk = node.create_publisher(String, "said", 10)
    node.create_subscription(String, "said", lambda m: None, 10)
    node.create_timer(0.0002, lambda: talk.publish(String(data="x" * 1000)))
    spinner = Spinner(node)
    time.sleep(0.05)
    spinner.close()
"""


#: As the replay of several episodes does: one node after the other in the context that rclpy keeps itself.
AGAIN = """
import sys
import rclpy
from vipra_ros.nodes.spinner import Spinner
for name in ("first", "second"):
    rclpy.init(args=[], domain_id=int(sys.argv[1]))
    Spinner(rclpy.create_node(name)).close()
assert not rclpy.ok()
"""


def test_another_may_begin_after_it(unused_ros_domain):
    done = subprocess.run([sys.executable, "-c", AGAIN, str(unused_ros_domain)], capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_ends_in_the_middle_of_its_work(unused_ros_domain):
    done = subprocess.run([sys.executable, "-c", ENDS, str(unused_ros_domain)], capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_callback_raised_is_kept(unused_ros_domain):
    node = lone_node("broken", unused_ros_domain)
    node.create_timer(0.01, lambda: {}["gone"])
    spinner = Spinner(node)
    end = time.monotonic() + 10.0
    while spinner.failure is None and time.monotonic() < end:
        time.sleep(0.01)
    spinner.close()
    assert isinstance(spinner.failure, KeyError)


def test_two_of_one_process_end_by_themselves(unused_ros_domain):
    nodes = [lone_node(name, unused_ros_domain) for name in ("one", "other")]
    heard = []
    nodes[1].create_subscription(String, "said", lambda m: heard.append(m.data), 10)
    talk = nodes[1].create_publisher(String, "said", 10)
    one, other = map(Spinner, nodes)
    one.close()
    end = time.monotonic() + 10.0
    while not heard and time.monotonic() < end:
        talk.publish(String(data="still here"))
        time.sleep(0.02)
    other.close()
    assert heard
