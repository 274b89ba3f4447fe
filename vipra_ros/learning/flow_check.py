"""`vipra bench flow`: how far an estimator of optical flow is off on the simulated table, whose true flow is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vipra_ros.config import ConfigError
from vipra_ros.model.optical_flow import make_flow

#: px per frame above which a pixel counts as moving.
MOVING = 0.5


@torch.inference_mode()
def estimate(estimator: torch.nn.Module, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Flow (S, S, 2) of an estimator from `first` to `second`, uint8 (S, S, 3)."""
    a, b = (torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255 for x in (first, second))
    return estimator(a, b)[0].permute(1, 2, 0).double().numpy()


def examine(estimator: torch.nn.Module, size: int = 64, episodes: int = 1, seed: int = 500, fps: float = 15.0,
            camera: str = "front", frames: int = 0) -> dict[str, float]:
    """End-point errors, px, over every pair of consecutive frames of scripted episodes of all tasks.

    Args:
        size: px of the pictures, which are drawn at that size.
        episodes: of each task.
        frames: of an episode; 0 takes all.

    Returns:
        `all`: mean over pixels whose true flow is known; `moving`: over those of them that move more than `MOVING`;
        `moving_p50`: median there; `still`: what answering "nothing moves" would be off there; `share`: of moving
        pixels; `pairs` of frames, `size`.
    """
    from vipra_ros.sim import tasks
    from vipra_ros.sim.collect import EXECUTE, Demonstrator
    from vipra_ros.sim.lane import Lane
    from vipra_ros.sim.true_flow import TrueFlow

    lane = Lane(fps=fps, cameras=(camera,), size=size)
    truth = TrueFlow(lane.world.model, camera, size)
    errors, lengths, pairs = [], [], 0
    for task in tasks.TASKS:
        for number in range(episodes):
            earlier: list = []

            def on_frame(view, earlier=earlier) -> None:
                nonlocal pairs
                image, data = view.frames[camera][-1][1], lane.world.data
                if earlier:
                    flow, known = truth.flow(earlier[1], data)
                    made = estimate(estimator, earlier[0], image)
                    errors.append(np.linalg.norm(made - flow, axis=-1)[known])
                    lengths.append(np.linalg.norm(flow, axis=-1)[known])
                    pairs += 1
                earlier[:] = image, truth.look(data)

            lane.run(tasks.sample_start(task, seed + number), Demonstrator(lane, seed + number, varied=True),
                     replan=EXECUTE, on_frame=on_frame, seconds=frames / fps if frames else None)
    truth.close()
    error, length = np.concatenate(errors), np.concatenate(lengths)
    moving = length > MOVING
    return {"size": size, "pairs": pairs, "share": float(moving.mean()), "all": float(error.mean()),
            "moving": float(error[moving].mean()), "moving_p50": float(np.median(error[moving])),
            "still": float(length[moving].mean())}


def main(kind: str = "pyramid", weights: str | Path = "", sizes: tuple[int, ...] = (), episodes: int = 1,
         seed: int = 500) -> list[dict[str, float]]:
    """Print the errors at several sizes of picture; no `sizes`: 64 (not with RAFT, which needs 128), 128, 224 px.

    Raises:
        ConfigError: no such estimator or weights, or a size that is too small for it.
    """
    estimator = make_flow(kind, weights)
    if estimator is None:
        raise ConfigError("flow = 'none' estimates nothing; choose pyramid or raft")
    sizes, rows = sizes or ((128, 224) if kind == "raft" else (64, 128, 224)), []
    if kind == "raft" and min(sizes) < 128:
        raise ConfigError(f"--size {min(sizes)}: RAFT needs pictures of 128 px or more")
    print(f"flow {kind}: end-point error, px; moving: pixels of more than {MOVING:g} px per frame at 15 Hz")
    print(f"{'size':>5} {'pairs':>6} {'moving':>7} {'all':>7} {'moving':>7} {'median':>7} {'nothing moves':>14}")
    for size in sizes:
        r = examine(estimator, size, episodes, seed)
        rows.append(r)
        print(f"{size:5d} {r['pairs']:6d} {100 * r['share']:5.1f} % {r['all']:7.3f} {r['moving']:7.3f} "
              f"{r['moving_p50']:7.3f} {r['still']:14.3f}", flush=True)
    return rows
