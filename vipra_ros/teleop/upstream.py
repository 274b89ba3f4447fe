"""Leader arms of the public `gello` package, where it is installed: its agent in the place of our own bus.

Its driver reports zeros when it cannot open the port, goes on with the last angles when reads fail, and ends other
programs that use the port. Here all three are errors: the port is looked at before the agent gets it, a fake
driver is refused, and a reading that has not been renewed is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.teleop.bus import TICKS_PER_TURN, BusError, Reading, ServoBus
from vipra_ros.teleop.gello import GelloConfig

#: s without a new reading of its driver before the bus counts as broken, and between two looks.
PATIENCE, LOOK = 0.1, 0.002
#: The rate of its agent, which takes none.
BAUDRATE = 57600
#: s for its driver's first reading.
FIRST = 3.0


def make_agent(config: GelloConfig) -> object:
    """Its GelloAgent for the leader that `config` describes.

    Our angle is  sign (raw - offset) - pi, its own  sign (raw - offset'): offset' = offset + sign pi.

    Raises:
        BusError: the package is not installed.
    """
    try:
        from gello.agents.gello_agent import DynamixelRobotConfig, GelloAgent
        from gello.dynamixel.driver import DynamixelDriver
    except ImportError as error:
        raise BusError(
            f"{error.name} is not installed; install gello_software, or leave the parameter agent empty", gone=True
        ) from None
    # It ends whoever uses the port (the port is free: our bus had it a moment ago), and calls sudo chmod.
    DynamixelDriver._kill_processes_using_port = DynamixelDriver._fix_port_permissions = lambda self: False
    n = config.num_arm_joints
    offsets = np.array(config.assembly_offsets) + np.pi * np.array(config.joint_signs)
    closed, opened = np.degrees(config.gripper_range_rad) if config.gripper else (0.0, 0.0)
    described = DynamixelRobotConfig(
        joint_ids=tuple(range(1, n + 1)),
        joint_offsets=tuple(offsets.tolist()),
        joint_signs=tuple(config.joint_signs),
        gripper_config=(n + 1, float(opened), float(closed)) if config.gripper else None,
    )
    return GelloAgent(port=config.port, dynamixel_config=described)


class UpstreamBus:
    """An upstream agent with the methods of :class:`~vipra_ros.teleop.bus.ServoBus`.

    What it reads are joint angles in ticks, to be tracked with `config`: signs and offsets are done already.

    Args:
        config: the leader. make: config -> agent. bus: finds the servos before the agent gets the port.

    Raises:
        ConfigError: a baud rate that the agent cannot be told.
    """

    def __init__(
        self,
        config: GelloConfig,
        make: Callable[[GelloConfig], object] = make_agent,
        bus: ServoBus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if config.baudrate != BAUDRATE:
            raise ConfigError(
                f"baudrate {config.baudrate}: the agent of gello knows {BAUDRATE} only; set the servos and the file to "
                "it, or leave the parameter agent empty"
            )
        n = config.num_arm_joints
        self._leader, self._make, self._clock = config, make, clock
        self._bus = bus or ServoBus(config.port, config.servo_ids, config.baudrate)
        #: The agent's gripper counts 0 open, 1 closed.
        self.config = replace(
            config, joint_signs=(1,) * n, assembly_offsets=(-np.pi,) * n, gripper_range_rad=(1.0, 0.0)
        )
        self.port, self._agent, self._driver, self._last = config.port, None, None, None

    def open(self) -> None:
        """Find the servos and the port free with our own bus, then hand it to the agent."""
        with self._bus:
            pass
        try:
            self._agent = self._make(self._leader)
        except BusError:
            raise
        except Exception as error:  # its driver raises RuntimeError on one spoilt answer
            text = f"{self.port}: the agent of gello did not start: {error}; check its cable and power"
            raise BusError(text, gone=True) from None
        self._driver = getattr(getattr(self._agent, "_robot", None), "_driver", None)
        fake = "fake" in type(self._driver).__name__.lower() or getattr(self._driver, "_is_fake", False)
        if self._driver is None or fake or not hasattr(self._driver, "_joint_angles"):
            what = "works with a fake driver" if fake else "has a driver that cannot be checked"
            self.close()
            raise BusError(f"{self.port}: the agent of gello {what}; look at what it printed", gone=True)
        try:
            self._fresh(FIRST)
        except BusError:
            self.close()
            raise

    def close(self) -> None:
        """Torque off, let go of the port."""
        driver, self._agent, self._driver, self._last = self._driver, None, None, None
        if driver is not None and hasattr(driver, "close"):
            try:
                driver.set_torque_mode(False)
            except Exception as error:
                raise BusError(f"{self.port}: torque off: {error}; switch the power of the leader off") from None
            finally:
                driver.close()

    def read(self) -> Reading:
        """Angles of the agent, no older than its driver's next reading.

        Raises:
            BusError: there was none in time, or the agent raised.
        """
        begin = self._clock()
        if self._agent is None:
            raise BusError(f"{self.port}: the bus is not open; call open() first", gone=True)
        self._fresh(PATIENCE)
        try:
            q = np.asarray(self._agent.act({}), float)
        except Exception as error:
            raise BusError(f"{self.port}: the agent of gello failed: {error}; check its cable and power") from None
        count = len(self._leader.servo_ids)
        if q.shape != (count,) or not np.all(np.isfinite(q)):
            raise BusError(f"{self.port}: the agent of gello gave {q}; {count} finite angles are expected")
        scale = TICKS_PER_TURN / (2 * np.pi)
        nothing, end = np.zeros(count), self._clock()
        return Reading((begin + end) / 2, end - begin, q * scale, nothing, nothing)

    def _fresh(self, seconds: float) -> None:
        """Wait for the next reading of its driver: a new array each time, the old one when a read has failed."""
        end = self._clock() + seconds
        while (angles := self._driver._joint_angles) is None or angles is self._last:
            if self._clock() > end:
                raise BusError(
                    f"{self.port}: the driver of gello has read nothing for {seconds} s; check cable and power"
                )
            time.sleep(LOOK)
        self._last = angles
