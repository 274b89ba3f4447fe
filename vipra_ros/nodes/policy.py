"""ROS shell of `policy/loop.py`: images, joints and words in, chunks and status out."""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Sequence

import numpy as np
import rclpy
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from vipra_ros.config import ConfigError
from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.profile import check_joints, load_profile
from vipra_ros.msg import ActionChunk as ChunkMessage
from vipra_ros.msg import ExecutorStatus, PolicyStatus
from vipra_ros.nodes import convert
from vipra_ros.nodes.arms import Arms
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.policy_settings import PolicySettings
from vipra_ros.nodes.quality import COMMAND, LATCHED
from vipra_ros.nodes.run import give_way
from vipra_ros.policy.deployment import check_deployment
from vipra_ros.policy.loop import PolicyLoop
from vipra_ros.policy.pictures import from_jpeg, from_raw
from vipra_ros.policy.plan import Plan, Timing
from vipra_ros.policy.report import Phase
from vipra_ros.policy.shipped import resolve

#: m between the fingers of the open hand; the finger joint is half of it.
OPEN_WIDTH = 0.08
#: s that the shutdown waits for an inference under way before it leaves without it.
PATIENCE = 0.5
#: s that a phase lasts before the terminal hears of it.
SETTLED = 1.0


class PolicyNode(Node):
    """Connects topics to a `PolicyLoop`."""

    def __init__(self):
        super().__init__("policy")
        self.settings = s = declare(self, PolicySettings)
        # The loop counts from here on: seconds since 1970 in a float would round a stamp to 0.2 microseconds.
        self._origin = self.get_clock().now().nanoseconds
        self.folder = resolve(s.checkpoint) if s.engine != "remote" else None
        self._remote = self._arms = None
        self._topics = _topics(s.camera_topics)
        self._notes: list[str] = []
        self._opening = 1.0  # of a hand that says nothing: open
        self._cameras_ready = False
        self._engine_text = ""
        self._said, self._seen = ("", 0), (("", 0), 0.0)
        offers = PublisherEventCallbacks(incompatible_qos=lambda e: self._incompatible("policy/chunk", e))
        self._chunk_out = self.create_publisher(ChunkMessage, "policy/chunk", COMMAND, event_callbacks=offers)
        self._status_out = self.create_publisher(PolicyStatus, "policy/status", LATCHED)
        self.loop = PolicyLoop(
            self._load,
            self._publish,
            decode,
            lambda: self._since(self.get_clock().now().nanoseconds),
            f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
            Timing(s.mode, s.rate, s.margin, s.follow_executor, None if s.noise_seed < 0 else s.noise_seed),
            s.history,
            s.instruction,
            self._tell,
        )
        # Words come from latched publishers, heard even if they spoke before we came, and from plain ones,
        # which a latched subscription does not hear; hearing the same words twice changes nothing.
        self._subscribe(String, "policy/instruction", COMMAND, self._words)
        self.create_subscription(
            String,
            "policy/instruction",
            self._words,
            LATCHED,
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
        )
        self._subscribe(
            ExecutorStatus,
            "executor/status",
            LATCHED,
            self._executor,
        )
        self._subscribe(JointState, "joint_states", qos_profile_sensor_data, self._joints)
        self._told = self.create_guard_condition(self._status)
        self.create_timer(0.5, self._status)
        self._thread = threading.Thread(target=self.loop.run, name="inference", daemon=True)

    def __enter__(self) -> PolicyNode:
        self._status()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop.stop()
        if self._remote is not None:
            self._remote.close()
        self._thread.join(timeout=PATIENCE)

    # --- loading, in the loop's thread ---------------------------------------------------------------------

    def _load(self) -> tuple[object, Plan]:
        engine = self._connect() if self.settings.engine == "remote" else self._load_here()
        checkpoint = engine.checkpoint
        unknown = sorted(set(self._topics) - set(checkpoint.config.cameras))
        if unknown:
            raise ConfigError(
                f"camera_topics names {unknown[0]!r}; this checkpoint looks at {', '.join(checkpoint.config.cameras)}"
            )
        check_deployment(checkpoint.config.decoder, checkpoint.config.variant, self.settings.simulated)
        if self.settings.profile:
            profile = load_profile(self.settings.profile)
            check_joints(checkpoint.config.joint_names, profile, len(checkpoint.config.arms) or 1)
        if checkpoint.config.arms and self.settings.rtc != "none":
            raise ConfigError(f"policy: rtc = {self.settings.rtc!r} is for one arm, this checkpoint drives "
                              f"{len(checkpoint.config.arms)}; choose rtc 'none'")
        return engine, Plan.of(checkpoint)

    def _load_here(self) -> object:
        from vipra_ros.policy.engine import open_engine  # torch takes seconds: the node already tells its state

        s = self.settings
        engine = open_engine(self.folder, s.engine, s.device, s.threads or _threads(), s.euler_steps, s.rtc, s.weights)
        said = [word for word, usual in ((s.rtc, "none"), (s.weights, "full")) if word != usual]
        self._engine_text = " ".join([engine.name, *said, engine.device])
        return engine

    def _connect(self) -> object:
        from vipra_ros.serving.contract import read_token
        from vipra_ros.serving.remote import RemoteEngine, Server

        s = self.settings
        self._engine_text = f"remote {s.server}"
        self._remote = RemoteEngine(
            Server(
                s.server,
                read_token(s.token_file),
                s.deadline,
                jpeg=s.jpeg,
                describe=s.server_config,
                ca=s.server_ca,
            )
        )
        return self._remote

    def _listen(self) -> None:
        """Subscribe to the cameras and arms that the checkpoint asks for (executor thread)."""
        if self.loop.plan.arms:
            self._arms = Arms(self, self.loop, self._vector, self._since)
        raw = self.settings.transport == "raw"
        kind, ending = (Image, "") if raw else (CompressedImage, "/compressed")
        for camera in self.loop.plan.cameras:
            topic = self._topics.get(camera, f"camera/{camera}/image_raw{ending}")
            self._subscribe(kind, topic, qos_profile_sensor_data, lambda m, c=camera: self._image(c, m))
        self._cameras_ready = True

    def _subscribe(self, kind, topic: str, quality: QoSProfile, callback) -> None:
        events = SubscriptionEventCallbacks(incompatible_qos=lambda event: self._incompatible(topic, event))
        self.create_subscription(kind, topic, callback, quality, event_callbacks=events)

    def _since(self, nanoseconds: int) -> float:
        return (nanoseconds - self._origin) * 1e-9

    # --- messages in ---------------------------------------------------------------------------------------

    def _image(self, camera: str, message: CompressedImage | Image) -> None:
        stamp = self._since(convert.nanoseconds(message.header.stamp))
        self.loop.image(camera, stamp, message, zlib.crc32(message.data))

    def _executor(self, message: ExecutorStatus) -> None:
        if self.loop.plan is None or not self.loop.plan.arms:
            self.loop.executor(message.state, message.epoch, message.queue)

    def _joints(self, message: JointState) -> None:
        plan = self.loop.plan
        if plan is None or plan.arms or (vector := self._vector(message, plan.joint_names)) is None:
            return
        self.loop.joints(self._since(convert.nanoseconds(message.header.stamp)), vector)

    def _vector(self, message: JointState, names: Sequence[str]) -> np.ndarray | None:
        """Positions (rad) of `names` and the gripper's opening in [-1, 1], (n + 1,); None when one is missing."""
        place = dict(zip(message.name, message.position))
        finger = next((v for n, v in place.items() if "finger" in n), math.nan)
        if math.isfinite(finger):  # absent while the hand is mute: it holds what it held
            self._opening = min(1.0, max(-1.0, 2 * finger / OPEN_WIDTH * 2.0 - 1.0))
        try:
            return np.array([*(place[n] for n in names), self._opening])
        except KeyError as missing:
            self._note(f"joint_states lacks {missing}; the checkpoint drives {', '.join(names)}")
            return None

    def _words(self, message: String) -> None:
        if self.loop.instruct(message.data):
            self.get_logger().info(f"instruction: {message.data}")

    def _incompatible(self, topic: str, event) -> None:
        self._note(
            f"{topic}: the other side's quality of service does not match ({event.last_policy_kind}); images "
            f"are taken best effort, chunks are sent reliable"
        )

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            self.get_logger().error(text)

    # --- messages out --------------------------------------------------------------------------------------

    def _publish(self, chunk: ActionChunk) -> None:
        stamp = Time(nanoseconds=self._origin + round(chunk.stamp * 1e9)).to_msg()
        if self._arms:
            self._arms.publish(chunk, stamp)
        else:
            self._chunk_out.publish(convert.chunk_message(chunk, stamp))

    def _narrate(self, phase: str, reasons: Sequence[str]) -> None:
        """A line for the person at the terminal when something has changed for a while; reasons hold moving numbers."""
        now, said = time.monotonic(), (phase, len(reasons))
        if said != self._seen[0]:
            self._seen = said, now
        if said != self._said and now >= self._seen[1] + SETTLED:
            self._said = said
            self.get_logger().info(": ".join([phase, *reasons[:1]]))

    def _tell(self) -> None:
        """The loop changed its phase, in whatever thread: publish from the node's own."""
        if rclpy.ok():
            self._told.trigger()

    def _status(self) -> None:
        report = self.loop.report()
        if self.loop.plan is not None and not self._cameras_ready:
            self._listen()
        if report.phase is Phase.FAULT and report.reasons:
            self._note(report.reasons[0])
        self._narrate(report.phase.name, report.reasons)
        cameras = report.cameras
        message = PolicyStatus(
            state=int(report.phase),
            state_text=report.phase.name,
            policy_id=self.loop.policy_id,
            reasons=[*report.reasons, *(n for n in self._notes if n not in report.reasons)],
            checkpoint=report.checkpoint,
            engine=self._engine_text,
            task_id=report.task_id,
            instruction=report.instruction,
            chunks=report.chunks,
            chunk_rate=report.chunk_rate,
            observation_age=report.observation_age,
            cameras=list(cameras),
            camera_age=[c.age for c in cameras.values()],
            camera_rate=[c.rate for c in cameras.values()],
            frames_lost=[c.lost for c in cameras.values()],
            frozen=[c.frozen for c in cameras.values()],
        )
        message.latency_p50, message.latency_p95, message.latency_p99 = report.latency
        message.inference_p50, message.inference_p95, message.inference_p99 = report.inference
        message.header.stamp = self.get_clock().now().to_msg()
        self._status_out.publish(message)


def decode(message: CompressedImage | Image) -> np.ndarray:
    """Pixels of a camera message, uint8 RGB (H, W, 3).

    Raises:
        ValueError: the data are no image, or of an encoding that is not supported.
    """
    if isinstance(message, CompressedImage):
        return from_jpeg(message.data)
    return from_raw(message.data, message.encoding, message.height, message.width, message.step)


def _threads() -> int:
    # Threads of one inference wait for each other: on shared processors more of them are slower, and unsteady.
    return max(1, min(4, len(os.sched_getaffinity(0)) - 1))


def _topics(given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in given:
        camera, separator, topic = text.partition("=")
        if not (camera and separator and topic):
            raise ConfigError(
                f"policy: parameter camera_topics = {text!r}: write camera=topic, for instance "
                f"front=camera/color/image_raw/compressed"
            )
        pairs[camera] = topic
    return pairs


def main(args: list[str] | None = None) -> None:
    """Run the node until it is told to stop; it ends within a second even while the network computes."""
    rclpy.init(args=args)
    give_way()
    try:
        node = PolicyNode()
    except ConfigError as error:
        rclpy.logging.get_logger("policy").fatal(str(error))
        rclpy.try_shutdown()
        raise SystemExit(1) from None
    try:
        with node:
            rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        if rclpy.ok():  # else the interrupt came while it was about to wait
            raise
    node.destroy_node()
    rclpy.try_shutdown()
    # Nothing is left to save. The interpreter would now unload torch for seconds, and wait for, or crash
    # beneath, a thread that is still inside the engine.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
