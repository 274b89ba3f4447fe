"""The disk that episodes go to: room and speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vipra_ros.data.disk import MB, free_space, write_speed
from vipra_ros.doctor.report import FAIL, OK, WARN, Finding

AREA = "disk"
#: bytes: a hundred episodes of 20 s from two compressed 640x480 cameras at 30 Hz take about this.
ROOM, LEAST = 10_000 * MB, 1_000 * MB
#: bytes a second: two raw 640x480 cameras at 30 Hz are 55 MB/s.
SPEED, LEAST_SPEED = 80 * MB, 10 * MB
TEST_SIZE = 64 * MB


def room(folder: Path, free: Callable[[Path], int] = free_space) -> Finding:
    """Free space where `folder` is."""
    try:
        value = free(folder)
    except OSError as error:
        return Finding(AREA, "space", FAIL, f"{folder}: {error.strerror}", "make it, or give another folder (--out)")
    text, fix = f"{value / 1000 / MB:.1f} GB free at {folder}", "make room, or record to another disk"
    return Finding(AREA, "space", *((OK, text) if value >= ROOM else (WARN if value >= LEAST else FAIL, text, fix)))


def speed(folder: Path, measure: Callable[[Path, int], float] = write_speed, size: int = TEST_SIZE) -> Finding:
    """Writes `size` bytes into `folder`, onto the disk, and removes them."""
    try:
        value = measure(folder, size)
    except OSError as error:
        text = f"{folder}: {error.strerror}"
        return Finding(AREA, "write speed", FAIL, text, "give a folder you may write to (--out)")
    text = f"{value / MB:.0f} MB/s ({size // MB} MB, synced)"
    if value >= SPEED:
        return Finding(AREA, "write speed", OK, text)
    fix = "record compressed images only" if value >= LEAST_SPEED else "record to another disk"
    return Finding(AREA, "write speed", WARN if value >= LEAST_SPEED else FAIL, text, fix)
