"""Calibration against emulated servos whose assembly it does not know."""

import functools
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dynamixel_sdk")

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import load_profile
from vipra_ros.teleop import calibrate as calibrate_module
from vipra_ros.teleop.bus import BusError, ServoBus
from vipra_ros.teleop.calibrate import calibrate, calibrate_main, read_main, write
from vipra_ros.teleop.emulate import emulated
from vipra_ros.teleop.gello import GelloConfig, Tracker, load_gello, ticks_of

PROFILE = load_profile("fr3")
TRUE = GelloConfig("x", (1, -1, 1, 1, -1, 1, -1), (0.3, 5.0, 3.1, 6.2, 1.0, 4.7, 0.01), 7, True, (2.9, 1.7))
GUESS = GelloConfig("x", (1,) * 7, (0.0,) * 7)

configs = st.builds(
    lambda signs, offsets, low, span: GelloConfig("x", tuple(signs), tuple(offsets), 7, True, (low, low + span)),
    st.lists(st.sampled_from([1, -1]), min_size=7, max_size=7),
    st.lists(st.floats(-6.5, 6.5), min_size=7, max_size=7),
    st.floats(-3.0, 3.0),
    st.one_of(st.floats(-2.0, -0.3), st.floats(0.3, 2.0)),
)


class Person:
    """Does what is asked; the leader is where `q` and `opening` say."""

    def __init__(self, clumsy=False):
        self.q, self.opening, self.clumsy = PROFILE.home_q + 0.05, 1.0, clumsy

    def ask(self, text):
        if "counts up" in text:
            self.q[int(text.split(":")[0].split()[-1]) - 1 if not self.clumsy else 3] += 0.5
        elif "home pose" in text:
            self.q = PROFILE.home_q.copy()
        elif "trigger" in text:
            self.opening = 0.0 if "closed" in text else 1.0


def test_what_is_found_reads_every_pose_as_the_true_arm_does(tmp_path):
    person = Person()
    with emulated(TRUE, lambda t: (person.q, person.opening)) as servos:
        servos.baudrate = 0
        with ServoBus(servos.port, TRUE.servo_ids, patience=1.0) as bus:
            found = calibrate(bus, GUESS, PROFILE, person.ask)
            assert found.joint_signs == TRUE.joint_signs
            write(found, tmp_path / "my" / "gello.yaml")
            found = load_gello(tmp_path / "my" / "gello.yaml")
            for _ in range(5):
                person.q = np.random.default_rng(1).uniform(PROFILE.lower, PROFILE.upper)
                person.opening = 0.3
                q, opening = Tracker(found, PROFILE.q_min, PROFILE.q_max).update(bus.read().ticks)
                np.testing.assert_allclose(q, person.q, atol=0.005)
                assert opening == pytest.approx(0.3, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(configs, st.lists(st.integers(-2, 2), min_size=8, max_size=8))
def test_any_assembly_is_found_and_holds_after_a_power_cycle(true, turns):
    """Without a bus: `read` gives the emulated registers, with whole turns that a power cycle changes."""
    person = Person()

    class Registers:
        turns = np.zeros(8)

        def read(self):
            ticks = np.round(ticks_of(true, person.q, person.opening)) + 4096 * self.turns
            return SimpleNamespace(ticks=ticks.astype(np.int64))

    bus = Registers()
    found = calibrate(bus, GUESS, PROFILE, person.ask)
    assert found.joint_signs == true.joint_signs
    bus.turns = np.array(turns)
    person.q, person.opening = np.random.default_rng([t + 2 for t in turns]).uniform(PROFILE.lower, PROFILE.upper), 0.4
    q, opening = Tracker(found, PROFILE.q_min, PROFILE.q_max).update(bus.read().ticks)
    np.testing.assert_allclose(q, person.q, atol=0.005)
    assert opening == pytest.approx(0.4, abs=0.01)


def test_a_finished_calibration_outlives_spoilt_answers_and_a_servo_that_does_not_let_go(tmp_path, monkeypatch):
    person, out = Person(), tmp_path / "gello.yaml"

    class Noisy:
        reads = 0

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            raise BusError("torque off: no answer from servo 2")

        def read(self):
            self.reads += 1
            if self.reads % 3:
                raise BusError("spoilt answer from servo 2")
            return SimpleNamespace(ticks=np.round(ticks_of(TRUE, person.q, person.opening)).astype(np.int64))

    monkeypatch.setattr(calibrate_module, "_bus", lambda *_: (GUESS, Noisy()))
    with pytest.raises(BusError, match="torque off"):
        calibrate_main("", "", "fr3", str(out), person.ask)
    assert load_gello(out).joint_signs == TRUE.joint_signs


def test_a_wrong_joint_is_said_and_nothing_is_written():
    person = Person(clumsy=True)
    with emulated(TRUE, lambda t: (person.q, person.opening)) as servos:
        servos.baudrate = 0
        with ServoBus(servos.port, TRUE.servo_ids, patience=1.0) as bus:
            with pytest.raises(ConfigError, match="joint 1 moved by .* another by 0.50; turn this one alone"):
                calibrate(bus, GUESS, PROFILE, person.ask)


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibrate_module, "ServoBus", functools.partial(ServoBus, patience=1.0))
    person, out = Person(), str(tmp_path / "gello.yaml")
    with emulated(TRUE, lambda t: (person.q, person.opening)) as servos:
        servos.baudrate = 0
        calibrate_main("", servos.port, "fr3", out, person.ask)
        read_main(out, "", "fr3")
        several = tmp_path / "two.yaml"
        one = textwrap.indent((tmp_path / "gello.yaml").read_text(), "  ")
        several.write_text(f"LEFT:\n{one.replace(servos.port, '/no/such')}\nRIGHT:\n{one}")
        read_main(str(several), "", "fr3", "RIGHT")
        with pytest.raises(ConfigError, match="choose one of LEFT, RIGHT"):
            calibrate_main(str(several), servos.port, "fr3", out, person.ask)
        calibrate_main(str(several), servos.port, "fr3", out, person.ask, "RIGHT")
    said = capsys.readouterr().out
    assert f"use gello_config:={out}" in said and "gripper 100 % open" in said
    assert said.count("read in") == 2
    assert said.count("+0.00") + said.count("-0.00") >= 7
