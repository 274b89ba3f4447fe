"""`vipra doctor`: all checks that what was given allows, in order."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path

from vipra_ros.command import room
from vipra_ros.config import ConfigError, share
from vipra_ros.control.profile import load_profile
from vipra_ros.doctor import checkpoint as checkpoints
from vipra_ros.doctor import disk, machine, network, report
from vipra_ros.doctor.report import FAIL, Finding, guarded, refusal
from vipra_ros.policy.shipped import resolve

#: s that cameras are listened to.
LISTEN = 4.0
OPTIONS = {"robot": "--robot IP", "gello": "--gello PORT", "cameras": "--camera TOPIC",
           "checkpoint": "--checkpoint DIR"}


def examine(robot: str = "", gello: str = "", gello_config: str = "", gello_arm: str = "",
            camera: tuple[str, ...] = (), checkpoint: str = "", profile: str = "fr3",
            out: Path = Path(".")) -> list[Finding]:
    """All findings.

    Raises:
        ConfigError: the profile is unknown.
    """
    limits, real = load_profile(profile), bool(robot) and not robot.startswith("127.")
    environment, found = dict(os.environ), []

    def look(area: str, check: str, function, *arguments, **keywords) -> None:
        found.extend(guarded(area, check, partial(function, *arguments, **keywords)))

    look("machine", "kernel", machine.kernel, real_arm=real)
    look("machine", "governor", machine.governor)
    look("machine", "real-time priority", machine.rtprio, real_arm=real)
    look("machine", "clock", machine.clock)
    look("machine", "ROS 2", machine.ros, environment, lambda name: importlib.util.find_spec(name) is not None,
         machine.import_error)
    look("network", "receive buffer", network.receive_buffer)
    look("network", "transport", network.transport, environment, share("config", "fastdds.xml"))
    look("network", "shared memory", network.shared_memory)
    if robot:
        look("robot", "arm", _robot, robot, limits)
    if gello:
        look("gello", "leader", _gello, gello, gello_config, gello_arm)
    if camera:
        look("cameras", "listening", _cameras, camera, bool(robot) and not real)
    look("disk", "space", disk.room, out)
    look("disk", "write speed", disk.speed, out)
    folder = None
    if checkpoint:
        try:
            folder = resolve(checkpoint)
            look("checkpoint", "loading", checkpoints.compatibility, folder, limits, real)
        except ConfigError as error:
            found.append(refusal("checkpoint", "loading", error, "give a checkpoint's folder"))
    look("checkpoint", "GPU memory", lambda: checkpoints.memory(folder, checkpoints.gpus()))
    order = ("machine", "network", "robot", "gello", "cameras", "disk", "checkpoint")
    return sorted(found, key=lambda f: order.index(f.area))


def _robot(host: str, profile) -> list[Finding]:
    from vipra_ros.doctor import robot
    return robot.look(host, profile, lambda: room("robot.probe:ask")(host, profile))


def _gello(port: str, config: str, arm: str) -> list[Finding]:
    from vipra_ros.doctor import gello
    from vipra_ros.teleop.bus import ServoBus
    from vipra_ros.teleop.gello import load_gello

    path = port if "/" in port else f"/dev/serial/by-id/{port}"
    found = guarded("gello", "port", lambda: gello.port(path))
    try:
        settings = load_gello(config or share("config", "gello.yaml"), arm)
    except ConfigError as error:
        return [*found, refusal("gello", "configuration", error, "correct it, or give another (--config FILE)")]
    if Path(path).exists():
        found += guarded("gello", "latency timer", lambda: gello.latency(path))
        found += guarded("gello", "servos", lambda: gello.servos(
            lambda: ServoBus(path, settings.servo_ids, settings.baudrate)))
    return found


def _cameras(topics: tuple[str, ...], simulated: bool) -> list[Finding]:
    from vipra_ros.doctor import cameras
    try:
        if importlib.util.find_spec("rclpy") and (failure := machine.import_error()):
            return [Finding("cameras", "listening", FAIL, failure, "see ROS 2 under machine")]
        samples = room("nodes.probe:listen")(topics, LISTEN)
    except ImportError as error:
        return [Finding("cameras", "listening", FAIL, f"ROS 2 is not to be found ({error})",
                        "use the .venv of `make setup`, or source a ROS 2 with this package built in it")]
    return [f for sample in samples for f in cameras.judge(sample, simulated)]


def main(robot: str, gello: str, config: str, arm: str, camera: list[str], checkpoint: str, profile: str, out: str,
         json: bool) -> int:
    """`vipra doctor`: print the report; 1 when something fails."""
    found = examine(robot, gello, config, arm, tuple(camera), checkpoint, profile, Path(out))
    given = {"robot": robot, "gello": gello, "cameras": camera, "checkpoint": checkpoint}
    skipped = {name: option for name, option in OPTIONS.items() if not given[name]}
    print(report.as_json(found, skipped) if json else report.as_text(found, skipped, sys.stdout.isatty()))
    return report.status(found)
