"""The console beside a real executor: HTTP on one side, topics and services on the other."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("nicegui", reason="the console's page is not installed; pip install nicegui")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from std_msgs.msg import Bool, String  # noqa: E402
from vipra_ros.msg import ActionChunk, ExecutorStatus  # noqa: E402

from vipra_ros.console.access import HEADER  # noqa: E402
from vipra_ros.nodes.console import ConsoleNode  # noqa: E402

#: s; what hold-to-run is given in these tests, and what a machine short of processors may add.
DEADMAN, PROOF, SLACK = 0.8, 0.8, 1.5
#: A page's share of hold-to-run, as a process that can be killed.
BROWSER = """
import http.client, json, sys, time
port, token = int(sys.argv[1]), sys.argv[2]
link = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
def post(**body):
    link.request("POST", "/deadman", json.dumps(body), {"X-Vipra-Token": token})
    return json.loads(link.getresponse().read())
said = post(do="press")
holder = said["holder"]
while True:
    said = post(do="renew", holder=holder, ticket=said["ticket"])
    print(said["done"], flush=True)
    time.sleep(0.1)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


class Rig:
    """The console's node in this process, and a node that hears what it publishes."""

    def __init__(self, domain):
        given = {"port": free_port(), "command_port": free_port(), "deadman_proof": PROOF}
        words = [w for name, value in given.items() for w in ("-p", f"console:{name}:={value}")]
        rclpy.init(args=["--ros-args", *words], domain_id=domain, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        self.node = ConsoleNode()
        self.ear = rclpy.create_node("ear")
        self.beats, self.words = [], []
        self.ear.create_subscription(Bool, "executor/deadman", lambda m: self.beats.append(time.monotonic()), 50)
        self.ear.create_subscription(String, "policy/instruction", self.words.append, 1)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.executor.add_node(self.ear)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()
        self.node.__enter__()

    def close(self):
        self.node.__exit__()
        self.executor.shutdown()
        self.thread.join(2.0)
        self.node.destroy_node()
        self.ear.destroy_node()
        rclpy.try_shutdown()

    def post(self, path, token=None, **body):
        link = http.client.HTTPConnection("127.0.0.1", self.node.access.commands, timeout=10.0)
        link.request("POST", path, json.dumps(body), {HEADER: self.node.access.session if token is None else token})
        answer = link.getresponse()
        text = answer.read()
        link.close()
        return answer.status, json.loads(text)

    def get(self, path, **headers):
        link = http.client.HTTPConnection("127.0.0.1", self.node.access.port, timeout=20.0)
        link.request("GET", path, headers=headers)
        answer = link.getresponse()
        body = answer.read()
        link.close()
        return answer.status, body

    def wait(self, condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not in {seconds} s; {self.node.state.banner()}"
            time.sleep(0.01)

    def is_in(self, state):
        return self.node.state.executor is not None and self.node.state.executor.state == state


@pytest.fixture(scope="module")
def rig(unused_ros_domain):
    made = Rig(unused_ros_domain)
    yield made
    made.close()


@pytest.fixture(scope="module")
def executor(rig, unused_ros_domain):
    given = dict(dry_run="true", deadman_timeout=str(DEADMAN), overrun_fault="10.0", state_timeout="5.0")
    process = subprocess.Popen(
        [sys.executable, "-m", "vipra_ros.nodes.executor", "--ros-args",
         *(w for k, v in given.items() for w in ("-p", f"{k}:={v}"))],
        env={**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain)}, stdout=subprocess.DEVNULL)
    rig.wait(lambda: rig.is_in(ExecutorStatus.IDLE) and rig.node.state.listened)
    yield process
    process.send_signal(signal.SIGINT)
    process.wait(10.0)


def browser(rig):
    process = subprocess.Popen([sys.executable, "-c", BROWSER, str(rig.node.access.commands), rig.node.access.session],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_the_page_carries_what_acts_and_pictures_pass_through(rig):
    status, body = rig.get("/")
    text = body.decode()
    assert status == 200 and "data-stop" in text and rig.node.access.session in text
    assert rig.get("/camera/front")[0] == 404
    rig.node.state.on_image("front", b"\xff\xd8 as it came")
    assert rig.get("/camera/front") == (200, b"\xff\xd8 as it came")
    assert rig.get("/", Host="evil.example")[0] == 403
    assert rig.get("/", Origin="http://evil.example")[0] == 403


def test_a_chunk_that_is_not_whole_costs_nothing(rig):
    """The executor refuses such a chunk, and says why; the page with STOP must not end over it."""
    whole = dict(action_space=ActionChunk.JOINT_POSITION, execute_steps=1, horizon=1, actions=[0.0] * 8)
    for changes in ({"action_size": 0}, {"action_size": 3}, {"action_size": 8, "execute_steps": 2},
                    {"action_size": 8, "lookahead": [0.0] * 5}):
        rig.node._on_chunk(ActionChunk(**(whole | changes)))
        assert rig.node.state.chunk is None
    rig.node._on_chunk(ActionChunk(**whole, action_size=8))
    assert rig.node.state.chunk[1].shape == (1, 8)
    rig.node.state.chunk = None


def test_without_an_executor_stop_says_so(rig):
    if rig.node.state.executor is not None:
        pytest.skip("an executor runs already")
    status, told = rig.post("/stop")
    assert status == 409 and "USE THE EMERGENCY STOP" in told["message"]
    status, told = rig.post("/command", name="arm")
    assert status == 409 and "nobody offers executor/arm" in told["message"]


def test_commands_are_refused_without_the_token(rig, executor):
    for token in ("", "wrong"):
        for path, body in (("/stop", {}), ("/command", {"name": "arm"}), ("/deadman", {"do": "press"})):
            assert rig.post(path, token, **body)[0] == 401
    assert rig.is_in(ExecutorStatus.IDLE)


def test_words_reach_the_policy(rig):
    assert rig.post("/command", name="instruction", text=" lift  the réd cube\n")[0] == 200
    rig.wait(lambda: rig.words and rig.words[-1].data == "lift the réd cube")
    assert rig.post("/command", name="instruction", text="  ")[0] == 409
    assert rig.post("/command", name="reboot")[0] == 409


def test_stop_works_while_the_pages_loop_is_blocked(rig, executor):
    holding = browser(rig)
    rig.wait(lambda: rig.post("/command", name="arm")[0] == 200)
    rig.wait(lambda: rig.is_in(ExecutorStatus.ARMED))
    rig.node.page.loop.call_soon_threadsafe(time.sleep, 3.0)
    began = time.monotonic()
    loads = []
    page = threading.Thread(target=lambda: loads.append((rig.get("/camera/none"), time.monotonic())))
    page.start()
    status, told = rig.post("/stop")
    took = time.monotonic() - began
    assert status == 200 and told["done"], told
    rig.wait(lambda: rig.is_in(ExecutorStatus.IDLE), 2.0)
    page.join(20.0)
    assert took < 1.5 < loads[0][1] - began, "the page answered: its loop was not blocked"
    holding.kill()
    holding.wait()


def test_the_arm_is_held_when_the_client_vanishes(rig, executor):
    assert rig.post("/command", name="arm")[0] == 409  # not held
    holding = browser(rig)
    rig.wait(lambda: rig.post("/command", name="arm")[0] == 200)
    rig.wait(lambda: rig.is_in(ExecutorStatus.ARMED))
    time.sleep(1.0)
    assert rig.is_in(ExecutorStatus.ARMED) and len(rig.beats) > 10
    holding.send_signal(signal.SIGKILL)
    gone = time.monotonic()
    rig.wait(lambda: rig.is_in(ExecutorStatus.HOLD), PROOF + DEADMAN + SLACK)
    assert "dead-man silent" in rig.node.state.banner().reasons[0]
    assert rig.beats[-1] - gone < PROOF + 0.5
    holding.wait()


def test_a_client_that_freezes_is_one_that_vanished(rig, executor):
    holding = browser(rig)
    rig.wait(lambda: rig.post("/command", name="arm")[0] == 200)
    rig.wait(lambda: rig.is_in(ExecutorStatus.ARMED))
    holding.send_signal(signal.SIGSTOP)
    try:
        rig.wait(lambda: rig.is_in(ExecutorStatus.HOLD), PROOF + DEADMAN + SLACK)
    finally:
        holding.kill()  # what it would still send proves nothing
        holding.wait()
    assert not rig.node.deadman.held


def test_another_address_needs_a_token(unused_ros_domain, tmp_path):
    done = subprocess.run([sys.executable, "-m", "vipra_ros.nodes.console", "--ros-args", "-p", "host:=0.0.0.0"],
                          env={**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain + 1)}, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 1 and "give a token file" in done.stdout
