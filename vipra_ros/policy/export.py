"""A checkpoint as ONNX graphs, for onnxruntime on a CPU, a GPU or TensorRT.

    prefill.onnx   instruction, codes, joints -> keys and values of the prefix
    step.onnx      noisy actions at time t, those keys and values -> the actions one Euler step later
    graphs.json    what they were made from: hash of the checkpoint, precision, opset, versions

One step rather than all of them unrolled: the number of steps stays free, and a step is long beside a call.
The prefix's keys and values are only read; the chunk's own are scored beside them, so nothing is copied.
One observation a call, without padding; the length of the instruction is free.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError
from vipra_ros.model import flow
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.device import plain
from vipra_ros.policy.lean import LeanSampler

#: fp32 equals torch to rounding; fp16 is for GPUs.
PRECISIONS = ("fp32", "fp16")
OPSET = 20
#: Bytes of weights above which they go into a file of their own; protobuf ends at 2 GB.
EXTERNAL = 1_900_000_000


class _Graph(nn.Module):
    """What both graphs share: folded weights, rotary angles, one decoder layer."""

    def __init__(self, lean: LeanSampler, dtype: torch.dtype):
        super().__init__()
        self.heads, self.eps, self.dtype = lean.heads, lean.eps, dtype
        # (inputs, outputs), as a matrix product takes them
        self.weights = nn.ParameterList(
            nn.Parameter(w.T.to(dtype).contiguous(), requires_grad=False) for layer in lean.layers for w in layer
        )
        self.register_buffer("frequency", lean.policy.trunk.rotary_emb.inv_freq.clone(), persistent=False)

    def layer(self, i: int) -> list[Tensor]:
        return [self.weights[4 * i + k] for k in range(4)]

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """float (n,) -> cosine, sine (n, d of a head)."""
        angle = positions[:, None] * self.frequency
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def norm(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(self.dtype)

    def qkv(self, x: Tensor, weight: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, d) -> query, key, value (heads, n, d of a head), the first two turned."""
        products = (self.norm(x) @ weight).reshape(x.shape[0], 3 * self.heads, -1).transpose(0, 1)
        turned = products[: 2 * self.heads]
        half = turned.shape[-1] // 2
        swapped = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
        turned = turned * angles[0] + swapped * angles[1]
        return turned[: self.heads], turned[self.heads :], products[2 * self.heads :]

    def rest(self, x: Tensor, attended: Tensor, out: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        x = x + attended.transpose(0, 1).reshape(x.shape[0], -1) @ out
        products = self.norm(x) @ gate_up
        middle = products.shape[-1] // 2
        return x + (F.silu(products[:, :middle]) * products[:, middle:]) @ down


class PrefillGraph(_Graph):
    """before int64 (1, l), codes int64 (1, frames, cameras, n), proprio float32 (1, s, a)
    -> keys (layers, heads, d of a head, p), turned for the scores' product, and values (layers, heads, p, d of a head).
    """

    def __init__(self, lean: LeanSampler, between: list[int], after: list[int], dtype: torch.dtype):
        super().__init__(lean, dtype)
        self.policy = lean.policy
        self.register_buffer("between", torch.tensor(between), persistent=False)
        self.register_buffer("after", torch.tensor(after), persistent=False)

    def forward(self, before: Tensor, codes: Tensor, proprio: Tensor | None = None) -> tuple[Tensor, Tensor]:
        policy = self.policy
        parts = [policy.text(before[0]), policy.embed_vision(codes)[0], policy.text(self.between)]
        if policy.proprio_in is not None:
            parts.append(policy.proprio_in(proprio)[0])
        x = torch.cat([*parts, policy.text(self.after)]).to(self.dtype)
        place = torch.arange(x.shape[0], device=x.device)
        angles = self.angles(place.float())
        mask = None
        if not policy.config.bidirectional_prefix:
            mask = torch.where(place[None] > place[:, None], torch.finfo(self.dtype).min, 0.0).to(self.dtype)
        keys, values, count = [], [], len(self.weights) // 4
        for i in range(count):
            into, *others = self.layer(i)
            query, key, value = self.qkv(x, into, angles)
            across = key.transpose(1, 2)
            keys.append(across)
            values.append(value)
            if i + 1 < count:
                scores = (query @ across) * query.shape[-1] ** -0.5
                scores = scores if mask is None else scores + mask
                x = self.rest(x, scores.softmax(-1) @ value, *others)
        return torch.stack(keys), torch.stack(values)


class StepGraph(_Graph):
    """actions float32 (1, h, a), t float32 (1,), dt float32 (1,), keys, values -> actions at t + dt."""

    def __init__(self, lean: LeanSampler, dtype: torch.dtype):
        super().__init__(lean, dtype)
        p = lean.policy
        self.config = p.config
        self.action_in, self.action_mix, self.action_out = p.action_in, p.action_mix, p.action_out
        self.head = nn.Parameter(lean.head_weight.T.contiguous(), requires_grad=False)
        self.bias = p.head.bias

    def forward(self, actions: Tensor, t: Tensor, dt: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        c = self.config
        h, p = c.horizon, values.shape[2]
        half = self.action_in(actions[0])
        features = flow.time_features(t, c.backbone.width // 2, c.time_band).expand(h, -1)
        x = self.action_out(F.silu(self.action_mix(torch.cat([half, features], dim=-1)))).to(self.dtype)
        angles = self.angles(torch.arange(h, device=x.device).float() + 1.0 * p)
        for i in range(c.backbone.layers):
            into, *others = self.layer(i)
            query, key, value = self.qkv(x, into, angles)
            query = query * query.shape[-1] ** -0.5
            own = query @ key.transpose(1, 2)
            if not c.bidirectional_actions:
                own = own + torch.full((h, h), torch.finfo(self.dtype).min, dtype=self.dtype).triu(1)
            weight = torch.cat([query @ keys[i], own], dim=-1).softmax(-1)
            x = self.rest(x, weight[..., :p] @ values[i] + weight[..., p:] @ value, *others)
        velocity = self.norm(x).float() @ self.head + self.bias
        return actions + dt * velocity[None]


def export(checkpoint: Checkpoint, out: str | Path, precision: str = "fp32") -> Path:
    """Write the graphs of a checkpoint, wherever it lies, into the folder `out`, all of them or none.

    Raises:
        ConfigError: unknown precision, or a discrete decoder.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    out, c = Path(out), checkpoint.config
    if c.decoder == "discrete":
        raise ConfigError(f"{c.variant} has a discrete decoder, the graphs are of flow matching; use engine torch")
    if out.exists() and not (out / "graphs.json").exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out} holds other files; export into a folder of its own")
    policy = plain(checkpoint.policy).eval().requires_grad_(False)
    lean, prompt = LeanSampler(policy, 1), checkpoint.prompt
    dtype = torch.float16 if precision == "fp16" else torch.float32
    prefill, step = PrefillGraph(lean, prompt.between, prompt.after, dtype), StepGraph(lean, dtype)
    before = torch.tensor([prompt.before("warm up")])
    codes = torch.zeros(1, c.policy.frames, c.policy.cameras, c.vq.codes_per_frame, dtype=torch.int64)
    seen = {"before": before, "codes": codes}
    if c.proprio_steps:
        seen["proprio"] = torch.zeros(1, c.proprio_steps, c.policy.action_dim)
    with torch.no_grad():
        keys, values = prefill(*seen.values())
    x, one = torch.zeros(1, c.horizon, c.policy.action_dim), torch.ones(1)
    later = {"actions": x, "t": 0 * one, "dt": one, "keys": keys, "values": values}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        part = Path(folder) / "graphs"
        part.mkdir()
        _write(prefill, seen, ("keys", "values"), {"before": {1: "l"}}, part / "prefill.onnx")
        _write(step, later, ("later",), {"keys": {3: "p"}, "values": {2: "p"}}, part / "step.onnx")
        about = {
            "checkpoint": checkpoint.hash,
            "precision": precision,
            "opset": OPSET,
            "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
            "files": {p.name: _sha256(p) for p in sorted(part.iterdir())},
        }
        (part / "graphs.json").write_text(json.dumps(about, indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    return out


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:  # weights may be many times the memory
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _write(
    graph: nn.Module, given: dict[str, Tensor], outputs: tuple[str, ...], free: dict, path: Path
) -> None:
    import onnx

    shapes = {name: dict.fromkeys(free.get(name, {}), torch.export.Dim.DYNAMIC) for name in given}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.onnx.export(
            graph,
            tuple(given.values()),
            dynamo=True,
            input_names=list(given),
            output_names=list(outputs),
            dynamic_shapes=tuple(shapes.values()),
            opset_version=OPSET,
            verbose=False,
        )
    for node in program.model.graph:  # the exporter's notes: the source line and folder that each one came from
        node.metadata_props.clear()
    size = sum(w.numel() * w.element_size() for w in graph.state_dict().values())
    program.save(path, external_data=size > EXTERNAL)
    onnx.checker.check_model(str(path))


def main(checkpoint: str, out: str, precision: str = "fp32") -> None:
    """Export and say what was written."""
    from vipra_ros.policy.shipped import resolve

    folder = export(Checkpoint.load(resolve(checkpoint)), out, precision)
    for path in sorted(folder.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
