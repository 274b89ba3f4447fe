"""The policy's forward pass for inference, stripped to what a chunk needs.

Same weights and numbers as `FlowPolicy`, another schedule: query/key/value and gate/up products are one matrix
each, norm scales are folded into them, keys and values live in buffers made once per prefix, the time features of
all Euler steps are computed once, and the prefix stops at the last layer's keys and values. At 14 tokens a step the
generic path spends five times as long between the matrix products as in them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vipra_ros.model import flow
from vipra_ros.model.policy import ActingPolicy, FlowPolicy, Prefix
from vipra_ros.policy.quantise import keep, linear


class LeanTrunk:
    """The trunk of a policy whose weights no longer change, with the keys and values of one sequence."""

    #: Several observations a call are taken; the prefix is padded on the left.
    batches = True

    @torch.no_grad()  # not inference_mode: rtc.py goes backwards through these weights
    def __init__(self, policy: ActingPolicy, release: bool = False, weights: str = "full"):
        """release: drop the policy's own layers as they are folded; it can then be sampled from here only.

        weights: what the layers' matrices are kept in (`weights.WEIGHTS`); tables and heads stay as they are.
        """
        trunk, c = policy.trunk, policy.config
        self.heads, self.eps = c.backbone.heads, c.backbone.norm_eps
        self.layers = []
        for i, layer in enumerate(trunk.layers):
            attention, mlp = layer.self_attn, layer.mlp
            before, after = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]) * before
            gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * after
            matrices = qkv, attention.o_proj.weight, gate_up, mlp.down_proj.weight
            self.layers.append(tuple(keep(matrix, weights) for matrix in matrices))
            if release:
                trunk.layers[i] = torch.nn.Identity()
                del layer, attention, mlp, matrices

    @property
    def trunk_bytes(self) -> int:
        """Bytes of the layers' matrices with their scales."""
        return sum(matrix.nbytes for layer in self.layers for matrix in layer)

    def prefill(
        self, x: Tensor, cosine: Tensor, sine: Tensor, allowed: Tensor, length: int, last: bool = False
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Keys and values of a prefix, with room for `length` tokens; with `last` also its last token's output."""
        b, p, d = x.shape
        caches = []
        for i, weights in enumerate(self.layers):
            query, key, value = self._qkv(x, weights[0], cosine, sine)
            keys, values = (t.new_empty(b, self.heads, length, d // self.heads) for t in (key, value))
            keys[:, :, :p], values[:, :, :p] = key, value
            caches.append((keys, values))
            mask = self._safe(allowed)
            if i + 1 == len(self.layers):
                if not last:
                    return caches, None
                x, query, mask = x[:, -1:], query[:, :, -1:], mask[:, :, -1:]
            x = self._rest(x, F.scaled_dot_product_attention(query, key, value, attn_mask=mask), weights)
        return caches, x

    def through(
        self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None, caches: list[tuple[Tensor, Tensor]], at: int
    ) -> Tensor:
        """Tokens x (b, n, d) at places at .. at + n - 1 through all layers; what they leave in the caches stays."""
        end = at + x.shape[1]
        for weights, (keys, values) in zip(self.layers, caches):
            query, key, value = self._qkv(x, weights[0], cosine, sine)
            keys[:, :, at:end], values[:, :, at:end] = key, value
            attended = F.scaled_dot_product_attention(query, keys[:, :, :end], values[:, :, :end], attn_mask=mask)
            x = self._rest(x, attended, weights)
        return x

    def _qkv(self, x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, d = x.shape
        products = linear(F.rms_norm(x, (d,), eps=self.eps), weight).view(b, n, 3 * self.heads, d // self.heads)
        products = products.transpose(1, 2)
        turned = products[:, : 2 * self.heads]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cosine + torch.cat([-second, first], dim=-1) * sine
        return turned[:, : self.heads], turned[:, self.heads :], products[:, 2 * self.heads :]

    def _rest(self, x: Tensor, attended: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        _, out, gate_up, down = weights
        x = x + linear(attended.transpose(1, 2).flatten(2), out)
        gate, up = linear(F.rms_norm(x, x.shape[-1:], eps=self.eps), gate_up).chunk(2, dim=-1)
        return x + linear(F.silu(gate) * up, down)

    @staticmethod
    def _safe(allowed: Tensor) -> Tensor:
        # A left-padding row of a causal prefix may look nowhere; looking at itself keeps it finite, nobody reads it.
        p = allowed.shape[-1]
        return allowed | torch.eye(p, dtype=torch.bool, device=allowed.device)


class LeanSampler(LeanTrunk):
    """Samples chunks of a flow-matching policy."""

    @torch.no_grad()
    def __init__(self, policy: FlowPolicy, steps: int, release: bool = False, weights: str = "full"):
        super().__init__(policy, release, weights)
        c = policy.config
        self.policy, self.steps, self.dtype = policy, steps, policy.head.weight.dtype
        self.head_weight = policy.head.weight * policy.trunk.norm.weight
        # silu(W [half, features] + b): the features' share of it, for every step, (steps, 1, 1, d).
        half = c.backbone.width // 2
        mix = policy.action_mix
        times = torch.arange(steps, device=mix.weight.device) / steps
        features = flow.time_features(times, half, c.time_band).to(mix.weight.dtype)
        self.mix_action = mix.weight[:, :half].contiguous()
        self.mix_time = F.linear(features, mix.weight[:, half:], mix.bias)[:, None, None]

    @torch.inference_mode()
    def __call__(self, prefix: Prefix, noise: Tensor, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """Normalised actions (b, h, a) from noise (b, h, a)."""
        caches, cosine, sine, mask, p = self.begin(prefix, noise)
        mark("prefill")
        x = noise
        for k in range(self.steps):
            hidden = self.through(self._action_tokens(x, k), cosine, sine, mask, caches, p)
            x = x + self.read(hidden) / self.steps
            mark("denoise")
        return x

    def begin(
        self, prefix: Prefix, noise: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor, Tensor | None, int]:
        """The prefix's keys and values, with room for the chunk; the chunk's cosines, sines and mask; its place p."""
        policy, h = self.policy, self.policy.config.horizon
        embedded, present = policy.embed_prefix(prefix)
        p = embedded.shape[1]
        place = present.long().cumsum(1) - 1
        positions = torch.cat([place.clamp_min(0), place[:, -1:] + 1 + torch.arange(h, device=noise.device)], dim=1)
        cosine, sine = (r[:, None] for r in policy.trunk.rotary_emb(embedded, positions))
        allowed = policy.joint_mask(present, 1)[:, None]
        caches, _ = self.prefill(embedded, cosine[:, :, :p], sine[:, :, :p], allowed[:, :, :p, :p], p + h)
        # Without padding and with both-way blocks every look is allowed, and no mask is the fastest one.
        mask = None if bool(allowed[:, :, p:].all()) else allowed[:, :, p:]
        return caches, cosine[:, :, p:], sine[:, :, p:], mask, p

    def read(self, hidden: Tensor) -> Tensor:
        """The trunk's output (b, h, d) -> velocities (b, h, a)."""
        normed = F.rms_norm(hidden, hidden.shape[-1:], eps=self.eps)
        return F.linear(normed, self.head_weight, self.policy.head.bias).float()

    def _action_tokens(self, x: Tensor, k: int) -> Tensor:
        """Noisy actions (b, h, a) before Euler step k -> tokens (b, h, d)."""
        half = self.policy.action_in(x.to(self.dtype))
        return self.policy.action_out(F.silu(F.linear(half, self.mix_action) + self.mix_time[k]))
