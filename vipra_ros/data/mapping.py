"""Which topic of a bag is what: the map of our own recordings is the default, foreign ones come as YAML.

Every source is a topic, where in its message the values are, and what they mean. A topic's type decides how
it is read: sensor_msgs/JointState, trajectory_msgs/JointTrajectory (its first point), a list of numbers, one
number, a truth value, a text; pictures compressed or raw. `config/topics/` holds examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vipra_ros.config import ConfigError, load, param, share
from vipra_ros.data.topics import Topics

_OURS = Topics()


@dataclass(frozen=True)
class Joints:
    """Joint positions, rad."""

    topic: str = param(
        "", doc="topic; of the command, empty: the measured joints one period later (an arm led by hand)"
    )
    field: str = param("", doc="where in the message, e.g. measured_joint_state; empty: the message itself")
    names: tuple[str, ...] = param(
        (), doc="joints wanted, by their names in the bag; for a list of numbers: what each of them is"
    )
    rename: dict = param({}, doc="name in the bag: name in the data set")


@dataclass(frozen=True)
class Hand:
    """The gripper as one number, mapped to +1 open, -1 closed."""

    topic: str = param(
        "", doc="topic; of the state, empty: the command in force; of the command, empty: the state one period later"
    )
    field: str = param("", doc="where in the message the number is, e.g. command.position; empty: the message's data")
    joint: str = param("", doc="joint of a JointState; empty: the first with 'finger' or 'gripper' in its name")
    open: float = param(1.0, doc="value that means fully open")
    closed: float = param(-1.0, doc="value that means fully closed")
    clip: bool = param(False, doc="values beyond open and closed count as those; otherwise they are an error")

    def __post_init__(self) -> None:
        if self.open == self.closed:
            raise ConfigError(f"gripper {self.topic}: open and closed are both {self.open}; give two values")


@dataclass(frozen=True)
class Words:
    """The instruction."""

    topic: str = param("", doc="topic of a text")
    text: str = param("", doc="instruction of every bag that says none itself")


@dataclass(frozen=True)
class Label:
    """Whether the episode succeeded."""

    topic: str = param("", doc="topic of a truth value, a number or a text; its last message counts")
    value: bool | None = param(None, doc="label of every bag that has none itself")


@dataclass(frozen=True)
class TopicMap:
    """What the topics of a bag mean."""

    cameras: dict = param({}, doc="name of a camera: its topic; empty: every topic that `image` matches")
    image: str = param(_OURS.image, doc="pattern of picture topics, {camera} is the camera's name")
    joints: Joints = param(Joints(_OURS.joint_states), doc="measured joints")
    command: Joints = param(Joints(_OURS.joint_command), doc="commanded joints")
    gripper_state: Hand = param(
        Hand(_OURS.joint_states, open=0.04, closed=0.0, clip=True), doc="measured opening of the gripper"
    )
    gripper_command: Hand = param(Hand(_OURS.gripper_command), doc="commanded opening of the gripper")
    instruction: Words = param(Words(_OURS.instruction), doc="what the arm was told")
    success: Label = param(Label(), doc="outcome")
    stamps: str = param(
        "header", doc="time of a message: its header's, or that of its receipt", choices=("header", "receipt")
    )
    definitions: tuple[str, ...] = param(
        (), doc="folders PACKAGE/msg/NAME.msg of types that the bags do not define themselves"
    )

    def __post_init__(self) -> None:
        if not self.joints.topic:
            raise ConfigError("joints: topic is missing; the measured joints are needed")
        if not self.gripper_state.topic and not self.gripper_command.topic:
            raise ConfigError("gripper_state and gripper_command: give the topic of one of them at least")
        for name, topic in self.cameras.items():
            if not isinstance(topic, str) or not isinstance(name, str) or "/" in name:
                raise ConfigError(f"cameras: {name}: {topic!r}: write NAME: TOPIC, no slash in the name")

    def camera_topics(self, present: list[str]) -> dict[str, str]:
        """Camera -> relative topic; the map's own, or those among the topics `present` that match `image`."""
        if self.cameras:
            return {name: relative(topic) for name, topic in self.cameras.items()}
        pattern = Topics(image=self.image)
        return {c: pattern.image_of(c) for c in pattern.cameras_in(present)}


def relative(topic: str) -> str:
    """A topic's name as `EpisodeReader` has it."""
    return topic.lstrip("/")


def load_map(path: str | Path) -> TopicMap:
    """The map in the YAML file `path`, or the shipped one of that name (`config/topics/<name>.yaml`)."""
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        try:
            path = share("config", "topics", f"{path}.yaml")
        except ConfigError:
            known = ", ".join(sorted(p.stem for p in share("config", "topics").glob("*.yaml")))
            raise ConfigError(f"topic map {str(path)!r} is unknown; use {known} or a YAML file") from None
    return load(TopicMap, path)
