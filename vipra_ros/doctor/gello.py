"""The GELLO leader arm: its port, who may open it, how long the USB adapter holds bytes back, and its servos."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vipra_ros.doctor.report import FAIL, OK, WARN, Finding
from vipra_ros.teleop.bus import BusError, Reading, latency_advice, latency_timer, read_time

AREA = "gello"
#: s beyond the time on the wire, for a latency timer of 1 ms and the system; one of 16 ms is seen.
MARGIN = 0.008
READS = 50


def port(path: str, access: Callable[[str, int], bool] = os.access) -> Finding:
    """Whether the serial device is there and ours to read and write."""
    try:
        found = os.stat(path)
    except OSError as error:
        there = ", ".join(sorted(str(p) for p in Path("/dev/serial/by-id").glob("*"))) or "none"
        return Finding(AREA, "port", FAIL, f"{path}: {error.strerror}", f"plug it in; serial ports here: {there}")
    if not stat.S_ISCHR(found.st_mode):
        return Finding(AREA, "port", FAIL, f"{path} is no device", "give the serial port of the leader")
    if access(path, os.R_OK | os.W_OK):
        return Finding(AREA, "port", OK, os.path.realpath(path))
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return Finding(AREA, "port", FAIL, f"{path} belongs to group {group}, which you are not in",
                   f"sudo usermod -aG {group} $USER, then log in again")


def latency(path: str, root: Path = Path("/sys")) -> Finding:
    """The FTDI latency timer: 16 ms from the factory, 1 ms wanted."""
    value, advice = latency_timer(path, root), latency_advice(path, root)
    if not advice:
        return Finding(AREA, "latency timer", OK, f"{value} ms" if value is not None else "this adapter has none")
    text, _, fix = advice.partition("; type: ")
    return Finding(AREA, "latency timer", WARN, text, fix)


def servos(open_bus: Callable, reads: int = READS) -> Finding:
    """Reads every servo `reads` times. open_bus: makes a context manager with `read()` (teleop.bus.ServoBus)."""
    try:
        with open_bus() as bus:
            found: list[Reading] = [bus.read() for _ in range(reads)]
    except BusError as error:
        text, _, fix = str(error).partition("; ")
        return Finding(AREA, "servos", FAIL, text, fix or "check cable and power")
    p50, p99 = np.percentile([r.duration for r in found], (50, 99))
    text = f"{len(found[0].ticks)} answer, a read takes {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms (n = {reads})"
    needed = read_time(len(found[0].ticks), bus.baudrate)
    if p99 > needed + MARGIN:
        return Finding(AREA, "servos", WARN, f"{text}; {1e3 * needed:.1f} ms at {bus.baudrate} baud",
                       "set the latency timer to 1 ms; another USB port, without a hub; a higher baud rate")
    return Finding(AREA, "servos", OK, text)
