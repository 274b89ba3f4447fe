"""Find signs, offsets and gripper range of a leader arm, step by step, and look at what it says.

The person turns one joint after the other the way the follower's joint counts up, then holds the leader in the
follower's home pose, then closes and opens the trigger. Prompts and output are given in, so a test can answer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import yaml

from vipra_ros.config import ConfigError, share
from vipra_ros.control.profile import RobotProfile, load_profile
from vipra_ros.teleop.bus import BusError, ServoBus, latency_advice
from vipra_ros.teleop.gello import GelloConfig, Tracker, load_gello, radians, wrap
from vipra_ros.whole_file import write_whole

#: rad; a joint was turned when it moved this far, and the others less than half of it.
TURNED = 0.3
#: rad; a calibrated leader held in the same pose is found again within.
REPEATED = 0.1
#: Attempts to read the servos.
READS = 5


def calibrate(bus: ServoBus, config: GelloConfig, profile: RobotProfile, ask: Callable[[str], object]) -> GelloConfig:
    """The configuration with signs, offsets and gripper range found.

    Args:
        bus: open.
        config: where to begin: port, number of joints, gripper.
        ask: shows a text and returns when the person has done it.

    Raises:
        ConfigError: something else was moved than asked for.
        BusError: servos could not be read, READS times in a row.
    """
    n = config.num_arm_joints

    def angles() -> np.ndarray:
        return radians(_ticks(bus))

    signs = []
    for joint in range(n):
        ask(f"joint {joint + 1}: hold the leader still, press Enter")
        before = angles()
        ask(f"joint {joint + 1}: turn it by 30 degrees the way {profile.joint_names[joint]} counts up, press Enter")
        moved = wrap(angles() - before, np.zeros(len(before)))[:n]
        others = np.abs(np.delete(moved, joint)).max(initial=0.0)
        if abs(moved[joint]) < TURNED or others > 0.5 * abs(moved[joint]):
            raise ConfigError(
                f"joint {joint + 1} moved by {moved[joint]:+.2f} rad, another by {others:.2f}; turn this one alone, "
                f"by at least {TURNED} rad, and begin again"
            )
        signs.append(1 if moved[joint] > 0 else -1)
    pose = ", ".join(f"{q:.2f}" for q in profile.home_q)
    ask(f"hold the leader as the arm stands in its home pose ({pose} rad), press Enter")
    raw = angles()[:n]
    offsets = np.mod(raw - np.array(signs) * (profile.home_q[:n] + math.pi), 2 * math.pi)
    found = replace(config, joint_signs=tuple(signs), assembly_offsets=tuple(np.round(offsets, 4).tolist()))
    if config.gripper:
        ends = []
        for what in ("pull the trigger to the end (closed)", "let go of the trigger (open)"):
            ask(f"{what}, press Enter")
            ends.append(float(angles()[n]))
        ends[1] = ends[0] + float(wrap(np.array(ends[1] - ends[0]), np.zeros(())))
        found = replace(found, gripper_range_rad=tuple(round(e, 4) for e in ends))
    ask("hold the leader in the home pose once more, to check, press Enter")
    off = Tracker(found, profile.q_min, profile.q_max).update(_ticks(bus))[0] - profile.home_q[:n]
    worst = int(np.abs(off).argmax())
    if abs(off[worst]) > REPEATED:
        raise ConfigError(f"joint {worst + 1} is {off[worst]:+.2f} rad away from where it was; begin again")
    return found


def _ticks(bus: ServoBus) -> np.ndarray:
    """Of the first read that succeeds: one spoilt answer shall not cost all that was done before."""
    for _ in range(READS - 1):
        with contextlib.suppress(BusError):
            return bus.read().ticks
    return bus.read().ticks


def write(config: GelloConfig, path: str | Path) -> None:
    """Save `config` as YAML."""
    path = Path(path)
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "# Made by vipra gello calibrate.\n" + yaml.safe_dump(values, sort_keys=False))


def _bus(config_path: str, arm: str, port: str) -> tuple[GelloConfig, ServoBus]:
    config = load_gello(config_path or share("config", "gello.yaml"), arm)
    config = replace(config, com_port=port) if port else config
    return config, ServoBus(config.port, config.servo_ids, config.baudrate)


def read_main(config_path: str, port: str, profile: str, arm: str = "") -> None:
    """`vipra gello read`: one reading as a table."""
    config, bus = _bus(config_path, arm, port)
    robot = load_profile(profile)
    with bus:
        reading = bus.read()
        q, opening = Tracker(config, robot.q_min, robot.q_max).update(reading.ticks)
        print(f"{config.port}: read in {1e3 * reading.duration:.0f} ms")
        for i, name in enumerate(robot.joint_names[: len(q)]):
            at_home = q[i] - robot.home_q[i]
            print(f"servo {i + 1}  {reading.ticks[i]:7d} ticks  {name} {q[i]:+.3f} rad  {at_home:+.3f} from home")
        if config.gripper:
            print(f"servo {len(q) + 1}  {reading.ticks[-1]:7d} ticks  gripper {100 * opening:.0f} % open")
        print(latency_advice(config.port) or "latency timer: fine")


def calibrate_main(
    config_path: str, port: str, profile: str, out: str, ask: Callable[[str], object] = input, arm: str = ""
) -> None:
    """`vipra gello calibrate`: ask, find, write `out`."""
    config, bus = _bus(config_path, arm, port)
    with bus:
        found = calibrate(bus, config, load_profile(profile), lambda text: ask(text + " "))
        write(found, out)  # before the bus is closed: a servo that does not let go must not cost it
    print(f"{out}: signs {list(found.joint_signs)}, offsets {list(found.assembly_offsets)}; use gello_config:={out}")
