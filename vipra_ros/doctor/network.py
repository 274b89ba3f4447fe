"""The network: room for large messages, and the way to the arm's control unit.

Sources: ROS 2 documentation, "DDS tuning information" (rmem_max, ipfrag_*); Franka Control Interface documentation,
"Network bandwidth, delay and jitter": round trip and computation together must stay below 1 ms.
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vipra_ros.doctor.report import FAIL, OK, WARN, Finding, read
from vipra_ros.graph import profile_variables

AREA = "network"
ROOT = Path("/")
#: Port of the arm's control unit.
FCI_PORT = 1337
#: bytes; a raw 640x480 image is 0.92 MB, two of them and their headers must fit.
RECEIVE_BUFFER = 2 * 1024 * 1024
#: bytes of shared memory that image transport through it needs.
SHARED_MEMORY = 128 * 1024 * 1024
#: s, round trip: from where the control loop suffers, and from where it breaks (1 ms is the whole cycle).
ROUND_TRIP_WARN, ROUND_TRIP_FAIL = 0.0005, 0.001
CONNECTS, PATIENCE = 50, 2.0
#: s between two; a control unit takes one client at a time, and must have seen the last one go.
PAUSE = 0.03


def receive_buffer(root: Path = ROOT) -> Finding:
    """Whether the kernel lets sockets hold an image."""
    text = read(root / "proc/sys/net/core/rmem_max")
    fix = f"sudo sysctl -w net.core.rmem_max={RECEIVE_BUFFER * 8} (and in /etc/sysctl.d/ to keep it)"
    if not text.isdigit():
        return Finding(AREA, "receive buffer", WARN, "net.core.rmem_max is not to be read here", fix)
    value = f"net.core.rmem_max is {int(text) / 1024:.0f} KiB"
    if int(text) >= RECEIVE_BUFFER:
        return Finding(AREA, "receive buffer", OK, value)
    return Finding(AREA, "receive buffer", WARN, f"{value}: raw images from other machines get lost", fix)


def transport(environment: dict[str, str], profile: Path) -> Finding:
    """Whether what is started from this terminal finds other nodes, and carries large best-effort messages."""
    name, variables = "FASTDDS_BUILTIN_TRANSPORTS", profile_variables(environment)
    files = [environment[v] for v in variables if environment.get(v)]
    if "fastrtps" not in environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"):
        return Finding(AREA, "transport", OK, f"{environment['RMW_IMPLEMENTATION']}, not Fast DDS")
    if environment.get(name, "DEFAULT") != "DEFAULT":
        return Finding(AREA, "transport", WARN, f"{name}={environment[name]}: finds no node that is started without it",
                       f"unset {name}; for raw images: export {variables[0]}={profile}")
    if files:
        return Finding(AREA, "transport", OK, f"Fast DDS with {files[0]}")
    return Finding(AREA, "transport", OK, "Fast DDS as it comes; a driver of raw images needs "
                                          f"{variables[0]}={profile}")


def shared_memory(folder: Path = Path("/dev/shm"), usage: Callable = shutil.disk_usage) -> Finding:
    """Whether shared memory has room for images; containers often get 64 MB of it."""
    fix = "start the container with --shm-size=1g or --ipc=host, or remove what fills /dev/shm"
    try:
        free = usage(folder).free
    except OSError as error:
        return Finding(AREA, "shared memory", WARN, f"{folder}: {error.strerror}", fix)
    text = f"{free / 2**20:.0f} MiB free in {folder}"
    return Finding(AREA, "shared memory", *((OK, text) if free >= SHARED_MEMORY else (WARN, text, fix)))


def route(address: str, root: Path = ROOT) -> tuple[str, str]:
    """(interface, gateway or "") by which packets to the IPv4 `address` leave; ("", "") without a way."""
    target, best = int(ipaddress.IPv4Address(address)), (-1, "", "")
    if ipaddress.IPv4Address(address).is_loopback:
        return "lo", ""
    for line in read(root / "proc/net/route").splitlines()[1:]:
        words = line.split()
        net, via, mask = (int.from_bytes(bytes.fromhex(words[i])[::-1], "big") for i in (1, 2, 7))
        if target & mask == net and bin(mask).count("1") > best[0]:
            best = bin(mask).count("1"), words[0], str(ipaddress.IPv4Address(via)) if via else ""
    return best[1:]


def way(host: str, root: Path = ROOT) -> Finding:
    """The interface to the arm: a cable of its own, at least 1 Gbit/s, packets of 1500 bytes."""
    try:
        address = socket.gethostbyname(host)
    except (OSError, UnicodeError) as error:  # UnicodeError: 172..16.0.2
        return Finding(AREA, "way to the arm", FAIL, f"{host}: {error}", "give the address of the control unit")
    name, gateway = route(address, root)
    if not name:
        return Finding(AREA, "way to the arm", FAIL, f"no route to {address}",
                       "give this machine an address in the arm's network (sudo nmtui), and plug the cable in")
    device = root / "sys/class/net" / name
    mtu, speed = read(device / "mtu"), read(device / "speed")
    text = f"{name}, MTU {mtu or 'unknown'}" + (f", {speed} Mbit/s" if speed.isdigit() else "")
    if name == "lo":
        return Finding(AREA, "way to the arm", OK, text + " (a simulated arm)")
    if (device / "wireless").exists():
        return Finding(AREA, "way to the arm", FAIL, text + ", wireless", "connect arm and computer by a cable")
    if mtu.isdigit() and int(mtu) < 1500:
        return Finding(AREA, "way to the arm", FAIL, text, f"sudo ip link set {name} mtu 1500")
    if gateway:
        return Finding(AREA, "way to the arm", WARN, f"{text}, through {gateway}",
                       "connect the control unit directly to a network card of this machine")
    if speed.isdigit() and int(speed) < 1000:
        return Finding(AREA, "way to the arm", WARN, text, "use a cable and a card for 1 Gbit/s")
    return Finding(AREA, "way to the arm", OK, text)


def connect_times(host: str, port: int = FCI_PORT, count: int = CONNECTS, pause: float = PAUSE) -> list[float]:
    """s that each of `count` TCP connections took: one round trip each. They are closed at once.

    Raises:
        OSError: nobody listens, or not in PATIENCE seconds.
    """
    times = []
    for _ in range(count):
        began = time.perf_counter()
        with socket.create_connection((host, port), timeout=PATIENCE):
            times.append(time.perf_counter() - began)
        time.sleep(pause)
    return times


def connecting(host: str, simulated: bool = False) -> Finding:
    """`round_trip` of the connections to `host`, or what became of them."""
    try:
        return round_trip(connect_times(host), simulated)
    except OSError as error:
        return Finding(AREA, "round trip", FAIL, f"one of {CONNECTS} connections to {host} failed ({error})",
                       "check cable and switch; end other programs that connect to the arm")


def round_trip(times: Sequence[float], simulated: bool = False) -> Finding:
    """Judges connect times (s). A simulated arm keeps its own clock: for it slow is no failure."""
    p50, p99 = np.percentile(times, (50, 99))
    text = f"connecting takes {1e3 * p50:.2f} ms, p99 {1e3 * p99:.2f} ms (n = {len(times)})"
    if p99 < ROUND_TRIP_WARN:
        return Finding(AREA, "round trip", OK, text)
    fix = "a direct cable, no switch or USB adapter; stop what loads this machine; sudo ethtool -C IFACE rx-usecs 0"
    return Finding(AREA, "round trip", FAIL if p99 >= ROUND_TRIP_FAIL and not simulated else WARN, text, fix)
