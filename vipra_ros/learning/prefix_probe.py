"""Does what fine-tuning keeps of a pre-training know where the arm will be?

Fine-tuning keeps the tokens of instruction and observed frames, and puts action tokens where latent actions stood. A
pre-training may predict both futures well and work them out in tokens that are dropped; held-out losses do not show it.
So: a ridge regression from the hidden states of the kept tokens at the beginnings of episodes, where only instruction
and scene say what will happen, to the joints at the time of the future frame. One row per episode, read on episodes
that were neither trained nor fitted on; layer and penalty by leave-one-out on the fitted ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from vipra_ros.learning import precision
from vipra_ros.model.joint import JointBatch, JointModel

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
#: Fewer episodes than this on either side say nothing.
FEWEST = 8


@torch.no_grad()
def hidden_states(model: JointModel, batches: Iterable[JointBatch], bf16: bool = False) -> list[np.ndarray]:
    """Hidden states of the observed frames' tokens behind the tables and behind every layer, a row per observation:
    [float32 (m, vision tokens x width)]. The instruction is read through them: its own tokens have no fixed number."""
    caught: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: caught.append(out[0] if isinstance(out, tuple) else out))
             for layer in model.trunk.layers]
    rows: list[list[np.ndarray]] = []
    try:
        for batch in batches:
            caught.clear()
            with precision.autocast(batch.codes.device.type, bf16):
                prefix = model.observed(batch, last=True)
                rest = batch.before_mask.new_ones(len(prefix), prefix.shape[1] - batch.before.shape[1])
                model.hidden(prefix, torch.cat([batch.before_mask, rest], dim=1), prefix.shape[1])
            text = batch.before.shape[1]
            rows.append([h[:, text:].flatten(1).float().cpu().numpy() for h in (prefix, *caught)])
    finally:
        for hook in hooks:
            hook.remove()
    return [np.concatenate(layer) for layer in zip(*rows, strict=True)]


def explained(layers: list[np.ndarray], target: np.ndarray, fit: np.ndarray) -> float:
    """R^2 of the best layer and penalty, chosen by leave-one-out on the rows of `fit`, on the other rows.

    Args:
        layers: [(m, features)], one each. target: (m, a), any units; what does not vary is left out, the rest counts as
            it varies. fit: bool (m,).

    Returns:
        1 - squared error / variance about the fitted rows' mean; NaN where rows or motion are too few to say.
    """
    if fit.sum() < FEWEST or (~fit).sum() < FEWEST or target[fit].std(0).max() < 1e-6:
        return float("nan")
    y = target - target[fit].mean(0)
    chosen = (np.inf, float("nan"))
    for x in layers:
        x = (x - x[fit].mean(0)) / (x[fit].std(0) + 1e-6)
        seen, unseen = x[fit] @ x[fit].T / x.shape[1], x[~fit] @ x[fit].T / x.shape[1]
        values, vectors = np.linalg.eigh(seen)
        for penalty in PENALTIES:
            inverse = (vectors / (values.clip(0) + penalty)) @ vectors.T
            weights = inverse @ y[fit]
            left_out = ((weights / np.diag(inverse)[:, None]) ** 2).sum()  # leave-one-out errors in closed form
            if left_out < chosen[0]:
                chosen = (left_out, 1 - ((y[~fit] - unseen @ weights) ** 2).sum() / (y[~fit] ** 2).sum())
    return float(chosen[1])
