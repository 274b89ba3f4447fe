"""Optimisers of a job: AdamW, and Muon for the hidden matrices when asked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from vipra_ros.learning import precision

if TYPE_CHECKING:
    from vipra_ros.learning.loop import Job, LoopConfig


def optimisers(job: Job, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) for the hidden matrices when asked; norms, biases, tables do not decay.

    Every group has a `peak`, the rate that `learning_rate_scale` multiplies.
    """
    hidden = {id(p) for p in job.hidden_matrices} if config.muon_lr else set()
    rest = [p for p in job.model.parameters() if p.requires_grad and id(p) not in hidden]
    tables = {id(m.weight) for m in job.model.modules() if isinstance(m, nn.Embedding)}
    groups = []
    # A job may slow some parameters down: `rates`, id of a parameter -> fraction of the learning rate.
    rates = getattr(job, "rates", {})
    for rate in sorted({rates.get(id(p), 1.0) for p in rest}, reverse=True):
        some, lr = [p for p in rest if rates.get(id(p), 1.0) == rate], config.lr * rate
        decaying = [p for p in some if p.ndim >= 2 and id(p) not in tables]
        others = [p for p in some if p.ndim < 2 or id(p) in tables]
        groups.append({"params": decaying, "weight_decay": config.weight_decay, "lr": lr})
        groups.append({"params": others, "weight_decay": 0.0, "lr": lr})
    # The fused kernel takes a group of sharded weights or one of whole weights, not both in one.
    fused = all(len({type(p.data) for p in group["params"]}) < 2 for group in groups)
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=fused,
                          foreach=None if fused else False)
    ]
    if hidden:
        made.append(
            precision.muon(
                job.hidden_matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


def learning_rate_scale(config: LoopConfig, step: int, progress: float) -> float:
    """Warm-up by steps, then cosine in the fraction of the budget spent, whether counted in steps or minutes."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "constant":
        return warm
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (config.final_lr + (1.0 - config.final_lr) * cosine)
