"""ROS shell of the recorder: messages as bytes, with the time of receipt, into episodes.

Services recorder/start, success, failure, discard (std_srvs/Trigger) and the topic recorder/relabel
(std_msgs/String: other words for this episode, or for the last one); what goes on is on recorder/status
(std_msgs/String, JSON, latched). Callbacks only hand over bytes; a thread of its own writes.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
import rclpy.executors
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vipra_ros import __version__
from vipra_ros.config import ConfigError, param
from vipra_ros.data import messages
from vipra_ros.data.reception import Demands
from vipra_ros.data.recording import Recorder, RecordingSettings, Result
from vipra_ros.data.topics import Topics, latched
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.run import begin

#: A stream's publisher may offer best effort or reliable; best effort hears both. The depth bridges a
#: pause of half a second at 100 Hz.
STREAM = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=50)
#: Latched publishers keep one message; several changes in a row must not overwrite each other here.
HELD = QoSProfile(depth=20, durability=DurabilityPolicy.TRANSIENT_LOCAL)
WORDS, OUTCOME = "policy/instruction", "sim/outcome"
#: Types of the topics a robot of this package has.
TYPES = {
    "joint_states": messages.JOINT_STATE,
    "executor/joint_command": messages.JOINT_STATE,
    "executor/gripper_command": messages.FLOAT32,
    "executor/status": messages.EXECUTOR_STATUS,
    "policy/chunk": messages.ACTION_CHUNK,
    "policy/status": messages.POLICY_STATUS,
    WORDS: messages.STRING,
    OUTCOME: messages.STRING,
    "gello/joint_states": messages.JOINT_STATE,
    "gripper/gripper_client/target_gripper_width_percent": messages.FLOAT32,
    "gello/status": messages.STRING,
}
#: Streams of our own nodes, offered reliable: not one message is lost. Others may be best effort.
OURS = ("joint_states", "executor/joint_command", "policy/chunk")


@dataclass(frozen=True)
class RecorderSettings:
    """Parameters of the node."""

    record: str = param(doc="folder of the episodes, one bag each")
    cameras: tuple[str, ...] = param(("front", "wrist"), doc="cameras to record, which an episode must have")
    topics: tuple[str, ...] = param(
        tuple(TYPES), doc="all topics beside the cameras; name=package/msg/Type where this package does not know it"
    )
    instruction: str = param("", doc="words of the demonstration; empty: those heard on policy/instruction")
    operator: str = param("", doc="who demonstrates, for the description of the episode")
    status_rate: float = param(2.0, doc="messages on recorder/status", unit="Hz", low=0.1, high=20.0)
    recording: RecordingSettings = param(RecordingSettings(), doc="how to record")
    demands: Demands = param(Demands(), doc="when an episode is good")


class RecorderNode(Node):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.settings = s = declare(self, RecorderSettings)
        kinds = _kinds(s.topics)
        names = Topics()
        arm = (names.joint_states, names.joint_command, names.gripper_command)
        self._left_out = [t for t in arm if t not in kinds]
        images = [names.image_of(c) for c in s.cameras]
        self._words, self._infos = b"", {}
        try:
            self.recorder = Recorder(
                Path(s.record).expanduser(),
                s.recording,
                s.demands,
                images=images,
                joints=[t for t in (names.joint_states, names.joint_command) if t in kinds],
                needed=[t for t in (names.gripper_command,) if t in kinds],
                namespace=self.get_namespace(),
                describe=self._describe,
                say=self._log,
                show=lambda text: print(text, flush=True),
                changed=lambda: self._told.trigger() if rclpy.ok() else None,
            )
        except OSError as error:
            raise ConfigError(f"recorder: parameter record = {s.record!r}: {error.strerror}; give a folder") from None
        self._status = self.create_publisher(String, "recorder/status", LATCHED)
        self._told = self.create_guard_condition(self._say_status)
        self.create_timer(1.0 / s.status_rate, self._say_status)
        for camera, image in zip(s.cameras, images):
            self._listen(image, messages.COMPRESSED_IMAGE, STREAM)
            self._listen(names.camera_info.format(camera=camera), messages.CAMERA_INFO, STREAM)
        for topic, kind in kinds.items():
            self._listen(topic, kind, HELD if latched(topic) else RELIABLE if topic in OURS else STREAM)
        if WORDS in kinds:  # a latched subscription does not hear plain publishers
            self._listen(WORDS, kinds[WORDS], RELIABLE)
        self.create_subscription(String, "recorder/relabel", self._relabel, RELIABLE)
        for name, command in (
            ("start", self.recorder.start),
            ("success", lambda now: self.recorder.finish(now, True)),
            ("failure", lambda now: self.recorder.finish(now, False)),
            ("discard", self.recorder.discard),
        ):
            self.create_service(Trigger, f"recorder/{name}", self._service(command))
        self._thread = threading.Thread(target=self.recorder.run, name="writer", daemon=True)

    def __enter__(self) -> RecorderNode:
        self._thread.start()
        self._say_status()
        self.get_logger().info(f"records into {self.recorder.root}; call recorder/start")
        if self._left_out:
            self.get_logger().warning(f"parameter topics leaves out {', '.join(self._left_out)}, which a conversion "
                                      "needs: it takes the place of the whole default list")
        return self

    def __exit__(self, *exc: object) -> None:
        """Keep what is being recorded."""
        self.recorder.close(self._now())
        self._thread.join()  # what waits is written; a supervisor with less patience leaves it in .partial

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _listen(self, topic: str, msgtype: str, qos: QoSProfile) -> None:
        def take(raw: bytes) -> None:
            if topic == WORDS:  # heard by two subscriptions; the same words again change nothing
                if raw == self._words:
                    return
                self._words = raw
            if msgtype == messages.CAMERA_INFO:
                self._infos[topic] = raw
            self.recorder.take(topic, msgtype, raw, self._now())

        # The plain twin of a latched subscription does not fit some publishers: that is no mistake of theirs.
        quiet = SubscriptionEventCallbacks(use_default_callbacks=topic != WORDS)
        self.create_subscription(_class(topic, msgtype), topic, take, qos, raw=True, event_callbacks=quiet)

    def _service(self, command: Callable[[int], Result]) -> Callable:
        def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            del request
            response.success, response.message = command(self._now())
            self._log("info" if response.success else "warning", response.message)
            self._say_status()
            return response

        return answer

    def _relabel(self, message: String) -> None:
        result = self.recorder.relabel(message.data)
        self._log("info" if result.success else "warning", result.message)

    def _log(self, severity: str, text: str) -> None:
        log = self.get_logger()  # rclpy wants a line of code for each severity
        if severity == "info":
            log.info(text)
        elif severity == "warning":
            log.warning(text)
        else:
            log.error(text)

    @property
    def alive(self) -> bool:
        """Whether the writing thread runs."""
        return self._thread.is_alive()

    def _say_status(self) -> None:
        self._status.publish(String(data=json.dumps(self.recorder.status())))

    def _describe(self, said: dict[str, bytes]) -> dict[str, Any]:
        """The episode's description from the last words of the latched topics."""
        s, meta = self.settings, {}
        if OUTCOME in said:  # the simulator knows the task
            outcome = json.loads(messages.read_string(said[OUTCOME]))
            meta = {k: outcome.get(k) for k in ("task", "colour", "zone", "seed", "instruction")}
            meta["judged"] = outcome.get("success")
        heard = messages.read_string(said[WORDS]) if WORDS in said else ""
        if not heard and "policy/status" in said:  # it may have its words from a parameter
            heard = messages.deserialize(said["policy/status"], messages.POLICY_STATUS).instruction
        meta["instruction"] = s.instruction or heard or meta.get("instruction") or ""
        if "executor/status" in said:
            meta["robot"] = messages.deserialize(said["executor/status"], messages.EXECUTOR_STATUS).robot
        profile = {c: _camera(self._infos.get(Topics().camera_info.format(camera=c))) for c in s.cameras}
        meta |= {"operator": s.operator, "cameras": list(s.cameras), "camera_profile": profile}
        return meta | {"version": __version__}


def _camera(raw: bytes | None) -> dict[str, Any]:
    """Size and lens of a camera from its CameraInfo; {} when it said nothing."""
    if raw is None:
        return {}
    info = messages.deserialize(raw, messages.CAMERA_INFO)
    return {"width": info.width, "height": info.height, "frame_id": info.header.frame_id,
            "k": [round(float(v), 4) for v in info.k], "distortion_model": info.distortion_model,
            "d": [round(float(v), 6) for v in info.d]}


def _kinds(topics: tuple[str, ...]) -> dict[str, str]:
    """Topic -> message type, from `name` and `name=type`."""
    kinds = {}
    for text in topics:
        topic, _, kind = text.partition("=")
        kind = messages.full_type(kind) if kind else TYPES.get(topic, "")
        if not kind:
            raise ConfigError(
                f"recorder: parameter topics = {text!r}: its type is not known; write {topic}=package/msg/Type"
            )
        if kind not in messages.typestore().types:
            raise ConfigError(f"recorder: parameter topics = {text!r}: {kind} is not known; leave the topic out")
        kinds[topic] = kind
    return kinds


def _class(topic: str, msgtype: str) -> type:
    package, _, name = msgtype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        raise ConfigError(f"recorder: {topic}: {msgtype} is not installed; install ros-{package}") from None


def main(args: list[str] | None = None) -> None:
    """Run until SIGINT or SIGTERM; an episode under way is finished without a label."""
    ending = begin(args)
    try:
        node = RecorderNode()
    except ConfigError as error:
        rclpy.logging.get_logger("recorder").fatal(str(error))
        rclpy.try_shutdown()
        raise SystemExit(1) from None
    executor = rclpy.executors.SingleThreadedExecutor()
    executor.add_node(node)
    with node:
        while not ending.is_set() and node.alive and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
        died = not node.alive
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    if died:  # its traceback is on the screen
        print("recorder: the writing thread ended; what it wrote is in .partial", flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
