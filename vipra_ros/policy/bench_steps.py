"""What fewer Euler steps do to a chunk, and how long they take: `vipra bench policy --steps 4,5,10`."""

from __future__ import annotations

import time

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.observation import Observation

#: Numbers of steps that the others are compared with: the usual one, and one that stands for the exact integral.
REFERENCES = (10, 100)


def parse_steps(text: str, decoder: str) -> list[int]:
    """"4,5,10" as numbers.

    Raises:
        ConfigError: no such numbers, or a checkpoint that takes no Euler steps.
    """
    counts = text.split(",") if text else []
    if not all(c.strip().isdecimal() and 1 <= int(c) <= 1000 for c in counts):
        raise ConfigError(f"--steps {text}: write whole numbers from 1 to 1000, for instance 4,5,10")
    if counts and decoder == "discrete":
        raise ConfigError(f"--steps {text}: this checkpoint makes chunks token by token, without Euler steps; leave it "
                          "out")
    return [int(c) for c in counts]


def step_errors(
    checkpoint: Checkpoint, kind: str, steps: list[int], observations: list[Observation], threads: int
) -> list[dict]:
    """Difference of the chunk with few Euler steps to those with 10 and with 100, from the same noise; and its time.

    Over all joints and steps of the chunk, in the unit of the action columns (rad); grippers are left out. `p50_ms` is
    the median inference of the engine `kind`, warmed up.
    """
    made: dict[int, tuple[np.ndarray, float]] = {}

    def chunks(count: int) -> tuple[np.ndarray, float]:
        if count not in made:
            engine, rows, spent = load_engine(checkpoint, kind, threads, count), [], []
            engine.warm_up()
            for seed, observation in enumerate(observations):
                began = time.perf_counter()
                actions = engine.infer(observation, seed=seed).actions
                spent.append(1e3 * (time.perf_counter() - began))
                rows.append(np.delete(actions, checkpoint.normaliser.grippers, axis=1))
            made[count] = np.stack(rows), float(np.median(spent))
        return made[count]

    rows = []
    for count in steps:
        found, spent = chunks(count)
        row = {"steps": count, "n": len(observations), "engine": kind, "p50_ms": round(spent, 3)}
        for reference in REFERENCES:
            away = np.abs(found - chunks(reference)[0])
            row[f"to_{reference}_rad"] = {
                "mean": float(away.mean()), "p95": float(np.percentile(away, 95)), "max": float(away.max())
            }  # fmt: skip
        rows.append(row)
    return rows


def observations_of(checkpoint: Checkpoint, dataset: str, count: int, seed: int = 0) -> list[Observation]:
    """Observations from frames of a data set, at random places.

    Raises:
        ConfigError: the data set lacks a camera of the checkpoint.
    """
    from vipra_ros.data.dataset import Dataset

    c, found = checkpoint.config, Dataset(dataset)
    missing = [name for name in c.cameras if name not in found.cameras]
    if missing:
        raise ConfigError(f"{dataset} has no camera {missing[0]!r}; give one with {', '.join(c.cameras)}")
    stride = max(1, round(c.frame_stride * found.fps / c.rate))
    states, back = found.numeric("observation.state"), stride * (c.policy.frames - 1)
    places = [i for e in found.episodes for i in range(e.start + back, e.start + e.length)]
    picked = sorted(np.random.default_rng(seed).choice(places, min(count, len(places)), replace=False).tolist())
    observations = []
    for i in picked:
        indices = range(i - back, i + 1, stride)
        frames = {name: np.stack([found.frame(name, j) for j in indices]) for name in c.cameras}
        joints = states[max(0, i + 1 - max(c.proprio_steps, 1)) : i + 1].astype(np.float64)
        observations.append(Observation(i / found.fps, frames, found.episode_of(i).task, joints))
    return observations
