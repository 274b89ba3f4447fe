"""Chunks of strangers: what is in a message moves the arm by the rules, or is refused; the executor keeps hearing."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from rclpy.clock import Clock  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from vipra_ros.msg import ActionChunk  # noqa: E402

from vipra_ros.control.chunk import RobotState  # noqa: E402
from vipra_ros.control.executor import ExecutorCore, ExecutorSettings  # noqa: E402
from vipra_ros.control.profile import load_profile  # noqa: E402
from vipra_ros.control.sinks import PreviewHand, PreviewSink  # noqa: E402
from vipra_ros.nodes.executor import ExecutorNode  # noqa: E402

from .conftest import examples, faults, spoil, watched  # noqa: E402

PROFILE = load_profile("fr3")
UINT32 = st.sampled_from((0, 1, 7, 8, 14, 2**31, 2**32 - 1))
VALUES = {
    "chunk_id": st.sampled_from((0, 1, 2**63, 2**64 - 1)), "step_period": st.floats(), "task_id": UINT32,
    "epoch": UINT32, "horizon": UINT32, "execute_steps": UINT32, "action_size": UINT32,
    "action_space": st.sampled_from(("", "joint_delta", "ee_delta", "x" * 10**5)),
    "joint_names": st.sampled_from(([], ["a"], list(PROFILE.joint_names)[::-1], ["x" * 1000] * 100)),
    "policy_id": st.text(max_size=3), "actions": st.lists(st.floats(), max_size=60),
    "lookahead": st.lists(st.floats(), max_size=60)}
SECONDS = st.sampled_from((-(2**31), -1, 0, 1, 2**31 - 1))


class Heard:
    """An armed executor behind the node's own callback, without a graph; `verdicts` of what came."""

    def __init__(self):
        settings = ExecutorSettings()
        self.core = ExecutorCore(PROFILE, settings, PreviewSink(lambda waypoints: None), PreviewHand())
        self.verdicts, nothing = [], SimpleNamespace(warning=lambda *_, **__: None)
        offer = self.core.offer
        self.core.offer = lambda *a: self.verdicts.append(offer(*a)) or self.verdicts[-1]
        self.node = SimpleNamespace(get_clock=Clock, get_logger=lambda: nothing, core=self.core, _stood=lambda now: 0.0)
        q = PROFILE.home_q
        self.core.tick(time.monotonic(), RobotState(time.monotonic(), q, 0 * q, q, 0 * q))
        assert self.core.arm(time.monotonic())

    def __call__(self, message):
        with watched():
            ExecutorNode._on_chunk(self.node, message)
        assert len(str(self.verdicts[-1])) < 2000
        reference = self.core.reference()
        if reference is not None:
            q = np.array([reference.at(time.monotonic() + t)[0] for t in (0.0, 0.5, 1.0)])
            assert ((q >= PROFILE.q_min) & (q <= PROFILE.q_max)).all()
        return self.verdicts[-1]


def chunk():
    rows = np.tile([*PROFILE.home_q, 1.0], (14, 1)).ravel().tolist()
    message = ActionChunk(
        chunk_id=1, policy_id="test", action_space="joint_position", step_period=1 / 15, horizon=14, execute_steps=7,
        joint_names=list(PROFILE.joint_names), action_size=8, actions=rows[:56], lookahead=rows[56:])
    message.header.stamp = Clock().now().to_msg()
    return message


def test_the_chunk_that_is_spoilt_below_is_a_good_one():
    assert Heard()(chunk())


@examples(40)
@given(data=st.data())
def test_other_values(data):
    message = chunk()
    for name in data.draw(st.lists(st.sampled_from(list(VALUES)), min_size=0, max_size=3)):
        setattr(message, name, data.draw(VALUES[name]))
    if data.draw(st.booleans()):
        message.header.stamp.sec = data.draw(SECONDS)
        message.header.stamp.nanosec = data.draw(st.sampled_from((0, 2**32 - 1)))
    Heard()(message)


@examples(120)  # a quarter can be read
@given(data=st.data())
def test_spoilt_bytes(data):
    whole = serialize_message(chunk())
    try:
        message = deserialize_message(spoil(whole, data.draw(faults)), ActionChunk)
    except Exception:  # what DDS cannot read does not reach a callback
        return
    Heard()(message)


@pytest.mark.parametrize("seconds, said", [(-1, "stale"), (-(2**31), "stale"), (2**31 - 1, "from the future")])
def test_a_stamp_of_another_age_is_a_refusal_and_no_error(seconds, said):
    message = chunk()
    message.header.stamp.sec = seconds
    assert Heard()(message).reason.value == said
