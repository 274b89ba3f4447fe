"""Stage 2: what will happen and how it changes, as one sequence of next-token prediction.

    <s> prompt <vision> frame t-1, end-of-frame, frame t, end-of-frame, future frame, end-of-vision </vision>
    <dynamics> (N latent codes, end-of-step) x 14 </dynamics> </s>

Text, vision and latent actions have a table and a head each; a token is predicted by the head of its own kind at the
token before it. The instruction and the two observed frames carry no loss. Without the future frame the span ends
after frame t; without latent actions `<dynamics>` .. `</dynamics>` is left out (the paper's LA and SP2, section 5).

Loss: the paper's is CE(future frame) + CE(latent actions); the reference code's is 0.48, 0.48 and 0.02 CE(text), each
averaged over its own tokens (options `loss: paper | code`). With `vision_merge` above 1 a vision token is a square of
codes; the codes of a square are predicted side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError, param
from vipra_ros.model.policy import Perception, PolicyConfig

#: Kinds of tokens, and the weights (vision, latent, text) of the two published losses.
TEXT, VISION, LATENT = range(3)
WEIGHTS = {"paper": (1.0, 1.0, 0.0), "code": (0.48, 0.48, 0.02)}


@dataclass(frozen=True)
class JointConfig:
    """Architecture of stage 2. Of `policy` only what the trunk and the text and vision tables need is used."""

    policy: PolicyConfig = field(default_factory=PolicyConfig, metadata={"doc": "trunk and tables, as in stage 3"})
    future: bool = param(True, doc="predict the future frame (off: SP2 and the LAPA-style baseline)")
    latent_steps: int = param(14, doc="steps of latent actions predicted; 0 is none (LA)", low=0)
    codes_per_step: int = param(16, doc="latent codes of a step", low=1)
    latent_codebook: int = param(8, doc="entries of the latent codebook", low=2)

    def __post_init__(self) -> None:
        if not (self.future or self.latent_steps):
            raise ConfigError("joint: future = false, latent_steps = 0: nothing is left to predict; give one of them")

    @property
    def latent_tokens(self) -> int:
        """Latent tokens of a sequence, the end token of each step included."""
        return self.latent_steps * (self.codes_per_step + 1)

    @property
    def future_tokens(self) -> int:
        """Vision tokens of the future frame, the end token of each camera included."""
        cells = (self.policy.grid // self.policy.vision_merge) ** 2
        return self.policy.cameras * (cells + 1) if self.future else 0


@dataclass
class JointBatch:
    """before int64 (b, l) with `<vision>` last, padded on the LEFT; before_mask bool (b, l), True = token; codes int64
    (b, frames, cameras, codes per frame), observed; future int64 (b, cameras, codes per frame), None where the span
    ends after frame t; latents int64 (b, latent_steps, N); close int64 (n,) `</vision>`, open int64 (n,) `<dynamics>`,
    end int64 (n,) `</dynamics> </s>` (without latents: `</s>`); blind bool (b,), True where what follows the future
    frame does not look at it and stands where it would without one."""

    before: Tensor
    before_mask: Tensor
    codes: Tensor
    future: Tensor | None
    latents: Tensor | None
    close: Tensor
    open: Tensor
    end: Tensor
    blind: Tensor | None = None


class JointModel(Perception):
    """The network of stage 2: the trunk of stage 3 with heads for text, vision and latent actions."""

    def __init__(self, config: JointConfig):
        super().__init__(config.policy)
        self.joint, c = config, config.policy
        d, table = c.backbone.width, c.vision_table_width or c.backbone.width
        self.latent = nn.Embedding(config.latent_codebook + 1, d)
        self.text_head = nn.Linear(d, c.text_vocab, bias=False)
        # One vector of table width per code of a square; a single code at full width needs no such map.
        self.slots = c.vision_merge**2 * c.code_groups
        plain = self.slots == 1 and table == d
        self.vision_split = nn.Identity() if plain else nn.Linear(d, self.slots * table)
        self.vision_head = nn.Linear(table, self.vision.num_embeddings, bias=False)
        self.latent_head = nn.Linear(d, config.latent_codebook + 1, bias=False)
        if c.vision_position:
            self.vision_future = nn.Parameter(0.02 * torch.randn(c.cameras, 1, d))
        for module in (self.latent, self.text_head, self.vision_head, self.latent_head):
            nn.init.normal_(module.weight, std=0.02)

    # --- the sequence -----------------------------------------------------------------------------------------

    def observed(self, batch: JointBatch, last: bool) -> Tensor:
        """Embeddings (b, p, d) of the part without loss: prompt and observed frames. last: no frame follows."""
        vision = self.embed_vision(batch.codes, last)
        return torch.cat([self.text(batch.before).to(vision.dtype), vision], dim=1)

    def embed_future(self, codes: Tensor) -> Tensor:
        """int64 (b, cameras, codes) -> (b, future tokens, d); the last camera's end is the end of the span."""
        c = self.config
        tokens = self.embed_cells(codes[:, None])
        if c.vision_position:
            tokens = tokens + self.vision_future
        ends = torch.full((1, c.cameras, 1), c.code_groups * c.codebook_size, device=codes.device)
        ends[:, -1] += 1
        rows = self.end_in(self.vision(ends)).expand(len(codes), -1, -1, -1, -1)
        return torch.cat([tokens, rows.to(tokens.dtype)], dim=3).flatten(1, 3)

    def latent_ids(self, latents: Tensor) -> Tensor:
        """int64 (b, steps, N) -> (b, steps (N + 1)): every step followed by the end id."""
        return F.pad(latents, (0, 1), value=self.joint.latent_codebook).flatten(1)

    def future_ids(self, codes: Tensor) -> Tensor:
        """int64 (b, cameras, codes) -> rows of the vision table (b, future tokens, slots); an end fills slot 0 only,
        the others are -100."""
        c, b = self.config, len(codes)
        m, side = c.vision_merge, c.grid // c.vision_merge
        ids = codes.reshape(b, c.cameras, c.grid, c.grid, c.code_groups)
        ids = ids + c.codebook_size * torch.arange(c.code_groups, device=codes.device)
        ids = ids.reshape(b, c.cameras, side, m, side, m, -1).transpose(3, 4).reshape(b, c.cameras, side * side, -1)
        ends = torch.full((b, c.cameras, 1, self.slots), -100, device=codes.device)
        ends[..., 0] = c.code_groups * c.codebook_size
        ends[:, -1, :, 0] += 1
        return torch.cat([ids, ends], dim=2).flatten(1, 2)

    def assemble(self, batch: JointBatch) -> tuple[Tensor, Tensor, list[tuple[int, Tensor]]]:
        """-> embeddings (b, n, d), bool (b, n) where a token stands, and the predicted spans in order: (kind, ids),
        ids int64 (b, tokens) for text and latents, (b, tokens, slots) for vision. Nothing stands between spans."""
        c, b = self.joint, len(batch.before)
        parts, spans = [self.observed(batch, last=batch.future is None)], []

        def words(ids: Tensor) -> None:
            spans.append((TEXT, ids.expand(b, -1)))
            parts.append(self.text(ids).expand(b, -1, -1))

        if batch.future is not None:
            spans.append((VISION, self.future_ids(batch.future)))
            parts.append(self.embed_future(batch.future))
        words(batch.close)
        if c.latent_steps:
            words(batch.open)
            spans.append((LATENT, self.latent_ids(batch.latents)))
            parts.append(self.latent(spans[-1][1]))
        words(batch.end)
        embedded = torch.cat([part.to(parts[0].dtype) for part in parts], dim=1)
        rest = batch.before_mask.new_ones(b, embedded.shape[1] - batch.before.shape[1])
        return embedded, torch.cat([batch.before_mask, rest], dim=1), spans

    def mask(self, present: Tensor, observed: int, blind: Tensor | None = None) -> Tensor:
        """bool (b, n, n): causal; with `bidirectional_prefix` the observed part sees itself both ways; what follows the
        future frame does not see it in `blind` sequences."""
        n = present.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool, device=present.device).tril()
        if self.config.bidirectional_prefix:
            allowed[:observed, :observed] = True
        allowed = allowed & present[:, None, :]
        if blind is not None:
            after = observed + self.joint.future_tokens
            allowed[:, after:, observed:after] &= ~blind[:, None, None]
        return allowed

    def hidden(self, embedded: Tensor, present: Tensor, observed: int, blind: Tensor | None = None) -> Tensor:
        """Last hidden states (b, n, d)."""
        positions = (present.long().cumsum(1) - 1).clamp_min(0)
        if blind is not None:
            positions[:, observed + self.joint.future_tokens :] -= blind[:, None] * self.joint.future_tokens
        return self._run(embedded, self.mask(present, observed, blind), positions, None)

    def vision_logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., slots, rows of the vision table)."""
        return self.vision_head(self.vision_split(hidden).unflatten(-1, (self.slots, -1)))

    # --- training and drawing ---------------------------------------------------------------------------------

    def losses(self, batch: JointBatch, changed_weight: float = 1.0) -> dict[str, Tensor]:
        """Mean cross-entropy (nat per code) of each part: `future`, `latent`, `text`; absent parts are left out.
        With the future frame also `changed`, that of its codes that are not those of frame t; with blind sequences
        also `latent_blind`, that of their latents.

        changed_weight: how much such a code counts in `future`; most of a frame stands still, and copying it is long to
            learn and says little.
        """
        embedded, present, spans = self.assemble(batch)
        begin = embedded.shape[1] - sum(ids.shape[1] for _, ids in spans)
        hidden = self.hidden(embedded, present, begin, batch.blind)
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for kind, ids in spans:
            before = hidden[:, begin - 1 : begin - 1 + ids.shape[1]]
            begin += ids.shape[1]
            name, head = {TEXT: ("text", self.text_head), VISION: ("future", self.vision_logits),
                          LATENT: ("latent", self.latent_head)}[kind]
            found.setdefault(name, []).append((head(before).flatten(0, -2), ids.flatten()))
        parts = {
            name: F.cross_entropy(torch.cat([a for a, _ in pairs]).float(), torch.cat([i for _, i in pairs]))
            for name, pairs in found.items() if name != "future"
        }
        if "future" in found:
            ((logits, ids),) = found["future"]
            each = F.cross_entropy(logits.float(), ids, reduction="none")
            counts = ids >= 0
            changed = (ids != self.future_ids(batch.codes[:, -1]).flatten()) & counts
            weight = counts + (changed_weight - 1.0) * changed
            parts["future"] = (each * weight).sum() / weight.sum()
            parts["changed"] = (each.detach() * changed).sum() / changed.sum().clamp_min(1)
        if "latent" in found and batch.blind is not None and batch.blind.any():
            ((logits, ids),) = found["latent"]
            with torch.no_grad():
                each = F.cross_entropy(logits.float(), ids, reduction="none").unflatten(0, (len(batch.blind), -1))
                parts["latent_blind"] = each[batch.blind].mean()
        return parts

    @torch.inference_mode()
    def imagine(self, batch: JointBatch) -> Tensor:
        """The most likely future frame, token by token: int64 (b, cameras, codes per frame).

        Raises:
            ConfigError: the model was trained without the future frame.
        """
        if not self.joint.future:
            raise ConfigError("imagine: this checkpoint was pre-trained with future = false; use one with the frame")
        c, b = self.config, len(batch.before)
        m, side = c.vision_merge, c.grid // c.vision_merge
        prefix = self.observed(batch, last=False)
        observed, cells = prefix.shape[1], side * side
        made = torch.zeros(b, c.cameras, side, m, side, m, c.code_groups, dtype=torch.long, device=prefix.device)
        for camera in range(c.cameras):
            for cell in range(cells):
                codes = made.reshape(b, c.cameras, -1)
                known = camera * (cells + 1) + cell
                sequence = torch.cat([prefix, self.embed_future(codes)[:, :known].to(prefix.dtype)], dim=1)
                present = torch.cat([batch.before_mask, batch.before_mask.new_ones(
                    b, sequence.shape[1] - batch.before.shape[1])], dim=1)
                logits = self.vision_logits(self.hidden(sequence, present, observed)[:, -1])
                logits = logits.unflatten(1, (m * m, c.code_groups))
                best = torch.stack([logits[:, :, g, g * c.codebook_size : (g + 1) * c.codebook_size].argmax(-1)
                                    for g in range(c.code_groups)], dim=-1)
                made[:, camera, cell // side, :, cell % side] = best.unflatten(1, (m, m))
        return made.reshape(b, c.cameras, -1)


def weighed(parts: dict[str, Tensor], weights: tuple[float, float, float]) -> Tensor:
    """Sum of the parts `JointModel.losses` gives, by weights of vision, latent and text; absent parts count nothing."""
    return sum(w * parts[k] for w, k in zip(weights, ("future", "latent", "text")) if k in parts)
