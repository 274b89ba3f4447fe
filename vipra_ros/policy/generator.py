"""Discrete chunks: token after token over one prefix, the likeliest one unless a temperature is given.

`generate_naively` runs the whole sequence for every token, `generate` keeps keys and values, `LeanGenerator` does so on
the lean trunk: a chunk is 112 passes of one token, and in the generic path each is mostly overhead. All take the
noise (b, h, a) that the other samplers take: with a temperature its normal quantile chooses the token, so the same seed
gives the same chunk; without one it is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from vipra_ros.model.discrete import DiscretePolicy
from vipra_ros.model.policy import Prefix
from vipra_ros.policy.lean import LeanTrunk


def choose(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Rows int64 (b,) from logits (b, rows): the likeliest, or by the inverse distribution at Phi(noise (b,))."""
    if not temperature:
        return logits.argmax(-1)
    heights = (logits.double() / temperature).softmax(-1).cumsum(-1)
    uniform = torch.special.ndtr(noise.double())[:, None] * heights[:, -1:]
    return torch.searchsorted(heights, uniform, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


class _Writer:
    """The tokens made so far: `write(hidden)` adds the next one and returns it embedded, None after the last."""

    def __init__(self, policy: DiscretePolicy, noise: Tensor, temperature: float, head: Tensor | None = None):
        c = policy.config
        self.policy, self.noise, self.temperature = policy, noise.flatten(1), temperature
        rows = policy.action_head.weight if head is None else head
        self.heads = [policy.column_rows(rows, column) for column in (0, c.action_dim - 1)]
        self.table, self.columns, self.count = policy.action.weight, c.action_dim, c.horizon * c.action_dim
        self.place = policy.action_place if c.action_position else None
        self.ids: list[Tensor] = []

    def write(self, hidden: Tensor) -> Tensor | None:
        """hidden (b, d), the output of the token before, -> (b, 1, d)."""
        i = len(self.ids)
        column = i % self.columns
        last = column == self.columns - 1
        row = choose(F.linear(hidden, self.heads[last]).float(), self.noise[:, i], self.temperature)
        self.ids.append(row + self.policy.config.action_bins if last else row)
        if i + 1 == self.count:
            return None
        token = F.embedding(self.ids[-1], self.table)
        return (token if self.place is None else token + self.place[column])[:, None]

    def actions(self) -> Tensor:
        """Normalised actions (b, h, a)."""
        return self.policy.decode(torch.stack(self.ids, 1).unflatten(1, (-1, self.columns)))


@torch.inference_mode()
def generate(policy: DiscretePolicy, prefix: Prefix, noise: Tensor, temperature: float = 0.0) -> Tensor:
    """Normalised actions (b, h, a), each token over the cached keys and values of those before."""
    embedded, present = policy.embed_prefix(prefix)
    cache, writer = DynamicCache(), _Writer(policy, noise, temperature)
    token = writer.write(policy.hidden(embedded, present, embedded[:, :0], cache)[:, -1])
    while token is not None:
        # The newest token sees all there is.
        seen = torch.cat([present, present.new_ones(len(present), len(writer.ids))], dim=1)
        position = present.sum(1, keepdim=True) + len(writer.ids) - 1
        token = writer.write(policy._run(token.to(embedded.dtype), seen[:, None], position, cache)[:, -1])
    return writer.actions()


@torch.inference_mode()
def generate_naively(
    policy: DiscretePolicy, prefix: Prefix, noise: Tensor, temperature: float = 0.0,
    mark: Callable[[str], None] = lambda name: None,
) -> Tensor:  # fmt: skip
    """The same actions, with every token's pass over the whole sequence; mark: called as each ends, for timing."""
    embedded, present = policy.embed_prefix(prefix)
    tokens, writer = embedded[:, :0], _Writer(policy, noise, temperature)
    while (token := writer.write(policy.hidden(embedded, present, tokens)[:, -1])) is not None:
        tokens = torch.cat([tokens, token.to(tokens.dtype)], dim=1)
        mark("tokens")
    return writer.actions()


class NaiveGenerator:
    """`generate_naively` behind the call of the samplers; `steps` is theirs and means nothing here."""

    batches = True

    def __init__(self, policy: DiscretePolicy, steps: int = 0, temperature: float = 0.0):
        self.policy, self.temperature = policy, temperature

    def __call__(self, prefix: Prefix, noise: Tensor, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """Normalised actions (b, h, a)."""
        return generate_naively(self.policy, prefix, noise, self.temperature, mark)


class LeanGenerator(LeanTrunk):
    """Discrete chunks of a policy whose weights no longer change."""

    @torch.inference_mode()
    def __init__(
        self, policy: DiscretePolicy, steps: int = 0, temperature: float = 0.0, release: bool = False,
        weights: str = "full",
    ):  # fmt: skip
        super().__init__(policy, release, weights)
        self.policy, self.temperature = policy, temperature
        self.head_weight = policy.action_head.weight * policy.trunk.norm.weight

    @torch.inference_mode()
    def __call__(self, prefix: Prefix, noise: Tensor, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """Normalised actions (b, h, a)."""
        policy, writer = self.policy, _Writer(self.policy, noise, self.temperature, self.head_weight)
        embedded, present = policy.embed_prefix(prefix)
        b, p, _ = embedded.shape
        place = present.long().cumsum(1) - 1
        after = place[:, -1:] + 1 + torch.arange(writer.count, device=noise.device)
        positions = torch.cat([place.clamp_min(0), after], dim=1)
        cosine, sine = (r[:, None] for r in policy.trunk.rotary_emb(embedded, positions))
        allowed, whole = policy.mask(present, 0)[:, None], bool(present.all())
        caches, x = self.prefill(embedded, cosine[:, :, :p], sine[:, :, :p], allowed, p + writer.count, last=True)
        mark("prefill")
        token, at = writer.write(self._normed(x)), p
        while token is not None:
            seen = None if whole else torch.cat([present, present.new_ones(b, at + 1 - p)], dim=1)[:, None, None]
            angles = cosine[:, :, at : at + 1], sine[:, :, at : at + 1]
            token = writer.write(self._normed(self.through(token, *angles, seen, caches, at)))
            at += 1
            mark("tokens")
        return writer.actions()

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)[:, -1]
