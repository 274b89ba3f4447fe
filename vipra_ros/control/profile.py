"""Robot profiles: everything that differs between two arms, in one file a robot.

A profile is data (`config/robots/<name>.yaml`), never a table baked into code: an FR3 reports its own limits at
connect, and :meth:`RobotProfile.tightened` lets the stricter ones win (robot/reported.py).

Sources: joint limits and the position-dependent velocity limit are those of libfranka's
`include/franka/rate_limiting.h`; the DH table is Franka's published one (modified, Craig).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError, load, param, share

JOINTS = 7


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where the tool centre point (TCP) and the links may be, in the robot's base frame."""

    low: tuple[float, ...] = param(doc="lowest x, y, z of the TCP", unit="m")
    high: tuple[float, ...] = param(doc="highest x, y, z of the TCP", unit="m")
    floor: float = param(doc="height of the table surface under the base frame's origin", unit="m")
    tcp_clearance: float = param(doc="least height of the TCP over the table", unit="m", low=0.0)
    link_clearance: float = param(
        doc="least height of the joints 5 to 7 and the flange over the table", unit="m", low=0.0
    )


@dataclass(frozen=True)
class Load:
    """Payload beyond the hand, as the robot is told it."""

    mass: float = param(0.0, doc="mass", unit="kg", low=0.0, high=3.0)
    centre: tuple[float, ...] = param((0.0, 0.0, 0.0), doc="centre of mass in the flange frame", unit="m")
    inertia: tuple[float, ...] = param(
        (0.0,) * 9, doc="inertia about the centre of mass, 3x3 column-major", unit="kg m^2"
    )


@dataclass(frozen=True, kw_only=True)
class Capsule:
    """A volume around a link: everything within `radius` of a segment."""

    link: int = param(doc="frame the segment is given in: 0 base, 1 to 7 links, 8 flange", low=0, high=8)
    start: tuple[float, ...] = param(doc="one end of the segment", unit="m")
    end: tuple[float, ...] = param(doc="the other end", unit="m")
    radius: float = param(doc="radius", unit="m", low=0.0)


@dataclass(frozen=True, kw_only=True)
class RobotProfile:
    """Limits, geometry and habits of one robot. All angles in rad, lengths in m, joint order 1 to 7."""

    name: str = param(doc="name of the robot")
    joint_names: tuple[str, ...] = param(doc="names in messages, joint 1 first")
    finger_joint: str = param(doc="name of the finger joint in joint_states")
    q_min: tuple[float, ...] = param(doc="lower position limits", unit="rad")
    q_max: tuple[float, ...] = param(doc="upper position limits", unit="rad")
    velocity: tuple[float, ...] = param(doc="velocity limits", unit="rad/s", low=0.0)
    acceleration: tuple[float, ...] = param(doc="acceleration limits", unit="rad/s^2", low=0.0)
    jerk: tuple[float, ...] = param(doc="jerk limits", unit="rad/s^3", low=0.0)
    velocity_offset: tuple[float, ...] = param(
        (), doc="offset of the position-dependent velocity limit, empty: none", unit="rad/s"
    )
    velocity_deceleration: tuple[float, ...] = param(
        (), doc="deceleration of the position-dependent velocity limit", unit="rad/s^2"
    )
    position_margin: float = param(0.05, doc="distance kept from the position limits", unit="rad", low=0.02)
    clamp_velocity: float = param(2.0, doc="velocity never asked for, whatever the robot allows", unit="rad/s", low=0.1)
    clamp_acceleration: float = param(7.0, doc="acceleration never asked for", unit="rad/s^2", low=0.5)
    clamp_jerk: float = param(3500.0, doc="jerk never asked for", unit="rad/s^3", low=100.0)
    dynamics_factor: float = param(
        0.6, doc="share of the clamped limits that the arm's own generator may use", low=0.05, high=0.6
    )
    limiter_headroom: float = param(
        0.83, doc="share of that which the limiter uses, the rest lets the arm catch up", low=0.1, high=0.95
    )
    dh_a: tuple[float, ...] = param(doc="link lengths a(i-1), modified DH", unit="m")
    dh_d: tuple[float, ...] = param(doc="link offsets d(i), modified DH", unit="m")
    dh_alpha: tuple[float, ...] = param(doc="link twists alpha(i-1), modified DH", unit="rad")
    flange: float = param(0.107, doc="distance of the flange along joint 7's axis", unit="m")
    tcp: float = param(0.1034, doc="distance of the hand's TCP from the flange", unit="m")
    tcp_rotation: float = param(-np.pi / 4, doc="rotation of the hand about the flange's axis", unit="rad")
    workspace: Workspace = param(doc="where the TCP and links may be")
    capsules: tuple[Capsule, ...] = param((), doc="volumes by which links are kept apart, empty: no check")
    self_clearance: float = param(0.09, doc="least distance between capsules three joints apart", unit="m", low=0.0)
    home: tuple[float, ...] = param(doc="home pose", unit="rad")
    load: Load = param(Load(), doc="payload")
    collision_torque: tuple[float, ...] = param(
        (40.0, 40.0, 36.0, 36.0, 32.0, 28.0, 24.0),
        doc="joint torque at which a collision stops the arm",
        unit="N m",
        low=1.0,
    )
    collision_force: tuple[float, ...] = param(
        (40.0, 40.0, 40.0, 50.0, 50.0, 50.0),
        doc="Cartesian force at which a collision stops the arm",
        unit="N",
        low=1.0,
    )
    gripper_width: float = param(0.08, doc="width of the open hand", unit="m", low=0.0)

    def __post_init__(self) -> None:
        for key in (
            "joint_names",
            "q_min",
            "q_max",
            "velocity",
            "acceleration",
            "jerk",
            "dh_a",
            "dh_d",
            "dh_alpha",
            "home",
            "collision_torque",
        ):
            if len(getattr(self, key)) != JOINTS:
                raise ConfigError(f"{self.name}: {key} has {len(getattr(self, key))} values; give {JOINTS}")
        if len(self.velocity_offset) not in (0, JOINTS) or len(self.velocity_offset) != len(self.velocity_deceleration):
            raise ConfigError(f"{self.name}: velocity_offset and velocity_deceleration need 7 values each, or none")
        if not np.all(np.less(self.q_min, self.q_max)):
            raise ConfigError(f"{self.name}: q_min must lie below q_max for every joint")
        for i, capsule in enumerate(self.capsules):
            if len(capsule.start) != 3 or len(capsule.end) != 3:
                raise ConfigError(f"{self.name}: capsules[{i}] needs start and end of 3 values each")
        box = self.workspace
        if len(box.low) != 3 or len(box.high) != 3 or not np.all(np.less(box.low, box.high)):
            raise ConfigError(f"{self.name}: workspace low {box.low} must lie below high {box.high}, 3 values each")
        if np.any(self.home_q < self.lower) or np.any(self.home_q > self.upper):
            raise ConfigError(f"{self.name}: home {self.home} lies beyond the position limits less the margin")

    @cached_property
    def lower(self) -> np.ndarray:
        """rad (7,), lowest commanded positions."""
        return np.asarray(self.q_min) + self.position_margin

    @cached_property
    def upper(self) -> np.ndarray:
        """rad (7,), highest commanded positions."""
        return np.asarray(self.q_max) - self.position_margin

    @cached_property
    def home_q(self) -> np.ndarray:
        """rad (7,), the home pose."""
        return np.asarray(self.home, float)

    @cached_property
    def arm_limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(velocity, acceleration, jerk) the arm's own trajectory generator is clamped to, each (7,)."""
        return tuple(
            self.dynamics_factor * np.minimum(clamp, own)
            for clamp, own in (
                (self.clamp_velocity, self.velocity),
                (self.clamp_acceleration, self.acceleration),
                (self.clamp_jerk, self.jerk),
            )
        )

    @cached_property
    def limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(velocity, acceleration, jerk) of the limited reference, each (7,)."""
        return tuple(self.limiter_headroom * limit for limit in self.arm_limits)

    def velocity_bounds(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The robot's own velocity limits (lower, upper) at position `q` (..., 7), rad/s.

        v <= max(0, -offset + sqrt(2 deceleration (q_max - q))), mirrored at the lower limit.
        """
        cap, off, dec, low, high = self._velocity_law
        if off is None:
            return np.broadcast_to(-cap, np.shape(q)), np.broadcast_to(cap, np.shape(q))
        up = np.sqrt(2 * dec * np.maximum(0.0, high - q)) - off
        down = np.sqrt(2 * dec * np.maximum(0.0, q - low)) - off
        return -np.minimum(np.maximum(down, 0.0), cap), np.minimum(np.maximum(up, 0.0), cap)

    @cached_property
    def _velocity_law(self) -> tuple[np.ndarray | None, ...]:
        off = np.asarray(self.velocity_offset) if self.velocity_offset else None
        dec = np.asarray(self.velocity_deceleration) if self.velocity_offset else None
        return np.asarray(self.velocity), off, dec, np.asarray(self.q_min), np.asarray(self.q_max)

    def tightened(self, **reported: np.ndarray) -> RobotProfile:
        """This profile with limits the robot reports where those are stricter.

        Args:
            reported: any of q_min, q_max, velocity, acceleration, jerk, each (7,).
        """
        changes = {}
        for key, values in reported.items():
            if key not in ("q_min", "q_max", "velocity", "acceleration", "jerk"):
                raise ConfigError(
                    f"{self.name}: a robot cannot tighten {key!r}; give q_min, q_max, velocity, acceleration or jerk"
                )
            stricter = np.maximum if key == "q_min" else np.minimum
            changes[key] = tuple(float(v) for v in stricter(getattr(self, key), np.asarray(values, float)))
        return dataclasses.replace(self, **changes)


def load_profile(robot: str | Path = "fr3") -> RobotProfile:
    """The profile named `robot` (`config/robots/<robot>.yaml`) or the one in that file.

    Raises:
        ConfigError: no such profile, or a value in it cannot be used.
    """
    path = Path(robot)
    if path.suffix not in (".yaml", ".yml"):
        try:
            path = share("config", "robots", f"{robot}.yaml")
        except ConfigError:
            raise ConfigError(
                f"robot profile {str(robot)!r} is unknown; use fr3, panda or the path of a YAML file"
            ) from None
    return load(RobotProfile, path)


def check_joints(joint_names: tuple[str, ...], profile: RobotProfile, arms: int = 1) -> None:
    """Refuse a policy that drives other joints than the robot has; names of several arms stand one after the other.

    Raises:
        ConfigError: joints differ in number, name or order.
    """
    mine, theirs = tuple(profile.joint_names) * arms, tuple(joint_names)
    if len(mine) != len(theirs):
        raise ConfigError(
            f"checkpoint drives {len(theirs)} joints, robot {profile.name} has {len(mine)}; "
            "use a checkpoint of this robot"
        )
    if mine != theirs:
        first = next((a, b) for a, b in zip(theirs, mine) if a != b)
        raise ConfigError(
            f"checkpoint drives joint {first[0]!r} where robot {profile.name} has {first[1]!r}; "
            "use a checkpoint of this robot or its profile"
        )
