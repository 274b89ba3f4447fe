"""Rates, lost images and joints by time."""

import math

import numpy as np
import pytest

from vipra_ros.policy.streams import JointHistory, StreamMonitor


def feed(stamps):
    monitor = StreamMonitor()
    for t in stamps:
        monitor.image(t)
    return monitor


def test_nothing_seen():
    m = StreamMonitor()
    assert math.isnan(m.rate(0.0)) and math.isnan(m.age(0.0)) and m.received == 0


def test_rate_and_age():
    m = feed(np.arange(31) / 30)
    assert m.rate(1.1) == pytest.approx(30) and m.age(1.1) == pytest.approx(0.1) and m.lost == 0
    assert m.rate(10.0) == 0.0


def test_lost_images_are_counted_by_their_stamps():
    assert feed([i / 30 for i in range(60) if i not in (20, 21, 40)]).lost == 3


def test_jitter_repeated_stamps_and_a_pause_are_no_loss():
    rng = np.random.default_rng(1)
    m = feed(np.arange(100) / 30 + rng.uniform(-0.008, 0.008, 100))
    m.image(1.0 + 2.0)  # between the stamps seen
    m.image(60.0)
    assert m.lost == 0 and m.received == 101


def test_a_clock_set_back_starts_anew():
    m = feed([*(100 + np.arange(20) / 30), *(np.arange(20) / 30)])
    assert m.rate(0.7) == pytest.approx(30)


def test_joints_nearest_in_time():
    joints = JointHistory()
    assert joints.at(1.0, 2, 0.1) is None
    for i in range(300):
        joints.add(i / 100, np.full(8, i / 100))
    got = joints.at(2.5, 3, 0.2)
    assert got.shape == (3, 8) and got[:, 0] == pytest.approx([2.1, 2.3, 2.5])
    assert joints.at(9.0, 1, 0.2)[0, 0] == pytest.approx(2.99)  # the newest when asked for the future
    joints.add(2.0, np.zeros(8))  # out of order
    assert joints.age(3.0) == pytest.approx(0.01)
    assert joints.at(-5.0, 2, 0.1).shape == (2, 8)  # older than all: the oldest kept


def test_joints_far_from_the_frame_are_told():
    joints = JointHistory()
    for i in range(100):
        joints.add(10 + i / 100, np.zeros(8))
    of = dict(count=7, period=1 / 15, stale=0.5, tolerance=0.05)
    assert joints.problem(10.99, 10.98, **of) == ""
    assert joints.problem(10.2, 10.02, **of) == ""  # there was none before the first
    assert "nearest is 0.210 s from the frame (tolerance 0.05 s); compare" in joints.problem(11.2, 11.2, **of)
    assert "nearest is 5.000 s" in joints.problem(5.0, 5.0, **of)  # the executor's clock is ahead
    assert joints.problem(11.2, float("nan"), **of) == ""  # no frame yet
    assert "newest is 1.01 s old" in joints.problem(12.0, 12.0, **of)


def test_a_single_vector_serves_every_time():
    joints = JointHistory()
    joints.add(5.0, np.ones(8))
    assert joints.at(5.1, 4, 0.1).shape == (4, 8)
