"""The discrete decoder: a chunk as tokens, one per step and action dimension, each predicted from all before it.

    prefix, <action> last, then a_1 (joint 1 .. joint n, gripper), a_2, .. a_h

A joint column has `action_bins` bins with equally many training actions in each (quantiles, ViPRA section 5: 2047);
a bin stands for its middle. The gripper is open or closed. All columns share one table and one head: rows 0 .. bins - 1
are bins, the last two the closed and the open hand; which column comes next follows from the place. The edges are part
of the weights, in the numbers of the policy's `Normaliser`, so actions leave here as they leave the flow decoder.

Letters in shapes as in `policy.py`; k is a column, n = h a tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError
from vipra_ros.model.policy import ActingPolicy, FlowPolicy, PolicyConfig, Prefix


class DiscretePolicy(ActingPolicy):
    """The discrete decoder. `fit` makes its bins, `loss` trains it, `policy/generator.py` samples from it."""

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        d, c = config.backbone.width, config
        self.action = nn.Embedding(c.action_bins + 2, d)
        self.action_head = nn.Linear(d, c.action_bins + 2, bias=False)
        if c.action_position:
            self.action_place = nn.Parameter(0.02 * torch.randn(c.action_dim, d))
        self.register_buffer("edges", torch.zeros(c.action_dim - 1, c.action_bins + 1))
        for module in (self.action, self.action_head):
            nn.init.normal_(module.weight, std=0.02)
            if c.action_order:
                module.weight.data[: c.action_bins] = ordered_rows(c.action_bins, d)

    # --- bins -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, actions: np.ndarray) -> None:
        """Quantile edges from normalised training actions (n, a); the gripper (last) needs none.

        Raises:
            ConfigError: a value is not finite, or there are none.
        """
        joints = np.asarray(actions, np.float64)[:, :-1]
        if not len(joints) or not np.isfinite(joints).all():
            raise ConfigError(f"discrete actions: {len(joints)} training rows, or one that is not finite; check the "
                              "data set")
        edges = np.quantile(joints, np.linspace(0.0, 1.0, self.config.action_bins + 1), axis=0).T
        self.edges.copy_(torch.from_numpy(np.ascontiguousarray(edges)))

    def check_bins(self) -> None:
        """Raises ConfigError when the edges are not those of `fit`: none are there, or some are out of order."""
        if not bool(self.edges.any()):
            raise ConfigError("discrete actions: no bin edges; train the policy again")
        if bool((self.edges.diff(dim=1) < 0).any()):
            raise ConfigError("discrete actions: bin edges are not in ascending order; copy the checkpoint again")

    def encode(self, actions: Tensor) -> Tensor:
        """Normalised actions (..., a) -> ids int64 (..., a); what lies beyond the outer edges is in the outer bins."""
        joints = actions[..., :-1].to(self.edges.dtype).movedim(-1, 0)
        flat = joints.reshape(len(joints), -1).contiguous()
        bins = torch.searchsorted(self.edges[:, 1:-1].contiguous(), flat, right=True)
        bins = bins.reshape(joints.shape).movedim(0, -1)
        hand = self.config.action_bins + (actions[..., -1:] > 0).long()
        return torch.cat([bins, hand], dim=-1)

    def decode(self, ids: Tensor) -> Tensor:
        """The inverse of `encode`, to half a bin: (..., a) normalised, the gripper -1 or +1."""
        middles = (self.edges[:, :-1] + self.edges[:, 1:]) / 2
        column = torch.arange(len(middles), device=ids.device)
        joints = middles[column, ids[..., :-1].clamp(0, self.config.action_bins - 1)]
        hand = (2.0 * (ids[..., -1:] - self.config.action_bins) - 1.0).to(joints.dtype)
        return torch.cat([joints, hand], dim=-1)

    # --- the sequence -----------------------------------------------------------------------------------------

    def embed_ids(self, ids: Tensor) -> Tensor:
        """ids (b, h, a) -> tokens (b, n, d)."""
        tokens = self.action(ids)
        if self.config.action_position:
            tokens = tokens + self.action_place
        return tokens.flatten(1, 2)

    def mask(self, present: Tensor, tokens: int) -> Tensor:
        """bool (b, p) -> bool (b, p + tokens, p + tokens): causal; `bidirectional_prefix` for the prefix only."""
        b, p = present.shape
        allowed = torch.ones(p + tokens, p + tokens, dtype=torch.bool, device=present.device).tril()
        if self.config.bidirectional_prefix:
            allowed[:p, :p] = True
        return allowed & torch.cat([present, present.new_ones(b, tokens)], dim=1)[:, None, :]

    def hidden(self, embedded: Tensor, present: Tensor, tokens: Tensor, cache=None) -> Tensor:
        """Outputs (b, 1 + n, d) of the last prefix token and of the action tokens given, (b, n, d)."""
        n = tokens.shape[1]
        sequence = torch.cat([embedded, tokens.to(embedded.dtype)], dim=1)
        place = present.long().cumsum(1) - 1
        after = place[:, -1:] + 1 + torch.arange(n, device=tokens.device)
        positions = torch.cat([place.clamp_min(0), after], dim=1)
        return self._run(sequence, self.mask(present, n), positions, cache)[:, embedded.shape[1] - 1 :]

    def column_logits(self, hidden: Tensor, column: int) -> Tensor:
        """(..., d) -> logits of the rows that a column may take: bins of a joint, two of the gripper."""
        return F.linear(hidden, self.column_rows(self.action_head.weight, column))

    def column_rows(self, table: Tensor, column: int) -> Tensor:
        """The part of a table of rows that belongs to a column."""
        bins = self.config.action_bins
        return table[bins:] if column == self.config.action_dim - 1 else table[:bins]

    # --- training ---------------------------------------------------------------------------------------------

    def loss(self, prefix: Prefix, actions: Tensor) -> Tensor:
        """Teacher-forced cross-entropy per observation (b,), nat per token; actions (b, h, a) normalised."""
        b, h, a = actions.shape
        ids = self.encode(actions)
        embedded, present = self.embed_prefix(prefix)
        hidden = self.hidden(embedded, present, self.embed_ids(ids)[:, :-1]).reshape(b, h, a, -1)
        joints = self.column_logits(hidden[:, :, :-1], 0).float()
        hand = self.column_logits(hidden[:, :, -1], a - 1).float()
        of_joints = F.cross_entropy(joints.flatten(0, 2), ids[..., :-1].flatten(), reduction="none")
        of_hand = F.cross_entropy(hand.flatten(0, 1), (ids[..., -1] - self.config.action_bins).flatten(),
                                  reduction="none")
        return (of_joints.view(b, -1).sum(1) + of_hand.view(b, -1).sum(1)) / (h * a)


def ordered_rows(count: int, width: int) -> Tensor:
    """Vectors (count, width) of std 0.02 to begin with, the more alike the nearer: cosines of the place, slow ones
    strongest. Thousands of bins that know nothing of each other want more demonstrations than there are."""
    waves = torch.arange(1, min(32, width) + 1)
    place = (torch.arange(count) + 0.5) / count
    rows = torch.cos(math.pi * place[:, None] * waves) / waves.sqrt() @ torch.randn(len(waves), width)
    return 0.02 * rows / rows.std()


def make_policy(config: PolicyConfig) -> FlowPolicy | DiscretePolicy:
    """The network that a configuration describes."""
    return DiscretePolicy(config) if config.decoder == "discrete" else FlowPolicy(config)
