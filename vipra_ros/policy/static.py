"""Sampling over buffers that never move: on a GPU a whole chunk is one CUDA graph.

The schedule of `lean.py` with these changes. The first Euler step runs with the prefix, in one pass over the weights:
a network that is bound by reading its weights saves a pass of ten. Keys and values lie in one buffer per bucket of
instruction lengths; shorter instructions are padded on the left, under the mask, at unchanged rotary positions. Where
the prefix is causal, the instruction's keys and values stay while it is the same.
Nothing depends on a value, so a bucket's work can be captured once and replayed. On a CPU the same code runs as it is.

One observation a call. In the last layer only the chunk's rows are carried on; the prefix's are nobody's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vipra_ros.model.policy import FlowPolicy, Prefix
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.text import MOST_TOKENS

#: Lengths of the instruction (with <s> and <vision>) that have buffers; the smallest that holds it is taken.
BUCKETS = (16, 32, 64, MOST_TOKENS)


@dataclass
class _Bucket:
    """Inputs, keys and values of one instruction length.

    keys, values: (layers, 1, heads, bucket + rest of the prefix + h, d of a head). text: the instruction they hold.
    graphs: tokens that are skipped -> (CUDA graph, the tensor it leaves its answer in).
    """

    prefix: Prefix
    noise: Tensor
    keys: Tensor
    values: Tensor
    text: Tensor | None = None
    graphs: dict[int, tuple[object, Tensor]] = field(default_factory=dict)


class StaticSampler(LeanSampler):
    """Called like `LeanSampler`, for one observation.

    Args:
        capture: into CUDA graphs; None: where there is CUDA.
        release: drop the policy's own copies of the weights that were folded, which a large network cannot afford.
        weights: as of `LeanTrunk`.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        steps: int,
        buckets: tuple[int, ...] = BUCKETS,
        capture: bool | None = None,
        release: bool = False,
        weights: str = "full",
    ):
        super().__init__(policy, steps, release, weights)
        self.buckets = tuple(sorted(buckets))
        self.device = policy.head.weight.device
        self.capture = self.device.type == "cuda" if capture is None else capture
        self._causal = not policy.config.bidirectional_prefix
        self._made: dict[int, _Bucket] = {}

    batches = False  # the buffers hold one observation

    @torch.inference_mode()
    def __call__(self, prefix: Prefix, noise: Tensor, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """Normalised actions (1, h, a) from noise (1, h, a).

        Raises:
            ValueError: more than one observation, or an instruction longer than the largest bucket.
        """
        length = prefix.before.shape[1]
        size = next((b for b in self.buckets if b >= length), None)
        if len(noise) != 1 or size is None:
            raise ValueError(
                f"{len(noise)} observations with {length} tokens of instruction; one with {self.buckets[-1]} at most"
            )
        if size not in self._made:
            self._made[size] = self._make(size, prefix)
        bucket = self._made[size]
        held, text = bucket.prefix, torch.stack([prefix.before, prefix.before_mask.long()])
        skip = size if self._causal and bucket.text is not None and torch.equal(bucket.text, text) else 0
        if not skip:
            held.before.zero_()
            held.before_mask.zero_()
            held.before[:, size - length :] = prefix.before
            held.before_mask[:, size - length :] = prefix.before_mask
        held.codes.copy_(prefix.codes)
        if held.proprio is not None:
            held.proprio.copy_(prefix.proprio)
        bucket.noise.copy_(noise)
        if self.capture:
            with torch.cuda.device(self.device):  # a thread's present one is the first, whatever the weights' is
                answer = self._replay(bucket, skip).clone()
            mark("denoise")
        else:
            answer = self._chunk(bucket, skip, mark)
        bucket.text = text
        return answer

    def _make(self, size: int, like: Prefix) -> _Bucket:
        c, place = self.policy.config, {"device": self.device}
        before = torch.zeros(1, size, dtype=torch.int64, **place)
        proprio = None if like.proprio is None else torch.zeros(1, *like.proprio.shape[1:], dtype=self.dtype, **place)
        codes = torch.zeros((1, *like.codes.shape[1:]), dtype=torch.int64, **place)
        prefix = Prefix(before, torch.ones_like(before, dtype=torch.bool), codes, like.between, like.after, proprio)
        total = size + c.vision_tokens + len(like.between) + c.proprio_steps + len(like.after) + c.horizon
        shape = (len(self.layers), 1, self.heads, total, c.backbone.width // self.heads)
        keys, values = (torch.zeros(shape, dtype=self.dtype, **place) for _ in range(2))
        return _Bucket(prefix, torch.zeros(1, c.horizon, c.action_dim, **place), keys, values)

    def _replay(self, bucket: _Bucket, skip: int) -> Tensor:
        """Run the captured chunk, capturing it first where that has not happened."""
        if skip not in bucket.graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # lazy set-up of the libraries must not be captured
                for _ in range(2):
                    self._chunk(bucket, skip)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = self._chunk(bucket, skip)
            bucket.graphs[skip] = graph, out
        graph, out = bucket.graphs[skip]
        graph.replay()
        return out

    def _chunk(self, bucket: _Bucket, skip: int, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """All Euler steps over a bucket's buffers, whose first `skip` tokens are there; looks at no value."""
        policy, h = self.policy, self.policy.config.horizon
        embedded, present = policy.embed_prefix(bucket.prefix)
        p = embedded.shape[1]
        place = present.long().cumsum(1) - 1
        positions = torch.cat([place.clamp_min(0), place[:, -1:] + 1 + torch.arange(h, device=self.device)], dim=1)
        cosine, sine = (r[:, None].to(self.dtype) for r in policy.trunk.rotary_emb(embedded, positions))
        mask = self._safe(policy.joint_mask(present, 1)[:, None])
        x = bucket.noise
        for k in range(self.steps):
            tokens = self._action_tokens(x, k)
            # With the first step goes the prefix; the others find its keys and values in the buffers.
            start = p if k else skip
            sequence = tokens if k else torch.cat([embedded[:, skip:].to(self.dtype), tokens], dim=1)
            velocity = self._pass(sequence, start, cosine[:, :, start:], sine[:, :, start:], mask, bucket)
            x = x + velocity.float() / self.steps
            mark("denoise" if k else "prefill")
        return x

    def _pass(self, x: Tensor, start: int, cosine: Tensor, sine: Tensor, mask: Tensor, bucket: _Bucket) -> Tensor:
        h = self.policy.config.horizon
        for i, weights in enumerate(self.layers):
            query, key, value = self._qkv(x, weights[0], cosine, sine)
            keys, values = bucket.keys[i], bucket.values[i]
            keys[:, :, start:], values[:, :, start:] = key, value
            looks = mask[:, :, start:]
            if i + 1 == len(self.layers):
                x, query, looks = x[:, -h:], query[:, :, -h:], looks[:, :, -h:]
            x = self._rest(x, F.scaled_dot_product_attention(query, keys, values, attn_mask=looks), weights)
        return F.linear(F.rms_norm(x, x.shape[-1:], eps=self.eps), self.head_weight, self.policy.head.bias)
