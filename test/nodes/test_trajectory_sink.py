"""The executor as a process of its own, its arm behind a joint trajectory controller: here one of a few lines."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

sys.path.insert(0, str(Path(__file__).parent))

from rclpy.clock import Clock  # noqa: E402
from rclpy.time import Time  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from test_executor_node import PATIENT, PROFILE, Client, T, finish, start  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from vipra_ros.msg import ExecutorStatus  # noqa: E402

from vipra_ros.control.chunk import Waypoint  # noqa: E402
from vipra_ros.nodes.spinner import Spinner, lone_node  # noqa: E402
from vipra_ros.nodes.trajectory import TrajectoryArm  # noqa: E402


class Controller:
    """Plays the newest trajectory through cubic pieces between its points, and publishes joint states at 100 Hz."""

    def __init__(self, domain):
        self.node = lone_node("joint_trajectory_controller", domain)
        self.q, self.dq = np.array(PROFILE.home_q), np.zeros(7)
        self.path, self.log, self.trajectories = [], [], []
        self.node.create_subscription(JointTrajectory, "/arm/joint_trajectory", self.take, 1)
        self.states = self.node.create_publisher(JointState, "joint_states", 10)
        self.node.create_timer(0.01, self.step)
        self.spinner = Spinner(self.node)

    def now(self):
        return self.node.get_clock().now().nanoseconds * 1e-9

    def take(self, message):
        begin = Time.from_msg(message.header.stamp).nanoseconds * 1e-9
        times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message.points]
        assert all(a < b for a, b in zip([0.0, *times], times))
        assert list(message.joint_names) == list(PROFILE.joint_names)
        self.path = [(self.now(), self.q, self.dq)] + [
            (begin + t, np.array(p.positions), np.array(p.velocities)) for t, p in zip(times, message.points)]
        self.trajectories.append(message)

    def step(self):
        now = self.now()
        while len(self.path) > 1 and self.path[1][0] <= now:
            self.path.pop(0)
        if len(self.path) > 1:
            (t0, a, va), (t1, b, vb) = self.path[:2]
            h, s = t1 - t0, (now - t0) / (t1 - t0)
            self.q = (2*s**3 - 3*s**2 + 1)*a + (s**3 - 2*s**2 + s)*h*va + (3*s**2 - 2*s**3)*b + (s**3 - s**2)*h*vb
            self.dq = ((6*s**2 - 6*s)*(a - b))/h + (3*s**2 - 4*s + 1)*va + (3*s**2 - 2*s)*vb
        elif self.path:
            self.q, self.dq = self.path[0][1], self.path[0][2]
        message = JointState(name=["finger", *PROFILE.joint_names], position=[0.02, *self.q], velocity=[0.0, *self.dq])
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.states.publish(message)
        self.log.append(self.q)

    def close(self):
        self.spinner.close()


def test_an_arm_that_is_not_heard_is_not_called_back_to_where_it_was():
    """The trajectory that was sent ends at rest: a stop made of an old state would throw the arm back."""
    sent, node = [], SimpleNamespace(get_clock=Clock)
    node.create_publisher = lambda *_: SimpleNamespace(publish=sent.append)
    node.create_subscription = lambda *_: None
    arm = TrajectoryArm(node, PROFILE, "trajectory", "states")

    def hear(speed):
        arm._on_states(JointState(name=PROFILE.joint_names, position=PROFILE.home_q, velocity=np.full(7, speed)))

    hear(0.2)
    arm.stop(time.monotonic())
    assert not sent, "nothing was commanded yet"
    ahead = Waypoint(time.monotonic() + 60.0, PROFILE.home_q + 0.3, np.zeros(7))
    arm.stream([ahead], time.monotonic())
    hear(0.2)
    arm.stop(time.monotonic())
    end = np.array(sent[-1].points[-1].positions)
    assert len(sent) == 2 and 0.002 < (end - PROFILE.home_q).min() and (end - PROFILE.home_q).max() < 0.04
    arm.stream([ahead], time.monotonic())
    time.sleep(0.15)
    with pytest.raises(RuntimeError, match=r"no joint states for 0.\d\d s: no stop was sent"):
        arm.stop(time.monotonic())
    assert len(sent) == 3, "no state for 0.15 s"
    hear(0.2)
    arm.stop(time.monotonic() + 61.0)
    assert len(sent) == 3, "what was sent has ended"


def test_a_stop_too_short_to_be_told_ends_what_was_published_before():
    sent, node = [], SimpleNamespace(get_clock=Clock)
    node.create_publisher = lambda *_: SimpleNamespace(publish=sent.append)
    node.create_subscription = lambda *_: None
    arm = TrajectoryArm(node, PROFILE, "trajectory", "states")
    q, dq = np.array(PROFILE.home_q), np.full(7, 0.004)
    arm._on_states(JointState(name=list(PROFILE.joint_names), position=list(q), velocity=list(dq)))
    now = time.monotonic()
    arm.stream([Waypoint(now + 0.5, q + 0.1, dq), Waypoint(now + 1.0, q + 0.5, np.zeros(7))], now)
    arm.stream([Waypoint(now + 0.003, q, np.zeros(7))], now)
    assert len(sent) == 2 and len(sent[1].points) == 1 and max(np.abs(sent[1].points[0].positions - q)) < 0.01


def test_chunks_reach_a_controller_and_its_end_is_a_fault(unused_ros_domain, tmp_path):
    client = Client(unused_ros_domain)
    controller = Controller(unused_ros_domain)
    process = start(unused_ros_domain, sink="trajectory", trajectory_topic="/arm/joint_trajectory",
                    arm_on_start="true", incident_folder=str(tmp_path), **PATIENT)
    try:
        client.wait(lambda: client.heard["executor/status"] and client.status.state == ExecutorStatus.ARMED)
        assert client.status.in_control and "by /arm/joint_trajectory" in client.status.robot
        names = {tuple(m.name) for m in client.heard["joint_states"]}
        assert names == {("finger", *PROFILE.joint_names)}, "joint states are the controller's alone"
        begin, since = controller.q.copy(), time.monotonic()
        turn = 0.15 * np.eye(7)[6]
        for _ in range(6):
            passed = time.monotonic() - since
            client.send(lambda t, passed=passed: begin + turn * (passed + t))
            time.sleep(4 * T)
        assert client.status.faults == 0 and client.status.accepted >= 5, client.status.reasons
        assert client.call("stop").success
        client.wait(lambda: client.status.state == ExecutorStatus.IDLE, 5.0)
        time.sleep(0.3)
        assert 0.1 < controller.q[6] - begin[6] < 0.4 and np.abs(controller.dq).max() < 0.01
        assert all(np.allclose(m.points[-1].velocities, 0.0) for m in controller.trajectories), "each ends at rest"
        assert np.abs(np.diff(np.array(controller.log), axis=0)).max() < 0.1, "no step"
        assert client.call("arm").success
        controller.close()
        client.wait(lambda: client.status.state == ExecutorStatus.FAULT, 5.0)
        said = " ".join(client.status.reasons)
        assert "no controller takes /arm/joint_trajectory" in said or "robot state" in said
        client.wait(lambda: list(tmp_path.glob("incident-*/metadata.yaml")), 10.0)
    finally:
        output = finish(process)
        client.close()
    assert "Traceback" not in output, output
    assert "vipra incident" in output
