"""Engines by name: a loaded checkpoint, or its folder, to something that answers observations with chunks."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from vipra_ros.policy.checkpoint import Checkpoint, CheckpointConfig, CheckpointError
from vipra_ros.policy.device import GRAPHS, choose_device
from vipra_ros.policy.generator import LeanGenerator, NaiveGenerator
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.observation import Observation, Prediction
from vipra_ros.policy.rtc import GuidedSampler, TrainedSampler
from vipra_ros.policy.sampler import NaiveSampler
from vipra_ros.policy.static import StaticSampler
from vipra_ros.policy.torch_engine import TorchEngine
from vipra_ros.policy.weights import check_weights

#: auto: fused on a CPU where onnxruntime is installed, else torch. torch: the lean sampler. onnx: onnxruntime with
#: exported graphs, tensorrt: those by its TensorRT provider. fused: onnxruntime on a CPU, graphs made at the start.
#: static: buffers that never move, for CUDA graphs. eager: the plain network.
ENGINES = ("auto", "torch", "onnx", "tensorrt", "fused", "static", "eager")
#: Bytes of a graph in memory: protobuf ends at 2 GiB.
LARGEST_GRAPH = 1.9e9
#: Real-time chunking: none, guided by the chunk before, or as the network was trained to go on from it.
RTC = ("none", "guided", "trained")
#: Samplers of PyTorch by decoder and engine.
SAMPLERS = {
    "flow": {"torch": LeanSampler, "static": StaticSampler, "eager": NaiveSampler},
    "discrete": {"torch": LeanGenerator, "eager": NaiveGenerator},
}


class Engine(Protocol):
    """What a node needs of a policy, wherever it runs."""

    checkpoint: Checkpoint
    #: One of ENGINES, and the device that computes, for people to read.
    name: str
    device: str

    def warm_up(self) -> None:
        """Do everything that only the first inference would pay for."""

    def infer(self, observation: Observation, seed: int | None = None) -> Prediction:
        """Answer an observation; the same seed gives the same chunk."""


def open_engine(
    folder: str | Path,
    kind: str = "auto",
    device: str = "auto",
    threads: int = 0,
    euler_steps: int = 0,
    rtc: str = "none",
    weights: str = "full",
) -> Engine:
    """A checkpoint's folder, loaded to the device that the engine computes on (`device.py`); not yet warmed up.

    weights: as of `load_engine`; where they are kept in 8 bits, the checkpoint's own layers are dropped.

    Raises:
        ConfigError: the device is not here, or not for this engine; weights that are not, or not for this engine.
        CheckpointError: as `Checkpoint.load` and `load_engine`.
    """
    check_weights(weights, kind, rtc)
    place = choose_device(device, [kind])
    if kind not in GRAPHS:
        options = {} if weights == "full" else {"release": True}
        return load_engine(Checkpoint.load(folder, place), kind, threads, euler_steps, rtc, weights, **options)
    checkpoint = Checkpoint.load(folder)  # the graphs bring weights of their own to the GPU
    if torch.cuda.is_available():
        checkpoint.vq.to(place)
    return load_engine(checkpoint, kind, threads, euler_steps, rtc, device=place)


def load_engine(
    checkpoint: Checkpoint,
    kind: str = "torch",
    threads: int = 0,
    euler_steps: int = 0,
    rtc: str = "none",
    weights: str = "full",
    **options: object,
) -> Engine:
    """An engine by name. threads: torch threads 0 leaves them, euler_steps: 0 takes the checkpoint's.

    It computes where the checkpoint was loaded to; onnxruntime where its option `device` says.

    rtc: how the prior of an observation enters the answer (`rtc.py`): "guided", any flow policy; "trained", one
        that was trained with committed_steps.
    weights: what the trunk's matrices are kept in (`weights.WEIGHTS`), of engines torch and static.
    options: of `onnx_engine.OnnxEngine` (graphs, precision, device) or of the sampler (`static.StaticSampler`: capture,
        release).

    Raises:
        CheckpointError: no such engine, not for this checkpoint or device, or not installed.
        ConfigError: no such weights, or not for this engine.
    """
    config = checkpoint.config
    _check(config, kind, euler_steps, rtc)
    check_weights(weights, kind, rtc)
    if weights != "full":
        options["weights"] = weights
    if kind == "auto":
        plain = rtc == "none" and weights == "full"
        kind = "fused" if plain and config.decoder == "flow" and _fuses(checkpoint) else "torch"
    try:
        if kind == "fused":
            from vipra_ros.policy.fused import FusedEngine as make
        elif kind in GRAPHS:
            from vipra_ros.policy.onnx_engine import OnnxEngine

            make = partial(OnnxEngine, tensorrt=kind == "tensorrt", **options)
        else:
            sampler = SAMPLERS[config.decoder][kind]
            if rtc != "none":
                sampler = GuidedSampler if rtc == "guided" else partial(TrainedSampler, most=config.committed_steps)
            make = partial(TorchEngine, sampler=partial(sampler, **options))
        engine = make(checkpoint, threads, euler_steps)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"engine = {kind!r} needs {error.name}; run in the checkout: "
                              "pip install '.[onnx]'") from None
    engine.name = kind
    return engine


def _check(config: CheckpointConfig, kind: str, euler_steps: int, rtc: str) -> None:
    """Refuse what does not go together."""
    decoder = config.decoder
    if kind not in ENGINES:
        raise CheckpointError(f"engine = {kind!r}: choose {', '.join(map(repr, ENGINES))}")
    if rtc not in RTC:
        raise CheckpointError(f"rtc = {rtc!r}: choose {', '.join(map(repr, RTC))}")
    if rtc != "none" and (kind not in ("auto", "torch") or decoder != "flow"):
        raise CheckpointError(
            f"rtc = {rtc!r} with engine = {kind!r} and a {decoder} decoder: it needs PyTorch and a network "
            "of flow matching; choose engine 'torch', or rtc 'none'"
        )
    if rtc == "trained" and not config.committed_steps:
        raise CheckpointError("rtc = 'trained', but this checkpoint was not trained with given rows "
                              "(committed_steps = 0); choose 'guided', or train with --set committed_steps=6")
    if kind != "auto" and kind not in SAMPLERS[decoder] and decoder == "discrete":
        raise CheckpointError(f"engine = {kind!r} has no graph of a discrete decoder; choose 'torch'")
    if euler_steps and decoder == "discrete":
        raise CheckpointError(f"euler_steps = {euler_steps}, but this checkpoint makes chunks token by token, without "
                              "Euler steps; set it to 0")
    if euler_steps < 0:
        raise CheckpointError(f"euler_steps = {euler_steps}: give at least 1, or 0 for the checkpoint's own")


def _fuses(checkpoint: Checkpoint) -> bool:
    """Whether onnxruntime takes this network at once, where it does better: on a CPU, its graphs within one message."""
    weights = list(checkpoint.policy.parameters())
    small = 4 * sum(w.numel() for w in weights) < LARGEST_GRAPH
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    return weights[0].device.type == "cpu" and small and installed
