"""Stage 2: videos and their latent-action labels -> a trunk that knows what will happen and how it changes.

`train(dataset, labels, out, preset, overrides, init)`. The data set needs pictures and instructions only; its action
columns are never read. Labels are what `vipra label` writes: labels-*.parquet with episode_index, frame_index, codes
(row-major step, code) and future_index, all within an episode, and labels.json. Frames become codes once (tokenise).
What counts is the held-out cross-entropy of each part, beside the one of always guessing the training frequencies of
the codes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

import vipra_ros
from vipra_ros.config import ConfigError, build, param
from vipra_ros.learning import precision, prefix_probe, presets, tokenise
from vipra_ros.learning.demonstrations import draw
from vipra_ros.learning.loop import LoopConfig, State, drawing, identity_of, run
from vipra_ros.learning.lwm_folder import LWMFolder
from vipra_ros.learning.parallel import device as own_device
from vipra_ros.learning.parallel import placed, team
from vipra_ros.learning.vq import load_vq, open_dataset
from vipra_ros.model.joint import WEIGHTS, JointBatch, JointConfig, JointModel, weighed
from vipra_ros.model.policy import PolicyConfig
from vipra_ros.policy.pretrained import Pretrained, PretrainedConfig
from vipra_ros.policy.text import END, Prompt, TokenizerError, open_tokenizer, train_word_tokenizer

#: Rows of PolicyConfig that follow from the data, the quantiser and the tokenizer.
DERIVED = ("text_vocab", "codebook_size", "code_groups", "grid", "cameras", "action_dim")


@dataclass(frozen=True)
class Pretrain:
    """config/learning/<preset>/pretrain.yaml."""

    loop: LoopConfig = field(metadata={"doc": "the training loop"})
    policy: dict[str, Any] = field(metadata={"doc": "PolicyConfig of trunk and tables, the same as in stage 3"})
    variant: str = param("ViPRA", doc="name of the method variant, written into the checkpoint")
    vq: str = param("", doc="folder of the trained frame quantiser; empty takes the one of `init`")
    tokenizer: str = param("", doc="tokenizer.json; empty takes the one of `init`, or makes a word vocabulary from the "
                           "instructions")
    words: tuple[str, ...] = param((), doc="more instructions whose words the vocabulary must hold")
    prompt: str = param("{task}", doc="text around the instruction")
    cameras: tuple[str, ...] = param(("front",), doc="cameras in the order of the tokens")
    frame_stride: int = param(1, doc="steps between the two observed frames", low=1)
    future: bool = param(True, doc="predict the future frame")
    latent_steps: int = param(14, doc="steps of latent actions predicted; 0 is none", low=0)
    loss: str = param("paper", doc="paper: plain sum; code: 0.48 / 0.48 / 0.02", choices=tuple(WEIGHTS))
    changed_weight: float = param(1.0, doc="weight of a future frame's code that is not the present one's (beyond the "
                                  "paper)", low=0.0)
    blind_share: float = param(0.0, doc="share of a batch whose latent actions do not see the future frame: they "
                               "follow from the observation alone, as actions will (beyond the paper)", low=0.0,
                               high=1.0)
    early_share: float = param(0.0, doc="share of a batch from the beginnings of episodes, where what will happen can "
                               "only be told from instruction and scene (beyond the paper)", low=0.0, high=1.0)
    early_frames: int = param(8, doc="frames that count as the beginning", low=1)
    holdout: float = param(0.03, doc="share of episodes kept for evaluation, at least one", low=0.0, high=0.5)
    holdout_seed: int = param(0, doc="seed of that choice")
    evaluate_on: int = param(128, doc="observations of an evaluation", low=1)
    probe_episodes: int = param(0, doc="episodes whose beginnings are probed for where the arm will be (beyond the "
                                "paper); hidden states of all layers are held at once: 90 MB in `tiny` for 500", low=0)


@dataclass
class Labels:
    """latents int8 (n, steps, N) and future int64 (n,), global frame index, of every frame, -1 of those without a
    label; head: labels.json."""

    latents: np.ndarray
    future: np.ndarray
    head: dict


def read_labels(folder: str | Path, dataset) -> Labels:
    """The labels of an opened data set.

    Raises:
        ConfigError: they are incomplete, of another data set, or not labels.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    if not (folder / "labels.json").exists():
        raise ConfigError(f"{folder} holds no labels.json; give the folder `vipra label` made")
    head = json.loads((folder / "labels.json").read_text())
    mine = tokenise.fingerprint(dataset)
    if head.get("data", mine) != mine:  # earlier versions did not say
        raise ConfigError(f"{folder} has labels of {head['dataset']}, which is not {dataset.path}; label this data set")
    steps, width = head["steps"], head["codes_per_step"]
    total = len(dataset)
    latents, future = np.zeros((total, steps, width), np.int8), np.full(total, -1, np.int64)
    start = {e.index: e.start for e in dataset.episodes}
    length = {e.index: e.length for e in dataset.episodes}
    for path in sorted(folder.glob("labels-*.parquet")):
        table = pq.read_table(path)
        episode, frame = (table[k].to_numpy() for k in ("episode_index", "frame_index"))
        ahead = table["future_index"].to_numpy()
        strange = [i for i in np.unique(episode) if i not in start or frame[episode == i].max() >= length[i]]
        if strange:
            raise ConfigError(f"{path}: episode {strange[0]} does not fit {dataset.path}; label this data set again")
        first, last = (np.array([d[i] for i in episode], np.int64) for d in (start, length))
        codes = table["codes"].combine_chunks().flatten().to_numpy()
        if len(codes) != len(frame) * steps * width:
            raise ConfigError(f"{path}: {len(codes)} codes for {len(frame)} frames of {steps} x {width}; label again")
        latents[first + frame] = codes.reshape(-1, steps, width)
        future[first + frame] = first + np.clip(ahead, 0, last - 1)
    wanted = np.concatenate([np.arange(e.start, e.start + e.length, head.get("every", 1)) for e in dataset.episodes])
    missing = wanted[future[wanted] < 0]
    if len(missing):
        place = next(i for i, e in enumerate(dataset.episodes) if e.start <= missing[0] < e.start + e.length)
        shard = folder / f"labels-{place // head.get('videos_per_shard', 50):05d}.parquet"
        again = f"delete {shard.name} and " if shard.exists() else ""  # a shard that is there is not made again
        raise ConfigError(f"{folder}: {len(missing)} of {len(wanted)} frames have no label; {again}run `vipra label` "
                          "again")
    if latents.min() < 0 or latents.max() >= head["codebook"]:
        raise ConfigError(f"{folder}: codes reach {latents.max()}, the codebook has {head['codebook']}; label again")
    return Labels(latents, future, head)


class PretrainJob:
    """The joint model's side of the loop. codes int16 (n, cameras, codes per frame), `quantiser`: hash of what made
    them."""

    def __init__(self, config: Pretrain, made: Pretrained, dataset, codes: np.ndarray, labels: Labels,
                 quantiser: str, out: Path, device: str = "cpu"):
        self.config, self.made, self.model, self.out, self.device = config, made, made.model, out, device
        self.codes, self.labels = codes, labels
        of_labels = [labels.head.get(key) for key in ("stride", "every", "camera")]
        self.identity = identity_of(config, made.config.data, made.config.latent_hash, made.config.started_from,
                                    quantiser, json.dumps(of_labels))
        self.layers = list(self.model.trunk.layers)
        self.hidden_matrices = [p for p in self.model.trunk.layers.parameters() if p.ndim == 2]
        instructions = sorted({e.task for e in dataset.episodes})
        prompt = Prompt(made.tokenizer, config.prompt, False)
        self.text, self.text_mask = (torch.from_numpy(a) for a in prompt.batch(instructions))
        self.close, self.open, self.end = closing(prompt, config.latent_steps > 0)
        self.first = np.zeros(len(codes), np.int64)
        self.instruction = np.zeros(len(codes), np.int64)
        for e in dataset.episodes:
            span = slice(e.start, e.start + e.length)
            self.first[span], self.instruction[span] = e.start, instructions.index(e.task)
        order = np.random.default_rng(config.holdout_seed).permutation(len(dataset.episodes))
        count = max(1, round(config.holdout * len(order)))
        if count >= len(order):
            raise ConfigError(f"{dataset.path}: {len(order)} episode; pre-training needs two or more, one is held out")
        held = {int(i) for i in order[:count]}
        spans = [np.arange(e.start, e.start + e.length) for e in dataset.episodes]
        spans = [s[labels.future[s] >= 0] for s in spans]
        self.held = np.concatenate([s for i, s in enumerate(spans) if i in held])
        self.usable = np.concatenate([s for i, s in enumerate(spans) if i not in held])
        self.early = self.usable[self.usable - self.first[self.usable] < config.early_frames]
        self.probed = self._probed(dataset)

    def example(self, index: np.ndarray, blind: float = 0.0) -> JointBatch:
        """Sequences of the frames `index` (global); latent actions of the share `blind` of them, spread evenly, do not
        see the future frame."""
        c = self.config
        which = torch.from_numpy(self.instruction[index])
        text, mask = self.text[which], self.text_mask[which]
        longest = int(mask.sum(1).max())
        offsets = np.arange(1 - self.model.config.frames, 1) * c.frame_stride
        rows = np.maximum(index[:, None] + offsets, self.first[index][:, None])
        ahead = None
        if c.future:
            ahead = torch.from_numpy(self.codes[self.labels.future[index]].astype(np.int64))
        latents = None
        if c.latent_steps:
            latents = torch.from_numpy(self.labels.latents[index, : c.latent_steps].astype(np.int64))
        codes = torch.from_numpy(self.codes[rows].astype(np.int64))
        hide = None
        if blind and c.future and c.latent_steps:
            hide = torch.from_numpy(np.diff(np.floor(np.arange(len(index) + 1) * blind + 1e-9)) > 0)
        return placed(JointBatch(text[:, -longest:], mask[:, -longest:], codes, ahead, latents, self.close, self.open,
                                 self.end, hide), self.device)

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Joint loss of one batch."""
        c = self.config
        with drawing():
            index = draw(generator, c.loop.batch, self.usable, self.early, c.early_share)
            batch = self.example(index, c.blind_share)
        parts = self.model.losses(batch, c.changed_weight)
        return weighed(parts, WEIGHTS[c.loss]), {k: float(v.detach()) for k, v in parts.items()}

    def _probed(self, dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Frames to probe (m,), True (m,) where they are fitted on, and joints (m, J), rad, at the time of their future
        frame; None where nothing is probed or the videos have no joints."""
        column, count = "observation.state", self.config.probe_episodes
        if not count or column not in dataset.features:
            return None
        draws = np.random.default_rng(self.config.holdout_seed)
        held, sides = np.isin(self.first, self.first[self.held]), []
        early = np.arange(len(held)) - self.first < self.config.early_frames
        for side in (~held, held):
            rows = draws.permutation(np.flatnonzero(side & early & (self.labels.future >= 0)))
            one_each = np.unique(self.first[rows], return_index=True)[1]
            sides.append(np.sort(draws.permutation(rows[one_each])[:count]))
        index = np.concatenate(sides)
        return index, np.arange(len(index)) < len(sides[0]), dataset.numeric(column)[self.labels.future[index]]

    def after_step(self, generator: torch.Generator, step: int, progress: float) -> None:
        """Nothing to do."""

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Held-out cross-entropy of each part (nat per code), and `*_guess`, that of the training frequencies;
        `held_latent_blind`: that of the latent actions where they do not see the future frame."""
        c = self.config
        spread = np.linspace(0, len(self.held) - 1, min(c.evaluate_on, len(self.held))).round().astype(int)
        index = self.held[spread]
        sums: dict[str, float] = {}
        for i in range(0, len(index), 32):
            part = index[i : i + 32]
            with precision.autocast(self.device, c.loop.bf16):
                losses = self.model.losses(self.example(part))
                if c.blind_share and (unseen := self.example(part, 1.0)).blind is not None:
                    losses["latent_blind"] = self.model.losses(unseen)["latent_blind"]
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(part)
        figures = {f"held_{name}": value / len(index) for name, value in sums.items()}
        some = self.usable[np.linspace(0, len(self.usable) - 1, min(2000, len(self.usable))).round().astype(int)]
        if c.future:
            figures["future_guess"] = guess(self.codes[self.labels.future[some]], self.codes[self.labels.future[index]],
                                            self.model.config.codebook_size)
        if c.latent_steps:
            latents = self.labels.latents[:, : c.latent_steps]
            figures["latent_guess"] = guess(latents[some], latents[index], self.model.joint.latent_codebook)
        if self.probed:
            index, fit, joints = self.probed
            batches = (self.example(index[i : i + 32]) for i in range(0, len(index), 32))
            layers = prefix_probe.hidden_states(self.model, batches, c.loop.bf16)
            found = prefix_probe.explained(layers, joints, fit)
            figures |= {"probe_future_joints_r2": found} if np.isfinite(found) else {}
        return figures

    def export(self, figures: dict[str, float], state: State) -> None:
        """The pre-trained folder, complete at every evaluation."""
        c = self.made.config
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        origin = f"imported weights {c.started_from[:16]}" if c.started_from else "random weights"
        self.made.card = (
            f"# {c.variant}, pre-trained ({c.preset})\n\n{size:.2f} M parameters, seed {c.seed}, data {c.data}, "
            f"latent actions {c.latent_hash or 'none'}, begun with {origin}, vipra_ros {c.code_version}.\n"
            f"{state.samples} observations in {state.seconds / 60:.1f} minutes, {state.step} steps.\n\n"
            f"| held out, nat per code | value |\n|---|---|\n{rows}\n"
        )
        self.made.save(self.out / "checkpoint")


def reach(future: np.ndarray) -> int:
    """Frames from now to the future frame: what labels of frames that are far enough from an episode's end say."""
    return max(1, int((future - np.arange(len(future))).max()))


def closing(prompt: Prompt, latents: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Text ids of `</vision>`, `<dynamics>`, and what ends the sequence."""
    last = prompt.tokenizer.token_to_id(END)
    if last is None:
        raise TokenizerError(f"the tokenizer knows no {END}; give the tokenizer.json of a LLaMA model")
    close, begin, done = (prompt.tokenizer.encode(t, add_special_tokens=False).ids
                          for t in ("</vision>", "<dynamics>", "</dynamics>"))
    return torch.tensor(close), torch.tensor(begin), torch.tensor([*(done if latents else []), last])


def guess(seen: np.ndarray, held: np.ndarray, size: int) -> float:
    """Cross-entropy in nat of `held` codes under the frequencies of `seen` ones, one added to each count."""
    counts = np.bincount(np.asarray(seen).ravel(), minlength=size) + 1.0
    return float(-np.log(counts / counts.sum())[np.asarray(held).ravel()].mean())


def train(dataset, labels: str | Path, out: str | Path, preset: str | Path = "tiny",
          overrides: dict[str, Any] | None = None, init: str | Path = "") -> Path:
    """Pre-train on a data set and its labels; returns the folder `out`/checkpoint.

    Args:
        dataset: folder of a LeRobot v3 data set, or an opened one.
        labels: folder of `vipra label`.
        preset: name under config/learning, or the path of a YAML file.
        overrides: dotted keys of the YAML.
        init: folder of `vipra import-lwm` whose trunk, text and vision tables and heads, quantiser and tokenizer are
            taken over; empty begins with random weights.

    Raises:
        ConfigError: something does not fit, before the network takes memory.
    """
    config = presets.read(Pretrain, preset, "pretrain", overrides or {})
    for key in DERIVED:
        if key in config.policy:
            raise ConfigError(f"{preset}: policy.{key} follows from the data and the quantiser; delete it")
    start = LWMFolder.open(init, "pretrain") if init else None
    if not config.vq and not start:
        raise ConfigError("pretrain: vq is empty; name the folder of a trained frame quantiser (vipra train vq)")
    out, opened = Path(out), open_dataset(dataset)
    vq = start.quantiser(config.vq) if start else load_vq(config.vq)
    read = read_labels(labels, opened)
    if config.latent_steps > read.head["steps"]:
        raise ConfigError(f"pretrain: latent_steps = {config.latent_steps}, the labels have {read.head['steps']}")
    tokenizer = start.tokenizer(config.tokenizer) if start else _tokenizer(config, opened)
    vocabulary = start.config.text_vocab if start else Prompt(tokenizer, config.prompt, False).size
    trunk = build(PolicyConfig, {
        **config.policy, "text_vocab": vocabulary,
        "codebook_size": vq.config.codebook_size, "code_groups": vq.config.groups, "grid": vq.config.grid,
        "cameras": len(config.cameras)}, source="pretrain: policy")
    joint = JointConfig(policy=trunk, future=config.future, latent_steps=config.latent_steps,
                        codes_per_step=read.head["codes_per_step"], latent_codebook=read.head["codebook"])
    if start:
        start.check(trunk, lambda: JointModel(joint))
    identity, fingerprint = tokenise.quantiser_hash(vq), tokenise.fingerprint(opened)
    name = f"{opened.path.name}-{fingerprint}-{identity[:8]}"
    with team().first():
        codes = tokenise.tokenise(opened, vq, out.parent / "codes" / name, config.cameras, identity)
    torch.manual_seed(config.loop.seed)
    model = JointModel(joint)
    if start:
        start.fill(model)
    else:
        model.start_vision_from(vq.code_vectors(), torch.Generator().manual_seed(config.loop.seed))
    described = PretrainedConfig(
        variant=config.variant, preset=Path(preset).stem if str(preset).endswith(".yaml") else str(preset), joint=joint,
        vq=vq.config, cameras=config.cameras, frame_stride=config.frame_stride, prompt=config.prompt,
        ahead=reach(read.future), latent_hash=read.head["latent_hash"] if config.latent_steps else "",
        **(read.head.get("losses", {}) if config.latent_steps else {}),
        started_from=start.identity if start else "", seed=config.loop.seed,
        data=f"{opened.path.name} {fingerprint}", code_version=vipra_ros.__version__)
    made = Pretrained(described, model, vq, tokenizer, notice=start.notice if start else "")
    run(PretrainJob(config, made, opened, codes, read, identity, out, own_device()), config.loop, out)
    return out / "checkpoint"


def _tokenizer(config: Pretrain, dataset) -> Tokenizer:
    """The one that is named, or a word vocabulary of the instructions."""
    if config.tokenizer:
        return open_tokenizer(config.tokenizer)
    texts = sorted({e.task for e in dataset.episodes})
    return train_word_tokenizer([*texts, *config.words, config.prompt.replace("{task}", " ")])
