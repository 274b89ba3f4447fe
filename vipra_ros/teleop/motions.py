"""How an emulated leader arm moves: time in, pose out.

A motion is a function of the time since the emulator's start (s) that returns joint angles (7,) in rad and the
opening of the gripper in [0, 1]. The emulator asks it at any time, also a little in the past, for velocities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError, load, param

Motion = Callable[[float], tuple[np.ndarray, float]]
SINE_AMPLITUDE, SINE_PERIOD = 0.15, 5.0  # rad, s
#: s between two changes of the emulated gripper in the `sine` motion.
GRIP_PERIOD = 10.0
#: rad/s, mean speed of the worst joint when a person moves the leader somewhere; the peak is 1.875 times that.
SPEED = 0.5
#: s between points of a path; between them the leader moves straight.
STEP = 0.02
#: s; no pose is reached faster.
SHORTEST = 0.4


def motion(kind: str, home: Sequence[float]) -> Motion:
    """`home` stays at the pose `home` (7,) rad; `sine` swings about it slowly on four joints and grips now and then.

    Raises:
        ValueError: another kind.
    """
    rest = np.asarray(home, float)
    if kind == "home":
        return lambda t: (rest, 1.0)
    if kind != "sine":
        raise ValueError(f"motion {kind!r}: choose home or sine")
    share = np.array([1.0, 0.0, 0.0, 0.6, 0.0, 0.8, 1.0])

    def sine(t: float) -> tuple[np.ndarray, float]:
        swing = SINE_AMPLITUDE * math.sin(2 * math.pi * t / SINE_PERIOD)
        return rest + swing * share, float(int(t / GRIP_PERIOD) % 2 == 0)

    return sine


class Puppet:
    """A leader that goes where it is told: a motion whose future is set by calls, from any thread.

    Args:
        q: rad (n,), where it stands. opening: of its gripper.
    """

    def __init__(self, q: Sequence[float], opening: float = 1.0):
        self._set(np.zeros(1), np.atleast_2d(np.asarray(q, float)), np.array([float(opening)]))

    def _set(self, times: np.ndarray, q: np.ndarray, opening: np.ndarray) -> float:
        self._path = (times, q, opening)  # replaced whole: a reader sees the old path or the new one
        return float(times[-1])

    def __call__(self, t: float) -> tuple[np.ndarray, float]:
        times, q, opening = self._path
        return np.array([np.interp(t, times, column) for column in q.T]), float(np.interp(t, times, opening))

    def go(self, now: float, q: Sequence[float], opening: float | None = None, seconds: float = 0.0) -> float:
        """Move straight to `q` with a minimum-jerk profile; when it gets there.

        Args:
            now: s since the emulator's start; the present pose is the one at that time.
            seconds: of the way; 0: at SPEED.
        """
        begin, begin_opening = self(now)
        way = np.asarray(q, float) - begin
        seconds = seconds or max(SHORTEST, float(np.abs(way).max()) / SPEED)
        u = np.linspace(0.0, 1.0, max(2, round(seconds / STEP) + 1))
        share = u * u * u * (10.0 - 15.0 * u + 6.0 * u * u)
        end = begin_opening if opening is None else opening
        return self._set(now + seconds * u, begin + share[:, None] * way, begin_opening + u * (end - begin_opening))

    def play(self, now: float, rows: np.ndarray, period: float) -> float:
        """Go through `rows` (N, n + 1): joints in rad and gripper (+1 open, -1 closed), one every `period` s."""
        begin, opening = self(now)
        rows = np.asarray(rows, float)
        openings = np.clip((rows[:, -1] + 1) / 2, 0.0, 1.0)
        times = now + period * np.arange(len(rows) + 1)
        return self._set(times, np.vstack([begin, rows[:, :-1]]), np.append(opening, openings))


@dataclass(frozen=True)
class Pose:
    """One pose of a script."""

    q: tuple[float, ...] = param(doc="joint angles", unit="rad")
    seconds: float = param(2.0, doc="way there from the pose before; the first one is where the leader begins",
                           unit="s", low=0.05)
    hold: float = param(0.0, doc="how long it stays", unit="s", low=0.0)
    opening: float = param(1.0, doc="gripper at the end of the way: 1 open, 0 closed", low=0.0, high=1.0)


@dataclass(frozen=True)
class Script:
    """Poses one after the other; see :func:`scripted`."""

    poses: tuple[Pose, ...] = param(doc="poses, each with q, seconds, hold, opening")
    repeat: bool = param(False, doc="begin again at the end; else stay there")


def scripted(path: str | Path, joints: int = 7) -> Motion:
    """The poses of a YAML file, each reached with a minimum-jerk profile.

    Raises:
        ConfigError: the file cannot be used.
    """
    script = load(Script, path)
    if not script.poses:
        raise ConfigError(f"{path}: poses is empty; give at least one")
    for number, pose in enumerate(script.poses):
        if len(pose.q) != joints:
            raise ConfigError(f"{path}: poses[{number}].q has {len(pose.q)} angles; the arm has {joints} joints")
    first = script.poses[0]
    puppet, pieces, now = Puppet(first.q, first.opening), [], first.hold
    poses, end = script.poses[1:] + (script.poses[:1] if script.repeat else ()), math.inf
    for pose in poses:
        end = puppet.go(now, pose.q, pose.opening, pose.seconds)
        pieces.append(puppet._path)
        now = end + pose.hold
    # The way back to the first pose ends the round; its hold is the beginning of the next one.
    length = now - first.hold if script.repeat else math.inf
    return _joined(Puppet(first.q, first.opening)._path, pieces, length)


def recorded(path: str | Path) -> Motion:
    """What was commanded in the bag `path`, at its own times; at the end the leader stays.

    Raises:
        EpisodeError, BagError, MessageError: the bag holds no commands, or is damaged.
    """
    from vipra_ros.data.replay import load_replay

    replay = load_replay(Path(path))
    puppet = Puppet(replay.first, float(replay.rows[0, -1] > 0))
    puppet.play(0.0, replay.rows, replay.period)
    return puppet


def _joined(start: tuple, pieces: list[tuple], length: float) -> Motion:
    times, q, opening = (np.concatenate(x) for x in zip(start, *pieces))
    puppet = Puppet(q[0])
    puppet._set(times, q, opening)
    return puppet if math.isinf(length) else lambda t: puppet(t % length)
