"""`vipra bench memory`: what a training takes on each of N GPUs, counted on the meta device; nothing is allocated.

The plan is that of fully sharded training in bfloat16 (FSDP2; Zhao et al. 2023, "PyTorch FSDP", and Rajbhandari et al.
2020, "ZeRO", stage 3): of every weight, float32 itself, its gradient and two moments of AdamW lie on one of the GPUs,
16 bytes; a layer is gathered in bfloat16 while it computes, the next one meanwhile, and its gradient leaves in float32.
What the backward pass needs is what autograd keeps of one observation on the meta device: with checkpointing a layer
keeps its input, and one layer at a time is computed again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vipra_ros.config import ConfigError, build
from vipra_ros.learning import finetune, presets, pretrain
from vipra_ros.model.joint import JointBatch, JointConfig, JointModel
from vipra_ros.model.policy import FlowPolicy, PolicyConfig, Prefix
from vipra_ros.model.vqgan import LWM

#: Bytes of a weight that stay with its GPU: float32 value, gradient and AdamW's two moments.
KEPT = 16
GPUS = (1, 2, 4, 8, 16, 32)
#: GB of a GPU that the plan leaves to CUDA, NCCL and fragments.
RESERVED = 6.0
#: Text tokens of the paper's prompt with a short instruction, and of what closes the sequence.
_PROMPT, _CLOSE, _OPEN, _END = 32, 3, 4, 6


@dataclass(frozen=True)
class Count:
    """Numbers of one training. weights: parameters in all; layer: of one layer; rest: outside the layers; saved: bytes
    kept for backward per observation; again: of one layer computed again; tokens: of a sequence; batch: observations
    a step."""

    weights: int
    layer: int
    rest: int
    saved: int
    again: int
    tokens: int
    batch: int


def count(stage: str, preset: str = "paper") -> Count:
    """Count a stage of a preset; frames as LWM's quantiser codes them.

    Raises:
        ConfigError: there is no such stage or preset.
    """
    if stage not in ("pretrain", "finetune"):
        raise ConfigError(f"stage = {stage!r}: choose pretrain or finetune")
    config = presets.read(pretrain.Pretrain if stage == "pretrain" else finetune.Finetune, preset, stage, {})
    policy = build(PolicyConfig, config.policy | {
        "text_vocab": 32000, "codebook_size": LWM.codebook_size, "grid": LWM.grid, "cameras": len(config.cameras)},
        source=f"{preset}: policy")
    saved, again, model, tokens = _saved(config, policy)
    layer = sum(p.numel() for p in model.trunk.layers[0].parameters())
    weights = sum(p.numel() for p in model.parameters())
    rest = weights - layer * policy.backbone.layers
    return Count(weights, layer, rest, saved, again, tokens, config.loop.batch)


def _saved(config, policy: PolicyConfig) -> tuple[int, int, nn.Module, int]:
    """Bytes kept with checkpointing, bytes of one layer computed again, the network, tokens of a sequence."""
    found = {}
    for recompute in (True, False):
        backbone = dataclasses.replace(policy.backbone, gradient_checkpointing=recompute)
        with torch.device("meta"):
            loss, model, tokens = _loss(config, dataclasses.replace(policy, backbone=backbone))
            found[recompute] = kept_bytes(loss, model)
    again = (found[False] - found[True]) // policy.backbone.layers
    if not policy.backbone.gradient_checkpointing:
        return found[False], 0, model, tokens
    return found[True], again, model, tokens


def _loss(config, policy: PolicyConfig):
    """A function that computes the loss of one observation on the present device, the network, tokens."""
    codes = torch.zeros(1, policy.frames, policy.cameras, policy.grid**2, dtype=torch.long)
    text, mask = torch.zeros(1, _PROMPT, dtype=torch.long), torch.ones(1, _PROMPT, dtype=torch.bool)
    if isinstance(config, finetune.Finetune):
        model = FlowPolicy(policy).to(torch.bfloat16).train()
        prefix = Prefix(text, mask, codes, text[0, :_CLOSE], text[0, :_CLOSE], _proprio(policy))
        actions = torch.zeros(1, policy.horizon, policy.action_dim, dtype=torch.bfloat16)
        noise, time = actions[:, None].repeat(1, config.draws, 1, 1), torch.zeros(1, config.draws, dtype=torch.bfloat16)
        tokens = _PROMPT + 2 * _CLOSE + policy.frames * policy.cameras * (policy.grid**2 + 1) + policy.horizon
        return lambda: model.loss(prefix, actions, noise, time).mean(), model, tokens
    joint = JointConfig(policy=policy, future=config.future, latent_steps=config.latent_steps)
    model = JointModel(joint).to(torch.bfloat16).train()
    latents = torch.zeros(1, joint.latent_steps, joint.codes_per_step, dtype=torch.long) if joint.latent_steps else None
    batch = JointBatch(text, mask, codes, codes[:, 0] if joint.future else None, latents, text[0, :_CLOSE],
                       text[0, :_OPEN], text[0, :_END])
    tokens = model.assemble(batch)[0].shape[1]
    return lambda: sum(model.losses(batch).values()), model, tokens


def _proprio(policy: PolicyConfig) -> Tensor | None:
    if not policy.proprio_steps:
        return None
    return torch.zeros(1, policy.proprio_steps, policy.action_dim, dtype=torch.bfloat16)


def kept_bytes(loss, model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `loss()`, each memory once, without the model's own."""
    own = {id(p) for p in model.parameters()} | {id(b) for b in model.buffers()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in own:
            kept[id(base)] = base, base.numel() * base.element_size()  # held, so that no other takes its id
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss()
    return sum(size for _, size in kept.values())


def plan(counted: Count, gpus: int, gigabytes: float = 80.0) -> dict[str, float | int]:
    """GB on each of `gpus` GPUs, and the observations that fit beside them.

    Returns:
        gpus; state: weights, gradients, moments; gathered: what is unsharded at a time; observation: per observation;
        fit: observations at a time, 0 when none does; batch, passes: `loop.batch` and `loop.accumulate` that make a
        step of the preset's batch.
    """
    state = counted.weights * KEPT / gpus / 1e9
    # Two layers in bfloat16, one gradient in bfloat16 and on its way out in float32; tables and heads likewise.
    gathered = ((2 * 2 + 2 + 4) * counted.layer + (2 + 2 + 4) * counted.rest) / 1e9
    one = (counted.saved + counted.again) / 1e9
    free = gigabytes - RESERVED - state - gathered
    fit = max(0, math.floor(free / one))
    passes = math.ceil(counted.batch / (gpus * fit)) if fit else 0
    batch = math.ceil(counted.batch / (gpus * passes)) if fit else 0
    return {"gpus": gpus, "state": state, "gathered": gathered, "observation": one, "fit": fit, "batch": batch,
            "passes": passes}


def main(stage: str = "pretrain", preset: str = "paper", gigabytes: float = 80.0,
         json_path: str | None = None) -> list[dict]:
    """Print the plan per GPU count."""
    counted = count(stage, preset)
    rows = [plan(counted, n, gigabytes) for n in GPUS]
    print(f"{stage} {preset}: {counted.weights / 1e9:.2f} G weights, {counted.tokens} tokens, batch {counted.batch}")
    print("GB per GPU; observations that fit; loop.batch, and passes for one step")
    print(f"{'GPUs':>5} {'state':>7} {'gathered':>9} {'observation':>12} {f'fit in {gigabytes:g}':>10} "
          f"{'batch':>6} {'passes':>7}")
    for r in rows:
        fits = f"{r['fit']:10d} {r['batch']:6d} {r['passes']:7d}" if r["fit"] else f"{'none':>10} {'-':>6} {'-':>7}"
        print(f"{r['gpus']:5d} {r['state']:7.1f} {r['gathered']:9.1f} {r['observation']:12.2f} {fits}")
    if json_path:
        with open(json_path, "w") as file:
            json.dump(rows, file, indent=1)
    return rows
