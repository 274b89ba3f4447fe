"""Every refusal, with its reason; nothing raises."""

import dataclasses

import numpy as np
import pytest

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.profile import load_profile
from vipra_ros.control.validate import Bounds, Reason, Validator

PROFILE = load_profile("fr3")


def chunk(**changes):
    rows = np.column_stack([np.tile(PROFILE.home_q, (14, 1)), np.ones(14)])
    values = dict(
        stamp=10.0,
        chunk_id=1,
        step_period=1 / 15,
        actions=rows[:7],
        lookahead=rows[7:],
        joint_names=PROFILE.joint_names,
        checkpoint="abc",
        policy_id="p1",
    )
    return ActionChunk(**(values | changes))


def with_value(value, row=3, column=2, where="actions"):
    rows = np.array(getattr(chunk(), where))
    rows[row, column] = value
    return {where: rows}


REFUSED = [
    (with_value(np.nan), Reason.NOT_FINITE, r"actions\[3, 2\] is nan"),
    (with_value(-np.inf, where="lookahead"), Reason.NOT_FINITE, r"lookahead\[3, 2\] is -inf"),
    ({"stamp": float("nan")}, Reason.NOT_FINITE, "stamp is nan"),
    ({"step_period": float("inf")}, Reason.NOT_FINITE, "step_period is inf"),
    ({"actions": [[1.0, 2.0], [1.0]]}, Reason.SHAPE, "cannot be read"),
    ({"actions": None}, Reason.NOT_FINITE, "nan"),
    ({"actions": "text"}, Reason.SHAPE, "cannot be read"),
    ({"actions": np.zeros((7, 7))}, Reason.SHAPE, r"\(7, 7\)"),
    ({"actions": np.zeros((0, 8))}, Reason.SHAPE, r"\(0, 8\)"),
    ({"actions": np.zeros(56)}, Reason.SHAPE, r"\(56,\)"),
    ({"lookahead": np.zeros((7, 3))}, Reason.SHAPE, "lookahead"),
    ({"lookahead": np.tile(chunk().actions[:1], (200, 1))}, Reason.HORIZON, "207 rows"),
    ({"action_space": "ee_delta"}, Reason.ACTION_SPACE, "'ee_delta' came"),
    ({"action_space": "torque"}, Reason.ACTION_SPACE, "'torque'"),
    ({"joint_names": ()}, Reason.JOINT_NAMES, "fr3_joint1"),
    ({"joint_names": PROFILE.joint_names[::-1]}, Reason.JOINT_NAMES, "in this order"),
    ({"step_period": 0.0}, Reason.STEP_PERIOD, "0.0 s"),
    ({"step_period": -1 / 15}, Reason.STEP_PERIOD, "give 0.01"),
    ({"step_period": 1e9}, Reason.STEP_PERIOD, ""),
    ({"stamp": 8.4}, Reason.STALE, "1.6"),
    ({"stamp": 10.2}, Reason.FUTURE, "0.200 s ahead"),
    ({"epoch": -1}, Reason.EPOCH, "epoch -1"),
    (with_value(3.2, column=0), Reason.RANGE, "row 3, column 0 is 3.2"),
    (with_value(1e6, column=6, where="lookahead"), Reason.RANGE, "row 10, column 6"),
    (with_value(5.0, column=7), Reason.RANGE, "gripper"),
]


@pytest.mark.parametrize("changes, reason, text", REFUSED, ids=lambda x: getattr(x, "name", None))
def test_refusals(changes, reason, text):
    import re

    verdict = Validator(PROFILE, Bounds()).check(chunk(**changes), 10.0, 0)
    assert not verdict and verdict.reason is reason
    assert re.search(text, verdict.text) and "\n" not in str(verdict)


def test_a_good_chunk_and_its_little_overshoot_are_accepted():
    validator = Validator(PROFILE, Bounds())
    assert validator.check(chunk(), 10.3, 0)
    assert validator.check(chunk(**with_value(2.7501 + 0.19, column=0)), 10.3, 0)
    assert validator.check(chunk(lookahead=np.zeros((0, 8))), 10.3, 0)


def test_ids_grow_and_only_accepted_ones_count():
    validator = Validator(PROFILE, Bounds())
    validator.accept(chunk(chunk_id=5), 10.0)
    assert validator.check(chunk(chunk_id=5), 10.0, 0).reason is Reason.OLD_ID
    assert validator.check(chunk(chunk_id=4), 10.0, 0).reason is Reason.OLD_ID
    assert not validator.check(chunk(chunk_id=9, **with_value(np.nan)), 10.0, 0)
    assert validator.check(chunk(chunk_id=6), 10.0, 0)


@pytest.mark.parametrize("other", [{"checkpoint": "xyz"}, {"policy_id": "p2"}])
def test_one_policy_at_a_time(other):
    validator = Validator(PROFILE, Bounds(lease=3.0))
    validator.accept(chunk(), 10.0)
    second = chunk(chunk_id=2, **other)
    verdict = validator.check(second, 10.0, 0)
    assert verdict.reason is Reason.LEASE and "p1/abc" in verdict.text
    assert validator.check(dataclasses.replace(second, chunk_id=1, stamp=13.0), 13.1, 0), "the lease has ended"
    validator.forget()
    assert validator.check(second, 10.0, 0)


def test_horizon_and_rate_stay():
    validator = Validator(PROFILE, Bounds())
    validator.accept(chunk(), 10.0)
    assert validator.check(chunk(chunk_id=2, step_period=1 / 20), 10.0, 0).reason is Reason.HORIZON
    assert validator.check(chunk(chunk_id=2, lookahead=np.zeros((0, 8))), 10.0, 0).reason is Reason.HORIZON


@pytest.mark.parametrize("space, width, fine, wild", [("joint_delta", 8, 0.3, 0.6), ("ee_delta", 7, 0.05, 0.2)])
def test_increments_have_ranges_of_their_own(space, width, fine, wild):
    validator = Validator(PROFILE, Bounds(action_space=space))
    rows = np.zeros((7, width))
    changes = dict(action_space=space, lookahead=np.zeros((0, width)))
    assert validator.check(chunk(actions=rows + fine, **changes), 10.0, 0)
    assert validator.check(chunk(actions=rows + wild, **changes), 10.0, 0).reason is Reason.RANGE
