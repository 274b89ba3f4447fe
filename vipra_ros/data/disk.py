"""What the disk can take, asked before an episode depends on it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

MB = 10**6
#: Share of the measured write speed that a recording may use: a disk has slower moments than the test's.
SPEED_SHARE = 0.7
#: Bytes written at a time.
_BLOCK = 4 * MB


def free_space(folder: Path) -> int:
    """Free bytes on the disk of `folder`; none where it has gone, with an unplugged disk."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def write_speed(folder: Path, size: int) -> float:
    """Bytes a second that the disk of `folder` takes, from writing `size` bytes until they are on it.

    Raises:
        OSError: nothing can be written there.
    """
    path = folder / f".speed-{os.getpid()}"
    block = os.urandom(min(size, _BLOCK))  # not zeros: a file system may compress
    try:
        began = time.monotonic()
        with path.open("wb", buffering=0) as file:
            for _ in range(max(1, size // len(block))):
                file.write(block)
            os.fsync(file.fileno())
        return max(1, size // len(block)) * len(block) / max(1e-9, time.monotonic() - began)
    finally:
        path.unlink(missing_ok=True)


def refusal(folder: Path, free: int, wanted: int, rate: float, speed: float) -> str:
    """Why nothing should be recorded into `folder` now, with the remedy; empty when it can.

    Args:
        free, wanted: bytes that are free, that should be.
        rate: bytes a second coming in, 0: not known. speed: bytes a second the disk takes, 0: not known.
    """
    if free < wanted:
        return (
            f"{free // MB} MB are free at {folder}, {wanted // MB} MB are needed; make room, or lower min_free"
        )
    if rate and speed and rate > SPEED_SHARE * speed:
        return (
            f"the topics bring {rate / MB:.0f} MB/s, the disk of {folder} took {speed / MB:.0f} MB/s; "
            "record compressed images, fewer topics, or on a faster disk"
        )
    return ""
