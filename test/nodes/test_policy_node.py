"""The policy node as a process of its own, with synthetic cameras, joints and executor around it."""

import array
import json
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, JointState  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from vipra_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus  # noqa: E402

from vipra_ros.control.profile import load_profile  # noqa: E402
from vipra_ros.nodes.spinner import Spinner, lone_node  # noqa: E402
from vipra_ros.policy.checkpoint import folder_hash  # noqa: E402
from vipra_ros.sim import scene  # noqa: E402

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
PERIOD = 1 / 15


class World:
    """A camera, an arm and an executor's voice, each switched by an attribute."""

    def __init__(self, domain, raw=False):
        self.node = lone_node("world", domain)
        self.raw, self.camera, self.frozen, self.moving = raw, True, False, False
        self.state, self.epoch, self.queue = ExecutorStatus.ARMED, 0, 0
        self.stamps, self.chunks, self.statuses = [], [], []
        kind, topic = (
            (Image, "camera/front/image_raw") if raw else (CompressedImage, "camera/front/image_raw/compressed")
        )
        self.images = self.node.create_publisher(kind, topic, qos_profile_sensor_data)
        self.joints = self.node.create_publisher(JointState, "joint_states", 10)
        self.executor_out = self.node.create_publisher(ExecutorStatus, "executor/status", LATCHED)
        self.words = self.node.create_publisher(String, "policy/instruction", 1)
        self.node.create_subscription(ActionChunk, "policy/chunk", self.chunks.append, 1)
        self.node.create_subscription(PolicyStatus, "policy/status", self.statuses.append, LATCHED)
        self.node.create_timer(1 / 30, self.step)
        self.count, self.angle = 0, 0.0
        self.spinner = Spinner(self.node)

    def step(self):
        self.count += 1
        stamp = self.node.get_clock().now().to_msg()
        if self.camera:
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[:, : 0 if self.frozen else 8 + self.count % 40] = 200
            if self.raw:
                message = Image(
                    height=48, width=64, encoding="rgb8", step=192, data=array.array("B", picture.tobytes())
                )
            else:
                jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
                message = CompressedImage(format="jpeg", data=array.array("B", jpeg))
            message.header.stamp = stamp
            self.stamps.append((stamp.sec, stamp.nanosec))
            self.images.publish(message)
        self.angle += 0.02 if self.moving else 0.0
        joints = JointState(
            name=[*load_profile("fr3").joint_names, "fr3_finger_joint1"],
            position=[*(np.array(scene.HOME) + self.angle), 0.04],
        )
        joints.header.stamp = stamp
        self.joints.publish(joints)
        self.executor_out.publish(ExecutorStatus(state=self.state, epoch=self.epoch, queue=self.queue))

    def until(self, condition, seconds=10.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.02)
        last = self.statuses[-1] if self.statuses else None
        raise AssertionError(f"nothing in {seconds} s; last status: {last and (last.state_text, list(last.reasons))}")

    def status(self, text, reason="", seconds=10.0):
        """Wait for a state whose reasons hold `reason`."""
        return self.until(
            lambda: (
                self.statuses
                and self.statuses[-1].state_text == text
                and any(reason in r for r in [*self.statuses[-1].reasons, ""])
                and self.statuses[-1]
            ),
            seconds,
        )

    def fresh(self, count=1, seconds=10.0):
        """The next `count` chunks from now on."""
        have = len(self.chunks)
        return self.until(lambda: len(self.chunks) >= have + count and self.chunks[have : have + count], seconds)

    def close(self):
        self.spinner.close()


def start(checkpoint, domain, *parameters):
    import os

    arguments = [x for p in (f"checkpoint:={checkpoint}", "threads:=1", *parameters) for x in ("-p", p)]
    return subprocess.Popen(
        [sys.executable, "-m", "vipra_ros.nodes.policy", "--ros-args", *arguments],
        env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
    )


@pytest.fixture(scope="module")
def running(micro_checkpoint, unused_ros_domain):
    world = World(unused_ros_domain)
    world.camera = False
    process = start(micro_checkpoint, unused_ros_domain, 'instruction:="reach above the red cube"')
    yield world, process
    process.kill()
    process.wait()
    world.close()


@pytest.fixture
def world(running):
    """Everything switched on and well."""
    world = running[0]
    world.camera, world.frozen, world.moving, world.state, world.queue = (
        True,
        False,
        False,
        ExecutorStatus.ARMED,
        0,
    )
    return world


def test_a_missing_camera_is_named_with_the_remedy(running):
    world = running[0]
    status = world.status("WAITING", "camera front: no frame yet", seconds=40.0)
    assert not world.chunks and list(status.cameras) == ["front"] and status.checkpoint


def test_chunks_answer_observations_and_say_what_they_are(world, micro_checkpoint):
    world.status("RUNNING")
    chunks = world.fresh(8)
    first = chunks[0]
    assert (first.horizon, first.execute_steps, first.action_size) == (14, 7, 8)
    assert len(first.actions) == 56 and len(first.lookahead) == 56 and np.isfinite(first.actions).all()
    assert first.step_period == pytest.approx(PERIOD) and first.action_space == "joint_position"
    assert tuple(first.joint_names) == load_profile("fr3").joint_names
    assert first.checkpoint == folder_hash(micro_checkpoint)[:16] and first.policy_id
    assert first.instruction == "reach above the red cube"
    rows = np.array(first.actions).reshape(7, 8)
    assert np.abs(rows[:, :7] - scene.HOME).max() < 0.1
    ids = [c.chunk_id for c in chunks]
    assert ids == list(range(ids[0], ids[0] + 8))
    assert all((c.header.stamp.sec, c.header.stamp.nanosec) in world.stamps for c in chunks)
    # async: the next observation follows before the seven rows have run out
    stamps = np.array([c.header.stamp.sec + c.header.stamp.nanosec * 1e-9 for c in chunks])
    assert np.median(np.diff(stamps)) == pytest.approx(5 * PERIOD, abs=1.1 * PERIOD)
    status = world.status("RUNNING")
    assert 0 < status.latency_p50 < 0.5 and 0 < status.inference_p50 <= status.latency_p99
    assert status.camera_rate[0] == pytest.approx(30, rel=0.3)


def test_another_instruction_takes_effect_with_the_next_chunk(world):
    before = world.fresh()[0]
    world.words.publish(String(data="lift the  blue cube"))
    world.until(lambda: world.chunks[-1].instruction == "lift the blue cube")
    later = world.fresh(3)
    assert all(c.instruction == "lift the blue cube" and c.task_id == before.task_id + 1 for c in later)
    order = [c.task_id for c in world.chunks]
    assert order == sorted(order)  # no chunk of the old task after one of the new


def test_an_unknown_word_stops_the_chunks_until_known_ones_come(world):
    """Unknown words are read as one and the same: the policy would act as if it had understood."""
    world.words.publish(String(data="lift the blue mug"))
    world.status("WAITING", "knows no word 'mug'")
    have = len(world.chunks)
    time.sleep(0.5)
    assert len(world.chunks) == have and all("mug" not in c.instruction for c in world.chunks)
    world.words.publish(String(data="reach above the red cube"))
    assert world.fresh()[0].instruction == "reach above the red cube"
    world.status("RUNNING")


def test_publication_follows_the_executor_and_its_epoch(world):
    world.fresh()
    world.state = ExecutorStatus.FAULT
    world.status("PAUSED", "the executor is FAULT; call executor/recover")
    count = len(world.chunks)
    time.sleep(0.8)
    assert len(world.chunks) == count
    world.state, world.epoch = ExecutorStatus.RUNNING, 3
    assert world.fresh(1)[0].epoch == 3


def test_a_camera_that_stops_stops_the_chunks(world):
    world.fresh()
    world.camera = False
    world.status("WAITING", "camera front: newest frame is")
    count = len(world.chunks)
    time.sleep(0.5)
    assert len(world.chunks) == count
    world.camera = True
    world.fresh()


def test_a_frozen_picture_stops_the_chunks_only_while_the_arm_moves(world):
    world.frozen = True
    time.sleep(1.3)
    world.fresh()  # nothing moves, so nothing need change in the picture
    world.moving = True
    status = world.status("WAITING", "frozen")
    assert list(status.frozen) == [True]
    world.frozen = False
    world.fresh()


def test_interrupt_ends_the_node_within_a_second(world, running):
    world.fresh()
    process = running[1]
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5.0) == 0
    assert time.monotonic() - began < 1.0 + 0.3  # the process itself takes a moment to unload


def test_raw_images_and_sync_mode(micro_checkpoint, unused_ros_domain):
    world = World(unused_ros_domain + 1, raw=True)
    process = start(micro_checkpoint, unused_ros_domain + 1, "transport:=raw", "mode:=sync", 'instruction:="go"')
    try:
        world.fresh(2, seconds=40.0)
        world.queue = 5
        time.sleep(0.5)
        count = len(world.chunks)
        time.sleep(1.0)
        assert len(world.chunks) == count  # the executor has rows left
        world.queue = 0
        world.fresh()
    finally:
        process.kill()
        process.wait()
        world.close()


@pytest.mark.parametrize(
    "parameter, said",
    [
        ("checkpoint:=/none/such", "checkpoint '/none/such' is no folder and none of the shipped models"),
        ('camera_topics:=["front"]', "camera_topics = 'front': write camera=topic"),
        ("device:=gpu", "device = 'gpu': write auto, cpu, cuda, or cuda:1"),
        ("rtc:=guided -p mode:=sync", "rtc = 'guided' with mode = 'sync'"),
    ],
)
def test_bad_parameters_end_the_node_with_one_line(parameter, said, micro_checkpoint, unused_ros_domain):
    import os

    given = [f"checkpoint:={micro_checkpoint}", parameter]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vipra_ros.nodes.policy",
            "--ros-args",
            *(x for p in given for x in ("-p", *p.split(" "))),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain)},
    )
    assert done.returncode == 1 and said in done.stderr + done.stdout, json.dumps(done.stderr)
    assert "Traceback" not in done.stderr


def test_engine_device_and_euler_steps_are_the_parameters(micro_checkpoint, unused_ros_domain):
    """A node that computes where it is told to, and one whose device is not there: it stays up to say so."""
    import torch

    away = f"cuda:{torch.cuda.device_count()}"
    told = ("engine:=static", "device:=cpu", "euler_steps:=3", "weights:=int8"), ("device:=" + away, "engine:=torch")
    for parameters in told:
        world = World(unused_ros_domain + 1)
        process = start(micro_checkpoint, unused_ros_domain + 1, *parameters, 'instruction:="go"')
        try:
            if parameters is told[0]:
                world.fresh(1, seconds=120.0)
                assert world.statuses[-1].engine == "static int8 cpu"
            else:
                reasons = world.status("FAULT", f"device = '{away}'", 120.0).reasons
                assert "'cpu'" in reasons[0] and not world.chunks
        finally:
            process.kill()
            process.wait()
            world.close()


def test_what_a_server_decides_is_not_set_here():
    from vipra_ros.config import ConfigError
    from vipra_ros.nodes.policy_settings import PolicySettings

    for name, value in (("rtc", "guided"), ("device", "cuda"), ("euler_steps", 4), ("weights", "int8")):
        with pytest.raises(ConfigError, match=f"{name} = .* with engine = 'remote', where the server computes"):
            PolicySettings(engine="remote", **{name: value})


def test_a_discrete_policy_drives_a_simulated_arm_only(micro_checkpoint, unused_ros_domain, tmp_path):
    """Real node, real discrete checkpoint: without word of a simulation it ends in FAULT and sends nothing."""
    import dataclasses

    from vipra_ros.model.discrete import make_policy
    from vipra_ros.policy.checkpoint import Checkpoint

    made = Checkpoint.load(micro_checkpoint)
    network = dataclasses.replace(made.config.policy, decoder="discrete", action_bins=15)
    policy = make_policy(network)
    policy.fit(np.random.default_rng(0).normal(size=(200, 8)))
    described = dataclasses.replace(made.config, policy=network, variant="ViPRA-AR")
    Checkpoint(described, policy, made.vq, made.statistics, made.tokenizer).save(tmp_path)
    for simulated in (False, True):
        world = World(unused_ros_domain + 1)
        process = start(tmp_path, unused_ros_domain + 1, f"simulated:={str(simulated).lower()}", 'instruction:="go"')
        try:
            if simulated:
                rows = np.array(world.fresh(1, seconds=120.0)[0].actions).reshape(7, 8)
                assert set(rows[:, -1]) <= {-1.0, 1.0}
            else:
                world.status("FAULT", "ViPRA-AR has a discrete decoder: its actions spike and trip the safety", 120.0)
                assert not world.chunks
        finally:
            process.kill()
            process.wait()
            world.close()
