"""Resampling against functions whose values are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.data.resample import EpisodeError, Resampling, Track, hold, interpolate, nearest_before


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.001, 0.09), min_size=2, max_size=40),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
def test_interpolation_is_exact_on_straight_lines(steps, where):
    time = np.cumsum(steps)
    track = Track(time, np.column_stack([3.0 * time - 1.0, -0.5 * time]))
    at = time[0] + np.array(where) * (time[-1] - time[0])
    got = interpolate(track, at, gap=0.1)
    assert np.allclose(got, np.column_stack([3.0 * at - 1.0, -0.5 * at]), atol=1e-9)


def test_interpolation_hits_the_samples():
    time = np.array([0.0, 0.01, 0.03])
    track = Track(time, np.array([[1.0], [5.0], [2.0]]))
    assert interpolate(track, time, gap=0.1)[:, 0].tolist() == [1.0, 5.0, 2.0]


def test_interpolation_refuses_gaps_and_ends():
    track = Track(np.array([0.0, 0.1, 0.5, 0.6]), np.zeros((4, 1)))
    with pytest.raises(EpisodeError, match=r"arm: gap of 0\.40 s at 0\.10 s, 0\.2 s is allowed"):
        interpolate(track, np.array([0.05, 0.3]), 0.2, "arm")
    assert len(interpolate(track, np.array([0.1, 0.5]), 0.2)) == 2  # the gap's edges are samples
    for outside in (-0.01, 0.61):
        with pytest.raises(EpisodeError, match="nothing recorded"):
            interpolate(track, np.array([outside]), 1.0)


def test_hold_takes_the_last_value_set():
    track = Track(np.array([1.0, 2.0, 2.5]), np.array([[1.0], [-1.0], [1.0]]), ("gripper",))
    at = np.array([1.0, 1.99, 2.0, 2.4, 9.0])
    assert hold(track, at)[:, 0].tolist() == [1.0, 1.0, -1.0, -1.0, 1.0]
    with pytest.raises(EpisodeError, match="no value yet"):
        hold(track, np.array([0.99]))


def test_pictures_are_never_from_the_future():
    rng = np.random.default_rng(0)
    stamps = np.cumsum(rng.uniform(0.01, 0.05, 200))
    times = np.linspace(stamps[0], stamps[-1], 77)
    resampling = Resampling(snap=0.0)
    picks = nearest_before(stamps, times, resampling, "front")
    assert (stamps[picks] <= times).all()
    following = np.minimum(picks + 1, len(stamps) - 1)
    assert ((stamps[following] > times) | (following == picks)).all(), "a newer picture was there"


def test_snap_takes_a_picture_a_little_late():
    stamps = np.array([0.0, 0.0677, 0.1334])
    times = np.array([0.0, 1 / 15, 2 / 15])
    assert nearest_before(stamps, times, Resampling(snap=0.002), "front").tolist() == [0, 1, 2]
    assert nearest_before(stamps, times, Resampling(snap=0.0), "front").tolist() == [0, 0, 1]


def test_old_pictures_are_refused():
    with pytest.raises(EpisodeError, match=r"camera front: newest picture is 0\.20 s old at 0\.20 s"):
        nearest_before(np.array([0.0]), np.array([0.0, 0.2]), Resampling(), "front")


@pytest.mark.parametrize("shift", [-1.3, -0.4, 0.6])
def test_one_picture_with_a_wrong_stamp_freezes_no_camera(shift):
    times, stamps = np.arange(0, 4, 1 / 15), np.arange(0, 4.1, 1 / 30)
    stamps[60] += shift
    if shift > 0:  # all that come before the clock has caught up are older than this one
        with pytest.raises(EpisodeError, match="newest picture is"):
            nearest_before(stamps, times, Resampling(), "front")
        return
    picks = nearest_before(stamps, times, Resampling(), "front")
    assert 60 not in picks and (np.diff(picks) >= 1).all()
    age = times - stamps[picks]
    assert age.min() > -0.003 and age.max() < 0.05
