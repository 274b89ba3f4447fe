"""Bags that are not ours: other topics, types, storages and distributions, written by the real rosbags writer."""

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vipra_ros.config import ConfigError, share
from vipra_ros.control import actions, kinematics
from vipra_ros.control.profile import load_profile
from vipra_ros.data import mapping
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.convert import ConvertSettings, convert
from vipra_ros.data.dataset import Dataset
from vipra_ros.data.episode import load_episode
from vipra_ros.data.mapping import Hand, Joints, Label, TopicMap, Words, load_map
from vipra_ros.data.messages import MessageError
from vipra_ros.data.resample import EpisodeError, Resampling

ARM = [f"fr3_joint{i + 1}" for i in range(7)]
SIZE = 64  # px
START = 1_700_000_000_000_000_000  # ns
STATE = "float64[7] q\nfloat64[7] q_d\nsensor_msgs/JointState measured\n"  # a type of somebody else's


def picture(k):
    """RGB: a gradient with a square that moves."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    image = np.stack([x * 2, y * 2, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    at = 3 * k % (SIZE - 12)
    image[20:32, at : at + 12] = (220, 40, 30)
    return image


def jpeg(image):
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def joints(t):
    return np.array([0, -0.3, 0, -2.5, 0, 2.2, 0.8]) + 0.2 * np.sin(1.3 * t + 0.3 * np.arange(7))


def command(t):
    return joints(t + 0.04)


class Bag:
    """A foreign bag of 1.5 s being written."""

    def __init__(self, path, plugin, distribution=Stores.ROS2_HUMBLE):
        self.store = get_typestore(distribution)
        self.store.register(get_types_from_msg(STATE, "acme_msgs/msg/State"))
        self.path, self.bag, self.channels = path, Writer(path, version=8, storage_plugin=plugin), {}
        self.bag.open()
        self.events = []

    def type(self, name):
        return self.store.types[name]

    def header(self, t):
        ns = START + round(t * 1e9)
        return self.type("std_msgs/msg/Header")(
            self.type("builtin_interfaces/msg/Time")(ns // 10**9, ns % 10**9), "base"
        )

    def put(self, t, topic, kind, *fields):
        self.events.append((t, topic, kind, self.type(kind)(*fields)))

    def joint_state(self, t, names, values):
        empty = np.zeros(0)
        kind = "sensor_msgs/msg/JointState"
        return self.type(kind)(self.header(t), list(names), np.array(values, float), empty, empty)

    def every(self, rate, function, seconds=1.5):
        for k in range(int(seconds * rate) + 1):
            function(k / rate, k)

    def close(self):
        for t, topic, kind, message in sorted(self.events, key=lambda e: e[0]):
            if topic not in self.channels:
                self.channels[topic] = self.bag.add_connection(topic, kind, typestore=self.store)
            self.bag.write(self.channels[topic], START + round(t * 1e9), self.store.serialize_cdr(message, kind))
        self.bag.close()
        return self.path


def franka(path, plugin, distribution=Stores.ROS2_HUMBLE, raw_encoding="bgr8", labels=True):
    """What config/topics/franka_ros2.yaml describes: raw and compressed pictures, trajectories, shuffled joints."""
    bag = Bag(path, plugin, distribution)
    order = [3, 0, 6, 1, 5, 2, 4]

    def camera(t, k):
        image = picture(k)
        bag.put(
            t,
            "/camera/front/color/image_raw/compressed",
            "sensor_msgs/msg/CompressedImage",
            bag.header(t),
            "jpeg",
            np.frombuffer(jpeg(image), np.uint8),
        )
        padded = np.zeros((64, 200), np.uint8)  # rows longer than the pixels
        padded[:, :192] = image[:, :, ::-1].reshape(64, 192)
        bag.put(
            t,
            "/camera/wrist/color/image_raw",
            "sensor_msgs/msg/Image",
            bag.header(t),
            64,
            64,
            raw_encoding,
            0,
            200,
            padded.ravel(),
        )

    def arm(t, k):
        state = bag.joint_state(t, [ARM[i] for i in order], joints(t)[order])
        bag.events.append((t, "/franka/joint_states", "sensor_msgs/msg/JointState", state))
        hand = bag.joint_state(t, ["fr3_finger_joint1", "fr3_finger_joint2"], [0.0402 if t < 0.8 else 0.01] * 2)
        bag.events.append((t, "/franka_gripper/joint_states", "sensor_msgs/msg/JointState", hand))
        point = bag.type("trajectory_msgs/msg/JointTrajectoryPoint")(
            command(t), np.zeros(0), np.zeros(0), np.zeros(0), bag.type("builtin_interfaces/msg/Duration")(0, 0)
        )
        bag.put(
            t,
            "/fr3_arm_controller/joint_trajectory",
            "trajectory_msgs/msg/JointTrajectory",
            bag.header(t),
            ARM,
            [point],
        )

    bag.every(30, camera)
    bag.every(100, arm)
    if labels:
        bag.put(0.2, "/task_description", "std_msgs/msg/String", "räum den Würfel weg")
        bag.put(1.5, "/task_success", "std_msgs/msg/Bool", True)
    return bag.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A franka_ros2 bag in MCAP that tests only read."""
    return franka(tmp_path_factory.mktemp("foreign") / "bags" / "a", StoragePlugin.MCAP)


@pytest.mark.parametrize(
    ("plugin", "distribution"),
    [
        (StoragePlugin.SQLITE3, Stores.ROS2_FOXY),
        (StoragePlugin.SQLITE3, Stores.ROS2_HUMBLE),
        (StoragePlugin.MCAP, Stores.ROS2_JAZZY),
    ],
)
def test_a_franka_ros2_bag_converts(tmp_path, plugin, distribution):
    franka(tmp_path / "bags" / "a", plugin, distribution)
    settings = ConvertSettings(topics=load_map("franka_ros2"))
    report = convert(tmp_path / "bags", tmp_path / "set", settings=settings, quiet=True, progress=False)
    assert report.count("converted") == 1, report
    data = Dataset(tmp_path / "set")
    t = (data.numeric("stamp_ns")[:, 0] - START) / 1e9
    assert len(data) > 15 and data.features["action"]["names"] == [*ARM, "gripper"]
    assert np.allclose(data.numeric("observation.state")[:, :7], [joints(x) for x in t], atol=1e-4)
    assert np.allclose(data.numeric("action")[:, :7], [command(x + 1 / 15) for x in t], atol=1e-4)
    hand = data.numeric("observation.state")[:, 7]
    assert np.allclose(hand[t < 0.79], 1.0) and np.allclose(hand[t > 0.81], -0.5, atol=1e-6)
    assert data.episodes[0].task == "räum den Würfel weg" and data.episodes[0].success is True
    notes = data.info["vipra_ros"]
    assert notes["gripper_command"] == "measured opening one period later" and "open=+1" in notes["gripper"]
    for (_, one), (_, two) in zip(data.frames("front"), data.frames("wrist"), strict=True):
        assert np.abs(one.astype(int) - two).mean() < 3, "the raw picture and the compressed one are the same"


def test_a_gello_bag_without_definitions_converts(tmp_path):
    """As Humble and older wrote them: sqlite3, no definitions inside."""
    import sqlite3

    bag = Bag(tmp_path / "a", StoragePlugin.SQLITE3)
    for camera in ("front", "wrist"):
        bag.every(
            30,
            lambda t, k, c=camera: bag.put(
                t,
                f"/{c}_camera/color/image_raw/compressed",
                "sensor_msgs/msg/CompressedImage",
                bag.header(t),
                "jpeg",
                np.frombuffer(jpeg(picture(k)), np.uint8),
            ),
        )
    kind = "sensor_msgs/msg/JointState"
    bag.every(100, lambda t, k: bag.events.append((t, "/joint_states", kind, bag.joint_state(t, ARM, joints(t)))))
    fingers = ["fr3_finger_joint1", "fr3_finger_joint2"]  # a second publisher on the same topic
    bag.every(
        20,
        lambda t, k: bag.events.append(
            (t + 0.001, "/joint_states", kind, bag.joint_state(t + 0.001, fingers, [0.03, 0.03]))
        ),
    )
    bag.every(25, lambda t, k: bag.events.append((t, "/gello/joint_states", kind, bag.joint_state(t, ARM, command(t)))))
    bag.every(
        25,
        lambda t, k: bag.put(
            t, "/gripper/gripper_client/target_gripper_width_percent", "std_msgs/msg/Float32", 1.02 if t < 1 else 0.25
        ),
    )
    bag.close()
    database = next((tmp_path / "a").glob("*.db3"))
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE IF EXISTS message_definitions")
        connection.execute("UPDATE schema SET schema_version = 3")
    with Reader(tmp_path / "a") as plain:
        assert all(not c.msgdef.data for c in plain.connections), "the bag really defines nothing"
    with EpisodeReader(tmp_path / "a") as reader:
        episode = load_episode(reader, Resampling(joint_gap=0.1), load_map("gello"))
    t = (episode.stamp_ns - START) / 1e9
    assert np.allclose(episode.state[:, :7], [joints(x) for x in t], atol=1e-4)
    assert np.allclose(episode.state[:, 7], 0.5) and episode.meta["success"] is True
    assert set(episode.action[:, 7]) == {1.0, -0.5} and episode.instruction == "pick up the cube"
    assert np.allclose(episode.action[:, :7], [command(x + 1 / 15) for x in t], atol=1e-3)


def acme(path, plugin, embedded=True):
    """Types of somebody else's: joints inside a message, commands as bare numbers, one camera."""
    bag = Bag(path, plugin)
    bag.every(
        30,
        lambda t, k: bag.put(
            t,
            "/cam",
            "sensor_msgs/msg/CompressedImage",
            bag.header(t),
            "jpeg",
            np.frombuffer(jpeg(picture(k)), np.uint8),
        ),
    )
    names = [n.replace("fr3", "left") for n in ARM]
    layout = bag.type("std_msgs/msg/MultiArrayLayout")([], 0)

    def arm(t, k):
        bag.put(t, "/state", "acme_msgs/msg/State", joints(t), command(t), bag.joint_state(t, names, joints(t)))
        bag.put(t, "/goal", "std_msgs/msg/Float64MultiArray", layout, command(t))
        bag.put(t, "/hand", "std_msgs/msg/Bool", t > 0.7)

    bag.every(100, arm)
    return bag.close()


ACME = TopicMap(
    cameras={"main": "/cam"},
    joints=Joints("/state", field="measured", rename={n.replace("fr3", "left"): n for n in ARM}),
    command=Joints("/goal", names=tuple(ARM)),
    gripper_state=Hand(""),
    gripper_command=Hand("/hand", open=0.0, closed=1.0),
    instruction=Words(text="stack"),
    success=Label(value=False),
)


@pytest.mark.parametrize("plugin", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_types_of_others_bare_numbers_and_truth_values(tmp_path, plugin):
    """MCAP carries the definition; sqlite3 carries it since Iron, else `definitions` gives it."""
    path = acme(tmp_path / "a", plugin)
    topics = ACME
    if plugin is StoragePlugin.SQLITE3:
        import sqlite3

        with sqlite3.connect(next(path.glob("*.db3"))) as connection:
            connection.execute("DROP TABLE IF EXISTS message_definitions")
            connection.execute("UPDATE schema SET schema_version = 3")
        with EpisodeReader(path) as reader, pytest.raises(MessageError, match="acme_msgs/msg/State is not known"):
            load_episode(reader, Resampling(), topics)
        folder = tmp_path / "definitions" / "acme_msgs" / "msg"
        folder.mkdir(parents=True)
        (folder / "State.msg").write_text(STATE)
        topics = TopicMap(**{**vars(ACME), "definitions": (str(tmp_path / "definitions"),)})
    with EpisodeReader(path) as reader:
        episode = load_episode(reader, Resampling(), topics)
    t = (episode.stamp_ns - START) / 1e9
    assert episode.joint_names == tuple(ARM) and list(episode.picks) == ["main"]
    assert np.allclose(episode.state[:, :7], [joints(x) for x in t], atol=1e-4)
    assert np.allclose(episode.action[:, :7], [command(x + 1 / 15) for x in t], atol=1e-4)
    assert (episode.action[:, 7] == np.where(t + 1 / 15 <= 0.7 + 1e-6, 1, -1)).all() and episode.meta[
        "success"
    ] is False


def test_a_single_file_and_an_arm_led_by_hand(tmp_path):
    path = franka(tmp_path / "a", StoragePlugin.MCAP, labels=False)
    (file,) = path.glob("*.mcap")
    loose = file.rename(tmp_path / "loose.mcap")
    shipped = load_map("franka_ros2")
    topics = TopicMap(**{**vars(shipped), "command": Joints("")})
    settings = ConvertSettings(topics=topics, cameras=("wrist",))
    report = convert(loose, tmp_path / "set", settings=settings, quiet=True, progress=False)
    assert report.count("converted") == 1, report
    data = Dataset(tmp_path / "set")
    t = (data.numeric("stamp_ns")[:, 0] - START) / 1e9
    assert data.cameras == ["wrist"] and data.episodes[0].task == "pick up the cube"
    assert np.allclose(data.numeric("action")[:, :7], [joints(x + 1 / 15) for x in t], atol=1e-4)
    assert data.info["vipra_ros"]["command"] == "measured joints one period later"


@pytest.mark.parametrize("space", ["joint_delta", "ee_delta"])
def test_increments_add_up_to_the_commands(shared, tmp_path, space):
    """Through the executor's own arithmetic: rows as increments lead where the absolute rows lead."""
    settings = ConvertSettings(topics=load_map("franka_ros2"), action_space=space)
    convert(shared, tmp_path / "set", settings=settings, quiet=True, progress=False)
    data, profile = Dataset(tmp_path / "set"), load_profile("fr3")
    t = (data.numeric("stamp_ns")[:, 0] - START) / 1e9
    rows = data.numeric("action")
    assert data.info["vipra_ros"]["action_space"] == space
    body = ARM if space == "joint_delta" else ["x", "y", "z", "rx", "ry", "rz"]
    assert data.features["action"]["names"] == [*body, "gripper"]
    reached = actions.absolute(profile, space, rows.astype(float), command(t[0]), 0)
    wanted = np.array([command(x + 1 / 15) for x in t])
    if space == "joint_delta":
        assert np.allclose(reached, wanted, atol=1e-4)
    else:  # seven joints reach a pose in many ways: the pose counts
        error = kinematics.pose_error(kinematics.forward(profile, reached), kinematics.forward(profile, wanted))
        assert np.abs(error).max() < 2e-3 and np.abs(wanted[-1] - wanted[0]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(cameras={"front": "/franka/joint_states"}),
            "franka/joint_states is a sensor_msgs/msg/JointState; one of",
        ),
        (dict(command=Joints("/goal")), "goal is missing or empty; the bag has camera/front"),
        (dict(gripper_state=Hand("/task_description")), "no list of numbers"),
        (dict(gripper_state=Hand("/franka/joint_states", joint="thumb")), "no message with joint 'thumb'"),
        (dict(joints=Joints("/franka/joint_states", field="pose.x")), "no 'pose' in 'pose.x'; there is header, name"),
        (
            dict(command=Joints("/franka/joint_states", rename={"fr3_joint1": "panda_joint1"})),
            "no joint 'panda_joint1'",
        ),
        (
            dict(gripper_state=Hand("/franka_gripper/joint_states", joint="fr3_finger_joint1", open=0.02, closed=0.0)),
            "= 0.0402: must be from 0 (closed) to 0.02 (open)",
        ),
        (dict(success=Label("/task_description")), "no label"),
    ],
)
def test_wrong_maps_are_said(shared, changes, message):
    topics = TopicMap(**{**vars(load_map("franka_ros2")), **changes})
    with EpisodeReader(shared) as reader, pytest.raises((EpisodeError, MessageError)) as error:
        load_episode(reader, Resampling(), topics)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_encoding_that_is_not_read_is_named(tmp_path):
    franka(tmp_path / "bags" / "a", StoragePlugin.MCAP, raw_encoding="16UC1")
    settings = ConvertSettings(topics=load_map("franka_ros2"))
    with pytest.raises(RuntimeError, match="encoding '16UC1' is not read"):
        convert(tmp_path / "bags", tmp_path / "set", settings=settings, quiet=True, progress=False)


def test_maps_are_checked(tmp_path):
    for path in sorted(share("config", "topics").glob("*.yaml")):
        assert load_map(path.stem) == load_map(path)
    with pytest.raises(ConfigError, match="'ur5' is unknown; use franka_ros2, gello"):
        load_map("ur5")
    file = tmp_path / "map.yaml"
    file.write_text("joints: {topic: /a, nmaes: [b]}\n")
    with pytest.raises(ConfigError, match="unknown key 'nmaes'"):
        load_map(file)
    file.write_text("gripper_command: {topic: /a, open: 1.0, closed: 1.0}\n")
    with pytest.raises(ConfigError, match="give two values"):
        load_map(file)
    assert mapping.relative("/a/b") == "a/b"
