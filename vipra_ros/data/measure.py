"""Figures of an episode: rates, gaps, delays, and two time shifts found by correlation.

Lag of the arm: the shift at which the measured joint velocities resemble the commanded ones most. Skew of a camera:
the shift at which the change between its pictures resembles the motion of the arm most. Stamps cannot tell the
latter: a driver that stamps on receipt instead of exposure is late by what the transport took.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vipra_ros.data import messages
from vipra_ros.data.resample import Track

_MOTION = 1e-3  # rad; with less motion there is nothing to compare


def shift(wanted: np.ndarray, shown, shifts: np.ndarray) -> tuple[float, float, float]:
    """The shift (s) at which `shown(shift)` correlates best with `wanted`, that correlation, and the one at 0.

    Args:
        wanted: (N,) or (N, D); columns are compared together, each about its mean.
        shown: shift (s) -> array of the same shape. shifts: s, ascending and evenly spaced.
    """
    a = (wanted - wanted.mean(axis=0)).ravel()
    values = []
    for s in shifts:
        b = shown(s)
        b = (b - b.mean(axis=0)).ravel()
        norm = np.linalg.norm(a) * np.linalg.norm(b)
        values.append(float(a @ b / norm) if norm > 0 else 0.0)
    best = int(np.argmax(values))
    where = float(shifts[best])
    if 0 < best < len(shifts) - 1:  # the top of the parabola through three points
        left, top, right = values[best - 1 : best + 2]
        bend = left - 2 * top + right
        where += float(0.5 * (left - right) / bend * (shifts[1] - shifts[0])) if bend < 0 else 0.0
    return where, values[best], values[int(np.abs(shifts).argmin())]


def lag(commanded: Track, measured: Track) -> tuple[float, float] | None:
    """(s by which the arm is behind its command, correlation), None where the arm hardly moves."""
    if commanded is measured or np.ptp(commanded.value, axis=0).max() < 10 * _MOTION:
        return None
    reach = 0.5
    first = max(commanded.time[0], measured.time[0] + reach / 5)
    last = min(commanded.time[-1], measured.time[-1] - reach)
    times = np.arange(first, last, 0.01)
    if len(times) < 50:
        return None
    where, r, _ = shift(
        np.diff(at(commanded, times), axis=0),
        lambda s: np.diff(at(measured, times + s), axis=0),
        np.arange(-reach / 5, reach, 0.01),
    )
    return where, r


def skew(change: np.ndarray, stamps: np.ndarray, measured: Track) -> tuple[float, float, float] | None:
    """(s by which a picture shows the arm later than stamped, correlation, that without shift); None if unknown.

    Args:
        change: (N,), difference of picture i from picture i - 1; the first does not count.
        stamps: (N,), s, on the clock of `measured`.
    """
    keep = np.concatenate([[False], np.diff(stamps) > 0])
    reach = 0.4
    keep &= (stamps - reach >= measured.time[0]) & (stamps + reach <= measured.time[-1])
    i = np.flatnonzero(keep)
    if len(i) < 30 or np.ptp(at(measured, stamps[i]), axis=0).max() < 10 * _MOTION:
        return None
    return shift(
        change[i],
        lambda s: np.linalg.norm(at(measured, stamps[i] + s) - at(measured, stamps[i - 1] + s), axis=1),
        np.arange(-reach, reach + 1e-9, 0.01),
    )


def at(track: Track, times: np.ndarray) -> np.ndarray:
    """The track at `times`, ends held: (N, D)."""
    return np.column_stack([np.interp(times, track.time, column) for column in track.value.T])


def stream(time: np.ndarray, delay: float | None = None) -> dict[str, Any]:
    """Rate (Hz, from the median step), largest gap (s), jitter (s) and count of stamps `time` (s)."""
    steps = np.diff(np.sort(time))
    steps = steps[steps > 0]
    median = float(np.median(steps)) if len(steps) else float("nan")
    found = {
        "messages": len(time),
        "hz": round(1.0 / median, 2) if median > 0 else None,
        "gap_s": round(float(steps.max()), 4) if len(steps) else None,
        "jitter_s": round(float(np.percentile(np.abs(steps - median), 95)), 4) if len(steps) else None,
    }
    return found if delay is None else found | {"delay_s": round(delay, 4)}


def figures(episode) -> dict[str, Any]:
    """Everything but what the pictures themselves tell: JSON values."""
    tracks = {"joints": episode.measured, "command": episode.commanded}
    streams = {name: stream(t.time, episode.delay.get(name)) for name, t in tracks.items()}
    for camera, stamps in episode.image_ns.items():
        streams[camera] = stream((stamps - episode.zero_ns) / messages.NS, episode.delay.get(camera))
    found: dict[str, Any] = {"streams": streams, "span_s": round(float(episode.measured.time[-1]), 3)}
    late = lag(episode.commanded, episode.measured)
    if late is not None:
        found |= {"lag_s": round(late[0], 4), "lag_r": round(late[1], 3)}
    return found
