"""The shipped Foxglove layout shows topics and fields that exist."""

import json
import re

from vipra_ros.config import share
from vipra_ros.data import messages
from vipra_ros.data.topics import Topics

LAYOUT = json.loads(share("config", "foxglove.json").read_text(encoding="utf-8"))
NAMES = Topics()
TYPES = {
    NAMES.joint_states: messages.JOINT_STATE, NAMES.joint_command: messages.JOINT_STATE,
    NAMES.gripper_command: messages.FLOAT32, NAMES.status: messages.EXECUTOR_STATUS,
    NAMES.instruction: messages.STRING, NAMES.chunk: messages.ACTION_CHUNK, "policy/status": messages.POLICY_STATUS,
    **{NAMES.image_of(c): messages.COMPRESSED_IMAGE for c in ("front", "wrist")},
    **{NAMES.camera_info.format(camera=c): messages.CAMERA_INFO for c in ("front", "wrist")},
}


def strings(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value


def test_every_panel_is_placed_once():
    placed = [s for s in strings(LAYOUT["layout"]) if "!" in s]
    assert sorted(placed) == sorted(LAYOUT["configById"])


def test_topics_and_fields_exist():
    paths = [s for s in strings(LAYOUT["configById"]) if s.startswith("/")]
    assert {p.partition(".")[0][1:] for p in paths} == set(TYPES), "all that we record, and nothing else"
    for path in paths:
        topic, _, field = path[1:].partition(".")
        fields = {name for name, _ in messages.typestore().fielddefs[TYPES[topic]][1]}
        assert not field or re.sub(r"\[\d+\]$", "", field) in fields, path
