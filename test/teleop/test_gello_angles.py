"""The wrap arithmetic: servo ticks to joint angles, across wraps, power cycles and assembly offsets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.config import ConfigError, build, share
from vipra_ros.control.profile import load_profile
from vipra_ros.teleop.gello import GelloConfig, Tracker, load_gello, ticks_of, wrap

PROFILE = load_profile("fr3")
CONFIG = load_gello(share("config", "gello.yaml"))
TICK = 2 * math.pi / 4096
LOW, HIGH = np.array(PROFILE.q_min), np.array(PROFILE.q_max)
angles = st.lists(st.floats(0.0, 1.0), min_size=7, max_size=7).map(lambda x: LOW + np.array(x) * (HIGH - LOW))
configs = st.builds(
    lambda signs, offsets, low, span: GelloConfig("x", tuple(signs), tuple(offsets), 7, True, (low, low + span)),
    st.lists(st.sampled_from([1, -1]), min_size=7, max_size=7),
    st.lists(st.floats(-7.0, 7.0), min_size=7, max_size=7),
    st.floats(-3.0, 3.0),
    st.one_of(st.floats(-2.0, -0.2), st.floats(0.2, 2.0)),
)


def tracker(config=CONFIG):
    return Tracker(config, LOW, HIGH)


@given(st.floats(-100, 100), st.floats(-3, 3))
@settings(deadline=None)
def test_wrap_lies_in_its_interval_and_a_whole_number_of_turns_away(angle, mid):
    wrapped = float(wrap(np.array(angle), np.array(mid)))
    assert mid - math.pi - 1e-9 <= wrapped < mid + math.pi
    turns = (wrapped - angle) / (2 * math.pi)
    assert abs(turns - round(turns)) < 1e-9


@pytest.mark.parametrize("mid", [0.0, -1.6, 2.5])
def test_wrap_at_its_edges(mid):
    low = mid - math.pi
    assert wrap(np.array(low), mid) == pytest.approx(low)
    assert wrap(np.array(low - 1e-17), mid) < low + 2 * math.pi  # half open, whatever the rounding
    assert wrap(np.array(low + 2 * math.pi), mid) == pytest.approx(low)
    assert wrap(np.array(np.nextafter(low, -9)), mid) <= np.nextafter(low + 2 * math.pi, -9)


@given(configs, angles, st.floats(0, 1), st.lists(st.integers(-3, 3), min_size=8, max_size=8))
@settings(deadline=None)
def test_any_pose_is_found_whatever_signs_offsets_and_lost_turns(config, q, opening, turns):
    ticks = np.round(ticks_of(config, q, opening)) + 4096 * np.array(turns)
    found, open_found = tracker(config).update(ticks)
    np.testing.assert_allclose(found, q, atol=TICK)
    assert abs(open_found - opening) < 0.01


@given(configs, st.lists(st.floats(-0.9, 0.9), min_size=20, max_size=60), st.integers(0, 59))
@settings(deadline=None, max_examples=60)
def test_motion_over_many_turns_never_jumps_even_when_a_servo_loses_its_turns(config, steps, reset_at):
    track, q = tracker(config), np.array(PROFILE.home_q)
    track.update(np.round(ticks_of(config, q, 1.0)))
    turns = np.zeros(8)
    for k, step in enumerate(steps):
        q = q + step
        ticks = np.round(ticks_of(config, q, 1.0))
        if k == reset_at:
            turns = -np.floor(ticks / 4096)  # power cycle: registers are in 0 .. 4095 from here on
        found, _ = track.update(ticks + 4096 * turns)
        np.testing.assert_allclose(found, q, atol=2 * TICK)  # tracked, not wrapped: q leaves [mid - pi, mid + pi)


def test_a_joint_that_turns_past_the_top_of_a_one_turn_register_goes_on():
    track = tracker()
    for register in (4090, 4095, 4096, 4100, 4095, 4090):
        ticks = np.round(ticks_of(CONFIG, PROFILE.home_q, 1.0))
        ticks[0] = register % 4096
        q, _ = track.update(ticks)
        assert q[0] == pytest.approx(register * TICK - math.pi)  # sign 1, offset 0; beyond pi, not back at -pi


def test_the_convention_is_that_of_frankas_publisher():
    """Numbers worked out by hand from its formula mod((raw - offset) sign - mid, 2 pi) - pi + mid."""
    raw = np.array([math.pi, math.pi, 0.0, math.pi / 2, 0.0, math.pi, math.pi, 3.22]) / TICK
    q, opening = tracker().update(raw)
    np.testing.assert_allclose(q, [0, 0, 0, -math.pi / 2, 0, math.pi / 2, 0], atol=1e-8)
    assert opening == pytest.approx(1.0)


def test_a_joint_that_jumps_is_refused_and_named():
    track, ticks = tracker(), ticks_of(CONFIG, PROFILE.home_q, 1.0)
    before, _ = track.update(ticks)
    wrong = ticks.copy()
    wrong[2] += 1024
    with pytest.raises(ValueError, match=r"servo 3 jumped by 1\.57 rad"):
        track.update(wrong)
    np.testing.assert_allclose(track.update(ticks)[0], before)
    with pytest.raises(ValueError, match="8 servos"):
        track.update(ticks[:5])


def test_the_gripper_stays_between_closed_and_open():
    for opening, expected in ((-0.5, 0.0), (0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (1.4, 1.0)):
        assert tracker().update(ticks_of(CONFIG, PROFILE.home_q, opening))[1] == pytest.approx(expected)


FRANKA = """
LEFT:
  namespace: "left"
  com_port: "usb-FTDI_left"
  num_arm_joints: 7
  joint_signs: [1, -1, 1, -1, 1, 1, 1]
  gripper: true
  assembly_offsets: [0.000, 0.000, 3.142, 3.142, 3.142, 4.712, 0.000]
  gripper_range_rad: [2.00, 3.22]
  publishing_rate: 25
  dynamixel_torque_enable: [0, 0, 0, 0, 0, 0, 0, 0]
  dynamixel_kp_p: [30, 60, 0, 30, 0, 0, 0, 50]
"""


def test_frankas_own_files_are_read(tmp_path):
    path = tmp_path / "duo.yaml"
    path.write_text(FRANKA)
    config = load_gello(path)
    assert config.port == "/dev/serial/by-id/usb-FTDI_left" and config.servo_ids == (1, 2, 3, 4, 5, 6, 7, 8)
    path.write_text(FRANKA + FRANKA.replace("LEFT", "RIGHT").replace("left", "right"))
    assert load_gello(path, "RIGHT").com_port == "usb-FTDI_right"
    assert load_gello(path, namespace="/right").com_port == "usb-FTDI_right"
    with pytest.raises(ConfigError, match="choose one of LEFT, RIGHT"):
        load_gello(path)
    path.write_text(FRANKA.replace("enable: [0", "enable: [1"))
    with pytest.raises(ConfigError, match="keeps the torque off"):
        load_gello(path)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"joint_signs": [1, 2, 1, 1, 1, 1, 1]}, "choose one of 1, -1"),
        ({"assembly_offsets": [0.0] * 6}, "give 7 values"),
        ({"gripper_range_rad": [2.0, 2.0]}, "must differ"),
        ({"baudrate": 9600}, "57600"),
        ({"com_prot": "x"}, "unknown key 'com_prot'"),
    ],
)
def test_wrong_configurations_are_named(change, said):
    good = {"com_port": "x", "joint_signs": [1] * 7, "assembly_offsets": [0.0] * 7}
    with pytest.raises(ConfigError, match=said):
        build(GelloConfig, {**good, **change})
    with pytest.raises(ConfigError, match="com_port is empty"):
        _ = build(GelloConfig, {**good, "com_port": ""}).port
