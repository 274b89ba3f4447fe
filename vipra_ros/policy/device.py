"""Where a policy computes: `device`, the same words in every node and command, checked before anything is loaded.

- auto: the GPU that torch sees, where the engine computes on one; else the processor
- cpu: the processor
- cuda: the first GPU; cuda:1 the second one
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from vipra_ros.config import ConfigError

if TYPE_CHECKING:
    import torch

#: Engines on a processor only, on a GPU only, and those of exported graphs, whose GPU is onnxruntime's matter.
CPU_ONLY, GPU_ONLY, GRAPHS = ("fused",), ("tensorrt",), ("onnx", "tensorrt")


def check_device(device: str) -> None:
    """Raises ConfigError when the text is no device. Needs no torch."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device = {device!r}: write auto, cpu, cuda, or cuda:1 for the second GPU")


def choose_device(device: str, engines: Sequence[str]) -> str:
    """`device` as torch takes it, for engines that are all to compute there; "auto" becomes "cpu" or "cuda".

    Raises:
        ConfigError: no device of that name is here, or one of the engines does not compute on it.
    """
    check_device(device)
    for engine in engines:
        if engine in CPU_ONLY and device.startswith("cuda"):
            raise ConfigError(f"device = {device!r} with engine = {engine!r}, which is for the processor: choose "
                              "engine 'static' or 'torch', or device 'cpu'")
        if engine in GPU_ONLY and device == "cpu":
            raise ConfigError(f"device = 'cpu' with engine = {engine!r}, which is for a GPU: choose engine 'onnx', or "
                              "device 'cuda'")
    import torch

    if device == "auto":
        if any(engine in GPU_ONLY for engine in engines):
            device = "cuda"
        else:
            able = torch.cuda.is_available() and not any(engine in CPU_ONLY for engine in engines)
            return "cuda" if able and ("onnx" not in engines or _has_cuda_provider()) else "cpu"
    # onnxruntime brings a CUDA of its own and says itself when it finds no GPU.
    if device != "cpu" and not all(engine in GRAPHS for engine in engines):
        count, wanted = torch.cuda.device_count(), torch.device(device).index or 0
        if not torch.cuda.is_available():
            raise ConfigError(f"device = {device!r}: torch {torch.__version__} finds no GPU here; install its CUDA "
                              "build and the card's driver, or choose device 'cpu'")
        if wanted >= count:
            raise ConfigError(f"device = {device!r}: there are {count} GPUs here, the last is 'cuda:{count - 1}'; "
                              "choose one of them, or 'cpu'")
    return device


def _has_cuda_provider() -> bool:
    try:
        import onnxruntime
    except ModuleNotFoundError:  # the engine will say how to install it
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network's numbers lie, all in one place; some have no parameters, only buffers."""
    return next(chain(network.parameters(), network.buffers())).device


def plain(network: torch.nn.Module) -> torch.nn.Module:
    """The network in float32 on the CPU: itself where it is so already, else a copy, for others compute with it."""
    import torch

    weight = next(network.parameters())
    if (weight.device.type, weight.dtype) == ("cpu", torch.float32):
        return network
    return copy.deepcopy(network).to("cpu", torch.float32)
