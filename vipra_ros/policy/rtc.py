"""Real-time chunking: samplers whose chunk goes on from the one that the arm executes.

`GuidedSampler` is for flow policies that were not trained for it. Each Euler step's velocity is corrected towards the
prior (Black, Galliker and Levine 2025, arXiv 2506.07339, eq. 2-4; pseudo-inverse guidance of Song et al. 2023 for
flows, Pokle et al. 2024). With the velocity v at x, time t from noise 0 to action 1, the prior Y and its weights W
(`prior.soft_mask`):

    end  = x + (1 - t) v                            where v alone would lead
    pull = (Y - end)^T diag(W) d end / d x          a vector-Jacobian product: one backward pass
    v'   = v + min(beta, (1 - t) / (t r^2)) pull    r^2 = (1 - t)^2 / (t^2 + (1 - t)^2), beta = 5

`TrainedSampler` is for policies that were given the beginnings of chunks in training (`committed_steps`; Black et al.
2025, arXiv 2512.05964): the committed rows stand in the chunk as they are, at time 1, and the others are sampled as
always. That costs nothing, and rows that are not committed do not pull.

The committed rows of the answer are the prior's own: they happen whatever the network says. Without a prior the answer
is the plain sampler's, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vipra_ros.model import flow
from vipra_ros.model.policy import FlowPolicy, Prefix
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.prior import soft_mask

#: Largest weight of the correction; the paper's, for few steps. At t = 0 the formula itself has none.
BETA = 5.0


def strength(t: float, beta: float = BETA) -> float:
    """min(beta, (1 - t) / (t r^2)) at time t in [0, 1)."""
    return beta if t <= 0.0 else min(beta, (t * t + (1.0 - t) ** 2) / (t * (1.0 - t)))


class GuidedSampler(LeanSampler):
    """Called like `LeanSampler`, and with a prior. Each step is also gone backwards, which costs about as much."""

    guided = True

    def weights(self, horizon: int, known: int, committed: int) -> np.ndarray:
        """Weights (horizon,) of a prior's rows."""
        return soft_mask(horizon, known, committed)

    def __call__(
        self,
        prefix: Prefix,
        noise: Tensor,
        mark: Callable[[str], None] = lambda name: None,
        target: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Normalised actions (b, h, a) from noise (b, h, a).

        target, weights: (b, h, a) normalised prior and (b, h) its weights, 0 where there is none.
        """
        if target is None or not bool(weights.any()):
            return super().__call__(prefix, noise, mark)
        with torch.no_grad():
            caches, cosine, sine, mask, p = self.begin(prefix, noise)
            caches = [(keys[:, :, :p], values[:, :, :p]) for keys, values in caches]
        mark("prefill")
        x = noise
        for k in range(self.steps):
            t = k / self.steps
            with torch.enable_grad():
                here = x.detach().requires_grad_()
                velocity = self._velocity(here, k, cosine, sine, mask, caches)
                end = here + (1.0 - t) * velocity
            error = (target - end.detach()) * weights[..., None]
            (pull,) = torch.autograd.grad(end, here, error)
            x = x + (velocity.detach() + strength(t) * pull) / self.steps
            mark("denoise")
        return x

    def _velocity(
        self, x: Tensor, k: int, cosine: Tensor, sine: Tensor, mask: Tensor | None, caches: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """As `LeanSampler`'s, but the prefix's keys and values are not written beside: a gradient goes through."""
        hidden = self._action_tokens(x, k)
        for weights, (keys, values) in zip(self.layers, caches):
            query, key, value = self._qkv(hidden, weights[0], cosine, sine)
            keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            hidden = self._rest(hidden, attended, weights)
        return self.read(hidden)


class TrainedSampler(LeanSampler):
    """Called like `GuidedSampler`; of a policy trained with up to `most` given rows."""

    guided = True

    @torch.no_grad()
    def __init__(self, policy: FlowPolicy, steps: int, most: int, release: bool = False, weights: str = "full"):
        super().__init__(policy, steps, release, weights)
        self.most, mix = most, policy.action_mix
        half = policy.config.backbone.width // 2
        features = flow.time_features(mix.weight.new_tensor(flow.CLEAN), half, policy.config.time_band)
        self.mix_given = F.linear(features.to(mix.weight.dtype), mix.weight[:, half:], mix.bias)

    def weights(self, horizon: int, known: int, committed: int) -> np.ndarray:
        """Weights (horizon,) of a prior's rows: 1 for committed ones, as many as training has ever given."""
        return (np.arange(horizon) < min(committed, self.most)).astype(float)

    @torch.inference_mode()
    def __call__(
        self,
        prefix: Prefix,
        noise: Tensor,
        mark: Callable[[str], None] = lambda name: None,
        target: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Normalised actions (b, h, a) from noise (b, h, a); rows whose weight is not 0 are the target's."""
        if target is None or not bool(weights.any()):
            return super().__call__(prefix, noise, mark)
        given = (weights > 0)[..., None]
        caches, cosine, sine, mask, p = self.begin(prefix, noise)
        mark("prefill")
        x = torch.where(given, target, noise)
        for k in range(self.steps):
            half = F.linear(self.policy.action_in(x.to(self.dtype)), self.mix_action)
            tokens = self.policy.action_out(F.silu(half + torch.where(given, self.mix_given, self.mix_time[k])))
            velocity = self.read(self.through(tokens, cosine, sine, mask, caches, p))
            x = torch.where(given, target, x + velocity / self.steps)
            mark("denoise")
        return x
