"""Raw <-> normalised actions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipra_ros.policy.normalise import STD_FLOOR, Normaliser, summarise


@given(st.integers(0, 1000), st.booleans())
def test_round_trip(seed, relative):
    rng = np.random.default_rng(seed)
    rows = rng.normal(0.3, [0.5, 0.01, 0.0, 1.0], (100, 4))
    made = Normaliser.from_statistics({"action": summarise(rows), "state": summarise(rows)}, relative)
    chunk, state = rng.normal(size=(5, 14, 4)), rng.normal(size=(5, 4))
    assert np.allclose(made.raw_actions(made.actions(chunk, state), state), chunk)


def test_gripper_stays_raw_and_a_still_joint_is_not_divided_by_zero():
    rows = np.column_stack([np.full(50, 0.7), np.where(np.arange(50) % 5, 1.0, -1.0)])
    made = Normaliser.from_statistics({"action": summarise(rows)}, relative=False)
    normal = made.actions(np.array([[0.7 + STD_FLOOR, 1.0], [0.7, -1.0]]), None)
    assert np.allclose(normal, [[1.0, 1.0], [0.0, -1.0]])


def test_relative_actions_subtract_the_measured_joints_but_not_the_gripper():
    identity = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    made = Normaliser.from_statistics({"action": identity}, relative=True)
    assert np.allclose(made.actions(np.array([[1.0, 2.0, -1.0]]), np.array([0.5, 0.5, 0.9])), [[0.5, 1.5, -1.0]])
    with pytest.raises(ValueError, match="measured joints"):
        made.actions(np.zeros((14, 3)), None)


def test_statistics_that_are_missing_or_not_finite_are_refused():
    with pytest.raises(ValueError, match="cannot act"):
        Normaliser.from_statistics({}, False)
    with pytest.raises(ValueError, match="not finite"):
        Normaliser.from_statistics({"action": {"mean": [float("nan"), 0], "std": [1, 1]}}, False)
