"""On which machine figures were measured; every benchmark says so."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def machine() -> dict:
    """Processor, cores this process may use, system and Python, for a JSON of results."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def in_words() -> str:
    """The same in one line."""
    found = machine()
    return f"{found['cpu']}, {found['cores']} cores, Python {found['python']}"


def peak_mb() -> float:
    """MB that this process had in memory at most.

    Not getrusage's ru_maxrss, which Linux keeps over exec: a child would have the peak of its parent.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
