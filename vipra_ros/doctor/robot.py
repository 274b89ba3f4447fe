"""The arm: who answers at its port, which version it speaks, whether it is ready and what its limits are.

The handshake is the first message of the Franka Control Interface (libfranka, research_interface/robot
service_types.h): header (command, id, size) and (library version, UDP port), little endian. The rest is asked
through franky, and nothing of it moves the arm.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import RobotProfile
from vipra_ros.doctor import network
from vipra_ros.doctor.report import FAIL, OK, WARN, Finding, guarded
from vipra_ros.robot.claim import Claim, Claimed

AREA = "robot"
_CONNECT, _HEADER, _REQUEST = 0, struct.Struct("<III"), struct.Struct("<HH")
#: Version of the interface that the libfranka inside franky-control 2 speaks.
INTERFACE = 10
#: s; a control unit answers in ms, one that another program holds does not answer at all.
PATIENCE = 2.0
#: s for the control unit to see that the last connection was closed.
RELEASE = 0.1


class Occupied(RuntimeError):
    """The port is open, but nobody answers: another program holds the arm."""


class Stranger(RuntimeError):
    """The port is open, but it is another program's."""


@dataclass(frozen=True)
class ArmReport:
    """What the arm says of itself.

    Attributes:
        mode: its operating mode in words; errors: names of raised errors.
        q: rad (7,), measured joints.
        tightened: the profile with the arm's own limits where they are stricter; None when the arm sends none.
        refusal: why the profile cannot be used with this arm.
    """

    mode: str
    errors: str
    q: tuple[float, ...]
    tightened: RobotProfile | None = None
    refusal: str = ""


def handshake(host: str, port: int = network.FCI_PORT, patience: float = PATIENCE) -> tuple[int, int]:
    """(status, version) that the control unit answers a greeting with; status 0: the versions fit.

    Raises:
        OSError: nobody listens. Occupied: no answer in `patience` seconds. Stranger: no such greeting came back.
    """
    with socket.create_connection((host, port), timeout=patience) as tcp, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", 0))
        size = _HEADER.size + _REQUEST.size
        tcp.sendall(_HEADER.pack(_CONNECT, 1, size) + _REQUEST.pack(INTERFACE, udp.getsockname()[1]))
        answer = b""
        try:
            while len(answer) < size:
                part = tcp.recv(64)
                if not part:
                    raise Occupied("the connection was closed without an answer")
                answer += part
        except (TimeoutError, ConnectionResetError) as error:
            raise Occupied(str(error)) from None
        if _HEADER.unpack_from(answer)[:2] != (_CONNECT, 1):
            said = answer[:12].decode("ascii", "backslashreplace")
            raise Stranger(f"what listens there is no control unit, it answers {said!r}")
        return _REQUEST.unpack_from(answer, _HEADER.size)


def server(answer: tuple[int, int]) -> Finding:
    """Judges the answer to the greeting."""
    status, version = answer
    if status == 0:
        return Finding(AREA, "robot server", OK, f"interface version {version}")
    fix = "update the robot's system image, or install a franky-control built for this one (its README lists both)"
    return Finding(AREA, "robot server", FAIL, f"speaks interface version {version}, franky {INTERFACE}", fix)


def library(version: Callable[[str], str] = metadata.version, files: Callable = metadata.files) -> Finding:
    """franky, and the libfranka it brings."""
    try:
        own = version("franky-control")
    except metadata.PackageNotFoundError:
        return Finding(AREA, "franky", FAIL, "not installed", "in the checkout: pip install '.[robot]'")
    names = [Path(str(f)).name for f in files("franky-control") or ()]
    inside = next((n.split(".so.")[1] for n in names if n.startswith("libfranka") and ".so." in n), "unknown")
    text = f"franky-control {own}, libfranka {inside}"
    if int(own.split(".")[0]) != 2:
        return Finding(AREA, "franky", WARN, text, "pip install 'franky-control>=2.0,<3': written for that one")
    return Finding(AREA, "franky", OK, text)


def readiness(report: ArmReport) -> Finding:
    """Whether the arm would take motions now."""
    if report.errors:
        return Finding(AREA, "state", FAIL, f"{report.mode}, errors: {report.errors}",
                       "release the emergency stop, then executor/recover")
    if report.mode.lower() not in ("idle", "move"):
        return Finding(AREA, "state", WARN, f"mode {report.mode}",
                       "release the emergency stop, unlock the joints, activate FCI, leave guiding")
    return Finding(AREA, "state", OK, f"mode {report.mode}, no errors")


def pose(report: ArmReport, profile: RobotProfile) -> Finding:
    """Whether the arm stands where the limiter lets it be."""
    q = np.asarray(report.q)
    beyond = np.maximum(profile.lower - q, q - profile.upper)
    worst = int(beyond.argmax())
    text = f"joint {worst + 1} is {abs(beyond[worst]):.2f} rad " + ("outside" if beyond[worst] > 0 else "inside")
    text += " the limits less their margin"
    if beyond[worst] > 0:
        return Finding(AREA, "pose", WARN, text, "guide the arm by hand away from the limit")
    return Finding(AREA, "pose", OK, text)


def limits(report: ArmReport, profile: RobotProfile) -> Finding:
    """Whether the profile asks for more than the arm's own model allows; the executor takes the stricter values."""
    file = f"config/robots/{profile.name}.yaml"
    if report.refusal:
        return Finding(AREA, "limits", FAIL, report.refusal, f"use this arm's profile (--profile), or correct {file}")
    own = report.tightened
    if own is None:
        return Finding(AREA, "limits", WARN, "this arm sends no model: the limits are those of the profile alone",
                       f"compare {file} with the arm's data sheet")
    fastest = np.minimum(profile.velocity, profile.clamp_velocity)
    rows = (("lower", profile.lower, own.q_min, -1), ("upper", profile.upper, own.q_max, 1),
            ("velocity", fastest, own.velocity, 1))  # positions less their margin: what is ever asked for
    stricter = [f"{name} of joint {i + 1} ({mine[i]:.4f}, arm {its[i]:.4f})" for name, mine, its, sign in rows
                for i in np.flatnonzero(sign * (mine - np.asarray(its)) > 0)]
    if stricter:
        return Finding(AREA, "limits", WARN, f"the arm's are stricter and win: {', '.join(stricter)}",
                       f"nothing, if this is the arm you mean; else use its profile, or correct {file}")
    return Finding(AREA, "limits", OK, f"the arm allows all that {profile.name} asks for")


def look(host: str, profile: RobotProfile, ask: Callable[[], ArmReport]) -> list[Finding]:
    """Everything about the arm at `host`; `ask` is `vipra_ros.robot.probe.ask` of it."""
    found = [library(), network.way(host)]
    try:
        claim = Claim(host)  # an executor that drives the arm must not notice us, nor one begin meanwhile
    except Claimed as error:
        text, _, fix = str(error).partition("; ")
        return [*found, Finding(AREA, "robot server", WARN, f"nothing was sent: {text}", f"{fix}, then try again")]
    try:
        return found + _asked(host, profile, ask)
    finally:
        claim.release()


def _asked(host: str, profile: RobotProfile, ask: Callable[[], ArmReport]) -> list[Finding]:
    simulated, found = host.startswith("127."), []
    try:
        found.append(server(handshake(host)))
    except Occupied as error:
        return [*found, Finding(AREA, "robot server", WARN, f"{host} is there but does not answer ({error})",
                                "end the program that holds the arm (an executor?) and run the doctor again")]
    except Stranger as error:
        return [*found, Finding(AREA, "robot server", FAIL, f"{host}: {error}",
                                "give the address of the control unit; a proxy or another device answers here")]
    except (OSError, UnicodeError) as error:  # UnicodeError: 172..16.0.2
        text = f"nobody at {host}:{network.FCI_PORT} ({getattr(error, 'strerror', None) or error})"
        return [*found, Finding(AREA, "robot server", FAIL, text,
                                "check the address and the cable, switch the arm on, unlock joints, activate FCI")]
    time.sleep(RELEASE)
    found += guarded(network.AREA, "round trip", lambda: network.connecting(host, simulated))
    time.sleep(RELEASE)
    try:
        report = ask()
    except ImportError as error:
        return [*found, Finding(AREA, "state", FAIL, f"franky cannot be imported ({error})",
                                "in the checkout: pip install '.[robot]'")]
    except (RuntimeError, ConfigError) as error:
        return [*found, Finding(AREA, "state", FAIL, " ".join(str(error).split()),
                                "unlock the joints and activate FCI; no other program may be connected")]
    return [*found, readiness(report), pose(report, profile), limits(report, profile)]
