"""Demonstrations in memory: codes, actions and states of every frame, cut into training examples.

All of it is a few hundred bytes a frame, so millions of frames fit; pictures stay on disk as codes (tokenise).
An example at frame t is: frames t - stride and t, the instruction, states up to t, and the chunk of actions
t .. t + horizon - 1 (row k of it is to be reached at t + (k + 1) periods). Before an episode's start its first
frame stands; past its end the last absolute action repeats, and a delta action is zero with the last gripper value,
zero in raw space.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from vipra_ros.config import ConfigError
from vipra_ros.policy.normalise import Normaliser, summarise


def draw(generator: torch.Generator, count: int, usable: np.ndarray, early: np.ndarray, share: float) -> np.ndarray:
    """`count` random frames: all of `usable` alike, then a `share` of them from `early`."""
    some = round(share * count)
    return np.concatenate([frames[torch.randint(len(frames), (n,), generator=generator).numpy()]
                           for frames, n in ((usable, count - some), (early, some)) if n])


@dataclass
class Demonstrations:
    """One split of a data set.

    Attributes:
        actions, states: float32 (n, a), raw.
        first, last: int64 (n,) global index of the first and last frame of each frame's episode.
        instruction: int64 (n,) index into `instructions`.
        kind: int64 (n,) index into `kinds`, the task a figure is reported under.
        usable: int64 (m,) frames that may be drawn.
        codes: int16 (n, cameras, codes per frame), may be memory-mapped; set once frames are coded.
        versions: codes of the same frames with pictures that are changed, each like `codes`.
    """

    actions: np.ndarray
    states: np.ndarray
    first: np.ndarray
    last: np.ndarray
    instruction: np.ndarray
    instructions: list[str]
    kind: np.ndarray
    kinds: list[str]
    usable: np.ndarray
    action_space: str = "joint_position"
    codes: np.ndarray | None = field(default=None, repr=False)
    versions: list[np.ndarray] = field(default_factory=list, repr=False)
    _early: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def chunks(self, index: np.ndarray, horizon: int) -> np.ndarray:
        """Raw actions (b, horizon, a) of the examples at frames `index`."""
        rows = index[:, None] + np.arange(horizon)
        past = rows > self.last[index][:, None]
        chunk = self.actions[np.minimum(rows, self.last[index][:, None])]
        if self.action_space != "joint_position":
            chunk[past, :-1] = 0.0
        return chunk

    def history(self, index: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Frames index + offsets (b, n), not before the episode's start; offsets are <= 0."""
        return np.maximum(index[:, None] + offsets, self.first[index][:, None])

    def seen(self, rows: np.ndarray, version: np.ndarray | None = None) -> np.ndarray:
        """Codes (b, ..., cameras, codes per frame) of frames `rows` (b, ...), each observation in its `version` (b,), 0
        the plain one; None: all plain."""
        codes = np.asarray(self.codes[rows])
        if version is not None:
            for number, others in enumerate(self.versions, 1):
                here = version == number
                codes[here] = others[rows[here]]
        return codes

    def draw(self, generator: torch.Generator, count: int, early_share: float = 0.0,
             early_frames: int = 8) -> np.ndarray:
        """`count` random frames: a share from the first frames of the episodes, the rest uniform over all.

        Once the arm is on its way, its motion betrays the target and a policy learns to follow itself; only at
        the beginning does it have to look.
        """
        early = self._beginnings(early_frames) if early_share else self.usable
        return draw(generator, count, self.usable, early, early_share)

    def _beginnings(self, frames: int) -> np.ndarray:
        if self._early is None or self._early[0] != frames:
            self._early = frames, self.usable[self.usable - self.first[self.usable] < frames]
        return self._early[1]

    def spread(self, count: int) -> np.ndarray:
        """`count` frames evenly over the split, the same ones every time."""
        return self.usable[np.linspace(0, len(self.usable) - 1, min(count, len(self.usable))).round().astype(int)]

    def statistics(self, relative: bool, horizon: int) -> dict[str, dict[str, list[float]]]:
        """Statistics of what the network will be asked for, over the usable frames of this split."""
        state = self.states[self.usable]
        if not relative:
            return {"action": summarise(self.actions[self.usable]), "state": summarise(state)}
        index = self.spread(50_000)
        identity = Normaliser(np.zeros(1), np.ones(1), None, None, relative=True)
        offsets = identity.actions(self.chunks(index, horizon).astype(np.float64), self.states[index])
        return {"action": summarise(offsets.reshape(-1, offsets.shape[-1])), "state": summarise(state)}


def load(dataset, holdout: float, seed: int, episodes: int = 0) -> tuple[Demonstrations, Demonstrations]:
    """(training, held-out) splits by episode of an opened data set (vipra_ros.data.dataset.Dataset), without codes.

    Args:
        holdout: share of episodes never trained on, at least one of every kind.
        episodes: use only this many training episodes, drawn evenly over the kinds; 0 is all.
    """
    actions = dataset.numeric("action").astype(np.float32)
    states = dataset.numeric("observation.state").astype(np.float32)
    for name, values in dict(action=actions, state=states).items():
        if not np.isfinite(values).all():
            raise ConfigError(f"{dataset.path}: {name} has a value that is not finite; convert the bags again")
    total = len(actions)
    if len(dataset) != total:
        raise ConfigError(f"{dataset.path}: {len(dataset)} frames for {total} rows; convert the bags again")
    instructions = sorted({e.task for e in dataset.episodes})
    kinds = sorted({_kind(e) for e in dataset.episodes})
    first, last = np.zeros(total, np.int64), np.zeros(total, np.int64)
    instruction, kind = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for episode in dataset.episodes:
        span = slice(episode.start, episode.start + episode.length)
        first[span], last[span] = episode.start, episode.start + episode.length - 1
        instruction[span], kind[span] = instructions.index(episode.task), kinds.index(_kind(episode))
    chosen = {"train": [], "held": []}
    rng = np.random.default_rng(seed)
    for name in kinds:
        mine = [e for e in dataset.episodes if _kind(e) == name]
        if len(mine) < 2:
            raise ConfigError(
                f"{dataset.path}: task {name!r} has {len(mine)} episode; record two or more, one is held out"
            )
        order = rng.permutation(len(mine))
        held = min(max(1, round(holdout * len(mine))), len(mine) - 1)
        chosen["held"] += [mine[i] for i in order[:held]]
        rest = [mine[i] for i in order[held:]]
        share = -(-episodes // len(kinds)) if episodes else len(rest)
        chosen["train"] += rest[:share]

    def split(part: list) -> Demonstrations:
        part = sorted(part, key=lambda e: e.start)
        usable = np.concatenate([np.arange(e.start, e.start + e.length) for e in part])
        return Demonstrations(actions, states, first, last, instruction, instructions, kind, kinds, usable)

    return split(chosen["train"]), split(chosen["held"])


def _kind(episode) -> str:
    words = (episode.task or "").split()
    if not words:
        raise ConfigError(f"episode {episode.index} has no instruction; say what was done (vipra dataset relabel)")
    return getattr(episode, "task_key", None) or words[0].lower()
