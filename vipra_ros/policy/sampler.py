"""Noise -> action chunk by forward Euler steps over one prefix.

`sample` runs the prefix together with the first Euler step and the other steps over its cached keys and values.
`sample_naively` runs the whole sequence at every step; it exists to prove that the cache changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from vipra_ros.model import flow
from vipra_ros.model.policy import FlowPolicy, Prefix


def draw_noise(policy: FlowPolicy, count: int, seed: int | None) -> Tensor:
    """Standard normal (count, h, a), the same for the same seed."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return torch.randn(count, policy.config.horizon, policy.config.action_dim, generator=generator)


@torch.inference_mode()
def sample(
    policy: FlowPolicy, prefix: Prefix, noise: Tensor, steps: int = 10, mark: Callable[[str], None] = lambda name: None
) -> Tensor:
    """Normalised actions (b, h, a). `mark(name)` is called as each stage ends, for timing."""
    embedded, present = policy.embed_prefix(prefix)
    cache = DynamicCache()

    def velocity(x: Tensor, time: float) -> Tensor:
        t = x.new_full((len(x),), time)
        if time > 0.0:
            return policy.cached_step(cache, present, x, t).float()
        first = policy.joint_pass(embedded, present, x[:, None], t[:, None], cache)[:, 0].float()
        cache.crop(-x.shape[1])
        mark("prefill")
        return first

    actions = flow.euler(velocity, noise, steps)
    mark("denoise")
    return actions


@torch.inference_mode()
def sample_naively(
    policy: FlowPolicy, prefix: Prefix, noise: Tensor, steps: int = 10, mark: Callable[[str], None] = lambda name: None
) -> Tensor:
    """The same actions, with every Euler step over the whole sequence."""
    embedded, present = policy.embed_prefix(prefix)

    def velocity(x: Tensor, time: float) -> Tensor:
        found = policy.joint_pass(embedded, present, x[:, None], x.new_full((len(x), 1), time))[:, 0].float()
        mark("denoise")
        return found

    return flow.euler(velocity, noise, steps)


class NaiveSampler:
    """`sample_naively` behind the call of the other samplers; what an engine is compared with."""

    batches = True

    def __init__(self, policy: FlowPolicy, steps: int):
        self.policy, self.steps = policy, steps

    def __call__(self, prefix: Prefix, noise: Tensor, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """Normalised actions (b, h, a) from noise (b, h, a)."""
        return sample_naively(self.policy, prefix, noise, self.steps, mark)
