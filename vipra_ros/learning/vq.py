"""Training of the frame quantiser: `train(dataset, out, config)`.

Order of events in one run: the auto-encoder alone for a while (continuous latents), then the codebook starts from
k-means over real latents, then everything trains together while unused codes move to badly served latents, and
in the last part the codebook holds still.

Small cubes are a hundredth of a picture. With `object_weight` > 0 a pixel that differs from the camera's median
picture counts (1 + object_weight) times, because a plain mean over pixels is content without any cube.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vipra_ros.config import ConfigError, build, param
from vipra_ros.learning import presets
from vipra_ros.learning.loop import LoopConfig, State, drawing, identity_of, run
from vipra_ros.learning.tokenise import fingerprint
from vipra_ros.model.patch_vq import PatchVQ, make_quantiser
from vipra_ros.model.vq import VQ, VQConfig
from vipra_ros.model.weights_file import load_weights
from vipra_ros.policy.pictures import resize

#: Files that say of which kind the vq.safetensors beside them is, and their key that does.
DESCRIBED = (("vq.json", "model"), ("pretrain.json", "vq"), ("config.json", "vq"))


@dataclass(frozen=True)
class VQTraining:
    """What to train, on which pictures, how."""

    loop: LoopConfig = field(metadata={"doc": "the training loop"})
    model: VQConfig = field(default_factory=VQConfig, metadata={"doc": "architecture"})
    cameras: tuple[str, ...] = param(("front",), doc="cameras whose frames are learnt, by one quantiser")
    frames: int = param(20000, doc="most frames held in memory, evenly over the data set", low=16)
    holdout: float = param(
        0.03, doc="share of those frames kept for evaluation, from the last episodes", low=0.0, high=0.5
    )
    object_weight: float = param(0.0, doc="extra weight of pixels off the median picture", low=0.0)
    object_threshold: float = param(25.0, doc="how far off counts, largest channel", unit="of 255", low=0.0)
    commitment: float = param(0.25, doc="weight of the commitment loss", low=0.0)
    continuous: float = param(0.12, doc="share of the run before the codebook starts", low=0.0, high=0.9)
    revive_every: int = param(50, doc="steps between searches for unused codes", low=1)
    revive_below: float = param(0.02, doc="uses per step under which a code counts as unused", low=0.0)
    revive_until: float = param(0.85, doc="share of the run after which the codebook holds still", low=0.0, high=1.0)


class VQJob:
    """The quantiser's side of the loop. images uint8 (n, H, W, 3), camera int64 (n,); data: fingerprint of it."""

    def __init__(self, config: VQTraining, images: np.ndarray, camera: np.ndarray, held: np.ndarray, out: Path,
                 data: str = ""):
        self.config, self.images, self.camera, self.held, self.out = config, images, camera, held, out
        torch.manual_seed(config.loop.seed)
        self.model = VQ(config.model).to(memory_format=torch.channels_last)
        self.model.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.hidden_matrices: list = []
        self.identity = identity_of(config, str(images.shape), data)
        self.median = torch.stack(
            [
                torch.from_numpy(np.median(images[camera == c][:: max(1, (camera == c).sum() // 300)], axis=0)).float()
                for c in range(len(config.cameras))
            ]
        )

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """L1, weighted, plus commitment."""
        c = self.config
        with drawing():
            pick = torch.randint(len(self.images), (c.loop.batch,), generator=generator).numpy()
            images = torch.from_numpy(self.images[pick])
            x = VQ.to_input(images)
        if not self.model.started and progress >= c.continuous:
            self._start(generator)
        started = bool(self.model.started)
        decoded, indices, commitment = self.model(x, quantise=started)
        error = (decoded.float() - x).abs()
        if c.object_weight:
            off = (images.float() - self.median[self.camera[pick]]).abs().amax(-1) > c.object_threshold
            weight = 1.0 + c.object_weight * off.float()[:, None]
            reconstruction = (error * weight).mean() / weight.mean()
        else:
            reconstruction = error.mean()
        figures = {"l1": reconstruction.item()}
        if started:
            usage = self.model.quantiser.usage
            share = usage / usage.sum(-1, keepdim=True)
            figures["perplexity"] = torch.exp(-(share * share.clamp_min(1e-12).log()).sum(-1)).mean().item()
        return reconstruction + c.commitment * commitment, figures

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> None:
        need = max(4 * self.config.model.codebook_size, 20_000) // self.config.model.grid**2 + 1
        pick = torch.randint(len(self.images), (need,), generator=generator).numpy()
        latents = [
            self.model.latents(VQ.to_input(torch.from_numpy(self.images[pick[i : i + 64]]))) for i in range(0, need, 64)
        ]
        self.model.quantiser.initialise(torch.cat(latents).float(), generator)
        self.model.started.fill_(True)

    def after_step(self, generator: torch.Generator, step: int, progress: float) -> None:
        """Revive unused codes."""
        c = self.config
        if self.model.started and step % c.revive_every == 0 and progress < c.revive_until:
            pick = torch.randint(len(self.images), (c.loop.batch,), generator=generator).numpy()
            with torch.no_grad():
                z = self.model.latents(VQ.to_input(torch.from_numpy(self.images[pick])))
                self.model.quantiser.revive(z.float(), c.revive_below, generator)

    def evaluate(self) -> dict[str, float]:
        """Figures on the held-out frames."""
        return judge(self.model, self.held)

    def export(self, figures: dict[str, float], state: State) -> None:
        """The folder, at every evaluation."""
        _export(self.model, self.held, self.out, {"training": asdict(self.config), "state": vars(state)}, figures)


def judge(model: VQ | PatchVQ, held: np.ndarray) -> dict[str, float]:
    """PSNR over all pixels, codes in use, and how far coloured blobs move in a round trip, px."""
    errors, used, shifts = [], [], []
    for i in range(0, len(held), 64):
        images = held[i : i + 64]
        codes = model.encode(images)
        decoded = model.decode(codes).numpy()
        errors.append(((images.astype(np.float32) - decoded) ** 2).mean())
        used.append(np.unique(codes.numpy()))
        shifts += [s for pair in zip(images, decoded) for s in blob_shifts(*pair)]
    figures = {
        "psnr": float(10 * np.log10(255**2 / max(np.mean(errors), 1e-9))),
        "codes_used": float(len(np.unique(np.concatenate(used)))),
    }
    if shifts:
        figures |= {f"blob_px_p{q}": float(np.quantile(shifts, q / 100)) for q in (50, 90, 95)}
    return figures


def _export(
    model: VQ | PatchVQ, held: np.ndarray, out: Path, notes: dict, figures: dict[str, float] | None = None
) -> None:
    """vq.safetensors, vq.json, and a sheet of originals over reconstructions."""
    figures = judge(model, held) if figures is None else figures
    save(model, out, {"figures": figures, **notes})
    show = held[:: max(1, len(held) // 8)][:8]
    if len(show):
        import matplotlib.image

        decoded = model.decode(model.encode(show)).numpy()
        matplotlib.image.imsave(out / "vq.png", np.vstack([np.hstack(show), np.hstack(decoded)]))
    print("vq: " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def blob_shifts(image: np.ndarray, decoded: np.ndarray, smallest: int = 15, lost: float = 9.0) -> list[float]:
    """px, how far the centre of the mainly red, green and blue pixels moved; `lost` when they are gone."""
    shifts = []
    for channel in range(3):
        here, there = _blob(image, channel, smallest), _blob(decoded, channel, smallest)
        if here is not None:
            shifts.append(lost if there is None else float(np.linalg.norm(here - there)))
    return shifts


def _blob(image: np.ndarray, channel: int, smallest: int) -> np.ndarray | None:
    others = [i for i in range(3) if i != channel]
    values = image.astype(np.int16)
    # Mainly one primary: magenta and yellow areas have a second strong channel and do not count.
    mask = (values[..., channel] - values[..., others].max(-1) > 50) & (values[..., others].min(-1) < 90)
    if mask.sum() < smallest:
        return None
    return np.array([axis.mean() for axis in np.nonzero(mask)])


def open_dataset(dataset):
    """A LeRobot data set by folder; an opened one passes through."""
    if isinstance(dataset, (str, Path)):
        from vipra_ros.data.dataset import Dataset  # pyarrow loads here, not with the module

        return Dataset(dataset)
    return dataset


def train(dataset, out: str | Path, config: str | Path | VQTraining = "tiny", **overrides) -> Path:
    """Train a quantiser on a data set's frames; returns `out`, which then holds vq.safetensors and vq.json.

    Args:
        dataset: folder of a LeRobot v3 data set, or an opened one (vipra_ros.data.dataset.Dataset).
        config: preset under config/learning, a YAML path, or the configuration itself.
        overrides: keys of the YAML, dotted ones as **{"loop.minutes": 5}.
    """
    config = config if isinstance(config, VQTraining) else presets.read(VQTraining, config, "vq", overrides)
    out = Path(out)
    opened = open_dataset(dataset)
    images, camera = read_frames(opened, config)
    held = max(1, round(config.holdout * len(images) / len(config.cameras)))
    # Frames come camera by camera in time order: the end of each camera's block is whole unseen episodes, but one.
    keep = np.concatenate([np.flatnonzero(camera == c)[:-held] for c in range(len(config.cameras))])
    rest = np.setdiff1d(np.arange(len(images)), keep)
    if config.model.kind == "patch":
        model = PatchVQ(config.model)
        model.fit(images[keep], torch.Generator().manual_seed(config.loop.seed))
        _export(model, images[rest], out, {"training": asdict(config)})
        print(f"vq: patches are fitted in one go, whatever loop says -> {out}")
        return out
    if config.model.kind == "vqgan":
        raise ConfigError("vq: kind = vqgan has no training here; its weights come from vipra import-lwm")
    job = VQJob(config, images[keep], camera[keep], images[rest], out, fingerprint(opened))
    run(job, config.loop, out)
    return out


def read_frames(dataset, config: VQTraining) -> tuple[np.ndarray, np.ndarray]:
    """Evenly picked frames uint8 (n, S, S, 3), camera by camera, and each one's camera index; cut and scaled as the
    policy does it with those of its cameras."""
    size, per_camera = config.model.image_size, config.frames // len(config.cameras)
    images, camera = [], []
    every = max(1, -(-len(dataset) // per_camera))
    for number, name in enumerate(config.cameras):
        for index, image in dataset.frames(name):
            if index % every:
                continue
            images.append(resize(image, size))
            camera.append(number)
    return np.stack(images), np.array(camera)


def save(model: VQ | PatchVQ, out: Path, notes: dict) -> None:
    """Write vq.safetensors and vq.json into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k != "started"}
    save_file(tensors, out / "vq.safetensors")
    (out / "vq.json").write_text(json.dumps({"model": asdict(model.config), **notes}, indent=1))


def load_vq(folder: str | Path) -> VQ | PatchVQ:
    """The quantiser of a folder written by `train`, or in a checkpoint of pre-training or of a policy; evaluation mode.

    Raises:
        ConfigError: the folder holds none.
    """
    folder = Path(folder)
    described = next(((folder / name, key) for name, key in DESCRIBED if (folder / name).exists()), None)
    if described is None:
        raise ConfigError(f"{folder} holds no vq.json, nor a checkpoint; train a quantiser first (vipra train vq)")
    path, key = described
    model = make_quantiser(build(VQConfig, json.loads(path.read_text()).get(key), source=str(path)))
    load_weights(model, folder / "vq.safetensors")
    return model.to(memory_format=torch.channels_last).eval()
