"""What a served policy says of itself: the first message of the server, or a YAML file for one that says less.

The names are those of a checkpoint's config.json; the last group says under which keys images, joints, words and
actions travel, so that pi0 and others behind an openpi server can be described in a dozen lines of YAML.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from vipra_ros.config import ConfigError, build, param, read_yaml
from vipra_ros.control.chunk import ACTION_SPACES

#: Version of the metadata.
FORMAT = 1
#: gripper column of actions and state: ours, or the one of DROID data and pi0 (0 open, 1 closed).
GRIPPERS = ("open=+1,closed=-1", "open=0,closed=1")


@dataclass(frozen=True)
class Contract:
    """Horizon, rate, schema, action space and keys of a policy behind a server."""

    rate: float = param(doc="steps per second of actions and frame history", unit="Hz", low=0.1)
    horizon: int = param(doc="steps predicted", low=1)
    execute_steps: int = param(doc="steps executed before the next chunk", low=1)
    action_space: str = param(doc="meaning of the action columns", choices=ACTION_SPACES)
    joint_names: tuple[str, ...] = param(doc="order of the joint columns")
    cameras: tuple[str, ...] = param(doc="cameras, in the policy's order")
    image_size: int = param(doc="side of the square images sent; 0: as they come", unit="px", low=0)
    frames: int = param(2, doc="frames per camera and observation: 2, or 1 without a history axis", low=1, high=2)
    frame_stride: int = param(1, doc="steps between the frames of one observation", low=1)
    proprio_steps: int = param(0, doc="joint vectors sent, oldest first", low=0)
    relative_actions: bool = param(False, doc="the server wants the measured joints to add its actions to")
    gripper: str = param(GRIPPERS[0], doc="meaning of the gripper's column", choices=GRIPPERS)
    joint_scale: float = param(1.0, doc="the server's joint columns times this are rad, or rad per step", low=1e-6)
    hash: str = param("", doc="fingerprint of the checkpoint")
    variant: str = param("", doc="what kind of policy it is")
    decoder: str = param("flow", doc="how actions are decoded; discrete ones go to no real arm",
                         choices=("flow", "discrete"))
    jpeg: bool = param(False, doc="the server also takes an image as JPEG bytes")
    images: dict[str, str] = field(default_factory=dict, metadata={"doc": "camera: key of its images"})
    state: str = param("observation/state", doc="key of the joint vectors; the gripper is their last column")
    gripper_state: str = param("", doc="key of the gripper where it does not travel with the joints")
    prompt: str = param("prompt", doc="key of the instruction")
    actions: str = param("actions", doc="key of the chunk in the answer")

    #: A served policy drives one arm.
    arms: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.execute_steps > self.horizon:
            raise ConfigError(f"policy server: execute_steps = {self.execute_steps} exceeds horizon = {self.horizon}")
        if not self.cameras or not self.joint_names:
            raise ConfigError("policy server: cameras and joint_names must not be empty; name them in the YAML")
        if unknown := sorted(set(self.images) - set(self.cameras)):
            raise ConfigError(f"policy server: images names camera {unknown[0]!r}; cameras: {', '.join(self.cameras)}")

    @property
    def columns(self) -> int:
        """Columns of an action."""
        return (6 if self.action_space == "ee_delta" else len(self.joint_names)) + 1

    @property
    def joints(self) -> int:
        """Joint vectors that an observation needs."""
        return max(self.proprio_steps, int(self.relative_actions))

    def key(self, camera: str) -> str:
        """Where a camera's images travel."""
        return self.images.get(camera, f"observation/{camera}")

    @classmethod
    def of(cls, checkpoint) -> Contract:
        """Of a loaded `vipra_ros.policy.checkpoint.Checkpoint`."""
        # A checkpoint's `prompt` is the template around the words, not the key they travel under.
        if checkpoint.config.arms:
            raise ConfigError(f"this checkpoint drives {len(checkpoint.config.arms)} arms; a server is for one: run it "
                              "in the policy node")
        c, own = checkpoint.config, {f.name for f in dataclasses.fields(cls)} - {"prompt"}
        shared = {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name in own}
        return cls(**{**shared, "frames": c.policy.frames, "hash": checkpoint.hash, "jpeg": True,
                      "decoder": c.decoder})

    def message(self) -> dict:
        """The server's first message."""
        return {"vipra_ros": FORMAT, **dataclasses.asdict(self)}


def agree(metadata: dict, path: str = "") -> Contract:
    """What to expect of a server: its metadata, completed or overruled by the YAML file at `path`.

    Raises:
        ConfigError: together they do not describe a policy; the message names the missing key and the remedy.
    """
    own = {f.name for f in dataclasses.fields(Contract)}
    said = {}
    if "vipra_ros" in metadata:
        if metadata["vipra_ros"] != FORMAT:
            raise ConfigError(f"the policy server speaks format {metadata['vipra_ros']}, this is {FORMAT}; update one")
        said = {k: v for k, v in metadata.items() if k in own}
    written = read_yaml(path) if path else {}
    try:
        return build(Contract, {**said, **written}, source=path or "policy server")
    except ConfigError as error:
        if said or path:
            raise
        raise ConfigError(
            f"{error}. The server does not say what it serves (an openpi server): name a YAML file that does in the "
            "parameter server_config; config/servers/openpi_droid.yaml is one"
        ) from None


def opening(column: np.ndarray, convention: str) -> np.ndarray:
    """A gripper column of `convention` in ours (+1 open, -1 closed)."""
    return column if convention == GRIPPERS[0] else 1.0 - 2.0 * column


def closing(column: np.ndarray, convention: str) -> np.ndarray:
    """The inverse of `opening`."""
    return column if convention == GRIPPERS[0] else (1.0 - column) / 2.0


def read_token(path: str) -> str:
    """The token in a file, blanks around it removed; empty without a path. ConfigError when there is none."""
    if not path:
        return ""
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path}: {error}") from None
    if len(token) < 16:
        raise ConfigError(f"token file {path}: {len(token)} characters; write at least 16, e.g. openssl rand -hex 32")
    return token
