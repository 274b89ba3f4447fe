"""GELLO: what the servos of the leader arm say, as joint angles of the follower.

Configuration files of Franka's `franka_gello_state_publisher` are read as they are. With its convention a joint
is at  q = sign (raw - offset) - pi,  wrapped to [mid - pi, mid + pi) once at the start, where mid is the middle of
the follower's joint range: after a power cycle the servo's register lies in [0, 2 pi), the turns are lost. From
then on increments are tracked, so that no joint jumps where its register or its angle wraps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError, build, param, read_yaml
from vipra_ros.teleop.bus import BAUDRATES, TICKS_PER_TURN

#: Keys of Franka's file that say where and how the leader's own motors push. Ours do not.
UNUSED = ("namespace", "publishing_rate", "dynamixel_goal_position", *(f"dynamixel_kp_{x}" for x in "pid"))
#: rad between two reads beyond which no hand can have moved a joint (25 rad/s at 25 Hz).
LARGEST_STEP = 1.0


@dataclass(frozen=True)
class GelloConfig:
    """One leader arm; keys as in `franka_gello_state_publisher`."""

    com_port: str = param(doc="serial port: a path, or a name in /dev/serial/by-id")
    joint_signs: tuple[int, ...] = param(doc="1 or -1 per joint: which way the servo turns", choices=(1, -1))
    assembly_offsets: tuple[float, ...] = param(doc="servo angle per joint as assembled", unit="rad")
    num_arm_joints: int = param(7, doc="joints of the arm; servos 1, 2, ... in their order", low=1, high=7)
    gripper: bool = param(True, doc="the servo behind the joints is a gripper trigger")
    gripper_range_rad: tuple[float, ...] = param((2.0, 3.22), doc="trigger angles: closed, open", unit="rad")
    baudrate: int = param(57600, doc="as set in the servos", choices=BAUDRATES)

    def __post_init__(self):
        for key, count in (
            ("joint_signs", self.num_arm_joints),
            ("assembly_offsets", self.num_arm_joints),
            ("gripper_range_rad", 2),
        ):
            if len(getattr(self, key)) != count:
                raise ConfigError(f"{key} = {list(getattr(self, key))}: give {count} values")
        if self.gripper and abs(self.gripper_range_rad[1] - self.gripper_range_rad[0]) < 0.1:
            raise ConfigError(f"gripper_range_rad = {list(self.gripper_range_rad)}: closed and open must differ by 0.1")

    @property
    def servo_ids(self) -> tuple[int, ...]:
        """Joints from the base, then the gripper."""
        return tuple(range(1, self.num_arm_joints + self.gripper + 1))

    @property
    def port(self) -> str:
        """Path of the serial port.

        Raises:
            ConfigError: com_port is empty.
        """
        if not self.com_port:
            found = ", ".join(sorted(p.name for p in Path("/dev/serial/by-id").glob("*")))
            raise ConfigError(f"com_port is empty; set it to the leader's serial port, there are: {found or 'none'}")
        return self.com_port if "/" in self.com_port else f"/dev/serial/by-id/{self.com_port}"


def load_gello(path: str | Path, arm: str = "", namespace: str = "") -> GelloConfig:
    """Read a file with the keys at its top, or with one section per arm as Franka's have.

    Args:
        arm: the section, when there are several.
        namespace: of the node; with `arm` empty the section whose key `namespace` is the same.

    Raises:
        ConfigError: a key or value cannot be used.
    """
    values = read_yaml(path)
    sections = {k: v for k, v in values.items() if isinstance(v, dict)}
    if sections and len(sections) == len(values):
        mine = [k for k, v in sections.items() if v.get("namespace") == (namespace.strip("/") or None)]
        arm = arm or (mine[0] if len(mine) == 1 else "")
        if arm and arm not in sections or not arm and len(sections) > 1:
            raise ConfigError(f"{path}: arm {arm!r} is not in it; choose one of {', '.join(sections)}")
        values = sections[arm or next(iter(sections))]
    if any(values.get("dynamixel_torque_enable") or ()):
        raise ConfigError(f"{path}: dynamixel_torque_enable: this driver keeps the torque off; set all to 0")
    skipped = (*UNUSED, "dynamixel_torque_enable")
    return build(GelloConfig, {k: v for k, v in values.items() if k not in skipped}, str(path))


def wrap(angle: np.ndarray, mid: np.ndarray) -> np.ndarray:
    """`angle` plus whole turns, in [mid - pi, mid + pi); rad."""
    low = np.asarray(mid, float) - math.pi
    turned = np.mod(np.asarray(angle, float) - low, 2 * math.pi)
    return low + np.where(turned >= 2 * math.pi, 0.0, turned)  # mod of -1e-17 rounds to a whole turn


def radians(ticks: np.ndarray) -> np.ndarray:
    """Servo ticks as an angle, 4096 a turn."""
    return np.asarray(ticks, float) * (2 * math.pi / TICKS_PER_TURN)


def ticks_of(config: GelloConfig, q: Sequence[float], opening: float) -> np.ndarray:
    """Servo positions (n,) of a leader held at `q` (rad): the inverse of :class:`Tracker`, up to whole turns."""
    raw = (np.asarray(q, float) + math.pi) * np.array(config.joint_signs) + np.array(config.assembly_offsets)
    if config.gripper:
        closed, opened = config.gripper_range_rad
        raw = np.append(raw, closed + opening * (opened - closed))
    return raw * (TICKS_PER_TURN / (2 * math.pi))


class Tracker:
    """Joint angles and gripper opening from servo ticks; begins with the first reading.

    Args:
        config: of the leader.
        lower, upper: rad (n,), joint range of the follower.
    """

    def __init__(self, config: GelloConfig, lower: np.ndarray, upper: np.ndarray):
        n = config.num_arm_joints
        self.config = config
        self._mid = 0.5 * (np.asarray(lower, float)[:n] + np.asarray(upper, float)[:n])
        self._signs, self._offsets = np.array(config.joint_signs, float), np.array(config.assembly_offsets)
        self._raw: np.ndarray | None = None
        self._q = np.zeros(n)

    def update(self, ticks: np.ndarray) -> tuple[np.ndarray, float]:
        """Joint angles (n,) in rad, and the opening in [0, 1] (1 without a gripper: an open hand).

        Raises:
            ValueError: a joint moved further than a hand can; nothing was taken over.
        """
        n = self.config.num_arm_joints
        raw = radians(ticks)
        if raw.shape != (len(self.config.servo_ids),):
            raise ValueError(f"{raw.shape} servo positions; the configuration has {len(self.config.servo_ids)} servos")
        if self._raw is None:
            q = wrap(self._signs * (raw[:n] - self._offsets) - math.pi, self._mid)
        else:  # a register that wraps, or a servo that lost its turns, is a whole turn away
            step = wrap(raw[:n] - self._raw, np.zeros(n))
            worst = int(np.abs(step).argmax())
            if abs(step[worst]) > LARGEST_STEP:
                raise ValueError(
                    f"servo {worst + 1} jumped by {step[worst]:.2f} rad between two reads; check its cable and plug"
                )
            q = self._q + self._signs * step
        self._raw, self._q = raw[:n], q
        return q.copy(), self._opening(raw[-1]) if self.config.gripper else 1.0

    def _opening(self, raw: float) -> float:
        closed, opened = self.config.gripper_range_rad
        near = wrap(np.array(raw), np.array(0.5 * (closed + opened)))
        return float(np.clip((near - closed) / (opened - closed), 0.0, 1.0))
