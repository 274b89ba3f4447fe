"""Figures of an evaluation, as pure functions: intervals, smoothness, boundary steps, tables by colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

#: Two-sided 95 % quantile of the standard normal distribution.
Z95 = 1.959963984540054
#: Column of the confusion table for episodes in which no cube met the condition.
NOBODY = "none"


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, without continuity correction), 95 % by default.

    Raises:
        ValueError: successes not in 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} episodes: give 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two intervals share a point: the coarse test that two lanes agree."""
    return a[0] <= b[1] and b[0] <= a[1]


def jerk(positions: np.ndarray, period: float) -> np.ndarray:
    """Third difference of evenly sampled joints (n, j) over `period`^3 (s): (n - 3, j), rad/s^3."""
    positions = np.asarray(positions, float)
    if len(positions) < 4:
        return np.zeros((0, *positions.shape[1:]))
    return np.diff(positions, n=3, axis=0) / period**3


def jerk_figures(episodes: Iterable[np.ndarray], period: float) -> tuple[float, float]:
    """(root mean square, peak) of the jerk over time, joints and episodes, rad/s^3; NaN when too short."""
    parts = [j for j in (jerk(e, period) for e in episodes) if j.size]
    if not parts:
        return math.nan, math.nan
    values = np.concatenate([p.ravel() for p in parts])
    return float(np.sqrt(np.mean(values**2))), float(np.abs(values).max())


def resample(times: np.ndarray, positions: np.ndarray, velocities: np.ndarray, period: float) -> np.ndarray:
    """Joints (n, j) with velocities at uneven `times` (s) onto an even grid, by cubic Hermite pieces."""
    times, keep = np.unique(np.asarray(times, float), return_index=True)
    q, v = np.asarray(positions, float)[keep], np.asarray(velocities, float)[keep]
    if len(times) < 2:
        return q
    grid = np.arange(times[0], times[-1], period)
    i = np.clip(np.searchsorted(times, grid, side="right") - 1, 0, len(times) - 2)
    h = (times[i + 1] - times[i])[:, None]
    u = (grid - times[i])[:, None] / h
    return (
        (1 + 2 * u) * (1 - u) ** 2 * q[i]
        + u * (1 - u) ** 2 * h * v[i]
        + u * u * (3 - 2 * u) * q[i + 1]
        + u * u * (u - 1) * h * v[i + 1]
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """{p50, p95, p99} of the finite values; NaN without any."""
    finite = np.asarray([v for v in values if math.isfinite(v)], float)
    if not len(finite):
        return {"p50": math.nan, "p95": math.nan, "p99": math.nan}
    return {f"p{p}": float(np.percentile(finite, p)) for p in (50, 95, 99)}


def by_colour(rows: Iterable[Mapping], colours: Sequence[str]) -> dict[str, dict]:
    """Confusion of the colour asked for (keys) with the colour acted on.

    Args:
        rows: episodes with "colour", "acted_on" (colour or None) and "success".
        colours: all of them, so that rows of zeros stand in the table too.

    Returns:
        asked colour -> {"n", "success", "acted_on": {colour or "none": episodes}}
    """
    table = {c: {"n": 0, "success": 0, "acted_on": dict.fromkeys((*colours, NOBODY), 0)} for c in colours}
    for row in rows:
        entry = table[row["colour"]]
        entry["n"] += 1
        entry["success"] += bool(row["success"])
        entry["acted_on"][row["acted_on"] or NOBODY] += 1
    return table


def first_due(stamp: float, arrival: float, period: float) -> int:
    """First row of a chunk not yet due at its `arrival`; row k is due at stamp + (k + 1) period."""
    return max(0, math.ceil((arrival - stamp) / period - 1 - 1e-6))


def rows_executed(chunks: Sequence[tuple[float, float, np.ndarray]], execute: int, period: float, end: float) -> int:
    """Rows that came due until `end` (s), each chunk's until the next one took over.

    Args:
        chunks: accepted ones in order: (stamp s, arrival s, rows).
        execute: rows of a chunk that may be executed.
    """
    count = 0
    for i, (stamp, arrival, rows) in enumerate(chunks):
        until = end
        if i + 1 < len(chunks):
            following = chunks[i + 1]
            until = min(end, following[0] + first_due(following[0], following[1], period) * period)
        last = min(execute, len(rows), math.floor((until - stamp) / period + 1e-6))
        count += max(0, last - first_due(stamp, arrival, period))
    return count


def boundary_steps(chunks: Sequence[tuple[float, float, np.ndarray]], period: float, joints: int = 7) -> np.ndarray:
    """Largest joint difference (rad) between an old plan and the new one where they meet, per boundary.

    Args:
        chunks: (stamp s, arrival s, rows (H, A) with the lookahead) in order; row k is due at
            stamp + (k + 1) period.

    Returns:
        One value for each chunk after the first whose first due row the chunk before still predicts.
    """
    steps = []
    for (old_stamp, _, old), (stamp, arrival, new) in zip(chunks, chunks[1:]):
        first = first_due(stamp, arrival, period)
        due = stamp + (first + 1) * period
        place = (due - old_stamp) / period - 1
        if first >= len(new) or not 0 <= place <= len(old) - 1:
            continue
        low = min(int(place), len(old) - 2) if len(old) > 1 else 0
        share = place - low
        before = old[low, :joints] * (1 - share) + old[min(low + 1, len(old) - 1), :joints] * share
        steps.append(float(np.abs(new[first, :joints] - before).max()))
    return np.array(steps)
