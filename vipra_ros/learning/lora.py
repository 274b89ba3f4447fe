"""Fine-tuning by low-rank updates (LoRA, Hu et al. 2021), for a trunk that is too large to train whole.

What `init` brought stays as it is; the trunk's matrices get updates B A of low rank, by the package peft, and the new
parts of the policy (action encoder, head, proprioception) train as ever. Checkpoints hold plain weights with the
updates added in, so that nothing downstream knows of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import nn

from vipra_ros.config import ConfigError
from vipra_ros.model.policy import Perception

#: The matrices of a layer that are updated.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def package(rank: int) -> ModuleType:
    """peft; ConfigError when it is not installed."""
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ConfigError(f"finetune: lora_rank = {rank} needs {error.name}: pip install '.[lora]'") from None
    return peft


def attach(policy: Perception, rank: int, alpha: float) -> None:
    """Freeze trunk and tables and put updates of `rank` beside the trunk's matrices, zero at first.

    Raises:
        ConfigError: peft is not installed.
    """
    peft = package(rank)
    with torch.device("meta"):
        seen = {name for name, _ in Perception(policy.config).named_parameters()}
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name not in seen)
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS)), policy.trunk)


@contextlib.contextmanager
def merged(policy: nn.Module) -> Iterator[None]:
    """For the length of a `with`, plain matrices with the updates added in stand where attached ones stood."""
    attached = [(name, module) for name, module in policy.named_modules() if hasattr(module, "lora_A")]
    if not attached:
        yield
        return
    try:
        for name, module in attached:
            base = module.get_base_layer()
            plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            change = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
            plain.weight = nn.Parameter((base.weight + change).detach(), requires_grad=False)
            _put(policy, name, plain)
        yield
    finally:
        for name, module in attached:
            _put(policy, name, module)


def _put(policy: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(policy.get_submodule(parent), last, module)
