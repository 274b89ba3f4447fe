"""How the policy's loop is at one time, as `PolicyStatus` says it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Phase(enum.IntEnum):
    """What the policy does; the values are those of PolicyStatus.msg."""

    LOADING = 0
    WARMING = 1
    WAITING = 2
    RUNNING = 3
    PAUSED = 4
    FAULT = 5


@dataclass(frozen=True)
class CameraReport:
    """A camera at one time: age of the newest stamp in s, rate in Hz, NaN before it is known."""

    age: float
    rate: float
    lost: int
    frozen: bool


@dataclass(frozen=True)
class Report:
    """State of the loop at one time; mirrors PolicyStatus. Percentiles are 50, 95, 99, in s."""

    phase: Phase
    reasons: tuple[str, ...]
    checkpoint: str
    task_id: int
    instruction: str
    chunks: int
    chunk_rate: float
    observation_age: float
    latency: tuple[float, float, float]
    inference: tuple[float, float, float]
    cameras: Mapping[str, CameraReport] = field(default_factory=dict)
