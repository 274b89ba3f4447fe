"""What weights of 8 bits do to a chunk: `vipra bench policy --weights int8,fp8`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.weights import ENGINES_OF_8_BITS, WEIGHTS, check_weights

#: Types of the activations that are compared, the first one with full weights being what the others are compared with.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_weights(text: str, engines: Sequence[str]) -> list[str]:
    """"int8,fp8" as names, each once; `full` is measured anyway.

    Raises:
        ConfigError: no such name, or none of the engines keeps its matrices so.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(","))) if text else []
    for name in names:
        check_weights(name)
    names = [name for name in names if name != WEIGHTS[0]]
    if names and not any(engine in ENGINES_OF_8_BITS for engine in engines):
        check_weights(names[0], engines[0])
    return names


def labels(engines: Sequence[str], weights: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What is timed: "torch", "torch int8", ... -> (engine, weights)."""
    pairs = [(engine, name) for engine in engines for name in (WEIGHTS[0], *weights)
             if name == WEIGHTS[0] or engine in ENGINES_OF_8_BITS]  # fmt: skip
    return {engine if name == WEIGHTS[0] else f"{engine} {name}": (engine, name) for engine, name in pairs}


def weight_errors(
    load: Callable[[torch.dtype], Checkpoint], kind: str, weights: Sequence[str], observations: list[Observation],
    threads: int, euler_steps: int = 0,
) -> list[dict]:  # fmt: skip
    """Difference of the chunk to the one of float32 with full weights, from the same codes and noise.

    Over all joints and steps of the chunk, in the unit of the action columns (rad); grippers are left out.
    `executed_rad`: over the rows that are executed only. `chunk_max_rad`: of the largest difference in each chunk, for
    where the policy is of two minds a hair decides, and one chunk of many is another one. `trunk_mbytes`: of the
    layers' matrices with their scales.

    load: dtype -> the checkpoint with weights outside of the quantiser in that type; one at a time is held.
    """
    exact, rows = None, []
    for dtype, numbers in DTYPES.items():
        loaded = load(numbers)
        for name in (WEIGHTS[0], *weights):
            engine = load_engine(loaded, kind, threads, euler_steps, weights=name)
            made = np.stack([engine.infer(seen, seed=seed).actions for seed, seen in enumerate(observations)])
            made = np.delete(made, loaded.normaliser.grippers, axis=2)
            exact = made if exact is None else exact
            away = np.abs(made - exact)
            executed = away[:, : loaded.config.execute_steps]
            rows.append({
                "activations": dtype, "weights": name, "engine": kind, "n": len(observations),
                "trunk_mbytes": engine.trunk_bytes / 1e6, "rad": _spread(away), "executed_rad": _spread(executed),
                "chunk_max_rad": _spread(away.max((1, 2))),
            })  # fmt: skip
            del engine
        del loaded
    return rows


def _spread(away: np.ndarray) -> dict[str, float]:
    return {"mean": float(away.mean()), **{f"p{p}": float(np.percentile(away, p)) for p in (50, 95)},
            "max": float(away.max())}  # fmt: skip
