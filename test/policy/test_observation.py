"""Frames by time: the right pair at any rate, and every way a camera can fail, with its reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipra_ros.policy.observation import FrameHistory, HistorySettings

OFFSETS = (-2 / 15, 0.0)


def image(value):
    return np.full((4, 4, 3), value % 256, np.uint8)


def filled(rate, seconds=1.5, cameras=("front",), offsets=OFFSETS, **settings):
    history = FrameHistory(cameras, offsets, HistorySettings(**settings))
    for i in range(round(rate * seconds)):
        for camera in cameras:
            assert history.add(camera, 100 + i / rate, image(i))
    return history, 100 + (round(rate * seconds) - 1) / rate


@pytest.mark.parametrize("rate", [15, 22, 30, 60])
def test_stride_is_a_time_whatever_the_camera_rate(rate):
    history, now = filled(rate)
    chosen = history.select(now)
    assert chosen.reasons == () and chosen.stamp == pytest.approx(now)
    old, new = chosen.frame_stamps["front"]
    assert new == pytest.approx(now) and abs(new - old - 2 / 15) <= 0.5 / rate + 1e-9
    assert chosen.frames["front"].shape == (2, 4, 4, 3) and chosen.frames["front"].dtype == np.uint8
    assert chosen.frames["front"][1, 0, 0, 0] == round((new - 100) * rate)


@given(st.lists(st.booleans(), min_size=60, max_size=60))
def test_dropped_frames_give_a_near_frame_or_a_reason(kept):
    history = FrameHistory(("front",), OFFSETS, HistorySettings(tolerance=0.05, stale_after=10.0))
    stamps = [i / 30 for i, keep in enumerate(kept) if keep]
    for stamp in stamps:
        history.add("front", stamp, image(int(stamp * 30)))
    chosen = history.select(2.0)
    near = stamps and min(abs(s - (stamps[-1] + OFFSETS[0])) for s in stamps) <= 0.05
    assert bool(chosen.frames) == bool(near)
    assert bool(chosen.reasons) != bool(near)


def test_the_slowest_camera_sets_the_time():
    history = FrameHistory(("front", "wrist"), OFFSETS)
    for i in range(30):
        history.add("front", i / 30, image(i))
        if i % 2 == 0:
            history.add("wrist", i / 30, image(i))
    chosen = history.select(29 / 30)
    assert chosen.stamp == pytest.approx(28 / 30)
    assert {len(f) for f in chosen.frames.values()} == {2}
    assert chosen.frame_stamps["front"][1] == pytest.approx(28 / 30)


def test_late_and_repeated_frames_are_dropped():
    history = FrameHistory(("front",), OFFSETS)
    assert history.add("front", 1.0, image(0))
    assert not history.add("front", 1.0, image(1)) and not history.add("front", 0.9, image(2))
    assert history.dropped("front") == 2 and history.age("front", 1.5) == pytest.approx(0.5)


def test_missing_and_lost_cameras_are_named():
    history = FrameHistory(("front", "wrist"), OFFSETS)
    history.add("front", 1.0, image(0))
    assert any("wrist" in r and "no frame yet" in r for r in history.select(1.1).reasons)
    history.add("wrist", 1.0, image(0))
    assert any("front" in r and "old" in r for r in history.select(3.0).reasons)
    assert history.select(3.0).frames == {}


def test_a_short_history_is_a_reason_not_a_guess():
    history = FrameHistory(("front",), OFFSETS)
    history.add("front", 1.0, image(0))
    (reason,) = history.select(1.0).reasons
    assert "front" in reason and "0.133" in reason


@pytest.mark.parametrize("moves, frozen", [(True, True), (False, False)])
def test_a_frozen_picture_counts_only_while_the_robot_moves(moves, frozen):
    history = FrameHistory(("front",), OFFSETS, HistorySettings(frozen_after=1.0))
    for i in range(60):
        history.moved(np.zeros(7) + (0.01 * i if moves else 0.0))
        history.add("front", i / 30, image(7))
    assert any("frozen" in r for r in history.problems(59 / 30)) == frozen
    history.add("front", 2.0, image(8))
    assert history.problems(2.0) == ()


def test_memory_is_bounded():
    history, now = filled(60, seconds=20)
    assert len(history._cameras["front"].stamps) <= 60 * (1.0 + 2 / 15) + 2
    history.clear()
    assert history.select(now).frames == {}


def test_one_picture_does_not_stand_for_two_times():
    """A camera slower than the frames of an observation: they would carry no motion."""
    history = FrameHistory(["front"], (-1 / 30, 0.0))
    for i in range(12):
        history.add("front", 1.0 + i / 10, image(i))
    chosen = history.select(2.12)
    assert "one picture stands for two times; the policy needs one every 0.033 s" in chosen.reasons[0]
