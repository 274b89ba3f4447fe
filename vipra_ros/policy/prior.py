"""What a new chunk has to go on from: the rows of the chunk before it, moved to the new one's steps.

The arm executes the old chunk while the policy thinks about the new one. Where the two overlap they are two answers to
the same question, and a policy that has more than one good answer may change its mind in mid-motion. Real-time chunking
(Black, Galliker and Levine 2025, arXiv 2506.07339) samples the new chunk under the old one: rows that will have been
executed before it arrives are given, those after them pull less and less, the new ones are free. `rtc.py` does so.

No torch here: the loop and the wire use it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Action spaces whose rows are places, between which there are others; increments are taken as they are.
PLACES = ("joint_position",)


@dataclass(frozen=True)
class Prior:
    """rows: (n, a) raw actions for steps 0 .. n - 1 of the new chunk, n at most its horizon. committed: how many of
    them will have been executed, or be too late to change, when the new chunk arrives; at most n."""

    rows: np.ndarray
    committed: int

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not 0 <= self.committed <= len(self.rows):
            raise ValueError(f"a prior of rows {self.rows.shape} with {self.committed} committed")


def prior_of(
    rows: np.ndarray, stamp: float, later: float, period: float, delay: float, action_space: str
) -> Prior | None:
    """The chunk `rows` (h, a) that answered the observation at `stamp`, for one at `later` (s); None without overlap.

    Row k of a chunk is reached at its stamp + (k + 1) * period, so that row j of the new chunk is row j + shift of the
    old one, with shift = (later - stamp) / period. Between two places the joints are interpolated; a hand is not, it
    takes the nearer one.

    delay: s from `later` until the new chunk may take effect; steps reached until then are committed.
    """
    shift = (later - stamp) / period
    known = math.floor(len(rows) - 1 - shift + 1e-6) + 1
    if shift < 0.0 or known <= 0:
        return None
    places = np.clip(np.arange(known) + shift, 0, len(rows) - 1)
    nearest = np.rint(places).astype(int)
    moved = rows[nearest].astype(float)
    if action_space in PLACES:
        columns = range(rows.shape[1] - 1)
        moved[:, :-1] = np.stack([np.interp(places, np.arange(len(rows)), rows[:, c]) for c in columns], axis=1)
    return Prior(moved, min(known, max(0, math.ceil(delay / period - 1e-6))))


def soft_mask(horizon: int, known: int, committed: int) -> np.ndarray:
    """Weights (horizon,) of the prior's rows, eq. 5 of the paper with d = committed and H - s = known.

    1 for i < d; c_i (e^c_i - 1) / (e - 1) with c_i = (known - i) / (known - d + 1) for d <= i < known; else 0.
    """
    steps = np.arange(horizon)
    c = np.clip((known - steps) / (known - committed + 1), 0.0, 1.0)
    weights = np.where(steps < committed, 1.0, c * np.expm1(c) / (math.e - 1.0))
    return np.where(steps < known, weights, 0.0)
