"""A collected episode replayed by the node into a subscriber that plays the executor."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")
pytest.importorskip("vipra_ros.sim.world")

from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from vipra_ros.msg import ActionChunk, ExecutorStatus  # noqa: E402

from vipra_ros.config import ConfigError  # noqa: E402
from vipra_ros.data.bags import EpisodeReader  # noqa: E402
from vipra_ros.data.convert import convert  # noqa: E402
from vipra_ros.data.dataset import Dataset  # noqa: E402
from vipra_ros.data.episode import load_commands  # noqa: E402
from vipra_ros.data.replay import load_replay  # noqa: E402
from vipra_ros.data.resample import EpisodeError  # noqa: E402
from vipra_ros.nodes import bench_record, dataset_replay  # noqa: E402
from vipra_ros.nodes.replay import ReplayError  # noqa: E402
from vipra_ros.nodes.spinner import Spinner, lone_node  # noqa: E402
from vipra_ros.nodes.system import SessionError  # noqa: E402
from vipra_ros.sim import collect  # noqa: E402

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    out = tmp_path_factory.mktemp("collected")
    collect.collect(out, ["reach"], episodes=1, seed=3, cameras=("front",))
    return out / "reach-000003"


class StandIn:
    """Says what an executor says, with an arm that is where it is told to be; remembers the chunks."""

    def __init__(self, domain, names, q):
        self.node = lone_node("executor", domain)
        self.names, self.q, self.heard = list(names), np.array(q), []
        self.status = self.node.create_publisher(ExecutorStatus, "executor/status", LATCHED)
        self.joints = self.node.create_publisher(JointState, "joint_states", 10)
        self.commands = self.node.create_publisher(JointState, "executor/joint_command", 10)
        self.node.create_subscription(ActionChunk, "policy/chunk", self.on_chunk, 10)
        self.node.create_timer(0.02, self.say_joints)
        self.spinner = Spinner(self.node)

    def say(self, state):
        self.status.publish(ExecutorStatus(state=getattr(ExecutorStatus, state), state_text=state, epoch=4))

    def on_chunk(self, message):
        now = self.node.get_clock().now().nanoseconds
        if not self.heard:
            self.say("RUNNING")
        self.heard.append((now / 1e9, message))

    def say_joints(self):
        now = self.node.get_clock().now()
        q = self.q
        if self.heard:  # perfect tracking: the newest chunk, interpolated
            m = self.heard[-1][1]
            rows = np.array([*m.actions, *m.lookahead]).reshape(-1, 8)[:, :7]
            at = m.header.stamp.sec + m.header.stamp.nanosec / 1e9 + m.step_period * np.arange(1, len(rows) + 1)
            q = np.array([np.interp(now.nanoseconds / 1e9, at, rows[:, j]) for j in range(7)])
        message = JointState(name=self.names, position=q.tolist())
        message.header.stamp = now.to_msg()
        self.joints.publish(message)
        self.commands.publish(message)

    def close(self):
        self.spinner.close()


def start(domain, **parameters):
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "vipra_ros.nodes.replay", "--ros-args", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_rows_in_real_time_equal_the_recorded_commands(bag, unused_ros_domain):
    replay = load_replay(bag)
    with EpisodeReader(bag) as reader:
        commanded, gripper, _ = load_commands(reader)
    arm = StandIn(unused_ros_domain, replay.joint_names, replay.first)
    arm.say("IDLE")
    process = start(unused_ros_domain, bag=str(bag), wait="20.0")
    try:
        time.sleep(3.0)
        assert not arm.heard and process.poll() is None  # not armed: nothing is sent
        arm.say("ARMED")
        output, _ = process.communicate(timeout=30.0)
    finally:
        process.kill()
        arm.close()
    assert process.returncode == 0, output
    assert "commanded against recorded: max 0.0" in output
    stamps = np.array([m.header.stamp.sec + m.header.stamp.nanosec / 1e9 for _, m in arm.heard])
    arrived = np.array([t for t, _ in arm.heard])
    assert (arrived >= stamps - 1e-3).all() and np.median(arrived - stamps) < 0.1  # when due, never ahead
    rows = {}
    for stamp, (_, m) in zip(stamps, arm.heard):
        assert (m.execute_steps, m.horizon, m.action_size, m.epoch) == (7, 14, 8, 4)
        assert m.policy_id.startswith("replay-") and m.checkpoint == f"replay:{bag.name}"
        first = round((stamp - stamps[0]) * 15)
        for k, row in enumerate(np.reshape(m.actions, (7, 8))):
            rows.setdefault(first + k, row)
            assert (rows[first + k] == row).all()
    assert [m.chunk_id for _, m in arm.heard] == list(range(1, len(arm.heard) + 1))
    count = len(replay.rows)
    assert sorted(rows) == list(range(len(rows))) and count <= len(rows) < count + 7
    # row r is the command recorded (r + 1) / 15 s after the beginning, the last one is kept
    begin = max(commanded.time[0], gripper.time[0] - 1 / 15)
    times = begin + (np.arange(count) + 1) / 15
    expected = np.column_stack([np.interp(times, commanded.time, commanded.value[:, j]) for j in range(7)])
    sent = np.array([rows[r] for r in range(count)])
    np.testing.assert_allclose(sent[:, :7], expected, atol=1e-9)
    assert set(sent[:, 7]) == {1.0} and np.abs(sent[-1, :7] - sent[0, :7]).max() > 0.05
    assert all((rows[r] == sent[-1]).all() for r in range(count, len(rows)))


def test_the_actions_of_a_data_set_are_sent_as_they_stand(bag, tmp_path, unused_ros_domain):
    convert([bag], tmp_path / "set", quiet=True)
    d = Dataset(tmp_path / "set")
    names = d.features["action"]["names"][:7]
    arm = StandIn(unused_ros_domain, names, d.numeric("observation.state")[0, :7])
    arm.say("ARMED")
    process = start(unused_ros_domain, dataset=str(d.path), episode=0, wait="20.0", delay="0.1")
    try:
        output, _ = process.communicate(timeout=30.0)
    finally:
        process.kill()
        arm.close()
    assert process.returncode == 0 and "tracking, measured against recorded" in output, output
    sent = np.vstack([np.reshape(m.actions, (7, 8))[:5] for _, m in arm.heard])[: len(d)]
    np.testing.assert_array_equal(sent, d.numeric("action").astype(float)[: len(sent)])
    assert len(sent) == len(d) and arm.heard[0][1].checkpoint == "replay:set/0"


def test_an_arm_elsewhere_is_not_moved(bag, unused_ros_domain):
    replay = load_replay(bag)
    arm = StandIn(unused_ros_domain, replay.joint_names, replay.first + 0.8 * np.eye(7)[3])
    arm.say("ARMED")
    process = start(unused_ros_domain, bag=str(bag))
    try:
        output, _ = process.communicate(timeout=20.0)
    finally:
        process.kill()
        arm.close()
    assert process.returncode == 1 and not arm.heard
    assert "0.80 rad from the beginning of reach-000003 at fr3_joint4, allowed are 0.5 rad" in output


def test_no_episode_is_one_line(tmp_path, unused_ros_domain):
    process = start(unused_ros_domain, bag=str(tmp_path / "nothing"))
    output, _ = process.communicate(timeout=20.0)
    assert process.returncode == 1 and "Traceback" not in output and "cannot be read as a rosbag2" in output
    process = start(unused_ros_domain, bag="a", dataset="b")
    output, _ = process.communicate(timeout=20.0)
    assert process.returncode == 1 and "give the parameter bag, or dataset and episode" in output


def test_an_episode_that_fails_says_why_and_keeps_the_others(monkeypatch):
    """The path goes to ROS as text: `20260101` is no number, and what follows a `#` no comment."""
    given = []

    class Node:
        def approach(self):
            raise {1: ReplayError("too far"), 2: EpisodeError("no joint")}[len(given)]

    class Asked:
        def home(self):
            if len(given) == 3:
                raise SessionError("executor/recover: the arm has no power")

        def arm(self):
            """Insists while the arm swings, as a plain call does not."""

    monkeypatch.setattr(dataset_replay.rclpy, "init", lambda args, **_: given.append(args))
    monkeypatch.setattr(dataset_replay, "ReplayNode", Node)
    monkeypatch.setattr(dataset_replay, "Spinner", lambda node: SimpleNamespace(close=lambda: None))
    d = SimpleNamespace(path="20260101 #1")
    e = SimpleNamespace(index=0, source="s", task_key="reach", seed=3, task="reach", success=True)
    results = [dataset_replay._one(d, e, Asked(), 1) for _ in range(3)]
    assert [r["reason"] for r in results] == ["too far", "no joint", "executor/recover: the arm has no power"]
    assert not any(r["success"] for r in results)
    assert 'dataset:="20260101 #1"' in given[0]


def test_a_record_bench_does_not_measure_into_an_old_folder(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(ConfigError, match="an earlier run .raw.; name another folder"):
        bench_record.run(out=str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
