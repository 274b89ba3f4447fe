"""A pre-trained folder: what stage 3 starts from.

In it are

    pretrain.json      complete description (PretrainedConfig)
    joint.safetensors  network weights          vq.safetensors  frame quantiser
    tokenizer.json     text vocabulary          card.md         for people
    LICENCE.txt        of imported weights it started from, if any
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from vipra_ros.config import ConfigError, build, param
from vipra_ros.model.discrete import DiscretePolicy, make_policy
from vipra_ros.model.joint import JointConfig, JointModel
from vipra_ros.model.patch_vq import PatchVQ, make_quantiser
from vipra_ros.model.policy import FlowPolicy, PolicyConfig
from vipra_ros.model.vq import VQ, VQConfig
from vipra_ros.model.weights_file import load_weights
from vipra_ros.policy.checkpoint import NOTICE, read_notice

#: Rows of PolicyConfig that only the actions need; stage 3 may choose them freely.
OF_ACTIONS = ("action_dim", "horizon", "proprio_steps", "bidirectional_actions", "time_band", "decoder", "action_bins",
              "action_position", "action_order")


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """pretrain.json."""

    variant: str = param(doc="method variant")
    preset: str = param(doc="tiny or paper")
    joint: JointConfig = field(metadata={"doc": "network"})
    vq: VQConfig = field(metadata={"doc": "frame quantiser"})
    cameras: tuple[str, ...] = param(doc="cameras in the order of the tokens")
    frame_stride: int = param(doc="steps between the two observed frames", low=1)
    ahead: int = param(14, doc="frames from now to the future frame, as the labels pair them", low=1)
    prompt: str = param(doc="template around the instruction")
    latent_hash: str = param(doc="the latent actions that made the labels; empty without labels")
    flow_estimator: str = param("none", doc="optical flow used by stage 1, none without one")
    perceptual_loss: str = param("none", doc="perceptual loss used by stage 1, none without one")
    started_from: str = param("", doc="SHA-256 of the manifest of the imported weights it started from; empty: none")
    seed: int = param(doc="training seed")
    data: str = param(doc="data set and its fingerprint")
    code_version: str = param(doc="version of vipra_ros that trained it")


@dataclass
class Pretrained:
    """A loaded (or about to be saved) pre-trained model."""

    config: PretrainedConfig
    model: JointModel
    vq: VQ | PatchVQ
    tokenizer: Tokenizer
    card: str = ""
    notice: str = ""

    @staticmethod
    def at(path: str | Path) -> bool:
        """Whether a folder is one of these (and not a policy)."""
        return (Path(path) / "pretrain.json").exists()

    def save(self, path: str | Path) -> None:
        """Write the folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name, module in (("joint", self.model), ("vq", self.vq)):
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path / f"{name}.safetensors")
        self.tokenizer.save(str(path / "tokenizer.json"))
        (path / "card.md").write_text(self.card)
        if self.notice:
            (path / NOTICE).write_text(self.notice)
        (path / "pretrain.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Pretrained:
        """Read a folder.

        Raises:
            ConfigError: a file is missing or does not belong to the description.
        """
        path = Path(path)
        for name in ("pretrain.json", "joint.safetensors", "vq.safetensors", "tokenizer.json"):
            if not (path / name).exists():
                raise ConfigError(f"{path} has no {name}; give the folder `vipra train pretrain` made (checkpoint)")
        config = build(PretrainedConfig, json.loads((path / "pretrain.json").read_text()), f"{path}/pretrain.json")
        model, vq = JointModel(config.joint), make_quantiser(config.vq)
        for module, name in ((model, "joint"), (vq, "vq")):
            load_weights(module, path / f"{name}.safetensors")
        card = (path / "card.md").read_text() if (path / "card.md").exists() else ""
        return cls(config, model.eval(), vq.eval(), Tokenizer.from_file(str(path / "tokenizer.json")), card,
                   read_notice(path))

    def start_policy(self, wanted: PolicyConfig, frame_stride: int, prompt: str) -> FlowPolicy | DiscretePolicy:
        """A policy with this trunk and these tables; its action parts are fresh. Arguments and errors as `check`."""
        self.check(wanted, frame_stride, prompt)
        policy = make_policy(wanted)
        shared = policy.state_dict().keys() & self.model.state_dict().keys()
        with torch.no_grad():
            policy.load_state_dict({k: v for k, v in self.model.state_dict().items() if k in shared}, strict=False)
        return policy

    def check(self, wanted: PolicyConfig, frame_stride: int, prompt: str) -> None:
        """Whether such a policy may start from this.

        Args:
            frame_stride: stride of pre-training that fine-tuning is configured for.

        Raises:
            ConfigError: trunk, tables, stride or prompt differ.
        """
        for row in dataclasses.fields(PolicyConfig):
            mine, theirs = getattr(self.config.joint.policy, row.name), getattr(wanted, row.name)
            if row.name not in OF_ACTIONS and mine != theirs:
                raise ConfigError(f"finetune: policy.{row.name} = {theirs}, pre-trained: {mine}; make them the same")
        for name, mine, theirs in (("pretrain_stride", self.config.frame_stride, frame_stride),
                                   ("prompt", self.config.prompt, prompt)):
            if mine != theirs:
                raise ConfigError(f"finetune: {name} = {theirs!r}, `init` was pre-trained with {mine!r}; "
                                  "make them the same")
