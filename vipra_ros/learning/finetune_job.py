"""What one step of fine-tuning trains, and how it is judged: configuration and job of stage 3.

Each step trains `draws` (noise, time) pairs per observation behind one prefix; a discrete decoder is taught every token
of the chunk at once. What counts is the held-out chunk error: full samples on episodes never trained on, in radians,
per task, beside the error of not moving at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vipra_ros.config import ConfigError, param
from vipra_ros.learning import lora, precision
from vipra_ros.learning.augment import Augmentation
from vipra_ros.learning.demonstrations import Demonstrations
from vipra_ros.learning.future import WithFuture
from vipra_ros.learning.loop import LoopConfig, State, drawing, identity_of
from vipra_ros.learning.lwm_folder import LWMFolder
from vipra_ros.learning.parallel import placed
from vipra_ros.model import flow
from vipra_ros.model.discrete import DiscretePolicy
from vipra_ros.model.policy import Prefix
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.generator import generate
from vipra_ros.policy.normalise import Normaliser
from vipra_ros.policy.pretrained import Pretrained
from vipra_ros.policy.sampler import sample


@dataclass(frozen=True)
class Finetune:
    """config/learning/<preset>/finetune.yaml."""

    loop: LoopConfig = field(metadata={"doc": "the training loop"})
    policy: dict[str, Any] = field(metadata={"doc": "PolicyConfig without what follows from the data"})
    variant: str = param("Scratch-FM", doc="name of the method variant, written into the checkpoint")
    vq: str = param("", doc="folder of the trained frame quantiser; empty takes the one of `init`")
    tokenizer: str = param("", doc="tokenizer.json; empty: that of `init`, or a word vocabulary of the instructions")
    prompt: str = param("{task}", doc="text around the instruction")
    cameras: tuple[str, ...] = param(("front",), doc="cameras in the order of the tokens")
    frame_stride: int = param(2, doc="steps between the two frames", low=1)
    pretrain_stride: int = param(1, doc="that step in the pre-training of `init`; another one is refused", low=1)
    execute_steps: int = param(7, doc="steps executed before the next chunk", low=1)
    action_space: str = param(
        "joint_position", doc="meaning of the action columns", choices=("joint_position", "joint_delta", "ee_delta")
    )
    relative_actions: bool = param(False, doc="predict joints relative to the measured ones (beyond the paper)")
    proprio_noise: float = param(0.0, doc="noise on given joints while training", unit="std", low=0.0)
    proprio_dropout: float = param(0.0, doc="share of observations whose joints are blanked", low=0.0, high=1.0)
    early_share: float = param(0.0, doc="share of a batch from the beginnings of episodes, where the target is decided "
                               "(beyond the paper)", low=0.0, high=1.0)
    early_frames: int = param(8, doc="frames that count as the beginning", low=1)
    augmentation: Augmentation = field(default_factory=Augmentation, metadata={"doc": "changes of the pictures"})
    draws: int = param(4, doc="(noise, time) pairs per observation and step", low=1)
    committed_steps: int = param(0, doc="first rows of a chunk given while training, 0 to this many (training-time "
                                 "real-time chunking, beyond the paper); 0 is off", low=0)
    future_weight: float = param(0.0, doc="weight of the future frame's cross-entropy beside the action loss (SP3); "
                                 "0 is off", low=0.0)
    euler_steps: int = param(10, doc="integration steps of the sampler", low=1)
    noise_scale: float = param(1.0, doc="of the noise the sampler starts from; 0: none", low=0.0, high=2.0)
    holdout: float = param(0.03, doc="share of episodes kept for evaluation, at least one per task", low=0.0, high=0.5)
    holdout_seed: int = param(0, doc="seed of that choice")
    episodes: int = param(0, doc="training episodes used; 0 is all", low=0)
    lora_rank: int = param(0, doc="rank of low-rank updates of the trunk; of what `init` perceives with, only "
                           "they change then, what acts is trained (LoRA, beyond the paper); 0 trains everything",
                           low=0, high=4096)
    lora_alpha: float = param(16.0, doc="updates count alpha / rank times", low=0.0)
    evaluate_on: int = param(256, doc="observations of an evaluation, each on held-out and on training frames", low=4)

    def __post_init__(self) -> None:
        if self.lora_rank and self.loop.shard:
            raise ConfigError(f"finetune: lora_rank = {self.lora_rank} with loop.shard = true: set shard to false, "
                              "frozen weights need neither moments nor gradients")


class FinetuneJob:
    """The policy's side of the loop. With `future_weight` the model trained has heads that the checkpoint has not;
    `ahead`: frames from now to the future one. Batches are drawn on the CPU and go to `device`; `began`: hashes of the
    quantiser and of the weights it starts from."""

    def __init__(self, config: Finetune, checkpoint: Checkpoint, data: Demonstrations, held: Demonstrations, out: Path,
                 start: Pretrained | LWMFolder | None = None, device: str = "cpu", began: str = ""):
        self.config, self.checkpoint, self.data, self.held, self.out = config, checkpoint, data, held, out
        self.device = device
        self.policy = self.model = checkpoint.policy
        self.ahead = start.config.ahead if isinstance(start, Pretrained) else self.policy.config.horizon
        if config.future_weight:
            self.model = WithFuture(self.policy, checkpoint.prompt, start)
        self.identity = identity_of(config, checkpoint.config.data, began)
        self.layers = list(self.policy.trunk.layers)
        # Muon is for whole matrices; a low-rank update's factors are left to AdamW.
        self.hidden_matrices = [] if config.lora_rank else [
            p for p in self.policy.trunk.layers.parameters() if p.ndim == 2]
        self.normaliser: Normaliser = checkpoint.normaliser
        prompt = checkpoint.prompt
        self.text, self.text_mask = (torch.from_numpy(a) for a in prompt.batch(data.instructions))
        self.between, self.after = torch.tensor(prompt.between), torch.tensor(prompt.after)
        strides = np.arange(1 - self.policy.config.frames, 1) * config.frame_stride
        self.frame_offsets, self.state_offsets = strides, np.arange(1 - self.policy.config.proprio_steps, 1)

    def example(self, data: Demonstrations, index: np.ndarray, version: np.ndarray | None = None,
                ) -> tuple[Prefix, Tensor, np.ndarray]:
        """Prefix and normalised actions (b, h, a) on the CPU, and raw actions of the frames `index` (b,)."""
        which = torch.from_numpy(data.instruction[index])
        text, mask = self.text[which], self.text_mask[which]
        longest = int(mask.sum(1).max())
        codes = torch.from_numpy(data.seen(data.history(index, self.frame_offsets), version).astype(np.int64))
        proprio = None
        if self.policy.config.proprio_steps:
            states = data.states[data.history(index, self.state_offsets)]
            proprio = torch.from_numpy(self.normaliser.states(states)).float()
        raw = data.chunks(index, self.policy.config.horizon)
        actions = torch.from_numpy(self.normaliser.actions(raw, data.states[index])).float()
        return Prefix(text[:, -longest:], mask[:, -longest:], codes, self.between, self.after, proprio), actions, raw

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch: flow matching with `draws` pairs per observation, or cross-entropy of discrete actions."""
        c = self.config
        with drawing():
            index = self._draw(generator)
            version = None
            if self.data.versions:
                version = torch.randint(1 + len(self.data.versions), (len(index),), generator=generator).numpy()
            prefix, actions, _ = self.example(self.data, index, version)
            self._disturb(prefix, generator)
            prefix, actions = placed(prefix, self.device), actions.to(self.device)
        if isinstance(self.policy, DiscretePolicy):
            loss = self.policy.loss(prefix, actions).mean()
        else:
            t = flow.sample_time((len(actions), c.draws), generator)
            noise = torch.randn(len(actions), c.draws, *actions.shape[1:], generator=generator)
            given = None
            if c.committed_steps:
                given = torch.randint(c.committed_steps + 1, t.shape, generator=generator).to(self.device)
            loss = self.policy.loss(prefix, actions, noise.to(self.device), t.to(self.device), given).mean()
        if not c.future_weight:
            return loss, {}
        future = self.model.future_loss(prefix, self._future(self.data, index, version))
        return loss + c.future_weight * future, {"actions": float(loss.detach()), "future": float(future.detach())}

    def _disturb(self, prefix: Prefix, generator: torch.Generator) -> None:
        """Noise on the given joints, and some of them blanked."""
        c = self.config
        if prefix.proprio is not None and c.proprio_noise:
            prefix.proprio = prefix.proprio + c.proprio_noise * torch.randn(prefix.proprio.shape, generator=generator)
        if prefix.proprio is not None and c.proprio_dropout:
            kept = torch.rand(len(prefix.proprio), 1, 1, generator=generator) >= c.proprio_dropout
            prefix.proprio = prefix.proprio * kept

    def _future(self, data: Demonstrations, index: np.ndarray, version: np.ndarray | None = None) -> Tensor:
        """Codes int64 (b, cameras, codes per frame) `ahead` frames later, at most the episode's last."""
        codes = data.seen(np.minimum(index + self.ahead, data.last[index]), version).astype(np.int64)
        return torch.from_numpy(codes).to(self.device)

    def _draw(self, generator: torch.Generator) -> np.ndarray:
        c = self.config
        return self.data.draw(generator, c.loop.batch, c.early_share, c.early_frames)

    def after_step(self, generator: torch.Generator, step: int, progress: float) -> None:
        """Nothing to do."""

    def evaluate(self) -> dict[str, float]:
        """Chunk error on held-out frames (and on training frames, for the gap), rad."""
        figures = self.chunk_error(self.held, "")
        seen = self.chunk_error(self.data, "train_")
        if self.config.future_weight:
            index = self.held.spread(min(64, self.config.evaluate_on))
            with torch.inference_mode(), precision.autocast(self.device, self.config.loop.bf16):
                prefix = placed(self.example(self.held, index)[0], self.device)
                figures["held_future"] = float(self.model.future_loss(prefix, self._future(self.held, index)))
        return figures | {"train_chunk_rad": seen["train_chunk_rad"]}

    @torch.inference_mode()
    def chunk_error(self, data: Demonstrations, name: str) -> dict[str, float]:
        """Mean absolute joint error of sampled chunks: whole, first `execute_steps` rows, by task; share of wrong
        gripper commands; and `hold_rad`, the error of commanding the measured joints for the whole chunk."""
        c = self.config
        index = data.spread(c.evaluate_on)
        noise = torch.randn(
            len(index),
            self.policy.config.horizon,
            self.policy.config.action_dim,
            generator=torch.Generator().manual_seed(7),
        )
        made, raw = [], []
        for i in range(0, len(index), 64):
            prefix, _, truth = self.example(data, index[i : i + 64])
            with precision.autocast(self.device, c.loop.bf16):
                normal = self._chunks(placed(prefix, self.device), noise[i : i + 64].to(self.device)).cpu()
            made.append(self.normaliser.raw_actions(normal.double().numpy(), data.states[index[i : i + 64]]))
            raw.append(truth)
        made, raw = np.concatenate(made), np.concatenate(raw)
        error = np.abs(made - raw)[..., :-1].mean(-1)
        figures = {
            f"{name}chunk_rad": float(error.mean()),
            f"{name}first_rad": float(error[:, : c.execute_steps].mean()),
            f"{name}gripper_wrong": float((np.sign(made[..., -1]) != np.sign(raw[..., -1])).mean()),
        }
        for k, kind in enumerate(data.kinds):
            mine = data.kind[index] == k
            if mine.any():
                figures[f"{name}{kind}_first_rad"] = float(error[mine, : c.execute_steps].mean())
        if c.action_space == "joint_position":
            still = np.abs(data.states[index][:, None, :-1] - raw[..., :-1])
            figures[f"{name}hold_rad"] = float(still.mean())
        return figures

    def _chunks(self, prefix: Prefix, noise: Tensor) -> Tensor:
        """Sampled chunks, normalised."""
        if isinstance(self.policy, DiscretePolicy):
            return generate(self.policy, prefix, noise)
        return sample(self.policy, prefix, self.config.noise_scale * noise, self.config.euler_steps)

    def export(self, figures: dict[str, float], state: State) -> None:
        """The checkpoint folder, complete at every evaluation."""
        self.checkpoint.card = card(self.checkpoint, figures, state)
        with lora.merged(self.policy):
            self.checkpoint.save(self.out / "checkpoint")


def card(checkpoint: Checkpoint, figures: dict[str, float], state: State) -> str:
    """card.md: what was trained on what, for how long, and the held-out figures."""
    c = checkpoint.config
    size = sum(p.numel() for p in checkpoint.policy.parameters()) / 1e6
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    return (
        f"# {c.variant} ({c.preset})\n\n"
        f"{size:.2f} M parameters, seed {c.seed}, data {c.data}, vipra_ros {c.code_version}.\n"
        f"{state.samples} observations in {state.seconds / 60:.1f} minutes, {state.step} steps.\n\n"
        f"Cameras {', '.join(c.cameras)}; {c.rate:g} Hz; frames {c.frame_stride} steps apart; chunk of {c.horizon}, "
        f"{c.execute_steps} executed; {c.action_space}.\n\n| held out | value |\n|---|---|\n{rows}\n"
    )
