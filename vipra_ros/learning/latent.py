"""Stage 1: latent actions from video without labels. `train(sources, out, config)`.

Loss: L1 + 0.5 perceptual + gate(step) 0.1 flow, where the gate opens late: before pictures resemble anything, their
flow says nothing. The folder holds config.json and latent.safetensors, health.json, usage.png and sheet.png.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import vipra_ros
from vipra_ros.config import ConfigError, build, param
from vipra_ros.learning import latent_health, parallel, presets
from vipra_ros.learning.footage import Footage, open_footage
from vipra_ros.learning.loop import LoopConfig, State, drawing, identity_of, run
from vipra_ros.model import optical_flow, perceptual
from vipra_ros.model.latent import LatentActions, LatentConfig, load_dinov2, to_frames
from vipra_ros.model.weights_file import load_weights

FORMAT = "vipra-latent-1"


@dataclass(frozen=True)
class LatentTraining:
    """What to train, on which videos, with which losses."""

    loop: LoopConfig = field(metadata={"doc": "the training loop"})
    model: LatentConfig = field(default_factory=LatentConfig, metadata={"doc": "architecture"})
    cameras: tuple[str, ...] = param(("front",), doc="cameras of data sets; all when empty")
    fps: float = param(15.0, doc="rate at which videos are looked at; 0 is each one's own", unit="Hz", low=0.0)
    frames: int = param(8, doc="frames of a clip, L + 1", low=3)
    stride: int = param(1, doc="frames from one of a clip to the next", low=1)
    holdout: float = param(0.05, doc="share of the videos kept for evaluation", low=0.0, high=0.5)
    most_frames: int = param(0, doc="frames at which decoding stops; 0 takes all videos", low=0)
    evaluate_on: int = param(64, doc="held-out clips", low=2)
    encoder_weights: str = param("", doc="folder of the image encoder's weights, image_encoder dinov2 only")
    encoder_rate: float = param(1.0, doc="learning rate of the image encoder as a fraction", low=0.0, high=1.0)
    motion_weight: float = param(0.0, doc="extra weight in L1 of pixels that change", low=0.0)
    perceptual: str = param("pyramid", doc="perceptual distance", choices=perceptual.KINDS)
    perceptual_weights: str = param("", doc="file of torchvision's VGG16, perceptual lpips only")
    perceptual_weight: float = param(0.5, doc="its weight", low=0.0)
    flow: str = param("pyramid", doc="flow estimator", choices=optical_flow.KINDS)
    flow_weights: str = param("", doc="file of torchvision's RAFT-large, flow raft only")
    flow_weight: float = param(0.1, doc="weight of the flow loss, per px", low=0.0)
    flow_from_step: int = param(60000, doc="step at which the flow loss begins", low=0)
    flow_ramp_steps: int = param(10000, doc="steps over which it grows to its weight", low=0)
    codes_from_data: bool = param(False, doc="the codebook begins at clusters of a batch, not at noise")
    continuous_steps: int = param(0, doc="steps before anything is quantised, codes_from_data only", low=0)
    code_follow: float = param(0.0, doc="decay of running means that the codes follow; 0 leaves them to the gradient",
                               low=0.0, high=0.9999)
    replace_below: float = param(0.015, doc="share of use below which a code is replaced", low=0.0, high=0.5)
    replace_every: int = param(100, doc="steps between replacements, early", low=1)
    replace_every_late: int = param(5000, doc="steps between replacements, later", low=1)
    replace_late_from: int = param(10000, doc="step at which later begins", low=0)
    replace_until: int = param(120000, doc="step after which no code is replaced", low=0)

    def __post_init__(self) -> None:
        if self.continuous_steps and not self.codes_from_data:
            raise ConfigError(f"latent: continuous_steps = {self.continuous_steps} leads nowhere without a codebook "
                              "that begins at data; set codes_from_data: true")
        if self.flow == "raft":  # now, and not when the gate opens
            optical_flow.check_raft_size(self.model.image_size, self.model.image_size)


def flow_gate(config: LatentTraining, step: int) -> float:
    """0 until `flow_from_step`, then linear over `flow_ramp_steps` to 1."""
    since = step - config.flow_from_step
    return min(1.0, max(0.0, since / max(1, config.flow_ramp_steps))) if since >= 0 else 0.0


def replaces(config: LatentTraining, step: int) -> bool:
    """Whether rarely used codes are replaced after `step` steps."""
    every = config.replace_every if step < config.replace_late_from else config.replace_every_late
    return step <= config.replace_until and step % every == 0


class LatentJob:
    """The latent actions' side of the loop."""

    def __init__(self, config: LatentTraining, footage: Footage, out: Path, device: str = "cpu"):
        self.config, self.footage, self.out, self.device = config, footage, out, device
        torch.manual_seed(config.loop.seed)
        self.model = LatentActions(config.model)
        if config.model.image_encoder == "dinov2":
            load_dinov2(self.model, config.encoder_weights)
        # With the weights, because a resumed run must know where the gate of the flow loss stands.
        self.model.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.model.to(device)
        self.flow = optical_flow.make_flow(config.flow, config.flow_weights)
        self.perceptual = perceptual.make_perceptual(config.perceptual, config.perceptual_weights)
        for net in (self.flow, self.perceptual):
            if net is not None:
                net.to(device)
        inverse, dynamics = self.model.inverse, self.model.dynamics
        images = inverse.image.net.encoder.layer if config.model.image_encoder == "dinov2" else ()
        self.layers = [*images, *inverse.stack.blocks, *dynamics.stack.blocks]
        self.hidden_matrices: list = []
        self.by_hand = [self.model.quantiser.codebook.weight]
        self.rates = {id(p): config.encoder_rate for p in self.model.inverse.image.parameters()}
        self.identity = identity_of(config, footage.identity, json.dumps(sorted(footage.held)))
        span = (config.frames - 1) * config.stride + 1
        self.starts = footage.starts(False, span)
        if not len(self.starts):
            raise ConfigError(f"no video has {span} frames; take a smaller frames or stride, or a higher fps")
        self.replaced = 0

    @property
    def losses(self) -> dict[str, str]:
        """Which flow and perceptual loss are used, the weights' hash behind a colon."""
        return {
            "flow": self.flow.name if self.flow else "none",
            "perceptual": self.perceptual.name if self.perceptual else "none",
        }

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """L1 + perceptual + gated flow, teacher-forced."""
        c, step = self.config, int(self.model.steps_done)
        with drawing():
            pick = torch.randint(len(self.starts), (c.loop.batch,), generator=generator).numpy()
            clips = self.footage.clips(self.starts[pick], c.frames, c.stride).to(self.device)  # as bytes: a quarter
        x = to_frames(clips)
        quantiser = self.model.quantiser
        quantiser.follow, quantiser.continuous = c.code_follow, step < c.continuous_steps
        if c.codes_from_data and not quantiser.started and not quantiser.continuous:
            with torch.no_grad():
                z = self.model.inverse(self.model.inverse.features(x))
            quantiser.start(z.flatten(0, -2), generator)
        out = self.model(x, generator)
        truth, y = x[:, 1:], out.prediction
        error = (y - truth).abs()
        weight = 1.0 + c.motion_weight * ((truth - x[:, :-1]).abs().amax(2, keepdim=True) > latent_health.MOVES)
        total = (error * weight).mean() / weight.mean()
        figures = {"l1": error.detach().mean().item()}
        if self.perceptual is not None:
            value = self.perceptual(y.flatten(0, 1), truth.flatten(0, 1))
            total, figures["perceptual"] = total + c.perceptual_weight * value, value.item()
        gate = flow_gate(c, step)
        if self.flow is not None and gate:
            value = optical_flow.flow_loss(self.flow, torch.cat((x[:, :1], y), 1), x)
            total, figures["flow"] = total + gate * c.flow_weight * value, value.item()
        share = torch.bincount(out.codes.flatten(), minlength=c.model.codebook_size).double() / out.codes.numel()
        figures["perplexity"] = latent_health.perplexity(share.cpu().numpy())
        figures["replaced"] = float(self.replaced)
        return total, figures

    def after_step(self, generator: torch.Generator, step: int, progress: float) -> None:
        """Count, and replace codes nobody uses."""
        self.model.steps_done.fill_(step)
        if replaces(self.config, step):
            self.replaced = self.model.quantiser.replace(generator, self.config.replace_below)

    def evaluate(self) -> dict[str, float]:
        """Health on held-out clips."""
        c = self.config
        self.health = latent_health.examine(self.model, self.footage, c.frames, c.stride, c.evaluate_on)
        if c.codes_from_data and not self.model.quantiser.started:
            self.health.alarms.insert(0, f"nothing is quantised before step {c.continuous_steps}, this is step "
                                      f"{int(self.model.steps_done)}: train longer or lower continuous_steps")
        for line in self.health.alarms:
            print(f"[alarm] {line}", flush=True)
        return self.health.figures

    def export(self, figures: dict[str, float], state: State) -> None:
        """The folder, at every evaluation."""
        c, out = self.config, self.out
        notes = {
            "losses": self.losses,
            "fps": c.fps,
            "stride": c.stride,
            "figures": figures,
            "training": asdict(c),
            "state": vars(state),
            "videos": len(self.footage.shots),
            "frames": len(self.footage.images),
            "data": hashlib.sha256(self.footage.identity.encode()).hexdigest()[:16],
            "version": vipra_ros.__version__,
        }
        save(self.model, out, notes)
        usage = self.health.usage
        (out / "health.json").write_text(
            json.dumps({"figures": figures, "usage": usage.round(4).tolist(), "alarms": self.health.alarms}, indent=1)
        )
        latent_health.plot_usage(usage, out / "usage.png")
        span = (c.frames - 1) * c.stride + 1
        starts = self.footage.starts(True, span)
        starts = starts if len(starts) else self.starts
        pair = self.footage.clips(starts[[len(starts) // 4, len(starts) * 3 // 4]], c.frames, c.stride)
        latent_health.sheet(self.model, pair[0], pair[1], out / "sheet.png")


def train(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    config: str | Path | LatentTraining = "tiny",
    overrides: dict | None = None,
) -> Path:
    """Train latent actions on data sets and folders of videos; returns `out`.

    Args:
        config: preset under config/learning, a YAML path, or the configuration itself.
        overrides: dotted keys of the YAML.

    Raises:
        ConfigError, ClipError, DatasetError: what is wrong with configuration, weights or videos, in one line.
    """
    made = isinstance(config, LatentTraining)
    c = config if made else presets.read(LatentTraining, config, "latent", overrides or {})
    if isinstance(sources, (str, Path)):
        sources = [sources]
    out, size = Path(out), c.model.image_size
    with parallel.team().first():
        footage = open_footage(sources, out / "footage", size, c.fps, c.cameras, c.most_frames, c.holdout, c.loop.seed)
    job = LatentJob(c, footage, out, parallel.device())
    run(job, c.loop, out)
    if parallel.team().main:
        figures = job.health.figures
        print("latent: " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return out


def save(model: LatentActions, out: Path, notes: dict) -> None:
    """Write config.json and latent.safetensors into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous().cpu() for k, v in model.state_dict().items() if k != "steps_done"}
    save_file(tensors, out / "latent.safetensors")
    head = {"format": FORMAT, "model": asdict(model.config), "hash": weights_hash(tensors)}
    (out / "config.json").write_text(json.dumps(head | notes, indent=1))


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """16 hex digits over all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_notes(folder: str | Path) -> tuple[LatentConfig, dict]:
    """Architecture and config.json of a folder written by `train`, without the weights.

    Raises:
        ConfigError: the folder holds none, or another format.
    """
    path = Path(folder) / "config.json"
    notes = json.loads(path.read_text()) if path.exists() else {}
    if notes.get("format") != FORMAT:
        raise ConfigError(f"{folder} holds no latent actions (config.json of {FORMAT}); run vipra train latent first")
    return build(LatentConfig, notes["model"], source=str(path)), notes


def load_latent(folder: str | Path) -> tuple[LatentActions, dict]:
    """The model of a folder written by `train`, in evaluation mode, and its config.json.

    Raises:
        ConfigError: the folder holds none, or another format, or its weights are missing or broken.
    """
    config, notes = load_notes(folder)
    model = LatentActions(config)
    load_weights(model, Path(folder) / "latent.safetensors")
    return model.eval(), notes
