"""The recorder node as a process of its own, fed by publishers like those of a robot."""

import array
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState  # noqa: E402
from std_msgs.msg import Float32, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from vipra_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus  # noqa: E402

from vipra_ros import __version__  # noqa: E402
from vipra_ros.data import messages, repair  # noqa: E402
from vipra_ros.data.bags import EpisodeReader, find_bags  # noqa: E402
from vipra_ros.data.episode import load_episode  # noqa: E402
from vipra_ros.data.resample import Resampling  # noqa: E402
from vipra_ros.nodes.recorder import RecorderNode, RecorderSettings  # noqa: E402
from vipra_ros.nodes.spinner import Spinner, lone_node  # noqa: E402

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
ARM = [f"fr3_joint{i + 1}" for i in range(7)]
LEADER_HAND = "gripper/gripper_client/target_gripper_width_percent"
PICTURE = "camera/{}/image_raw/compressed"


class Robot:
    """Two cameras at 30 Hz, joints at 60 Hz, latched words, hand and status; and an operator."""

    def __init__(self, domain):
        self.node = node = lone_node("robot", domain)
        self.began, self.sent, self.status = time.monotonic(), {}, {}
        self.images = {c: node.create_publisher(CompressedImage, PICTURE.format(c), qos_profile_sensor_data)
                       for c in ("front", "wrist")}
        self.infos = {c: node.create_publisher(CameraInfo, f"camera/{c}/camera_info", qos_profile_sensor_data)
                      for c in self.images}
        self.joints = node.create_publisher(JointState, "joint_states", 10)
        self.commands = node.create_publisher(JointState, "executor/joint_command", 10)
        self.hand = node.create_publisher(Float32, "executor/gripper_command", LATCHED)
        self.state = node.create_publisher(ExecutorStatus, "executor/status", LATCHED)
        self.words = node.create_publisher(String, "policy/instruction", LATCHED)
        self.chunk = node.create_publisher(ActionChunk, "policy/chunk", 1)
        self.leader = node.create_publisher(JointState, "gello/joint_states", 10)
        self.leader_hand = node.create_publisher(Float32, LEADER_HAND, 10)
        self.relabel = node.create_publisher(String, "recorder/relabel", 10)
        self.hand.publish(Float32(data=1.0))
        self.state.publish(ExecutorStatus(state_text="IDLE", robot="fr3 at nowhere"))
        self.words.publish(String(data="lift the réd cube"))
        node.create_subscription(String, "recorder/status", self.on_status, LATCHED)
        self.clients = {n: node.create_client(Trigger, f"recorder/{n}")
                        for n in ("start", "success", "failure", "discard")}
        node.create_timer(1 / 30, self.see)
        node.create_timer(1 / 60, self.feel)
        self.spinner = Spinner(self.node)

    def on_status(self, message):
        self.status = json.loads(message.data)

    def see(self):
        stamp = self.node.get_clock().now()
        for camera, publisher in self.images.items():
            number = self.sent.setdefault(camera, [])
            image = np.full((48, 48, 3), len(number) % 200, np.uint8)
            jpeg = cv2.imencode(".jpg", image)[1].tobytes()
            message = CompressedImage(format="jpeg", data=array.array("B", jpeg))
            message.header.stamp = stamp.to_msg()
            number.append((stamp.nanoseconds, jpeg))
            publisher.publish(message)
            info = CameraInfo(header=message.header, width=48, height=48, k=[60.0, 0, 24, 0, 60, 24, 0, 0, 1])
            self.infos[camera].publish(info)

    def feel(self):
        now = self.node.get_clock().now()
        t = time.monotonic() - self.began
        q = (0.3 * np.sin(t + np.arange(7))).tolist()
        self.leader_hand.publish(Float32(data=0.7))
        for publisher, names, position in ((self.joints, [*ARM, "fr3_finger_joint1"], [*q, 0.04]),
                                           (self.commands, ARM, q), (self.leader, ARM, q)):
            message = JointState(name=names, position=position, velocity=[0.0] * len(position))
            message.header.stamp = now.to_msg()
            publisher.publish(message)

    def call(self, name):
        assert self.clients[name].wait_for_service(15.0)
        future = self.clients[name].call_async(Trigger.Request())
        self.wait(future.done, 5.0)
        return future.result()

    def wait(self, condition, seconds=10.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError(f"not in {seconds} s; last status: {self.status}")

    def close(self):
        self.spinner.close()


def start(domain, **parameters):
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "vipra_ros.nodes.recorder", "--ros-args", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_was_published_is_in_the_bag_and_becomes_an_episode(tmp_path, unused_ros_domain):
    robot = Robot(unused_ros_domain)
    process = start(unused_ros_domain, record=str(tmp_path / "bags"), operator="me")
    try:
        robot.wait(lambda: robot.status, 20.0)
        assert robot.status["state"] == "IDLE" and not robot.call("success").success
        time.sleep(0.7)  # the pre-roll fills
        called = robot.node.get_clock().now().nanoseconds
        answer = robot.call("start")
        assert answer.success and "nothing yet" not in answer.message, answer.message
        time.sleep(1.0)
        robot.hand.publish(Float32(data=-1.0))
        robot.chunk.publish(ActionChunk(chunk_id=5, instruction="lift"))
        time.sleep(1.0)
        robot.wait(lambda: robot.status["state"] == "RECORDING" and robot.status["counts"][PICTURE.format("front")])
        ended = robot.node.get_clock().now().nanoseconds
        assert robot.call("success").success
        robot.wait(lambda: robot.status["state"] == "IDLE" and robot.status["last"])
        assert robot.call("start").success
        time.sleep(0.3)
        assert robot.call("discard").success
        assert robot.call("start").success  # still under way at the end
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10.0)
    finally:
        process.kill()
        robot.close()
    assert process.returncode == 0 and "Traceback" not in output, output
    bags = find_bags([tmp_path / "bags"])
    assert len(bags) == 2 and "thrown away" in output
    table = [line for line in output.splitlines() if "front image" in line]
    assert table and max(map(len, table)) <= 66
    with EpisodeReader(bags[0]) as reader:
        meta = reader.meta()
        assert meta["success"] is True and meta["operator"] == "me" and meta["robot"] == "fr3 at nowhere"
        assert meta["cameras"] == ["front", "wrist"] and meta["version"] == __version__
        lens = meta["camera_profile"]["wrist"]
        assert (lens["width"], lens["height"], lens["k"][0]) == (48, 48, 60.0)
        stored = {}
        for topic, _, stamp, raw in reader.messages():
            stored.setdefault(topic, []).append((stamp, raw))
        for camera in ("front", "wrist"):
            images = {messages.header_stamp(raw): bytes(messages.image_data(raw))
                      for _, raw in stored[PICTURE.format(camera)]}
            sent = dict(robot.sent[camera])
            assert all(sent[s] == jpeg for s, jpeg in images.items())
            due = [s for s in sent if called < s < ended - 10**8]
            assert len(set(due) - set(images)) <= 0.1 * len(due)  # best effort, on a busy machine
            assert 0.2e9 < called - min(images) < 0.8e9  # pre-roll
            assert len(stored[f"camera/{camera}/camera_info"]) > 0.8 * len(images)
        assert [messages.read_float32(raw) for _, raw in stored["executor/gripper_command"]] == [1.0, -1.0]
        assert [messages.read_string(raw) for _, raw in stored["policy/instruction"]] == ["lift the réd cube"]
        chunk = messages.deserialize(stored["policy/chunk"][0][1], messages.ACTION_CHUNK)
        assert chunk.chunk_id == 5 and "executor/status" in stored
        assert len(stored["gello/joint_states"]) > 50 and len(stored[LEADER_HAND]) > 50
        assert meta["reception"]["joint_states"]["received"] == len(stored["joint_states"])
        lenient = Resampling(joint_gap=0.5, image_age=0.5)
        episode = load_episode(reader, lenient)
        assert episode.instruction == "lift the réd cube" and 30 <= len(episode) <= 45
        assert list(episode.joint_names) == ARM and {1.0, -1.0} == set(episode.action[:, 7])
        # the command of the next frame is the command of this one, a period later
        assert np.abs(episode.action[:-1, :7] - episode.state[1:, :7]).max() < 0.02
    with EpisodeReader(bags[1]) as reader:
        assert "success" not in reader.meta()
        assert any("ended with the recorder" in f for f in reader.meta()["flags"])


def test_a_killed_recorder_loses_the_last_second_of_the_open_episode(tmp_path, unused_ros_domain):
    robot = Robot(unused_ros_domain)
    process = start(unused_ros_domain, record=str(tmp_path), operator="me")
    try:
        robot.wait(lambda: robot.status, 20.0)
        for name, seconds in (("start", 1.0), ("success", 0.0), ("start", 3.5)):
            assert robot.call(name).success
            time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10.0)
    finally:
        process.kill()
        robot.close()
    (done,) = find_bags([tmp_path])
    before = (done / f"{done.name}.mcap").read_bytes()
    (got,) = repair.repair(tmp_path)
    assert got.seconds > 2.0 and find_bags([tmp_path]) == sorted([done, got.path])
    with EpisodeReader(got.path) as reader:
        meta = reader.meta()
        assert meta["operator"] == "me" and meta["instruction"] == "lift the réd cube" and meta["repaired"]
        assert meta["robot"] == "fr3 at nowhere" and "success" not in meta
        assert reader.counts["joint_states"] > 60 * 2.0 and reader.counts[PICTURE.format("front")] > 30
    assert (done / f"{done.name}.mcap").read_bytes() == before


def test_keys_start_label_relabel_and_throw_away(tmp_path, unused_ros_domain):
    robot = Robot(unused_ros_domain)
    process = start(unused_ros_domain, record=str(tmp_path / "bags"))
    master, slave = os.openpty()
    environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain)}
    keys = subprocess.Popen(
        [sys.executable, "-m", "vipra_ros.cli", "keys"], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    screen = bytearray()

    def read():
        try:
            while True:
                screen.extend(os.read(master, 4096))
        except OSError:  # closed
            pass

    threading.Thread(target=read, daemon=True).start()
    def seen(text, since=0):
        robot.wait(lambda: text.encode() in screen[since:], 15.0)
    try:
        robot.wait(lambda: robot.status, 20.0)
        seen("s start")
        os.write(master, b"y")
        seen("nothing is being recorded")
        os.write(master, b"s")
        seen("y yes  n no")
        time.sleep(0.8)
        os.write(master, b"n")
        seen("front image")
        os.write(master, "ipush the grün cube\n".encode())
        robot.wait(lambda: robot.status["last"].get("instruction") == "push the grün cube")
        mark = len(screen)
        os.write(master, b"s")
        seen("y yes  n no", mark)
        os.write(master, b"d")
        robot.wait(lambda: robot.status["state"] == "IDLE" and not robot.status["last"]["saved"])
        seen("not kept", mark)
        os.write(master, b"q")
        assert keys.wait(10.0) == 0
    finally:
        keys.kill()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10.0)
        robot.close()
        os.close(slave)
        os.close(master)
    (bag,) = find_bags([tmp_path / "bags"])
    with EpisodeReader(bag) as reader:
        meta = reader.meta()
        words = [messages.read_string(raw) for t, _, _, raw in reader.messages(["policy/instruction"])]
    assert meta["success"] is False and meta["instruction"] == "push the grün cube"
    assert words == ["lift the réd cube"] and meta["relabelled"] == [
        {"instruction": "lift the réd cube", "success": False}
    ]


def test_a_wrong_parameter_is_one_line(tmp_path, unused_ros_domain):
    process = start(unused_ros_domain, record=str(tmp_path), topics="[joint_states, left/tactile]")
    output, _ = process.communicate(timeout=20.0)
    assert process.returncode == 1 and "write left/tactile=package/msg/Type" in output and "Traceback" not in output


def test_whose_words_an_episode_has():
    """The operator's parameter, then what was published, then what the policy answers, then the simulator's."""
    def describe(instruction="", **said):
        node = SimpleNamespace(settings=RecorderSettings(record="x", instruction=instruction, cameras=()), _infos={})
        return RecorderNode._describe(node, {k.replace("_", "/"): v for k, v in said.items()})["instruction"]

    sim = messages.string(json.dumps({"instruction": "sim's", "task": "reach"}))
    policy = serialize_message(PolicyStatus(instruction="the policy's"))
    published = messages.string("published")
    assert describe(sim_outcome=sim) == "sim's"
    assert describe(sim_outcome=sim, policy_status=policy) == "the policy's"
    assert describe(sim_outcome=sim, policy_status=policy, policy_instruction=published) == "published"
    assert describe("mine", policy_status=policy, policy_instruction=published) == "mine"
    assert describe() == ""
