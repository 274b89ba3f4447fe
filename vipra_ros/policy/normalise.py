"""Raw actions and states <-> the network's numbers, by the statistics stored in the checkpoint.

z = (x - mean) / max(std, floor) for every dimension but the grippers (the last of each arm), which stay at +-1. With
`relative` the joint columns of a chunk are first taken relative to the measured joints at the observation, so
that the network learns motions instead of poses; an option beyond the paper that needs joints at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: rad (or m): a joint that never moved in the data must not be divided by zero.
STD_FLOOR = 1e-3


@dataclass(frozen=True)
class Normaliser:
    """Means and floored standard deviations: action (a,), state (a,) or None; arrays are float64."""

    action_mean: np.ndarray
    action_std: np.ndarray
    state_mean: np.ndarray | None
    state_std: np.ndarray | None
    relative: bool
    grippers: tuple[int, ...] = (-1,)

    @classmethod
    def from_statistics(cls, statistics: dict, relative: bool, grippers: tuple[int, ...] = (-1,)) -> Normaliser:
        """From the checkpoint's statistics.json: {"action": {mean, std, ...}, "state": {...} or absent}."""
        try:
            mean, std = (np.array(statistics["action"][key], np.float64) for key in ("mean", "std"))
        except (KeyError, TypeError):
            raise ValueError("statistics hold no action mean and std; a checkpoint without them cannot act") from None
        mean[list(grippers)], std[list(grippers)] = 0.0, 1.0
        state = statistics.get("state")
        state_mean = None if state is None else np.array(state["mean"], np.float64)
        state_std = None if state is None else np.maximum(np.array(state["std"], np.float64), STD_FLOOR)
        for name, values in dict(action_mean=mean, action_std=std, state_mean=state_mean, state_std=state_std).items():
            if values is not None and not np.isfinite(values).all():
                raise ValueError(f"statistics: {name} is not finite; compute the statistics again")
        return cls(mean, np.maximum(std, STD_FLOOR), state_mean, state_std, relative, grippers)

    def actions(self, raw: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """Raw (..., h, a) -> normalised; `state` (..., a) is the one measured at the observation."""
        return (self._shifted(raw, state, -1.0) - self.action_mean) / self.action_std

    def raw_actions(self, normal: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """The inverse of `actions`."""
        return self._shifted(normal * self.action_std + self.action_mean, state, 1.0)

    def states(self, raw: np.ndarray) -> np.ndarray:
        """Raw states (..., a) -> normalised."""
        return (raw - self.state_mean) / self.state_std

    def _shifted(self, actions: np.ndarray, state: np.ndarray | None, sign: float) -> np.ndarray:
        if not self.relative:
            return actions
        if state is None:
            raise ValueError("relative actions need the measured joints; give the observation its joints")
        offset = np.array(state, np.float64)
        offset[..., list(self.grippers)] = 0.0
        return actions + sign * offset[..., None, :]


def summarise(rows: np.ndarray) -> dict[str, list[float]]:
    """mean, std, min, max and 1 % and 99 % quantiles of (n, a) rows, per dimension."""
    low, high = np.quantile(rows, (0.01, 0.99), axis=0)
    table = dict(mean=rows.mean(0), std=rows.std(0), min=rows.min(0), max=rows.max(0), q01=low, q99=high)
    return {key: np.asarray(value, np.float64).tolist() for key, value in table.items()}
