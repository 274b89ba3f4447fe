"""The shipped Foxglove layout shows topics and fields that exist."""

import json
import re
import xml.etree.ElementTree as ET

from vipra_ros.config import share
from vipra_ros.control.profile import load_profile
from vipra_ros.control.urdf import urdf
from vipra_ros.data import messages
from vipra_ros.data.topics import Topics

LAYOUT = json.loads(share("config", "foxglove.json").read_text(encoding="utf-8"))
NAMES = Topics()
#: Not ours: robot_state_publisher says it, from `vipra urdf`.
OTHERS = {"robot_description"}
TYPES = {
    NAMES.joint_states: messages.JOINT_STATE, NAMES.joint_command: messages.JOINT_STATE,
    NAMES.gripper_command: messages.FLOAT32, NAMES.status: messages.EXECUTOR_STATUS,
    NAMES.instruction: messages.STRING, NAMES.chunk: messages.ACTION_CHUNK, "policy/status": messages.POLICY_STATUS,
    **{NAMES.image_of(c): messages.COMPRESSED_IMAGE for c in ("front", "wrist")},
    **{NAMES.camera_info.format(camera=c): messages.CAMERA_INFO for c in ("front", "wrist")},
}


def strings(value):
    if isinstance(value, dict):
        value = [*value, *value.values()]  # a panel of its own names topics by keys
    if isinstance(value, list):
        for one in value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value


def test_every_panel_is_placed_once():
    placed = [s for s in strings(LAYOUT["layout"]) if "!" in s]
    assert sorted(placed) == sorted(LAYOUT["configById"])


def test_the_arm_stands_on_the_base_of_our_urdf():
    links = ET.fromstring(urdf(load_profile("fr3"))).findall("link")
    assert LAYOUT["configById"]["3D!arm"]["followTf"] == links[0].get("name")


def test_topics_and_fields_exist():
    paths = [s for s in strings(LAYOUT["configById"]) if s.startswith("/")]
    assert {p.partition(".")[0][1:] for p in paths} == set(TYPES) | OTHERS, "all that we record"
    for path in paths:
        topic, _, field = path[1:].partition(".")
        if topic in OTHERS:
            continue
        fields = {name for name, _ in messages.typestore().fielddefs[TYPES[topic]][1]}
        assert not field or re.sub(r"\[\d+\]$", "", field) in fields, path
