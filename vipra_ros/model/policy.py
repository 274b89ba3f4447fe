"""The stage-3 policy: instruction, two frames of VQ codes and a noisy action chunk in, a velocity field out.

    <s> prompt <vision> frame t-2, end-of-frame, frame t, end-of-vision </vision> [<proprio> joints </proprio>]
    <action> a_1 .. a_14

Text, vision and actions have tables of their own. Everything before the actions is the *prefix*: it never
depends on them, so it is computed once per chunk and its keys and values serve all Euler steps exactly.
Training uses the same fact: several draws of (noise, time) of one observation stand side by side behind one
prefix. Each draw is a block of action tokens at the same positions that sees the prefix and itself only.

Actions are decoded by flow matching (`FlowPolicy`, here) or token by token (`model/discrete.py`).

Letters in shapes: b observation, s draw, p prefix token, h step of the chunk, a action dimension, d width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError, param
from vipra_ros.model import flow
from vipra_ros.model.backbone import BackboneConfig, additive_mask, make_backbone

DECODERS = ("flow", "discrete")


@dataclass(frozen=True)
class PolicyConfig:
    """Architecture of the policy. Fields from `vision_table_width` to `action_order` go beyond the paper and are off
    in `paper`."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig, metadata={"doc": "size of the trunk"})
    text_vocab: int = param(128, doc="entries of the text table", low=4, high=1 << 22)
    codebook_size: int = param(2048, doc="codes of the frame quantiser", low=2, high=1 << 20)
    code_groups: int = param(1, doc="codebooks per grid cell", low=1, high=64)
    grid: int = param(8, doc="grid cells per frame side", low=1, high=1024)
    frames: int = param(2, doc="frames per camera, oldest first", low=1, high=64)
    cameras: int = param(1, doc="cameras per observation", low=1, high=64)
    action_dim: int = param(8, doc="action dimensions, gripper last", low=1, high=256)
    horizon: int = param(14, doc="steps of the chunk", low=1, high=4096)
    proprio_steps: int = param(
        0, doc="recent joint vectors given as tokens (the reference's variant uses 7)", low=0, high=7
    )
    vision_table_width: int = param(0, doc="width of the vision table, projected to the trunk; 0 is the trunk's own",
                                    low=0, high=65536)
    vision_merge: int = param(1, doc="side of the square of neighbouring codes that share one token", low=1, high=1024)
    vision_position: bool = param(False, doc="add learned 2-D, frame and camera positions to vision tokens")
    bidirectional_prefix: bool = param(False, doc="prefix tokens see each other both ways")
    bidirectional_actions: bool = param(False, doc="the steps of a chunk see each other both ways")
    time_band: str = param("paper", doc="frequencies of the time features", choices=("paper", "wide"))
    action_position: bool = param(False, doc="of decoder discrete: add a learned vector per action dimension")
    action_order: bool = param(False, doc="of decoder discrete: neighbouring bins begin with vectors that are alike")
    decoder: str = param("flow", doc="flow: continuous chunks; discrete: a token per action dimension and step",
                         choices=DECODERS)
    action_bins: int = param(2047, doc="of decoder discrete: quantile bins of a joint column", low=2, high=1 << 20)

    def __post_init__(self) -> None:
        if self.grid % self.vision_merge:
            raise ConfigError(f"policy: vision_merge = {self.vision_merge} does not divide the grid of {self.grid}")
        if self.backbone.width % 4:
            raise ConfigError(f"policy: backbone width {self.backbone.width} must be a multiple of 4")
        if self.decoder == "discrete" and self.bidirectional_actions:
            raise ConfigError("policy: bidirectional_actions = true with decoder = discrete: a token would see itself; "
                              "set it to false")

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of the whole prefix, one end token per frame."""
        return self.frames * self.cameras * ((self.grid // self.vision_merge) ** 2 + 1)


@dataclass
class Prefix:
    """Inputs of the prefix, a batch of observations.

    before: int64 (b, l) tokens up to and with `<vision>`, padded on the LEFT; before_mask bool (b, l), True = token.
    codes: int64 (b, frames, cameras, codes per frame).
    between, after: int64 (n,) tokens that every observation shares, before and after the proprio vectors.
    proprio: float (b, steps, a), normalised, or None.
    """

    before: Tensor
    before_mask: Tensor
    codes: Tensor
    between: Tensor
    after: Tensor
    proprio: Tensor | None = None


class Perception(nn.Module):
    """Trunk, text table and vision table: what pre-training and every policy share, by the same weight names."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.config = config
        d, c = config.backbone.width, config
        table = c.vision_table_width or d
        self.trunk = make_backbone(c.backbone)
        self.text = nn.Embedding(c.text_vocab, d)
        # Rows: every group's codes, then end-of-frame and end-of-vision.
        self.vision = nn.Embedding(c.code_groups * c.codebook_size + 2, table)
        merged = table * c.vision_merge**2 * (c.code_groups if c.vision_table_width else 1)
        projected = c.vision_table_width or c.vision_merge > 1
        self.vision_in = nn.Linear(merged, d) if projected else nn.Identity()
        self.end_in = nn.Linear(table, d, bias=False) if c.vision_table_width else nn.Identity()
        side = c.grid // c.vision_merge
        if c.vision_position:
            self.vision_row = nn.Parameter(0.02 * torch.randn(side, 1, d))
            self.vision_column = nn.Parameter(0.02 * torch.randn(1, side, d))
            self.vision_frame = nn.Parameter(0.02 * torch.randn(c.frames, c.cameras, 1, d))
        for embedding in (self.text, self.vision):
            nn.init.normal_(embedding.weight, std=0.02)

    @torch.no_grad()
    def start_vision_from(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Give the vision table the quantiser's own vectors (g, k, v), through a random orthonormal map when
        the table has another width: similar patches start with similar embeddings."""
        g, k, v = codebook.shape
        c = self.config
        if (g, k) != (c.code_groups, c.codebook_size):
            raise ValueError(f"codebook is {g} x {k}, the policy expects {c.code_groups} x {c.codebook_size}")
        width = self.vision.weight.shape[1]
        if width != v:
            square = torch.linalg.qr(torch.randn(max(v, width), max(v, width), generator=generator))[0]
            codebook = codebook @ square[:v, :width]
        self.vision.weight[: g * k] = codebook.reshape(g * k, width)

    def embed_cells(self, codes: Tensor) -> Tensor:
        """int64 (b, f, cameras, codes) -> (b, f, cameras, cells, d): each `vision_merge` square one token."""
        c = self.config
        b, frames, m, side = len(codes), codes.shape[1], c.vision_merge, c.grid // c.vision_merge
        codes = codes.reshape(b, frames, c.cameras, c.grid, c.grid, c.code_groups)
        rows = self.vision(codes + c.codebook_size * torch.arange(c.code_groups, device=codes.device))
        # Full-width tables add up the groups, narrow ones put them side by side.
        rows = rows.flatten(-2) if c.vision_table_width else rows.sum(-2)
        rows = rows.reshape(b, frames, c.cameras, side, m, side, m, -1).transpose(4, 5).flatten(5)
        tokens = self.vision_in(rows)
        if c.vision_position:
            tokens = tokens + self.vision_row + self.vision_column
        return tokens.reshape(b, frames, c.cameras, side * side, -1)

    def embed_vision(self, codes: Tensor, last: bool = True) -> Tensor:
        """int64 (b, frames, cameras, codes) -> (b, vision tokens, d), each frame followed by its end token.

        last: the span ends here; else the last frame ends as the others do, and another one follows.
        """
        c = self.config
        b, tokens = len(codes), self.embed_cells(codes)
        if c.vision_position:
            tokens = tokens + self.vision_frame
        ends = torch.full((c.frames, c.cameras, 1), c.code_groups * c.codebook_size, device=codes.device)
        ends[-1, -1] += int(last)
        end_rows = self.end_in(self.vision(ends)).expand(b, -1, -1, -1, -1)
        return torch.cat([tokens, end_rows.to(tokens.dtype)], dim=3).flatten(1, 3)

    def _run(self, sequence: Tensor, allowed: Tensor, positions: Tensor, cache) -> Tensor:
        dtype = sequence.dtype
        device = sequence.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # meta has none
            dtype = torch.get_autocast_dtype(device)
        return self.trunk(
            inputs_embeds=sequence,
            attention_mask=additive_mask(allowed, dtype),
            position_ids=positions,
            cache=cache,
            use_cache=cache is not None,
        ).last_hidden_state


class ActingPolicy(Perception):
    """What every policy has before its actions: the prefix."""

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        self.proprio_in = nn.Linear(config.action_dim, config.backbone.width) if config.proprio_steps else None

    def embed_prefix(self, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """-> embeddings (b, p, d) and bool (b, p), True where a token stands."""
        b = len(prefix.before)
        parts = [self.text(prefix.before), self.embed_vision(prefix.codes), self.text(prefix.between).expand(b, -1, -1)]
        if self.proprio_in is not None:
            if prefix.proprio is None:
                raise ValueError(f"this policy needs {self.config.proprio_steps} joint vectors; none were given")
            parts.append(self.proprio_in(prefix.proprio))
        parts.append(self.text(prefix.after).expand(b, -1, -1))
        dtype = parts[1].dtype
        embedded = torch.cat([part.to(dtype) for part in parts], dim=1)
        rest = torch.ones(b, embedded.shape[1] - prefix.before.shape[1], dtype=torch.bool, device=embedded.device)
        return embedded, torch.cat([prefix.before_mask, rest], dim=1)


class FlowPolicy(ActingPolicy):
    """The continuous decoder. `loss` trains it, `joint_pass` and `cached_step` sample from it."""

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        d, c = config.backbone.width, config
        self.action_in = nn.Linear(c.action_dim, d // 2)
        self.action_mix = nn.Linear(d, d)
        self.action_out = nn.Linear(d, d)
        self.head = nn.Linear(d, c.action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    # --- actions --------------------------------------------------------------------------------------------

    def embed_actions(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy actions (..., h, a) at times (..., h), or (...,) for all steps -> tokens (..., h, d)."""
        half = self.action_in(x.to(self.action_in.weight.dtype))
        t = t if t.ndim == x.ndim - 1 else t[..., None]
        features = flow.time_features(t, half.shape[-1], self.config.time_band).to(half.dtype).expand_as(half)
        return self.action_out(F.silu(self.action_mix(torch.cat([half, features], dim=-1))))

    def joint_mask(self, present: Tensor, draws: int) -> Tensor:
        """bool (b, p) -> bool (b, p + s h, p + s h): who may look at whom with `draws` action blocks."""
        c, (b, p) = self.config, present.shape
        total = p + draws * c.horizon
        allowed = torch.zeros(total, total, dtype=torch.bool, device=present.device)
        allowed[:p, :p] = True if c.bidirectional_prefix else torch.ones_like(allowed[:p, :p]).tril()
        allowed[p:, :p] = True
        block = torch.ones(c.horizon, c.horizon, dtype=torch.bool, device=present.device)
        block = block if c.bidirectional_actions else block.tril()
        allowed[p:, p:] = torch.block_diag(*[block] * draws)
        seen = torch.cat([present, present.new_ones(b, total - p)], dim=1)
        return allowed & seen[:, None, :]

    def joint_pass(self, embedded: Tensor, present: Tensor, x: Tensor, t: Tensor, cache=None) -> Tensor:
        """Prefix and all blocks in one pass: x (b, s, h, a), t (b, s) or (b, s, h) -> velocities (b, s, h, a).

        With a `cache` (transformers' DynamicCache) the keys and values of the whole pass stay in it.
        """
        b, s, h, _ = x.shape
        tokens = self.embed_actions(x, t)
        sequence = torch.cat([embedded, tokens.flatten(1, 2).to(embedded.dtype)], dim=1)
        place = present.long().cumsum(1) - 1
        steps = place[:, -1:] + 1 + torch.arange(h, device=x.device)
        positions = torch.cat([place.clamp_min(0), steps.repeat(1, s)], dim=1)
        hidden = self._run(sequence, self.joint_mask(present, s), positions, cache)
        return self.head(hidden[:, embedded.shape[1] :]).reshape(b, s, h, -1)

    def cached_step(self, cache, present: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Velocities (b, h, a) of x (b, h, a) at t (b,) or (b, h) over the prefix in `cache`, left as it was."""
        h = x.shape[1]
        tokens = self.embed_actions(x, t)
        block = torch.ones(h, h, dtype=torch.bool, device=x.device)
        block = block if self.config.bidirectional_actions else block.tril()
        allowed = torch.cat([present[:, None, :].expand(-1, h, -1), block.expand(len(x), -1, -1)], dim=2)
        positions = present.sum(1, keepdim=True) + torch.arange(h, device=x.device)
        velocity = self.head(self._run(tokens, allowed, positions, cache))
        cache.crop(-h)
        return velocity

    # --- training -------------------------------------------------------------------------------------------

    def loss(self, prefix: Prefix, actions: Tensor, noise: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """Flow-matching error per observation (b,), the mean over draws, steps and dimensions.

        actions (b, h, a) normalised; noise (b, s, h, a); t (b, s). given: int (b, s), so many first rows of the chunk
        are the actions themselves, at time 1 and without a loss (Black et al. 2025, arXiv 2512.05964).
        """
        embedded, present = self.embed_prefix(prefix)
        target = actions[:, None]
        x = flow.interpolate(noise, target, t[..., None, None])
        if given is None:
            predicted = self.joint_pass(embedded, present, x, t)
            return (predicted.float() - flow.velocity_target(noise, target)).pow(2).mean(dim=(1, 2, 3))
        free = torch.arange(actions.shape[1], device=t.device) >= given[..., None]  # (b, s, h)
        x = torch.where(free[..., None], x, target)
        predicted = self.joint_pass(embedded, present, x, torch.where(free, t[..., None], flow.CLEAN))
        error = (predicted.float() - flow.velocity_target(noise, target)).pow(2).mean(-1)
        return (error * free).sum(dim=(1, 2)) / free.sum(dim=(1, 2))


def parameter_count(config: PolicyConfig) -> int:
    """Parameters of a policy of this size, counted on the meta device (no memory is used)."""
    with torch.device("meta"):
        return sum(p.numel() for p in FlowPolicy(config).parameters())
