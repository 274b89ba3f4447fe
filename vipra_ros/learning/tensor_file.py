"""Write a safetensors file tensor by tensor: the header from the shapes alone, then each tensor in its place.

The `safetensors` package wants all tensors at once; here one is in memory at a time. Format: 8 bytes little-endian
length, a JSON header {name: {dtype, shape, data_offsets}}, then the raw data (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vipra_ros.whole_file import in_whole

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: shape, dtype, and what makes it when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]


def size_of(plan: dict[str, Planned]) -> int:
    """Bytes of all tensors."""
    return sum(math.prod(item.shape) * item.dtype.itemsize for item in plan.values())


def write(path: Path, plan: dict[str, Planned], notes: dict[str, str] | None = None,
          advance: Callable[[int], None] = lambda count: None) -> None:
    """Write `plan` to `path`, through a `.part` file beside it, so that a stopped import leaves no half file.

    advance: told the bytes of each tensor once they are written.
    """
    header: dict = {"__metadata__": {"format": "pt", **(notes or {})}}
    at = 0
    for name, item in plan.items():
        size = math.prod(item.shape) * item.dtype.itemsize
        header[name] = {"dtype": NAMES[item.dtype], "shape": list(item.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with in_whole(path) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, item in plan.items():
            tensor = item.make().to(item.dtype).contiguous()
            if tuple(tensor.shape) != item.shape:
                raise ValueError(f"{name} came as {tuple(tensor.shape)}, planned {item.shape}")
            file.write(tensor.reshape(-1).view(torch.uint8).numpy())
            advance(tensor.nbytes)
