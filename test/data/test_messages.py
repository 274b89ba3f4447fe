"""Messages without ROS: bytes as the type stores and ROS itself make them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.data import messages as m

letters = st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])
names = st.lists(st.text(letters, max_size=9), max_size=9)
stamps = st.integers(0, 2**31 * 10**9 - 1)


@settings(max_examples=60, deadline=None)
@given(stamps, names, st.booleans(), st.text(st.characters(min_codepoint=1, max_codepoint=300), max_size=8))
def test_joint_state_bytes_equal_the_typestores(stamp, joints, with_velocity, frame):
    q = np.linspace(-3, 3, len(joints))
    raw = m.joint_state(stamp, joints, q, q * 2 if with_velocity else None, frame_id=frame)
    message = m.deserialize(raw, m.JOINT_STATE)
    assert list(message.name) == joints and message.header.frame_id == frame
    assert np.array_equal(message.position, q)
    assert np.array_equal(message.velocity, q * 2 if with_velocity else [])
    assert m.serialize(message, m.JOINT_STATE) == raw
    assert m.header_stamp(raw) == stamp


@settings(max_examples=60, deadline=None)
@given(stamps, st.text(st.characters(min_codepoint=1, max_codepoint=300), max_size=8), st.binary(max_size=50))
def test_compressed_image_bytes_equal_the_typestores(stamp, frame, data):
    raw = m.compressed_image(stamp, frame, data)
    message = m.deserialize(raw, m.COMPRESSED_IMAGE)
    assert message.format == "jpeg" and bytes(message.data) == data and message.header.frame_id == frame
    assert m.serialize(message, m.COMPRESSED_IMAGE) == raw
    assert bytes(m.image_data(raw)) == data


def test_small_messages_equal_the_typestores():
    types = m.typestore().types
    assert m.float32(-1.0) == m.serialize(types[m.FLOAT32](-1.0), m.FLOAT32)
    assert m.string("stelle den grünen Würfel 立方体") == m.serialize(
        types[m.STRING]("stelle den grünen Würfel 立方体"), m.STRING
    )
    assert m.read_float32(m.float32(0.25)) == 0.25
    info = m.deserialize(m.camera_info(5, "front", 128, 96, [100, 0, 64, 0, 100, 48, 0, 0, 1]), m.CAMERA_INFO)
    assert (info.width, info.height, info.k[0], info.p[2]) == (128, 96, 100, 64)


def test_ros_reads_our_bytes():
    rclpy = pytest.importorskip("rclpy.serialization")
    sensor = pytest.importorskip("sensor_msgs.msg")
    raw = m.joint_state(1_500_000_000, ["a", "bc"], [1.0, 2.0], [3.0, 4.0])
    message = rclpy.deserialize_message(raw, sensor.JointState)
    assert list(message.name) == ["a", "bc"] and list(message.velocity) == [3.0, 4.0]
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1, 500_000_000)
    image = rclpy.deserialize_message(m.compressed_image(2, "front", b"abc"), sensor.CompressedImage)
    assert bytes(image.data) == b"abc" and image.header.frame_id == "front"
    stamped = rclpy.serialize_message(message)
    assert m.header_stamp(stamped) == 1_500_000_000
    assert m.joint_table([stamped])[2].tolist() == [[1.0, 2.0]]
    # what Fast DDS leaves in padding and behind the message is arbitrary
    messages = [sensor.JointState(name=["a", "bc"], position=[float(i), -1.0]) for i in range(5)]
    raws = [rclpy.serialize_message(message) for message in messages]
    raws[3] = bytearray(raws[3])
    raws[3][19] ^= 0xFF  # padding between the frame's name and the count of names
    raws[3] = bytes(raws[3])
    assert m.joint_table(raws)[2].tolist() == [[float(i), -1.0] for i in range(5)]


def test_our_own_types_are_known():
    types = m.typestore().types
    chunk = types[m.ACTION_CHUNK]
    assert {"chunk_id", "step_period", "actions", "lookahead"} <= set(chunk.__dataclass_fields__)
    assert m.typestore().hash_rihs01(m.ACTION_CHUNK).startswith("RIHS01_")
    for name in (m.EXECUTOR_STATUS, m.POLICY_STATUS):
        assert name in types


def test_joint_table_reads_many_at_once_and_odd_ones_alone():
    q = np.arange(12.0).reshape(4, 3)
    raws = [m.joint_state(10**9 + i, ["a", "bb", "c"], row, row) for i, row in enumerate(q)]
    raws[2] = m.joint_state(10**9 + 2, ["c", "a", "bb", "extra"], [q[2, 2], q[2, 0], q[2, 1], 9.0])
    table_names, stamps, values = m.joint_table(raws)
    assert table_names == ("a", "bb", "c")
    assert stamps.tolist() == [10**9 + i for i in range(4)]
    assert np.array_equal(values, q)
    with pytest.raises(m.MessageError, match="no joint 'bb'"):
        m.joint_table([raws[0], m.joint_state(1, ["a", "c"], [1, 2])])


@pytest.mark.parametrize(
    "broken",
    [
        lambda: m.joint_table([m.joint_state(1, ["a"], [1.0])[:-9]]),
        lambda: m.image_data(m.compressed_image(1, "f", b"x" * 40)[:-20]),
        lambda: m.image_data(b"\x00\x01\x00\x00" + b"\x00" * 10),
        lambda: m.header_stamp(b"\x00\x01"),
        lambda: m.read_float32(b""),
        lambda: m.read_string(b"\x00\x01\x00\x00\xff\x00\x00\x00ab"),
        lambda: m.header_stamp(b"\x05\x05" + b"\x00" * 12),
        lambda: m.joint_state(1, ["a", "b"], [1.0]),
    ],
)
def test_cut_messages_are_named(broken):
    with pytest.raises(m.MessageError):
        broken()
