"""Stage 3: demonstrations -> a policy, `train(dataset, out, preset, init, overrides)`.

Frames become codes once (tokenise), everything else sits in memory. What a step trains is in finetune_job.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

import vipra_ros
from vipra_ros.config import ConfigError, build
from vipra_ros.control.chunk import GRIPPER_CONVENTION
from vipra_ros.learning import demonstrations, lora, presets, tokenise
from vipra_ros.learning.demonstrations import Demonstrations
from vipra_ros.learning.finetune_job import Finetune, FinetuneJob
from vipra_ros.learning.loop import run
from vipra_ros.learning.lwm_folder import LWMFolder
from vipra_ros.learning.parallel import device as own_device
from vipra_ros.learning.parallel import team
from vipra_ros.learning.vq import load_vq, open_dataset
from vipra_ros.model.discrete import DiscretePolicy, make_policy
from vipra_ros.model.policy import FlowPolicy, PolicyConfig
from vipra_ros.model.vq import VQ
from vipra_ros.model.weights_file import file_hash
from vipra_ros.policy.checkpoint import FORMAT, Checkpoint, CheckpointConfig
from vipra_ros.policy.normalise import Normaliser
from vipra_ros.policy.pretrained import Pretrained
from vipra_ros.policy.text import Prompt, open_tokenizer, train_word_tokenizer

#: What a training may start from.
Start = Checkpoint | Pretrained | LWMFolder
#: Rows of PolicyConfig that follow from the data, the quantiser and the tokenizer.
DERIVED = ("text_vocab", "codebook_size", "code_groups", "grid", "cameras", "action_dim")
#: Rows of it that a flow decoder has no use for; the policy that a training starts from keeps its own.
OF_TOKENS = ("action_position", "action_order", "action_bins")


def train(
    dataset,
    out: str | Path,
    preset: str | Path = "tiny",
    init: str | Path = "scratch",
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Train a policy on a data set; returns the checkpoint folder `out`/checkpoint.

    Args:
        dataset: folder of a LeRobot v3 data set, or an opened one (vipra_ros.data.dataset.Dataset).
        preset: name under config/learning, or the path of a YAML file.
        init: `scratch`, a checkpoint folder whose network, quantiser and tokenizer are taken over, or the folder of
            a pre-training or of `vipra import-lwm`, whose trunk, tables, quantiser and tokenizer are.
        overrides: dotted keys of the YAML, e.g. {"loop.minutes": 5, "policy.proprio_steps": 1}.
    """
    config = configure(preset, overrides or {})
    out, opened = Path(out), open_dataset(dataset)
    start = _start(init)
    if config.lora_rank:
        if start is None:
            raise ConfigError(f"finetune: lora_rank = {config.lora_rank} adapts what is there; give --init, or 0")
        lora.package(config.lora_rank)
    vq = _quantiser(config, start, init)
    identity = tokenise.quantiser_hash(vq)
    # Whatever could be refused is, before hours of coding frames.
    data, held = demonstrations.load(opened, config.holdout, config.holdout_seed, config.episodes)
    data.action_space = held.action_space = config.action_space
    tokenizer = _tokenizer(config, start, data.instructions)
    wanted = _fitting(config, start, _wanted(config, vq, _vocabulary(config, start, tokenizer), data.actions.shape[1]))
    described = _describe(
        config, Path(preset).stem if str(preset).endswith(".yaml") else str(preset), wanted, vq, opened, start
    )
    name = f"{opened.path.name}-{tokenise.fingerprint(opened)}-{identity[:8]}"
    with team().first():
        codes, *versions = (
            tokenise.tokenise(opened, vq, out.parent / "codes" / name, config.cameras, identity, v, config.augmentation)
            for v in range(1 + config.augmentation.versions))
    data.codes, data.versions, held.codes = codes, versions, codes
    torch.manual_seed(config.loop.seed)
    policy = _policy(config, start, vq, wanted)
    statistics = data.statistics(config.relative_actions, policy.config.horizon)
    checkpoint = Checkpoint(described, policy, vq, statistics, tokenizer, notice=start.notice if start else "")
    if isinstance(policy, DiscretePolicy):
        policy.fit(_rows(data, checkpoint.normaliser, policy.config.horizon))
    if config.lora_rank:
        lora.attach(policy, config.lora_rank, config.lora_alpha)
    job = FinetuneJob(config, checkpoint, data, held, out, None if isinstance(start, Checkpoint) else start,
                      own_device(), f"{identity} {_began(start, init)}")
    del start  # what the policy took of it, it has: the rest need not wait in memory for the end
    run(job, config.loop, out)
    if team().main:
        print(f"policy -> {out / 'checkpoint'}")
    return out / "checkpoint"


def _rows(data: Demonstrations, normaliser: Normaliser, horizon: int) -> np.ndarray:
    """Normalised actions (n, a) of the chunks of the training frames, of 50 000 of them at most."""
    index = data.spread(50_000)
    rows = normaliser.actions(data.chunks(index, horizon), data.states[index])
    return rows.reshape(-1, rows.shape[-1])


def configure(preset: str | Path, overrides: dict[str, Any]) -> Finetune:
    """The configuration of a preset, or of a YAML path, with dotted overrides applied."""
    config = presets.read(Finetune, preset, "finetune", overrides)
    for key in DERIVED:
        if key in config.policy:
            raise ConfigError(f"{preset}: policy.{key} follows from the data and the quantiser; delete it")
    if config.policy.get("frames", 2) != 2:
        raise ConfigError(f"{preset}: policy.frames = {config.policy['frames']}: where a policy runs it is shown two "
                          "frames; delete it")
    return config


def _start(init: str | Path) -> Start | None:
    """What `init` names, opened."""
    if init == "scratch":
        return None
    if LWMFolder.at(init):
        return LWMFolder.open(init, "finetune")
    return Pretrained.load(init) if Pretrained.at(init) else Checkpoint.load(init)


def _began(start: Start | None, init: str | Path) -> str:
    """Which weights these are: a training that goes on must have begun with the same."""
    match start:
        case Pretrained():
            return file_hash(Path(init) / "joint.safetensors")
        case Checkpoint():
            return start.hash
        case LWMFolder():
            return start.identity
    return ""


def _quantiser(config: Finetune, start: Start | None, init: str | Path) -> VQ:
    """The one that is named, which has to be that of the start, or that of the start."""
    if isinstance(start, LWMFolder):
        return start.quantiser(config.vq)
    if not config.vq and start is None:
        raise ConfigError("finetune: vq is empty; name the folder of a trained frame quantiser (vipra train vq)")
    vq = load_vq(config.vq) if config.vq else start.vq
    if start is not None and tokenise.quantiser_hash(start.vq) != tokenise.quantiser_hash(vq):
        raise ConfigError(f"finetune: vq = {config.vq} is not the quantiser of {init}; leave vq empty")
    return vq


def _tokenizer(config: Finetune, start: Start | None, instructions: list[str]) -> Tokenizer:
    if isinstance(start, LWMFolder):
        return start.tokenizer(config.tokenizer)
    if not config.tokenizer and start is None:
        return train_word_tokenizer([*instructions, config.prompt.replace("{task}", " ")])
    tokenizer = open_tokenizer(config.tokenizer) if config.tokenizer else start.tokenizer
    numbers = tokenizer.get_vocab()
    for word, number in (start.tokenizer.get_vocab() if start else {}).items():
        if numbers.get(word) != number:
            raise ConfigError(f"finetune: tokenizer = {config.tokenizer}: {word!r} has another number than in that of "
                              "`init`; leave tokenizer empty")
    _check_words(config, tokenizer, "`init`" if start else config.tokenizer, instructions)
    return tokenizer


def _wanted(config: Finetune, vq: VQ, vocabulary: int, action_dim: int) -> PolicyConfig:
    return build(PolicyConfig, {
        **config.policy, "text_vocab": vocabulary, "codebook_size": vq.config.codebook_size,
        "code_groups": vq.config.groups, "grid": vq.config.grid, "cameras": len(config.cameras),
        "action_dim": action_dim}, source="finetune: policy")


def _vocabulary(config: Finetune, start: Start | None, tokenizer: Tokenizer) -> int:
    """Rows of the text table: as many as that of the start has, where the tokenizer needs no more."""
    match start:
        case Pretrained():
            table = start.config.joint.policy.text_vocab
        case Checkpoint():
            table = start.config.policy.text_vocab
        case LWMFolder():
            table = start.config.text_vocab
        case _:
            table = 0
    if tokenizer.get_vocab_size() <= table:
        return table
    return Prompt(tokenizer, config.prompt, True).size


def _fitting(config: Finetune, start: Start | None, wanted: PolicyConfig) -> PolicyConfig:
    """`wanted`, with the rows that a policy which is gone on with keeps; ConfigError if the start does not fit it."""
    if isinstance(start, LWMFolder):
        start.check(wanted, lambda: make_policy(wanted))
    if isinstance(start, Pretrained):
        start.check(wanted, config.pretrain_stride, config.prompt)
    if not isinstance(start, Checkpoint):
        return wanted
    known = start.config.policy
    if wanted.decoder == "flow":
        wanted = dataclasses.replace(wanted, **{name: getattr(known, name) for name in OF_TOKENS})
    if known != wanted:
        changed = [f.name for f in dataclasses.fields(wanted) if getattr(wanted, f.name) != getattr(known, f.name)]
        raise ConfigError(f"finetune: policy.{changed[0]} differs from the one of `init`; make them the same")
    for name in ("prompt", "frame_stride"):
        mine, theirs = getattr(config, name), getattr(start.config, name)
        if mine != theirs:
            raise ConfigError(f"finetune: {name} = {mine!r}, but `init` was trained with {theirs!r}; "
                              "make them the same")
    return wanted


def _policy(config: Finetune, start: Start | None, vq: VQ, wanted: PolicyConfig) -> FlowPolicy | DiscretePolicy:
    if isinstance(start, Checkpoint):
        return start.policy.train()
    if isinstance(start, Pretrained):
        return start.start_policy(wanted, config.pretrain_stride, config.prompt).train()
    policy = make_policy(wanted)
    if isinstance(start, LWMFolder):
        start.fill(policy)
        return policy.train()
    policy.start_vision_from(vq.code_vectors(), torch.Generator().manual_seed(config.loop.seed))
    return policy


def _check_words(config: Finetune, tokenizer: Tokenizer, whose: str, instructions: list[str]) -> None:
    prompt = Prompt(tokenizer, config.prompt, False)
    unknown = sorted({word for text in instructions for word in prompt.unknown_words(text)})
    if unknown:
        raise ConfigError(f"finetune: {whose} knows no word {unknown[0]!r}, so it could not tell instructions with it "
                          "apart; pre-train with it (--set words='[...]')")


def _describe(
    config: Finetune, preset: str, policy: PolicyConfig, vq: VQ, dataset, start: Start | None
) -> CheckpointConfig:
    known = start.config if start else None  # of stage 1
    names = dataset.features["action"].get("names") or []
    if isinstance(names, dict):
        names = next(iter(names.values()))
    if len(names) != policy.action_dim:
        raise ConfigError(f"{dataset.path}: action columns are not named; convert the bags again")
    return CheckpointConfig(
        format=FORMAT,
        variant=config.variant,
        preset=preset,
        policy=policy,
        vq=vq.config,
        cameras=config.cameras,
        image_size=vq.config.image_size,
        preprocessing="resize",
        rate=dataset.fps,
        frame_stride=config.frame_stride,
        horizon=policy.horizon,
        execute_steps=config.execute_steps,
        action_space=config.action_space,
        joint_names=tuple(names[:-1]),
        gripper=GRIPPER_CONVENTION,
        relative_actions=config.relative_actions,
        proprio_steps=policy.proprio_steps,
        prompt=config.prompt,
        euler_steps=config.euler_steps,
        noise_scale=config.noise_scale,
        committed_steps=config.committed_steps,
        attention_order="bidirectional" if policy.bidirectional_actions else "causal",
        flow_estimator=getattr(known, "flow_estimator", "none"),
        perceptual_loss=getattr(known, "perceptual_loss", "none"),
        seed=config.loop.seed,
        data=f"{dataset.path.name} {tokenise.fingerprint(dataset)}",
        code_version=vipra_ros.__version__,
    )
