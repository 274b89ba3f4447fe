"""On which machine figures were measured, and with how much memory; every benchmark says so."""

from __future__ import annotations

import os
import platform
import resource
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
    """Processor, cores this process may use, their load now, system and Python, for a JSON of results."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def in_words() -> str:
    """The same in one line."""
    found = machine()
    return f"{found['cpu']}, {found['cores']} cores, Python {found['python']}"


def peak_memory() -> float:
    """MB (2**20 bytes) that this process has occupied at most.

    Not getrusage's ru_maxrss, which a process inherits from whoever started it, with its peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    kept = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return next(kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
