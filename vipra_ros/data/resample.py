"""Streams of different rates brought to one grid, with tolerances instead of guesses.

Joints are interpolated, commands of the hand held, pictures chosen nearest-before. What is older or further
apart than the tolerances is an `EpisodeError` that says where.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vipra_ros.config import param

_EPS = 1e-6  # s; stamps are whole nanoseconds, grid times are not


class EpisodeError(RuntimeError):
    """An episode cannot become data; the message names what is missing, where, and the remedy."""


@dataclass(frozen=True)
class Resampling:
    """Rate and tolerances of a conversion."""

    fps: float = param(15.0, doc="rate of the data set", unit="Hz", low=1.0, high=200.0)
    image_age: float = param(0.1, doc="oldest picture that may stand for a frame", unit="s", low=0.0)
    snap: float = param(
        0.002, doc="a picture this little after a frame's time counts as on time", unit="s", low=0.0
    )
    joint_gap: float = param(0.1, doc="widest gap joints are interpolated across", unit="s", low=0.0)
    hand_gap: float = param(0.5, doc="widest gap the gripper's opening is interpolated across", unit="s", low=0.0)
    min_frames: int = param(4, doc="shortest episode worth keeping", low=2)


@dataclass
class Track:
    """One numeric stream as recorded: `time` (M,) s from the episode's zero, growing; `value` (M, D)."""

    time: np.ndarray
    value: np.ndarray
    names: tuple[str, ...] = ()
    back_steps: int = 0  # messages dropped because their stamp did not grow
    worst_back_step: float = 0.0  # s


def interpolate(track: Track, times: np.ndarray, gap: float, what: str = "joints") -> np.ndarray:
    """Linear interpolation of `track` at `times` (N,) s -> float64 (N, D).

    Raises:
        EpisodeError: `times` leave the track, or lie in a gap wider than `gap` s.
    """
    right = np.searchsorted(track.time, times, side="left").clip(1, len(track.time) - 1)
    before, after = track.time[right - 1], track.time[right]
    outside = (times < track.time[0] - _EPS) | (times > track.time[-1] + _EPS)
    if outside.any():
        raise EpisodeError(
            f"{what}: nothing recorded at {times[outside][0]:.2f} s (it spans {track.time[0]:.2f} to "
            f"{track.time[-1]:.2f} s); record the stream for the whole episode"
        )
    wide = (after - before > gap) & (times > before + _EPS) & (times < after - _EPS)
    if wide.any():
        i = np.flatnonzero(wide)[0]
        raise EpisodeError(
            f"{what}: gap of {after[i] - before[i]:.2f} s at {before[i]:.2f} s, {gap:g} s is allowed; "
            "leave the episode out or raise joint_gap"
        )
    weight = ((times - before) / (after - before)).clip(0.0, 1.0)[:, None]
    return track.value[right - 1] * (1.0 - weight) + track.value[right] * weight


def hold(track: Track, times: np.ndarray) -> np.ndarray:
    """The value in force at `times`: the last one set at or before -> (N, D).

    Raises:
        EpisodeError: nothing was set yet.
    """
    rank = np.searchsorted(track.time, times + _EPS, side="right") - 1
    if (rank < 0).any():
        raise EpisodeError(
            f"{track.names[0]}: no value yet at {times[rank < 0][0]:.2f} s; publish it latched"
        )
    return track.value[rank]


def nearest_before(stamps: np.ndarray, times: np.ndarray, resampling: Resampling, camera: str) -> np.ndarray:
    """Number of the last picture at or before each time (`snap` s later still counts) -> int64 (N,), not falling:
    videos are written in order of arrival. A picture whose stamp is not after all before it stands for no frame.

    Raises:
        EpisodeError: that picture is older than `image_age`.
    """
    growing = np.flatnonzero(np.concatenate([[True], stamps[1:] > np.maximum.accumulate(stamps)[:-1]]))
    rank = np.searchsorted(stamps[growing], times + resampling.snap, side="right") - 1
    age = np.where(rank < 0, np.inf, times - stamps[growing][rank.clip(0)])
    if (age > resampling.image_age + resampling.snap).any():
        i = int(np.argmax(age > resampling.image_age + resampling.snap))
        raise EpisodeError(
            f"camera {camera}: newest picture is {age[i]:.2f} s old at {times[i]:.2f} s, "
            f"{resampling.image_age:g} s is allowed; leave the episode out or raise image_age"
        )
    return growing[rank].astype(np.int64)
