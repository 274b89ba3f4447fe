"""CDR of strangers: every message is read as what it is said to be, or refused with a MessageError."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipra_ros.data import messages
from vipra_ros.data.messages import MessageError

from .conftest import examples, faults, spoil, watched

TYPES = (messages.JOINT_STATE, messages.COMPRESSED_IMAGE, messages.CAMERA_INFO, messages.STRING, messages.FLOAT32,
         messages.ACTION_CHUNK, messages.EXECUTOR_STATUS, messages.POLICY_STATUS)


def ours(kind):
    """CDR of a message of this package with something in each of its fields."""
    store = messages.typestore()

    def value(node, inner):
        if node.name == "NAME":
            time = store.types["builtin_interfaces/msg/Time"](10**9, 5)
            return store.types[inner](time, "base") if inner == "std_msgs/msg/Header" else time
        if node.name == "BASE":
            return {"string": "push", "bool": True}.get(inner[0], 1)
        name = inner[0][1][0]
        return ["a", "b"] if name == "string" else np.ones(16, name)

    fields = store.fielddefs[kind][1]
    return messages.serialize(store.types[kind](**{name: value(*field) for name, field in fields}), kind)


WHOLE = [
    *(ours(kind) for kind in (messages.ACTION_CHUNK, messages.EXECUTOR_STATUS, messages.POLICY_STATUS)),
    messages.joint_state(10**18, ("a", "joint 2", "é"), (1.0, 2.0, 3.0), (0.1, 0.2, 0.3), frame_id="base"),
    messages.compressed_image(10**18, "front", b"\xff\xd8\xff" + bytes(50)),
    messages.camera_info(10**18, "front", 64, 48, np.eye(3)),
    messages.string("push the cube"),
    messages.float32(1.0),
]
READERS = (messages.image_data, messages.header_stamp, messages.read_float32, messages.read_string, messages.read_json)


@examples(24)
@given(raw=st.one_of(st.binary(max_size=80), st.builds(spoil, st.sampled_from(WHOLE), faults)))
def test_any_bytes(raw):
    for kind in TYPES:
        with watched(MessageError):
            messages.deserialize(raw, kind)
    for reader in READERS:
        with watched(MessageError):
            reader(raw)


@examples(24)
@given(data=st.data())
def test_a_table_of_joints_with_spoilt_rows(data):
    rows = [messages.joint_state(10**18 + i, ("a", "b"), (float(i), 2.0)) for i in range(4)]
    for _ in range(data.draw(st.integers(1, 2))):
        i = data.draw(st.integers(0, 3))
        rows[i] = spoil(rows[i], data.draw(faults))
    with watched(MessageError):
        names, stamps, positions = messages.joint_table(rows)
        assert stamps.shape == (4,) and positions.shape == (4, len(names))


def test_counts_beyond_the_bytes_that_are_there():
    for kind in TYPES:
        for size in (1 << 31, (1 << 32) - 1, 1 << 20):
            raw = b"\x00\x01\x00\x00" + bytes(8) + size.to_bytes(4, "little") * 12
            with watched(MessageError):
                messages.deserialize(raw, kind)


@pytest.mark.parametrize("text", ["", "[1]", "{", "nul", "1" * 5000, "[" * 100_000])
def test_json_that_is_no_mapping(text):
    with pytest.raises(MessageError, match="JSON"):
        messages.read_json(messages.string(text))
