"""bfloat16 where the processor multiplies in it, float32 elsewhere.

A CPU without AVX512-BF16 or AMX computes bfloat16 products by conversion: a training step of the tiny policy takes 20 s
there instead of one.
"""

from __future__ import annotations

import functools

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import _muon


@functools.cache
def has_bf16(device: str) -> bool:
    """Whether `device` ("cpu", "cuda", ...) multiplies bfloat16 matrices by itself."""
    if device != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: str | torch.device, wanted: bool) -> torch.autocast:
    """bfloat16 autocast if it is wanted and the device has it."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and has_bf16(kind))


def muon(*args, **kwargs) -> torch.optim.Optimizer:
    """torch.optim.Muon, whose Newton-Schulz steps are float32 on a CPU without bfloat16, and take sharded matrices.

    torch casts to bfloat16 whatever the device (torch/optim/_muon.py, release pinned); its own function is given a
    matrix that does not let itself be cast. A sharded matrix is gathered, since its rows alone do not say what makes it
    orthogonal; every process iterates on the whole of it and keeps its own rows. Its momentum stays sharded.
    """
    if not isinstance(_muon._zeropower_via_newtonschulz, _NewtonSchulz):
        _muon._zeropower_via_newtonschulz = _NewtonSchulz(_muon._zeropower_via_newtonschulz)
    return torch.optim.Muon(*args, **kwargs)


class _NewtonSchulz:
    """torch's Newton-Schulz iteration, of whole matrices, in float32 on a CPU without bfloat16."""

    def __init__(self, original):
        self.original = original

    def __call__(self, grad: torch.Tensor, *args) -> torch.Tensor:
        if isinstance(grad, DTensor):
            found = self(grad.full_tensor(), *args)
            return distribute_tensor(found, grad.device_mesh, grad.placements, src_data_rank=None)
        if has_bf16(grad.device.type):
            return self.original(grad, *args)
        return self.original(grad.float().as_subclass(_Uncast), *args).as_subclass(torch.Tensor)


class _Uncast(torch.Tensor):
    """A float32 matrix for which bfloat16() is a copy."""

    def bfloat16(self) -> torch.Tensor:
        """Itself, in float32."""
        return self.clone().as_subclass(torch.Tensor)
