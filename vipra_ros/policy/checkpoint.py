"""A checkpoint folder: everything a policy needs to act, and nothing that has to be guessed.

    config.json         complete description (CheckpointConfig)
    policy.safetensors  network weights        vq.safetensors  frame quantiser
    statistics.json     of actions and states  tokenizer.json  text vocabulary
    card.md             for people             LICENCE.txt     of imported weights it was made of, if any

The hash covers all of them but the card and the licence. Loading refuses missing or unknown keys, weights that are not
finite, missing statistics; `check` refuses a robot whose joints or action space differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from vipra_ros.config import ConfigError, build, param
from vipra_ros.control.chunk import ACTION_SPACES, GRIPPER_CONVENTION
from vipra_ros.control.profile import check_joints
from vipra_ros.model.discrete import DiscretePolicy, make_policy
from vipra_ros.model.patch_vq import PatchVQ, make_quantiser
from vipra_ros.model.policy import FlowPolicy, PolicyConfig
from vipra_ros.model.vq import VQ, VQConfig
from vipra_ros.model.vqgan import VQGAN
from vipra_ros.model.weights_file import load_weights
from vipra_ros.policy.normalise import Normaliser
from vipra_ros.policy.text import Prompt

FORMAT = 1
#: What a mean or a deviation of actions stays below: rad, m.
LARGEST = 1e9
#: File of the licence that imported weights bring along.
NOTICE = "LICENCE.txt"
HASHED = ("config.json", "policy.safetensors", "vq.safetensors", "statistics.json", "tokenizer.json")


class CheckpointError(ValueError):
    """A checkpoint cannot be used here; one line that says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """config.json. Nothing has a default: a checkpoint says everything."""

    format: int = param(doc="version of this table", low=FORMAT, high=FORMAT)
    variant: str = param(doc="method variant, e.g. ViPRA-FM or Scratch-FM")
    preset: str = param(doc="tiny or paper")
    policy: PolicyConfig = field(metadata={"doc": "network"})
    vq: VQConfig = field(metadata={"doc": "frame quantiser"})
    cameras: tuple[str, ...] = param(doc="cameras in the order of the tokens")
    image_size: int = param(doc="side of the square images the policy is given", unit="px", low=1, high=8192)
    preprocessing: str = param(doc="how a camera image becomes the policy's", choices=("resize",))
    rate: float = param(doc="steps per second of actions and frame history", unit="Hz", low=0.1, high=1000.0)
    frame_stride: int = param(doc="steps between the frames of one observation", low=1, high=10_000)
    horizon: int = param(doc="steps predicted", low=1, high=4096)
    execute_steps: int = param(doc="steps executed before the next chunk", low=1, high=4096)
    action_space: str = param(doc="meaning of the action columns", choices=ACTION_SPACES)
    joint_names: tuple[str, ...] = param(doc="order of the joint columns")
    gripper: str = param(doc="meaning of the last column of each arm", choices=(GRIPPER_CONVENTION,))
    relative_actions: bool = param(doc="joint columns are predicted relative to the measured joints")
    proprio_steps: int = param(doc="joint vectors given to the policy", low=0, high=64)
    prompt: str = param(doc="template around the instruction")
    euler_steps: int = param(doc="integration steps of the sampler", low=1, high=1000)
    noise_scale: float = param(doc="of the noise the sampler starts from; 1: as trained, 0: none", low=0.0, high=2.0)
    attention_order: str = param(doc="visibility inside a chunk", choices=("causal", "bidirectional"))
    flow_estimator: str = param(doc="optical flow used by stage 1, none without one")
    perceptual_loss: str = param(doc="perceptual loss used by stage 1, none without one")
    seed: int = param(doc="training seed")
    data: str = param(doc="data set and its fingerprint")
    code_version: str = param(doc="version of vipra_ros that trained it")
    committed_steps: int = param(0, doc="first rows of a chunk that training gave it, at most (real-time chunking); 0: "
                                        "none", low=0, high=4096)
    arms: tuple[str, ...] = param((), doc="namespaces of the arms that share the columns, joints and gripper of each "
                                          "in turn; empty: one arm")

    def __post_init__(self) -> None:
        same = {
            "horizon": (self.horizon, self.policy.horizon),
            "proprio_steps": (self.proprio_steps, self.policy.proprio_steps),
            "cameras": (len(self.cameras), self.policy.cameras),
            "codebook_size": (self.vq.codebook_size, self.policy.codebook_size),
            "code groups": (self.vq.groups, self.policy.code_groups),
            "grid": (self.vq.grid, self.policy.grid),
            "image_size": (self.image_size, self.vq.image_size),
            "attention_order": (self.attention_order == "bidirectional", self.policy.bidirectional_actions),
        }
        for name, (here, there) in same.items():
            if here != there:
                raise ConfigError(f"checkpoint: {name} is {here} in one place and {there} in another; it was edited")
        if self.execute_steps > self.horizon:
            raise ConfigError(f"checkpoint: execute_steps = {self.execute_steps} exceeds the horizon of {self.horizon}")
        if self.committed_steps and (self.committed_steps >= self.horizon or self.decoder != "flow"):
            raise ConfigError(f"checkpoint: committed_steps = {self.committed_steps} of {self.horizon} rows, decoder "
                              f"{self.decoder}: fewer than the horizon, and flow")
        if self.relative_actions and self.action_space != "joint_position":
            raise ConfigError(f"checkpoint: relative_actions needs joint_position actions, not {self.action_space}")
        joint_columns, grippers = len(self.joint_names) if self.action_space != "ee_delta" else 6, len(self.arms) or 1
        if self.policy.action_dim != joint_columns + grippers:
            raise ConfigError(f"checkpoint: {self.policy.action_dim} action columns for {joint_columns} and "
                              f"{'a gripper' if grippers == 1 else f'{grippers} grippers'}")
        if self.arms:
            self._check_arms()

    def _check_arms(self) -> None:
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms) or len(self.joint_names) % len(self.arms):
            raise ConfigError(f"checkpoint: arms {', '.join(self.arms)} for {len(self.joint_names)} joints: name two "
                              "or more, each once, with as many joints each")
        if self.action_space != "joint_position" or self.decoder != "flow":
            raise ConfigError(f"checkpoint: several arms need joint_position actions and a flow decoder, not "
                              f"{self.action_space} and {self.decoder}")

    @property
    def grippers(self) -> tuple[int, ...]:
        """Columns of the grippers."""
        each = self.policy.action_dim // (len(self.arms) or 1)
        return tuple(range(each - 1, self.policy.action_dim, each))

    @property
    def decoder(self) -> str:
        """How actions are decoded: flow or discrete."""
        return self.policy.decoder


@dataclass
class Checkpoint:
    """A loaded (or about to be saved) checkpoint. `statistics`: {"action": {...}, "state": {...}}."""

    config: CheckpointConfig
    policy: FlowPolicy | DiscretePolicy
    vq: VQ | PatchVQ | VQGAN
    statistics: dict
    tokenizer: Tokenizer
    card: str = ""
    hash: str = ""
    folder: Path | None = None
    notice: str = ""

    @property
    def normaliser(self) -> Normaliser:
        """Raw actions and states <-> network numbers."""
        return Normaliser.from_statistics(self.statistics, self.config.relative_actions, self.config.grippers)

    @property
    def prompt(self) -> Prompt:
        """Text tokens of the prefix."""
        return Prompt(self.tokenizer, self.config.prompt, proprio=self.config.proprio_steps > 0)

    def save(self, path: str | Path) -> str:
        """Write the folder; returns the hash."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        _check_statistics(self.statistics, self.config, str(path))
        (path / "config.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")
        (path / "statistics.json").write_text(json.dumps(self.statistics, indent=1) + "\n")
        self.tokenizer.save(str(path / "tokenizer.json"))
        for name, module in (("policy", self.policy), ("vq", self.vq)):
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path / f"{name}.safetensors")
        (path / "card.md").write_text(self.card)
        if self.notice:
            (path / NOTICE).write_text(self.notice)
        self.hash, self.folder = folder_hash(path), path
        return self.hash

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Checkpoint:
        """Read a folder, refusing whatever is incomplete or does not fit together.

        Raises:
            CheckpointError: with the file and the reason.
        """
        path = Path(path)
        for name in HASHED:
            if not (path / name).exists():
                raise CheckpointError(
                    f"{path} has no {name}; a checkpoint is complete or refused: train or copy it again"
                )
        try:
            config = build(CheckpointConfig, _json(path / "config.json"), source=f"{path}/config.json")
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        statistics = _json(path / "statistics.json")
        _check_statistics(statistics, config, str(path / "statistics.json"))
        try:
            with torch.device("meta"):
                policy, vq = make_policy(config.policy), make_quantiser(config.vq)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}/config.json describes no network ({error}); it was edited") from None
        # Rotary frequencies are computed, not stored: built here on the real device.
        policy.trunk.rotary_emb = type(policy.trunk.rotary_emb)(policy.trunk.config)
        try:
            load_weights(policy, path / "policy.safetensors", device)
            load_weights(vq, path / "vq.safetensors", device)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        if isinstance(policy, DiscretePolicy):
            try:
                policy.check_bins()
            except ConfigError as error:
                raise CheckpointError(f"{path}/policy.safetensors: {error}") from None
        policy.trunk.rotary_emb.to(device)
        try:
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the tokenizers library raises bare Exception, and panics past it
            raise CheckpointError(f"{path}/tokenizer.json: unreadable ({error}); copy the checkpoint again") from None
        if tokenizer.get_vocab_size() > config.policy.text_vocab:
            raise CheckpointError(
                f"{path}/tokenizer.json has {tokenizer.get_vocab_size()} tokens, the text table "
                f"{config.policy.text_vocab}; it belongs to another checkpoint"
            )
        card = (path / "card.md").read_text(errors="replace") if (path / "card.md").exists() else ""
        return cls(
            config,
            policy.eval(),
            vq.to(memory_format=torch.channels_last).eval(),
            statistics,
            tokenizer,
            card,
            folder_hash(path),
            path,
            read_notice(path),
        )

    def check(self, profile) -> None:
        """Refuse a robot profile (control.profile.RobotProfile) this policy was not trained for, on any arm.

        Raises:
            CheckpointError: joints differ in number, name or order, or data leave the robot's position limits.
        """
        try:
            check_joints(self.config.joint_names, profile, len(self.config.arms) or 1)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None


def read_notice(path: Path) -> str:
    """The licence in a folder; empty without one."""
    return (path / NOTICE).read_text(errors="replace") if (path / NOTICE).exists() else ""


def folder_hash(path: str | Path) -> str:
    """SHA-256 over the names and contents of the hashed files."""
    digest = hashlib.sha256()
    for name in HASHED:
        digest.update(name.encode() + b"\0")
        with (Path(path) / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:  # also a number of thousands of digits, or no text
        raise CheckpointError(f"{path}: not valid JSON ({str(error)[:200]}); copy the checkpoint again") from None


def _check_statistics(statistics: dict, config: CheckpointConfig, where: str) -> None:
    has_state = isinstance(statistics, dict) and statistics.get("state") is not None
    needed = ["action"] + (["state"] if config.proprio_steps or has_state else [])
    for name in needed:
        table = statistics.get(name) if isinstance(statistics, dict) else None
        for key in ("mean", "std"):
            values = table.get(key) if isinstance(table, dict) else None
            if not isinstance(values, list) or len(values) != config.policy.action_dim:
                raise CheckpointError(
                    f"{where}: no {key} of {name} with {config.policy.action_dim} values; "
                    "a policy without its statistics cannot act: train or copy it again"
                )
            if not all(isinstance(v, (int, float)) and abs(v) < LARGEST for v in values):
                raise CheckpointError(f"{where}: {key} of {name} is not finite; compute the statistics again")
