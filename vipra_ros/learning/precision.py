"""bfloat16 where the processor multiplies in it, float32 elsewhere.

A CPU without AVX512-BF16 or AMX computes bfloat16 products by conversion: a training step of the tiny policy takes 20 s
there instead of one.
"""

from __future__ import annotations

import functools

import torch
from torch.optim import _muon


@functools.cache
def has_bf16(device: str) -> bool:
    """Whether `device` ("cpu", "cuda", ...) multiplies bfloat16 matrices by itself."""
    if device != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: str, wanted: bool) -> torch.autocast:
    """bfloat16 autocast if it is wanted and the device has it."""
    return torch.autocast(device, torch.bfloat16, enabled=wanted and has_bf16(device))


def muon(*args, **kwargs) -> torch.optim.Optimizer:
    """torch.optim.Muon, whose Newton-Schulz steps are float32 on a CPU without bfloat16.

    torch casts to bfloat16 whatever the device (torch/optim/_muon.py, release pinned); its own function is given a
    matrix that does not let itself be cast.
    """
    if not has_bf16("cpu") and not isinstance(_muon._zeropower_via_newtonschulz, _Float32):
        _muon._zeropower_via_newtonschulz = _Float32(_muon._zeropower_via_newtonschulz)
    return torch.optim.Muon(*args, **kwargs)


class _Float32:
    """torch's Newton-Schulz iteration, in float32 on a CPU."""

    def __init__(self, original):
        self.original = original

    def __call__(self, grad: torch.Tensor, *args) -> torch.Tensor:
        if grad.device.type != "cpu":
            return self.original(grad, *args)
        return self.original(grad.float().as_subclass(_Uncast), *args).as_subclass(torch.Tensor)


class _Uncast(torch.Tensor):
    """A float32 matrix for which bfloat16() is a copy."""

    def bfloat16(self) -> torch.Tensor:
        """Itself, in float32."""
        return self.clone().as_subclass(torch.Tensor)
