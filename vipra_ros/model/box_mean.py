"""Means of the windows of a picture, by shifted sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class _BoxMean(torch.autograd.Function):
    """Shifted sums, one axis after the other; the gradient is the same of the padded gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, size: int) -> Tensor:
        ctx.size = size
        return _box(x, size)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _box(F.pad(gradient, [ctx.size - 1] * 4), ctx.size), None


def _box(x: Tensor, size: int) -> Tensor:
    for dim in (-1, -2):
        count = x.shape[dim] - size + 1
        total = x.narrow(dim, 0, count) + x.narrow(dim, 1, count)
        for shift in range(2, size):
            total += x.narrow(dim, shift, count)
        x = total
    return x.div_(size * size)


def box_mean(x: Tensor, size: int) -> Tensor:
    """Mean of every whole window of `size` > 1 px a side: (..., H, W) -> (..., H - size + 1, W - size + 1).

    F.avg_pool2d(x, size, 1), whose kernel takes a CPU several times as long.
    """
    return _BoxMean.apply(x, size)
