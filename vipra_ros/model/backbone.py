"""The LLaMA trunk of `transformers` at our sizes, with one attention that trains well on a CPU.

Weights are always our own (or imported); nothing is downloaded. Two sizes: `paper` is LLaMA-7B as LWM uses it,
`tiny` trains on two CPU cores.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaModel

from vipra_ros.config import ConfigError, param


@dataclass(frozen=True)
class BackboneConfig:
    """Size of the trunk; the defaults are the `tiny` preset."""

    width: int = param(192, doc="hidden size", low=8, high=65536)
    layers: int = param(6, doc="decoder layers", low=1, high=512)
    heads: int = param(3, doc="attention heads", low=1, high=1024)
    ffn: int = param(512, doc="inner size of the gated feed-forward", low=8, high=1 << 20)
    rope_theta: float = param(10000.0, doc="base of the rotary position angles", low=1.0, high=1e12)
    norm_eps: float = param(1e-6, doc="RMSNorm epsilon", low=0.0, high=1.0)
    max_positions: int = param(2048, doc="longest sequence", low=16, high=1 << 20)
    attention: str = param(
        "matmul",
        doc="attention kernel: matmul trains fastest on a CPU, sdpa on a GPU",
        choices=("matmul", "sdpa", "eager"),
    )
    gradient_checkpointing: bool = param(False, doc="recompute layers in the backward pass to save memory")

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigError(f"backbone: width = {self.width} must be a multiple of 2 x heads = {2 * self.heads}")


#: LLaMA-7B with LWM's rotary base, shape-checked on the meta device in the tests.
PAPER = BackboneConfig(
    width=4096, layers=32, heads=32, ffn=11008, rope_theta=5e7, norm_eps=1e-6, max_positions=4096, attention="sdpa"
)


def _matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """softmax(q k^T + mask) v by plain matrix products, in the dtype of q.

    Sequences here are 100-300 tokens: the score matrix is small, and the CPU's fused kernel spends three times
    as long in its backward pass (measured on two AVX-512-BF16 cores).
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + attention_mask
    return torch.matmul(scores.softmax(-1), value).transpose(1, 2), None


AttentionInterface.register("matmul", _matmul_attention)


def make_backbone(config: BackboneConfig) -> LlamaModel:
    """The trunk with random weights; inputs are embeddings, so its own token table is dropped."""
    llama = LlamaConfig(
        vocab_size=8,
        hidden_size=config.width,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_positions,
        use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation=config.attention,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaModel(llama)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    model.embed_tokens = None
    return model


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """bool (B, Q, K), True where a query may look -> additive (B, 1, Q, K) of 0 and the dtype's lowest value.

    Finite, so that a padding row that may look nowhere stays a number.
    """
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)[:, None]
