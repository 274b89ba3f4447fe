"""The executor node as a process of its own, asked by a client as the policy and an operator would."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from builtin_interfaces.msg import Time  # noqa: E402
from rclpy.clock import Clock  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Bool, Float32, Header  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from vipra_ros.msg import ActionChunk, ExecutorStatus  # noqa: E402

from vipra_ros.control.chunk import RobotState  # noqa: E402
from vipra_ros.control.profile import load_profile  # noqa: E402
from vipra_ros.control.reference import Reference  # noqa: E402
from vipra_ros.nodes.executor import ExecutorNode  # noqa: E402
from vipra_ros.nodes.spinner import Spinner, lone_node  # noqa: E402

T = 1 / 15
PROFILE = load_profile("fr3")
#: The watchdogs have tests of their own, with a clock that a machine short of processors cannot starve.
PATIENT = dict(overrun_fault="10.0", state_timeout="5.0", tracking_limit="1.0")
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Client:
    """Policy and operator in one: sends chunks, calls services, remembers what it hears."""

    def __init__(self, domain):
        self.node = lone_node("client", domain)
        self.heard = {}
        for kind, topic, qos in (
            (JointState, "joint_states", 10),
            (JointState, "executor/joint_command", 10),
            (ExecutorStatus, "executor/status", LATCHED),
            (JointTrajectory, "executor/preview", 1),
            (Float32, "executor/gripper_command", LATCHED),
        ):
            self.heard[topic] = []
            self.node.create_subscription(kind, topic, self.heard[topic].append, qos)
        self.chunks = self.node.create_publisher(ActionChunk, "policy/chunk", 1)
        self.callers = {}
        self.ids = 0
        self.spinner = Spinner(self.node)

    def close(self):
        self.spinner.close()

    @property
    def status(self):
        return self.heard["executor/status"][-1]

    def wait(self, condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError(f"not in {seconds} s; last status: {self.heard['executor/status'][-1:]}")

    def call(self, name):
        if name not in self.callers:
            self.callers[name] = self.node.create_client(Trigger, f"executor/{name}")
        assert self.callers[name].wait_for_service(10.0)
        future = self.callers[name].call_async(Trigger.Request())
        self.wait(future.done, 5.0)
        return future.result()

    def send(self, path, gripper=1.0, **changes):
        """A chunk whose row k is `path(seconds from now)`."""
        self.ids += 1
        rows = [[*path((k + 1) * T), gripper] for k in range(14)]
        flat = np.array(rows, float).ravel().tolist()
        message = ActionChunk(
            chunk_id=self.ids,
            policy_id="test",
            action_space="joint_position",
            step_period=T,
            joint_names=list(PROFILE.joint_names),
            horizon=14,
            execute_steps=7,
            action_size=8,
            actions=flat[:56],
            lookahead=flat[56:],
            instruction="test",
        )
        message.header.stamp = self.node.get_clock().now().to_msg()
        for key, value in changes.items():
            setattr(message, key, value)
        self.chunks.publish(message)
        return message


def start(domain, **parameters):
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "vipra_ros.nodes.executor", "--ros-args", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, number=signal.SIGINT, seconds=5.0):
    """End the node as Ctrl-C or a supervisor would; its output."""
    process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"did not end in {seconds} s:\n{output}") from None
    return output


@pytest.fixture
def client(unused_ros_domain):
    client = Client(unused_ros_domain)
    yield client
    client.close()


def test_what_is_published_carries_the_time_it_was_read():
    """The limiter may work for 10 ms between the two; recorded commands would be uneven by as much."""
    sent, here = [], SimpleNamespace(publish=lambda message: sent.append(message))
    core = SimpleNamespace(reference=lambda: Reference.rest(0.0, PROFILE.home_q), opening=np.nan)
    node = SimpleNamespace(get_clock=Clock, profile=PROFILE, core=core, _states=here, _commands=here, _opening=np.nan)
    q = PROFILE.home_q
    ExecutorNode._publish(node, RobotState(time.monotonic() - 0.25, q, 0 * q, q, 0 * q))
    now = Clock().now().nanoseconds
    ages = [1e-9 * (now - m.header.stamp.sec * 10**9 - m.header.stamp.nanosec) for m in sent]
    assert len(ages) == 2 and ages == pytest.approx([0.25] * 2, abs=0.1)


def test_dry_run_from_arming_to_the_end(client, unused_ros_domain):
    process = start(unused_ros_domain, dry_run="true", chunk_timeout="0.6", **PATIENT)
    try:
        client.wait(lambda: client.heard["executor/status"])
        assert client.status.state == ExecutorStatus.IDLE and client.status.dry_run
        client.send(lambda t: PROFILE.home_q)
        client.wait(lambda: "executor/arm" in client.status.last_rejection)
        assert not client.call("recover").success
        assert client.call("arm").success
        client.wait(lambda: client.status.state == ExecutorStatus.ARMED)
        bad = client.send(lambda t: PROFILE.home_q * np.nan)
        client.wait(lambda: client.status.rejected == 1)
        assert bad.chunk_id and "actions[0, 0] is nan" in client.status.last_rejection
        client.send(lambda t: PROFILE.home_q, action_size=5)
        client.wait(lambda: client.status.rejected == 2)
        assert "wrong shape" in client.status.last_rejection
        client.send(lambda t: PROFILE.home_q, header=Header(stamp=Time(sec=-1)))
        client.wait(lambda: client.status.rejected == 3)
        assert "the observation is" in client.status.last_rejection
        for k in range(6):
            client.send(lambda t, k=k: PROFILE.home_q + 0.1 * (k * 5 * T + t) * np.eye(7)[6], gripper=-1.0)
            time.sleep(5 * T)
        client.wait(lambda: client.status.accepted >= 4, 2.0)
        assert client.status.state == ExecutorStatus.RUNNING
        assert client.status.chunk_rate == pytest.approx(3.0, abs=1.0)
        assert 0.0 <= client.status.observation_age < 1.0 and client.status.instruction == "test"
        assert client.heard["executor/gripper_command"][-1].data == -1.0
        previews = [message.points for message in client.heard["executor/preview"]]
        assert max(map(len, previews)) >= 6  # the rows of a chunk and the stop behind them
        assert all(np.allclose(points[-1].velocities, 0.0) for points in previews), "each ends at rest"
        client.wait(lambda: client.status.state == ExecutorStatus.ARMED, 5.0)
        assert "no acceptable chunk" in client.status.reasons[-1]
        moved = client.heard["joint_states"][-1].position[6] - PROFILE.home_q[6]
        assert 0.15 < moved < 0.3
        assert list(client.heard["joint_states"][-1].name) == list(PROFILE.joint_names)
        before = len(client.heard["joint_states"])
        time.sleep(1.0)
        assert 70 <= len(client.heard["joint_states"]) - before <= 110
        assert client.call("reset").success
        client.wait(lambda: client.status.epoch == 1)
    finally:
        output = finish(process)
    assert process.returncode == 0, output
    assert "Traceback" not in output and "a virtual arm follows, once executor/arm is called" in output


def test_of_what_came_while_it_could_not_answer_a_stop_has_the_last_word(client, unused_ros_domain):
    """As while `recover` waits for the robot: else home, called before a stop, would begin behind it."""
    process = start(unused_ros_domain, dry_run="true", **PATIENT)
    try:
        client.wait(lambda: client.heard["executor/status"])
        assert client.call("stop").success and client.call("arm").success and client.call("home").success
        client.wait(lambda: client.status.state == ExecutorStatus.IDLE)
        process.send_signal(signal.SIGSTOP)
        answers = [client.callers["home"].call_async(Trigger.Request())]
        time.sleep(0.2)
        answers.append(client.callers["stop"].call_async(Trigger.Request()))
        time.sleep(0.2)
        process.send_signal(signal.SIGCONT)
        client.wait(lambda: all(a.done() for a in answers))
        assert answers[0].result().message.startswith("going home")
        assert answers[1].result().message == "stopping", "what home began, not what was before it"
    finally:
        process.send_signal(signal.SIGCONT)
        output = finish(process)
    assert process.returncode == 0, output


def test_arming_by_itself_ends_with_the_operators_first_word(client, unused_ros_domain):
    process = start(unused_ros_domain, dry_run="true", arm_on_start="true", deadman_timeout="0.3", **PATIENT)
    holding = client.node.create_publisher(Bool, "executor/deadman", 1)
    try:
        client.wait(lambda: client.heard["executor/status"])
        assert client.call("stop").success
        client.wait(lambda: holding.get_subscription_count() > 0)
        for _ in range(30):
            holding.publish(Bool(data=True))
            time.sleep(0.02)
        assert client.status.state == ExecutorStatus.IDLE
        holding.publish(Bool(data=True))
        assert client.call("arm").success, "held it was"
    finally:
        output = finish(process)
    assert process.returncode == 0, output


def test_nothing_moves_beside_another_executor(client, unused_ros_domain):
    """A service request reaches both, and what one says is taken for the other's."""
    process = start(unused_ros_domain, dry_run="true", arm_on_start="true", **PATIENT)
    try:
        client.wait(lambda: client.heard["executor/status"] and client.status.state == ExecutorStatus.ARMED)
        other = client.node.create_publisher(ExecutorStatus, "executor/status", 1)
        client.wait(lambda: any("another executor" in reason for reason in client.status.reasons))
        for name in ("arm", "home"):
            answer = client.call(name)
            assert not answer.success and "namespace or a ROS_DOMAIN_ID" in answer.message
        assert client.call("stop").success
        client.wait(lambda: client.status.state == ExecutorStatus.IDLE)
        client.node.destroy_publisher(other)
        client.wait(lambda: not any("another executor" in reason for reason in client.status.reasons))
        assert client.call("arm").success
    finally:
        finish(process)


def test_it_is_called_from_another_terminal(client, unused_ros_domain):
    def call(*words):
        done = subprocess.run([sys.executable, "-m", "vipra_ros.cli", "call", *words], capture_output=True, text=True,
                              env={**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain)}, timeout=60)
        return done.returncode, done.stdout + done.stderr

    process = start(unused_ros_domain, dry_run="true", **PATIENT)
    try:
        client.wait(lambda: client.heard["executor/status"])
        code, text = call("recover")
        assert code == 1 and text.startswith("recover: ") and len(text.splitlines()) == 1  # nothing to recover from
        assert call("arm")[0] == 0
        client.wait(lambda: client.status.state == ExecutorStatus.ARMED)
        assert call("stop")[0] == 0
        client.wait(lambda: client.status.state == ExecutorStatus.IDLE)
        code, text = call("arm", "--namespace", "left")
        assert code == 1 and "nobody offers /left/executor/arm" in text and "Traceback" not in text
    finally:
        finish(process)


def test_an_incompatible_publisher_is_reported(client, unused_ros_domain):
    process = start(unused_ros_domain, dry_run="true")
    try:
        client.wait(lambda: client.heard["executor/status"])
        client.node.create_publisher(
            ActionChunk, "policy/chunk", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        client.wait(lambda: any("policy/chunk" in r and "quality of service" in r for r in client.status.reasons))
    finally:
        finish(process, signal.SIGTERM)


def test_a_wrong_parameter_or_no_robot_is_one_line(unused_ros_domain):
    for parameters, expected in (
        ({"chunk_timeout": "-1.0"}, "chunk_timeout"),
        (
            {"host": "127.0.7.98", "realtime_config": "ignore", "connect_timeout": "0.0"},
            "executor: no arm at 127.0.7.98",
        ),
    ):
        process = start(unused_ros_domain, **parameters)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 1 and "Traceback" not in output, output
        assert expected in output.strip().splitlines()[-1]


SIMULATION = """
import sys, time
import numpy as np
from vipra_ros.sim.server import TableServer
with TableServer(sys.argv[1]) as server:
    while server.failure is None:
        q, speed = server.look(lambda world: (float(world.q[6]), float(np.abs(world.dq).max())))
        print(q, speed, flush=True)
        time.sleep(0.05)
"""


def test_a_real_franky_arm_moves_and_sigterm_brakes_it(client, unused_ros_domain):
    pytest.importorskip("franky")
    host, seen = "127.0.7.22", []
    world = subprocess.Popen([sys.executable, "-c", SIMULATION, host], stdout=subprocess.PIPE, text=True)
    listener = threading.Thread(
        target=lambda: seen.extend(tuple(map(float, line.split())) for line in world.stdout), daemon=True
    )
    process = start(unused_ros_domain, host=host, realtime_config="ignore", arm_on_start="true", **PATIENT)
    try:
        listener.start()
        client.wait(lambda: client.heard["executor/status"] and client.status.state == ExecutorStatus.ARMED)
        client.wait(lambda: client.heard["joint_states"] and len(client.heard["joint_states"][-1].name) == 8)
        assert client.heard["joint_states"][-1].name[-1] == "fr3_finger_joint1"
        begin = np.array(client.heard["joint_states"][-1].position[:7])
        # A plan that begins with a pause: held in it, the arm does not go on with what it has been given.
        rows = [[*(begin + np.array([0, 0, 0, 0, 0, 0, 0.06]) * max(0, k - 10)), 1.0] for k in range(14)]
        client.send(lambda t: begin, execute_steps=14, actions=np.array(rows).ravel().tolist(), lookahead=[])
        client.wait(lambda: client.status.state == ExecutorStatus.RUNNING)
        assert client.call("hold").success
        time.sleep(1.5)
        assert client.status.state == ExecutorStatus.HOLD, client.status.reasons
        assert abs(client.heard["joint_states"][-1].position[6] - begin[6]) < 0.01
        assert client.call("arm").success
        since = time.monotonic()
        turn = 0.1 * np.array([0, 0, 0, 0, 0, 0, 1.0])  # slow: a starved simulator lags behind the wall
        for _ in range(8):
            passed = time.monotonic() - since
            client.send(lambda t, passed=passed: begin + turn * (passed + t))
            time.sleep(4 * T)
        assert client.status.faults == 0, client.status.reasons
        assert client.status.in_control
        client.wait(lambda: client.heard["executor/joint_command"][-1].velocity[6] > 0.05, 2.0)
        output = finish(process, signal.SIGTERM)
        assert process.returncode == 0 and "Traceback" not in output, output
        time.sleep(0.5)
        assert max(speed for _, speed in seen) > 0.05
        client.wait(lambda: all(speed < 0.01 for _, speed in seen[-4:]), 5.0)
        assert seen[-1][0] - begin[6] > 0.05
    finally:
        for running in (process, world):
            if running.poll() is None:
                running.kill()
            running.wait()
