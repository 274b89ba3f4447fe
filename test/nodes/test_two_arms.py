"""One policy of sixteen columns and two executors in namespaces, each a process of its own; dry run."""

import array
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from vipra_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus  # noqa: E402

from vipra_ros.config import ConfigError  # noqa: E402
from vipra_ros.control.profile import load_profile  # noqa: E402
from vipra_ros.nodes.quality import LATCHED  # noqa: E402
from vipra_ros.nodes.spinner import Spinner, lone_node  # noqa: E402
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError  # noqa: E402

ARMS = ("left", "right")
PATIENT = {"overrun_fault": 3.0, "state_timeout": 2.0, "chunk_timeout": 1.0, "incident_keep": 0}


@pytest.fixture
def checkpoint(two_arm_checkpoint):
    return two_arm_checkpoint


class Watcher:
    """A camera, an operator, and ears on both arms."""

    def __init__(self, domain):
        self.node = node = lone_node("watcher", domain)
        self.images = node.create_publisher(
            CompressedImage, "camera/front/image_raw/compressed", qos_profile_sensor_data
        )
        self.count, self.policy = 0, None
        self.chunks, self.status = {a: {} for a in ARMS}, {}
        self.calls = {}
        for arm in ARMS:
            node.create_subscription(
                ActionChunk, f"{arm}/policy/chunk", lambda m, a=arm: self.chunks[a].setdefault(m.chunk_id, m), 10
            )
            node.create_subscription(
                ExecutorStatus, f"{arm}/executor/status", lambda m, a=arm: self.status.update({a: m}), LATCHED
            )
            for word in ("arm", "hold", "stop", "reset"):
                self.calls[arm, word] = node.create_client(Trigger, f"{arm}/executor/{word}")
        node.create_subscription(PolicyStatus, "policy/status", lambda m: setattr(self, "policy", m), LATCHED)
        node.create_timer(1 / 30, self.picture)
        self.spinner = Spinner(self.node)

    def picture(self):
        self.count += 1
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:, : 8 + self.count % 40] = 200
        message = CompressedImage(format="jpeg", data=array.array("B", cv2.imencode(".jpg", pixels)[1].tobytes()))
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.images.publish(message)

    def call(self, arm, word):
        assert self.calls[arm, word].wait_for_service(20.0)
        future = self.calls[arm, word].call_async(Trigger.Request())
        self.until(future.done)
        return future.result()

    def until(self, condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not condition():
            states = {a: (s.state_text, list(s.reasons), s.last_rejection) for a, s in self.status.items()}
            said = self.policy and (self.policy.state_text, list(self.policy.reasons))
            assert time.monotonic() < end, f"not in {seconds} s; arms {states}, policy {said}"
            time.sleep(0.02)

    def states(self, *texts):
        return [self.status[a].state_text if a in self.status else "" for a in ARMS] == list(texts)

    def close(self):
        self.spinner.close()


@pytest.fixture
def system(checkpoint, unused_ros_domain):
    environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain), "OMP_NUM_THREADS": "1"}

    def start(node, *words):
        command = [sys.executable, "-m", f"vipra_ros.nodes.{node}", "--ros-args", *words]
        return subprocess.Popen(command, env=environment)

    settings = [w for k, v in {**PATIENT, "dry_run": "true"}.items() for w in ("-p", f"{k}:={v}")]
    processes = [start("executor", "-r", f"__ns:=/{arm}", *settings) for arm in ARMS]
    processes.append(start("policy", "-p", f"checkpoint:={checkpoint}", "-p", "threads:=1",
                           "-p", "instruction:='reach above the red cube'"))  # fmt: skip
    watcher = Watcher(unused_ros_domain)
    yield watcher, processes
    watcher.close()
    for process in processes:
        process.kill()
        process.wait()


def test_one_policy_drives_two_arms_and_a_hold_of_one_stops_both(system):
    watcher, processes = system
    # A busy machine takes minutes to import torch.
    watcher.until(lambda: watcher.policy and watcher.policy.state_text == "PAUSED", 180.0)
    assert watcher.call("left", "arm").success
    time.sleep(0.5)
    assert watcher.policy.state_text == "PAUSED" and not watcher.chunks["left"], "one arm alone gets nothing"
    assert watcher.call("right", "arm").success
    watcher.until(lambda: watcher.states("RUNNING", "RUNNING"))
    watcher.until(lambda: all(s.accepted > 3 for s in watcher.status.values()))
    shared = sorted(set(watcher.chunks["left"]) & set(watcher.chunks["right"]))
    assert len(shared) > 3
    for number in shared:
        left, right = (watcher.chunks[a][number] for a in ARMS)
        assert left.header.stamp == right.header.stamp, "rows are due by the stamp: both begin together"
        assert left.action_size == right.action_size == 8 and len(left.actions) == 56 == len(right.actions)
        assert tuple(left.joint_names) == tuple(right.joint_names) == load_profile("fr3").joint_names
        assert left.actions != right.actions
    # An epoch of its own for each: a reset of one voids what is under way for it alone.
    assert watcher.call("left", "stop").success
    watcher.until(lambda: watcher.status["left"].state_text == "IDLE")
    assert watcher.call("left", "reset").success
    watcher.until(lambda: watcher.status["left"].epoch == 1 and watcher.status["right"].epoch == 0)
    assert watcher.call("left", "arm").success
    watcher.until(lambda: watcher.states("RUNNING", "RUNNING"))
    newest = [max(watcher.chunks[a]) for a in ARMS]
    assert [watcher.chunks[a][n].epoch for a, n in zip(ARMS, newest)] == [1, 0]
    assert watcher.call("left", "hold").success
    watcher.until(lambda: watcher.states("HOLD", "ARMED"))
    assert "no acceptable chunk" in watcher.status["right"].reasons[-1]
    assert watcher.call("left", "arm").success
    watcher.until(lambda: watcher.states("RUNNING", "RUNNING"))
    processes[1].kill()  # the right executor dies: the policy no longer hears from all
    watcher.until(lambda: any("no executor/status" in reason for reason in watcher.policy.reasons))
    watcher.until(lambda: watcher.status["left"].state_text == "ARMED")


@pytest.mark.skipif(
    os.cpu_count() < 4 and not os.environ.get("VIPRA_TWO_ARMS"),
    reason="two simulated controllers at 1 kHz and a policy want four processors; VIPRA_TWO_ARMS=1 tries anyway",
)
def test_one_policy_drives_two_simulated_arms(checkpoint, unused_ros_domain):
    """Real franky against two controllers; both arms begin with each chunk at the same time and follow."""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain), "OMP_NUM_THREADS": "1"}

    def start(*words):
        return subprocess.Popen([sys.executable, "-m", "vipra_ros.cli", *words], env=environment)

    hosts = {arm: f"127.{20 + i}.{os.getpid() % 250}.1" for i, arm in enumerate(ARMS)}
    quiet = "arm_on_start:=false"
    processes = [start("up", "sim", f"namespace:={arm}", f"sim_host:={host}", quiet) for arm, host in hosts.items()]
    processes.append(start("node", "policy", "--ros-args", "-p", f"checkpoint:={checkpoint}", "-p", "threads:=1", "-p",
                           "simulated:=true", "-p", "instruction:='reach above the red cube'"))  # fmt: skip
    watcher = Watcher(unused_ros_domain)
    try:
        watcher.until(lambda: watcher.policy and watcher.policy.state_text == "PAUSED", 90.0)
        for arm in ARMS:
            watcher.until(lambda a=arm: watcher.call(a, "arm").success, 60.0)
        watcher.until(lambda: watcher.states("RUNNING", "RUNNING"))
        began = {arm: watcher.status[arm].accepted for arm in ARMS}
        times = {arm: {} for arm in ARMS}  # observation stamp of the chunk that runs -> when it began to
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            for arm in ARMS:
                status = watcher.status[arm]
                if status.observation_age > 0:
                    now = status.header.stamp.sec + 1e-9 * status.header.stamp.nanosec
                    times[arm].setdefault(round(now - status.observation_age, 2), now)
            time.sleep(0.005)
        took = {arm: watcher.status[arm].accepted - began[arm] for arm in ARMS}
        lags = {arm: (watcher.status[arm].tracking_error, watcher.status[arm].obs_to_action_p50,
                      watcher.status[arm].stall_fraction) for arm in ARMS}  # fmt: skip
        shared = sorted(set(times["left"]) & set(times["right"]))
        apart = [abs(times["left"][t] - times["right"][t]) for t in shared]
        refused = {arm: (watcher.status[arm].rejected, watcher.status[arm].last_rejection) for arm in ARMS}
        print(f"chunks {took}, refused {refused}, tracking, latency, stall {lags}; {len(shared)} begun together, "
              f"apart by {1000 * np.median(apart):.0f} ms p50, {1000 * np.max(apart):.0f} ms at most")
        assert min(took.values()) > 10 and watcher.states("RUNNING", "RUNNING")
        assert max(x[0] for x in lags.values()) < 0.1
        assert watcher.call("left", "hold").success
        watcher.until(lambda: watcher.states("HOLD", "ARMED"))
    finally:
        watcher.close()
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait(20.0)


def test_a_checkpoint_of_two_arms_says_so(checkpoint):
    config = Checkpoint.load(checkpoint).config
    assert config.arms == ARMS and config.grippers == (7, 15)
    Checkpoint.load(checkpoint).check(load_profile("fr3"))
    with pytest.raises(CheckpointError, match="panda_joint1"):
        Checkpoint.load(checkpoint).check(load_profile("panda"))


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(arms=("left",)), "16 action columns for 14 and a gripper"),
        (dict(arms=("left", "left")), "name two or more, each once"),
        (dict(arms=("a", "b", "c")), "16 action columns for 14 and 3 grippers"),
    ],
)
def test_arms_that_do_not_fit_are_refused(checkpoint, change, said):
    import dataclasses

    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(Checkpoint.load(checkpoint).config, **change)
