"""The policy through onnxruntime: the graphs of `export.py`, the same observation in and the same chunk out.

The frame quantiser stays torch's: codes are the nearest of thousands, and another rounding would pick others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vipra_ros.model.policy import Prefix
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.device import device_of
from vipra_ros.policy.export import export
from vipra_ros.policy.torch_engine import TorchEngine


def providers(device: str, tensorrt: bool = False) -> list[tuple[str, dict[str, str]]]:
    """onnxruntime's providers, with options, for a device ("cpu", "cuda", "cuda:1"), the first one wanted first.

    Raises:
        CheckpointError: the installed onnxruntime has not the first one.
    """
    import onnxruntime

    kind, _, index = device.partition(":")
    place = {"device_id": index or "0"}
    names = ["TensorrtExecutionProvider"] * tensorrt + ["CUDAExecutionProvider"] * (kind == "cuda")
    there = onnxruntime.get_available_providers()
    if names and names[0] not in there:
        raise CheckpointError(
            f"engine = {'tensorrt' if tensorrt else 'onnx'!r} on {device}: this onnxruntime has {', '.join(there)}, "
            f"not {names[0]}; install onnxruntime-gpu in its place, or choose device 'cpu' with engine 'onnx'"
        )
    return [*((name, place) for name in names), ("CPUExecutionProvider", {})]


def cache_folder(checkpoint: Checkpoint, precision: str) -> Path:
    """Where graphs made without being asked for are kept: $XDG_CACHE_HOME/vipra_ros/onnx/<hash>-<precision>."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vipra_ros" / "onnx" / f"{checkpoint.hash[:16]}-{precision}"


def ready_graphs(checkpoint: Checkpoint, precision: str = "fp32") -> Path | None:
    """Graphs of this checkpoint that need not be made: in its folder `onnx`, or in the cache."""
    for made in (checkpoint.folder and checkpoint.folder / "onnx", cache_folder(checkpoint, precision)):
        try:
            about = json.loads((made / "graphs.json").read_text()) if made else {}
        except (OSError, json.JSONDecodeError):
            continue
        if (about.get("checkpoint"), about.get("precision")) == (checkpoint.hash, precision):
            return made
    return None


def graphs_of(checkpoint: Checkpoint, folder: str | Path | None = None, precision: str = "fp32") -> Path:
    """A folder of graphs that belong to this checkpoint; where none are ready they are exported into the cache, once.

    Raises:
        CheckpointError: `folder` has no graphs, or those of another checkpoint.
    """
    made = Path(folder) if folder else ready_graphs(checkpoint, precision) or cache_folder(checkpoint, precision)
    if not (made / "graphs.json").exists():
        if folder:
            raise CheckpointError(f"{made} has no graphs.json; make it with: vipra export CHECKPOINT {made}")
        if not checkpoint.hash:
            raise CheckpointError("this checkpoint was never saved; save it, or export it and give the folder")
        return export(checkpoint, made, precision)
    try:
        about = json.loads((made / "graphs.json").read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{made}/graphs.json: not valid JSON ({error}); export again") from None
    if about.get("checkpoint") != checkpoint.hash:
        raise CheckpointError(
            f"{made} was made from checkpoint {str(about.get('checkpoint'))[:16]}, this is {checkpoint.hash[:16]}; "
            "export again"
        )
    return made


class OnnxSampler:
    """Called like `LeanSampler`, for one observation without padding; all arrays stay where the provider computes."""

    def __init__(self, folder: Path, steps: int, device: str = "cpu", threads: int = 0, tensorrt: bool = False):
        import onnxruntime

        wanted = providers(device, tensorrt)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that wait spinning would take the cores from the executor and the cameras between two chunks.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        kind, _, index = device.partition(":")
        self.steps, self._place = steps, (kind, int(index or 0))
        self.sessions = [
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=wanted)
            for name in ("prefill", "step")
        ]
        got = self.sessions[0].get_providers()[0]
        if got != wanted[0][0]:  # it goes on without a word
            raise CheckpointError(
                f"onnxruntime could not start {wanted[0][0]} on {device} and would compute with {got}; see that the "
                "card's driver, CUDA and cuDNN are those of this onnxruntime, or choose device 'cpu'"
            )
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._dt = self._put(np.array([1.0 / steps], np.float32))
        self._times = [self._put(np.array([k / steps], np.float32)) for k in range(steps)]

    def __call__(self, prefix: Prefix, noise: Tensor, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """Normalised actions (1, h, a) from noise (1, h, a)."""
        if len(noise) != 1 or not bool(prefix.before_mask.all()):
            raise ValueError("the graphs take one observation without padding")
        prefill, step = self.sessions
        given = {"before": prefix.before, "codes": prefix.codes}
        if prefix.proprio is not None:
            given["proprio"] = prefix.proprio
        binding = prefill.io_binding()
        for name, tensor in given.items():
            binding.bind_ortvalue_input(name, self._put(tensor.cpu().numpy()))
        for name in ("keys", "values"):
            binding.bind_output(name, *self._place)
        prefill.run_with_iobinding(binding)
        keys, values = binding.get_outputs()
        mark("prefill")
        x, other = self._put(noise.cpu().numpy()), self._put(np.empty(tuple(noise.shape), np.float32))
        binding = step.io_binding()
        for name, value in (("keys", keys), ("values", values), ("dt", self._dt)):
            binding.bind_ortvalue_input(name, value)
        for time in self._times:
            binding.bind_ortvalue_input("actions", x)
            binding.bind_ortvalue_input("t", time)
            binding.bind_ortvalue_output("later", other)
            step.run_with_iobinding(binding)
            x, other = other, x
            mark("denoise")
        return torch.from_numpy(x.numpy())

    def _put(self, array: np.ndarray):
        return self._value(np.ascontiguousarray(array), *self._place)


class OnnxEngine(TorchEngine):
    """As `TorchEngine`, with onnxruntime computing prefix and steps; the policy's own network is not used.

    device: "cpu", "cuda" or "cuda:1"; empty: where the frame quantiser lies. tensorrt: by that provider, on a GPU.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int = 0,
        euler_steps: int = 0,
        graphs: str | Path | None = None,
        precision: str = "fp32",
        device: str = "",
        tensorrt: bool = False,
    ):
        device = device or str(device_of(checkpoint.vq))
        providers(device, tensorrt)  # said before graphs are made, which takes long
        folder = graphs_of(checkpoint, graphs, precision)
        super().__init__(
            checkpoint, threads, euler_steps,
            lambda _, steps: OnnxSampler(folder, steps, device, threads, tensorrt),
        )  # fmt: skip
        self.device, self._dtype = device, torch.float32
