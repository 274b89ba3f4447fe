"""Agents of the public gello package in the place of our bus. The real package is used where it is installed."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("dynamixel_sdk")

from vipra_ros.config import ConfigError, share
from vipra_ros.control.profile import load_profile
from vipra_ros.teleop.bus import BusError, ServoBus
from vipra_ros.teleop.emulate import emulated
from vipra_ros.teleop.gello import GelloConfig, Tracker, load_gello
from vipra_ros.teleop.upstream import UpstreamBus, make_agent

PROFILE = load_profile("fr3")
CONFIG = load_gello(share("config", "gello.yaml"))
ODD = GelloConfig("x", (1, -1, 1, 1, -1, 1, -1), (0.3, 5.0, 3.1, 6.2, 1.0, 4.7, 0.01), 7, True, (2.9, 1.7))


class Driver:
    """What the adapter looks at of a driver: a new array for every read that went well."""

    def __init__(self, joints=8):
        self._joint_angles, self.torque, self.closed = np.zeros(joints), True, False

    def set_torque_mode(self, on):
        self.torque = on

    def close(self):
        self.closed = True


class FakeDynamixelDriver(Driver):
    pass


class Agent:
    """Gives the angles it is told, in the agent's convention."""

    def __init__(self, driver, q):
        self._robot = type("Robot", (), {"_driver": driver})()
        self.q = np.asarray(q, float)

    def act(self, obs):
        assert obs == {}
        return self.q


def opened(servos, agent):
    ours = ServoBus(servos.port, CONFIG.servo_ids, patience=1.5)
    bus = UpstreamBus(dataclasses.replace(CONFIG, com_port=servos.port), make=lambda config: agent, bus=ours)
    bus.open()
    return bus


    return dataclasses.replace(CONFIG, com_port=servos.port)


@pytest.fixture(scope="module")
def servos():
    with emulated(CONFIG, lambda t: (PROFILE.home_q, 1.0)) as servos:
        servos.baudrate = 0
        yield servos


def test_readings_are_tracked_as_our_own(servos):
    driver = Driver()
    agent = Agent(driver, [*PROFILE.home_q, 0.25])
    bus = opened(servos, agent)
    track = Tracker(bus.config, PROFILE.q_min, PROFILE.q_max)
    agent.q = np.append(PROFILE.home_q + 2 * np.pi * np.array([1, 0, -1, 0, 2, 0, 0]), 0.25)  # turns are lost there
    driver._joint_angles = np.zeros(8)
    q, opening = track.update(bus.read().ticks)
    np.testing.assert_allclose(q, PROFILE.home_q, atol=1e-9)
    assert opening == pytest.approx(0.75)
    bus.close()
    assert driver.closed and driver.torque is False


def test_an_old_reading_is_none(servos):
    driver = Driver()
    bus = opened(servos, Agent(driver, [*PROFILE.home_q, 0.0]))
    with pytest.raises(BusError, match="has read nothing for 0.1 s"):
        bus.read()
    driver._joint_angles = np.zeros(8)
    bus.read()
    bus.close()
    with pytest.raises(BusError, match="not open"):
        bus.read()


@pytest.mark.parametrize("driver", [FakeDynamixelDriver(), None, object()])
def test_a_fake_or_unknown_driver_is_refused(servos, driver):
    with pytest.raises(BusError, match="fake driver" if isinstance(driver, Driver) else "cannot be checked"):
        opened(servos, Agent(driver, np.zeros(8)))
    retired = Driver()
    retired._is_fake = True  # its driver becomes a fake one when the port cannot be opened
    with pytest.raises(BusError, match="fake driver"):
        opened(servos, Agent(retired, np.zeros(8)))


def test_angles_that_are_none_are_refused(servos):
    driver = Driver()
    agent = Agent(driver, np.full(8, np.nan))
    bus = opened(servos, agent)
    driver._joint_angles = np.zeros(8)
    with pytest.raises(BusError, match="8 finite angles"):
        bus.read()


def test_a_silent_servo_is_said_before_the_agent_gets_the_port(servos):
    servos.faults.missing.add(4)
    try:
        with pytest.raises(BusError, match="no answer from servo 4"):
            opened(servos, None)
    finally:
        servos.faults.missing.clear()


def test_an_agent_that_does_not_start_is_a_fault_of_the_bus(servos):
    def make(config):
        raise RuntimeError("Failed to get joint angle for Dynamixel with ID 3")

    ours = ServoBus(servos.port, CONFIG.servo_ids, patience=1.5)
    bus = UpstreamBus(dataclasses.replace(CONFIG, com_port=servos.port), make, ours)
    with pytest.raises(BusError, match="did not start: .* ID 3; check its cable") as caught:
        bus.open()
    assert caught.value.gone
    bus.close()


def test_a_baud_rate_that_the_agent_cannot_be_told_is_refused():
    with pytest.raises(ConfigError, match="baudrate 1000000: .*57600 only"):
        UpstreamBus(dataclasses.replace(CONFIG, baudrate=1000000))


def test_without_the_package_it_is_one_line():
    try:
        import gello  # noqa: F401
    except ImportError:
        with pytest.raises(BusError, match="install gello_software"):
            make_agent(CONFIG)


@pytest.mark.parametrize("config", [CONFIG, ODD], ids=["franka", "odd"])
def test_the_real_agent_reads_the_emulated_servos(config):
    pytest.importorskip("gello.agents.gello_agent", reason="the public gello package is not installed")
    q = np.random.default_rng(2).uniform(PROFILE.lower, PROFILE.upper)
    with emulated(config, lambda t: (q, 0.3)) as servos:
        servos.baudrate = 0
        bus = UpstreamBus(dataclasses.replace(config, com_port=servos.port))
        bus.open()
        found, opening = Tracker(bus.config, PROFILE.q_min, PROFILE.q_max).update(bus.read().ticks)
        np.testing.assert_allclose(found, q, atol=0.005)
        assert opening == pytest.approx(0.3, abs=0.01)
        servos.faults.missing.add(2)
        with pytest.raises(BusError, match="read nothing"):
            for _ in range(20):
                bus.read()
        servos.faults.missing.clear()
        bus.close()
        assert set(servos.torque.values()) == {0}
