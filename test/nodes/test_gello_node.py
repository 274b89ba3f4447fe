"""The leader arm's node as a process of its own, with emulated servos and a dry-run executor."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")
pytest.importorskip("dynamixel_sdk")

from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Float32, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from vipra_ros.msg import ActionChunk, ExecutorStatus  # noqa: E402

from vipra_ros.config import share  # noqa: E402
from vipra_ros.control.profile import load_profile  # noqa: E402
from vipra_ros.nodes.spinner import Spinner, lone_node  # noqa: E402
from vipra_ros.teleop.emulate import emulated  # noqa: E402
from vipra_ros.teleop.gello import load_gello  # noqa: E402
from vipra_ros.teleop.motions import motion  # noqa: E402

PROFILE = load_profile("fr3")
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TOPICS = (
    (JointState, "gello/joint_states", 10),
    (Float32, "gripper/gripper_client/target_gripper_width_percent", 10),
    (String, "gello/status", LATCHED),
    (ActionChunk, "policy/chunk", 1),
    (JointState, "joint_states", 10),
    (ExecutorStatus, "executor/status", LATCHED),
)


class Listener:
    """Remembers what it hears."""

    def __init__(self, domain):
        self.node = lone_node("listener", domain)
        self.heard = {topic: [] for _, topic, _ in TOPICS}
        for kind, topic, qos in TOPICS:
            self.node.create_subscription(kind, topic, self.heard[topic].append, qos)
        self.spinner = Spinner(self.node)

    def close(self):
        self.spinner.close()

    @property
    def said(self):
        return json.loads(self.heard["gello/status"][-1].data) if self.heard["gello/status"] else {"state": ""}

    @property
    def state(self):
        return self.heard["executor/status"][-1].state if self.heard["executor/status"] else None

    def wait(self, condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in {seconds} s; {self.said}"
            time.sleep(0.02)

    def call(self, name):
        client = self.node.create_client(Trigger, f"executor/{name}")
        assert client.wait_for_service(10.0)
        future = client.call_async(Trigger.Request())
        self.wait(future.done, 5.0)
        return future.result().success


@pytest.fixture
def listener(unused_ros_domain):
    listener = Listener(unused_ros_domain)
    yield listener
    listener.close()


def start(name, **parameters):
    arguments = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
    return subprocess.Popen(
        [sys.executable, "-m", f"vipra_ros.nodes.{name}", "--ros-args", *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=6.0)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"did not end:\n{process.communicate()[0]}") from None


def test_leader_to_follower_with_emulated_servos(listener):
    gello = start("gello", emulate="sine")
    executor = None
    try:
        listener.wait(lambda: len(listener.heard["gello/joint_states"]) > 25)
        stamps = [m.header.stamp.sec + m.header.stamp.nanosec / 1e9 for m in listener.heard["gello/joint_states"]]
        assert np.median(np.diff(stamps[5:])) == pytest.approx(0.04, abs=0.01)
        leader = listener.heard["gello/joint_states"][-1]
        assert tuple(leader.name) == PROFILE.joint_names
        assert np.abs(np.array(leader.position) - PROFILE.home_q).max() < 0.16
        opening = listener.heard["gripper/gripper_client/target_gripper_width_percent"][-1].data
        assert opening in (0.0, pytest.approx(1.0, abs=1e-3))
        assert listener.said["state"] == "waiting" and "start the executor" in listener.said["text"]
        assert not listener.heard["policy/chunk"]

        executor = start("executor", dry_run="true", overrun_fault="5.0", state_timeout="5.0")
        listener.wait(lambda: "executor/arm" in listener.said["text"] if listener.said["state"] else False)
        assert not listener.heard["policy/chunk"]
        assert listener.call("arm")

        def follows():  # how well is a matter of test/teleop/test_follow.py: here the cores may be busy
            status = listener.heard["executor/status"][-1]
            moved = np.ptp([m.position[0] for m in listener.heard["joint_states"]] or [0.0])
            running = status.state == ExecutorStatus.RUNNING and status.accepted > 30 and moved > 0.1
            return running and listener.said["state"] == "following" and listener.said["lag_p50"]

        listener.wait(follows, 40.0)
        assert 0.0 < listener.said["lag_p50"] < 1.0
        chunk = listener.heard["policy/chunk"][-1]
        assert (chunk.checkpoint, chunk.horizon, chunk.execute_steps, chunk.action_size) == ("gello", 4, 4, 8)
    finally:
        outputs = [finish(p) for p in (gello, executor) if p]
    assert gello.returncode == 0 and "Traceback" not in outputs[0] and "terminate" not in outputs[0], outputs[0]


def test_another_pose_is_named_and_an_unplugged_bus_is_opened_again(listener):
    config = load_gello(share("config", "gello.yaml"))
    far = PROFILE.home_q + 0.5 * np.eye(7)[3]
    with emulated(config, motion("home", far)) as servos:
        processes = [
            start("executor", dry_run="true", arm_on_start="true", overrun_fault="5.0", state_timeout="5.0"),
            start("gello", com_port=servos.port, retry="0.3"),
        ]
        try:
            listener.wait(lambda: listener.said["state"] == "aligning")
            assert "fr3_joint4 is off by +0.50 rad" in listener.said["text"] and set(servos.torque.values()) == {0}
            servos.unplug()
            listener.wait(lambda: listener.said["state"] == "lost")
            count = len(listener.heard["gello/joint_states"])
            listener.wait(lambda: "no such port" in listener.said["text"])
            assert len(listener.heard["gello/joint_states"]) <= count + 1  # nothing is made up meanwhile
            servos.plug()
            listener.wait(lambda: listener.said["state"] == "aligning")
            assert not listener.heard["policy/chunk"]
        finally:
            outputs = [finish(p) for p in processes]
    assert processes[1].returncode == 0 and "plug the USB cable in again" in outputs[1], outputs[1]


@pytest.mark.parametrize(
    "fault, over, said",
    [
        (lambda f: f.missing.add(3), lambda f: f.missing.clear(), "no answer from servo 3"),
        (lambda f: f.spoilt.add(5), lambda f: f.spoilt.clear(), "spoilt answer from servo 5"),
        (lambda f: f.alerts.update({2: 0x04}), lambda f: f.alerts.clear(), "servo 2 raises an alert, overheated"),
    ],
    ids=["missing", "crc", "overheated"],
)
def test_a_fault_of_the_bus_is_loud_and_the_arm_stops_by_itself(listener, fault, over, said):
    config = load_gello(share("config", "gello.yaml"))
    with emulated(config, motion("sine", PROFILE.home_q)) as servos:
        processes = [
            start("executor", dry_run="true", arm_on_start="true", overrun_fault="5.0", state_timeout="5.0",
                  chunk_timeout="1.0"),
            start("gello", com_port=servos.port, retry="0.3"),
        ]
        try:
            listener.wait(lambda: listener.said["state"] == "following", 40.0)
            listener.wait(lambda: listener.state == ExecutorStatus.RUNNING and listener.heard["gello/joint_states"])
            fault(servos.faults)
            listener.wait(lambda: listener.said["state"] == "lost")
            assert said in listener.said["text"]
            readings, chunks = len(listener.heard["gello/joint_states"]), len(listener.heard["policy/chunk"])
            listener.wait(lambda: listener.state == ExecutorStatus.ARMED)
            assert len(listener.heard["gello/joint_states"]) <= readings + 1, "made up readings"
            assert len(listener.heard["policy/chunk"]) <= chunks + 1
            positions = np.array([m.position for m in listener.heard["gello/joint_states"]])
            assert np.abs(positions - PROFILE.home_q).max() < 0.17, "never zeros"
            over(servos.faults)
            listener.wait(lambda: listener.said["state"] in ("aligning", "following"))
        finally:
            outputs = [finish(p) for p in processes]
        assert set(servos.torque.values()) == {0}
    assert said in outputs[1], outputs[1]


def test_a_simulated_clock_that_stands_at_zero_is_no_fault_of_the_bus(listener):
    gello = start("gello", emulate="home", use_sim_time="true")
    try:
        listener.wait(lambda: listener.heard["gello/joint_states"])
        stamp = listener.heard["gello/joint_states"][0].header.stamp
        assert (stamp.sec, stamp.nanosec) == (0, 0)
        listener.wait(lambda: listener.said["state"] == "waiting")
    finally:
        finish(gello)


def test_no_port_in_the_configuration_is_one_line(unused_ros_domain):
    output, _ = (process := start("gello")).communicate(timeout=30)
    assert process.returncode == 1 and "Traceback" not in output
    assert output.strip().splitlines()[-1].startswith("gello: com_port is empty; set it to")
