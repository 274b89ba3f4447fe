"""Spatio-temporal transformer blocks over video tokens (b, t, n, d): t frames of n = h w patches (+ extra tokens).

A block is, each part residual: a depthwise 3-D convolution that generates position (Chu et al. 2021, "Conditional
positional encodings"), attention along time for each patch with 1-D rotary positions, attention within each frame with
a continuous relative position bias (Liu et al. 2022, Swin V2, section 3.3), and a gated feed-forward (Shazeer 2020,
GEGLU). Queries and keys have unit length (Henry et al. 2020), so that logits stay bounded whatever the depth.
A causal stack never looks forward: not in its temporal attention and not in its convolution.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Logit scale of unit queries and keys; softmax over cosines in +-1 could hardly choose.
SCALE = 8.0
_ROTARY_BASE = 10000.0


def rotate(x: Tensor) -> Tensor:
    """Rotary positions 0, 1, ... for x (..., n, head) (Su et al. 2021); halves of a head are the pairs."""
    n, head = x.shape[-2:]
    rate = _ROTARY_BASE ** (-torch.arange(0, head, 2, device=x.device, dtype=torch.float32) / head)
    angle = torch.arange(n, device=x.device, dtype=torch.float32)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    """Multi-head attention over the second to last axis, q and k of unit length times learnt scales."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, head = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head))
        self.k_scale = nn.Parameter(torch.ones(head))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: bool = False) -> Tensor:
        """(m, n, d) -> (m, n, d); `bias` is added to the logits, broadcast from (heads, n, n) or (n, n)."""
        m, n, d = x.shape
        q, k, v = self.qkv(x).reshape(m, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        if rotary:
            q, k = rotate(q), rotate(k)
        # Plain products: a CPU's fused kernel is slower in its backward pass at these lengths (model/backbone.py).
        logits = torch.matmul(q * SCALE, k.transpose(-1, -2))
        if bias is not None:
            logits = logits + bias
        y = torch.matmul(logits.softmax(-1).to(v.dtype), v)
        return self.out(y.transpose(1, 2).reshape(m, n, d))


class PositionBias(nn.Module):
    """Bias of a frame's logits from the signed logarithm of the offset between two patches: (heads, h w, h w)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.LeakyReLU(0.1), nn.Linear(width, width), nn.LeakyReLU(0.1), nn.Linear(width, heads)
        )

    def forward(self, height: int, width: int, extra: int = 0) -> Tensor:
        """`extra` tokens behind the patches have no place: their rows and columns are zero."""
        device = self.net[0].weight.device
        y, x = (torch.arange(-s + 1, s, device=device, dtype=torch.float32) for s in (height, width))
        offset = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
        table = self.net(offset.sign() * offset.abs().log1p())  # (2h-1, 2w-1, heads): each offset once, not each pair
        row, column = torch.arange(height, device=device), torch.arange(width, device=device)
        dy = (row[:, None] - row + height - 1)[:, None, :, None]
        dx = (column[:, None] - column + width - 1)[None, :, None, :]
        bias = table[dy, dx].reshape(height * width, height * width, -1).permute(2, 0, 1)
        return F.pad(bias, (0, extra, 0, extra)) if extra else bias


class FeedForward(nn.Module):
    """GEGLU; the inner width is 8/3 d, so that it costs what a plain one of 4 d does."""

    def __init__(self, width: int):
        super().__init__()
        inner = width * 8 // 3
        self.gate = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.gate(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class Block(nn.Module):
    """One spatio-temporal block; `modulated` ones take a condition per frame (adaLN, Peebles & Xie 2023).

    The modulation starts at zero: shift 0, scale 1 + 0, gate 1 + 0, a plain block until the condition proves useful.
    """

    def __init__(self, width: int, heads: int, causal: bool, modulated: bool):
        super().__init__()
        self.causal = causal
        self.position = nn.Conv3d(width, width, 3, groups=width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.time, self.space, self.mlp = Attention(width, heads), Attention(width, heads), FeedForward(width)
        self.modulation = nn.Linear(width, 9 * width) if modulated else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, grid: tuple[int, int], bias: Tensor, condition: Tensor | None = None) -> Tensor:
        """(b, t, n, d) -> the same; condition (b, t, d)."""
        b, t, n, d = x.shape
        changes = [None] * 9
        if self.modulation is not None:
            changes = self.modulation(F.silu(condition))[:, :, None].chunk(9, dim=-1)
        x = self._placed(x, grid)
        mask = None
        if self.causal:
            mask = torch.full((t, t), float("-inf"), device=x.device).triu(1)
        parts = (
            lambda y: self.time(y.transpose(1, 2).reshape(b * n, t, d), mask, rotary=True)
            .reshape(b, n, t, d)
            .transpose(1, 2),
            lambda y: self.space(y.reshape(b * t, n, d), bias).reshape(b, t, n, d),
            self.mlp,
        )
        for i, part in enumerate(parts):
            shift, scale, gate = changes[3 * i : 3 * i + 3]
            y = self.norms[i](x)
            if shift is not None:
                x = x + (1 + gate) * part(y * (1 + scale) + shift)
            else:
                x = x + part(y)
        return x

    def _placed(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        b, t, n, d = x.shape
        patches, extra = x[:, :, : grid[0] * grid[1]], x[:, :, grid[0] * grid[1] :]
        volume = patches.reshape(b, t, *grid, d).permute(0, 4, 1, 2, 3)
        before, after = (2, 0) if self.causal else (1, 1)
        volume = F.pad(volume, (1, 1, 1, 1, before, after))
        # A depthwise bfloat16 convolution takes a CPU seven times as long as the whole step without it.
        exact = torch.autocast("cpu", enabled=False) if x.device.type == "cpu" else contextlib.nullcontext()
        with exact:
            moved = self.position(volume.to(self.position.weight.dtype) if x.device.type == "cpu" else volume)
        patches = patches + moved.permute(0, 2, 3, 4, 1).reshape(b, t, -1, d)
        return torch.cat((patches, extra), dim=2)


class SpaceTime(nn.Module):
    """A stack of blocks with one position bias and a last norm."""

    def __init__(self, width: int, heads: int, blocks: int, causal: bool, modulated: bool = False):
        super().__init__()
        self.bias = PositionBias(width, heads)
        self.blocks = nn.ModuleList(Block(width, heads, causal, modulated) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, grid: tuple[int, int], condition: Tensor | None = None) -> Tensor:
        """(b, t, h w + extra, d) -> the same."""
        bias = self.bias(*grid, extra=x.shape[2] - grid[0] * grid[1])
        for block in self.blocks:
            x = block(x, grid, bias, condition)
        return self.norm(x)
