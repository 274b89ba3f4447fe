"""ROS shell of the leader arm: servo readings in, leader joints and chunks out.

The bus has a thread of its own at a steady rate; ROS callbacks only note what follower and executor say. A bus
that fails sends nothing: the executor's own time-out stops the arm. It is opened again every few seconds, and the
leader must then be aligned anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32, String

from vipra_ros.config import ConfigError, param, share
from vipra_ros.control.guard import State as ExecutorState
from vipra_ros.control.profile import load_profile
from vipra_ros.msg import ActionChunk as ActionChunkMessage
from vipra_ros.msg import ExecutorStatus as ExecutorStatusMessage
from vipra_ros.nodes import convert
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.run import serve
from vipra_ros.teleop.bus import BusError, Reading, ServoBus, latency_advice
from vipra_ros.teleop.emulate import emulated
from vipra_ros.teleop.follow import Follow, FollowSettings, Phase
from vipra_ros.teleop.gello import Tracker, load_gello
from vipra_ros.teleop.motions import motion
from vipra_ros.teleop.upstream import UpstreamBus

LATEST = QoSProfile(depth=1)
#: Reads that may fail in a row before the port is opened anew.
MOST_FAILURES = 5
#: of the open hand's width: a hand that is less open holds something.
OPEN = 0.9


@dataclass(frozen=True)
class GelloNodeSettings:
    """Parameters of the node, beside FollowSettings."""

    gello_config: str = param("", doc="YAML file of the leader arm; empty: the shipped config/gello.yaml")
    gello_arm: str = param("", doc="section of that file; empty: the one with our namespace, or the only one")
    com_port: str = param("", doc="serial port of the leader; empty: that of the file")
    profile: str = param("fr3", doc="robot profile of the follower")
    emulate: str = param(
        "", doc="no hardware: emulated servos stay at the home pose, or swing about it", choices=("", "home", "sine")
    )
    agent: str = param(
        "", doc="upstream: read the leader through the public gello package instead of our own driver",
        choices=("", "upstream"),
    )
    retry: float = param(3.0, doc="time between two attempts to open the port", unit="s", low=0.2, high=60.0)
    status_rate: float = param(2.0, doc="status messages, beside one at every change", unit="Hz", low=0.5, high=25.0)


class GelloNode(Node):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__("gello")
        self.settings = s = declare(self, GelloNodeSettings)
        self.profile = load_profile(s.profile)
        config = load_gello(s.gello_config or share("config", "gello.yaml"), s.gello_arm, self.get_namespace())
        if config.num_arm_joints != len(self.profile.joint_names):
            raise ConfigError(
                f"num_arm_joints = {config.num_arm_joints}: {self.profile.name} has {len(self.profile.joint_names)}"
            )
        if s.com_port:
            config = dataclasses.replace(config, com_port=s.com_port)
        self._servos = None
        if s.emulate:
            self._servos = emulated(config, motion(s.emulate, self.profile.home_q))
            config = dataclasses.replace(config, com_port=self._servos.port)
        self.config, self.bus = config, ServoBus(config.port, config.servo_ids, config.baudrate)
        if s.agent:
            self.bus = UpstreamBus(config, bus=self.bus)
            self.config = self.bus.config  # its angles have signs and offsets already
        self.follow = Follow(self.profile, declare(self, FollowSettings), f"gello-{os.getpid()}")
        self.failure: Exception | None = None
        self._tracker: Tracker | None = None
        self._told = False  # whether the executor has said what it told the hand
        self._lock = threading.Lock()  # of self.follow
        self._times: list[float] = []
        self._said, self._last_status, self._durations = ("", ""), -math.inf, [0.0]
        self._joints = self.create_publisher(JointState, "gello/joint_states", QoSProfile(depth=10))
        self._gripper = self.create_publisher(
            Float32, "gripper/gripper_client/target_gripper_width_percent", QoSProfile(depth=10)
        )
        self._status = self.create_publisher(String, "gello/status", LATCHED)
        self._chunks = self.create_publisher(ActionChunkMessage, "policy/chunk", LATEST)
        self.create_subscription(JointState, "joint_states", self._on_follower, qos_profile_sensor_data)
        self.create_subscription(ExecutorStatusMessage, "executor/status", self._on_status, LATCHED)
        self.create_subscription(Float32, "executor/gripper_command", self._on_hand, LATCHED)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="servo bus", daemon=True)

    def __enter__(self) -> GelloNode:
        if self._servos:
            self._servos.__enter__()
            self.get_logger().warning("no hardware: the leader arm is emulated")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join(timeout=2.0)
        if self._servos:
            self._servos.__exit__(*exc)

    # --- in ------------------------------------------------------------------------------------------------

    def _on_follower(self, message: JointState) -> None:
        place = dict(zip(message.name, message.position))
        if all(name in place for name in self.profile.joint_names):
            q = np.array([place[name] for name in self.profile.joint_names])
            finger = next((v for n, v in place.items() if "finger" in n), math.nan)
            with self._lock:
                self.follow.follower(time.monotonic(), q)
                if not self._told and math.isfinite(finger):  # an executor that has just begun has told it nothing
                    self.follow.hand(1.0 if 2 * finger > OPEN * self.profile.gripper_width else -1.0)

    def _on_hand(self, message: Float32) -> None:
        with self._lock:
            self._told = True
            self.follow.hand(1.0 if message.data > 0 else -1.0)

    def _on_status(self, message: ExecutorStatusMessage) -> None:
        with self._lock:
            self.follow.executor(time.monotonic(), ExecutorState[message.state_text], message.epoch)

    # --- the bus -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                try:
                    self.bus.open()
                    if advice := latency_advice(self.config.port):
                        self.get_logger().warning(advice)
                    self.get_logger().info(f"{len(self.config.servo_ids)} servos at {self.config.port}, torque off")
                    self._tracker = Tracker(self.config, self.profile.q_min, self.profile.q_max)
                    self._read_on()
                except (BusError, ValueError) as error:
                    self._lose(f"{error}; tried again every {self.settings.retry} s")
                finally:
                    with contextlib.suppress(BusError):  # said already, or the cable is out
                        self.bus.close()
                self._ending.wait(self.settings.retry)
        except Exception as error:  # a dead loop must end the process: main sees it
            self.failure = error

    def _read_on(self) -> None:
        """Read at the rate, until the end or the failure of the bus."""
        due, failures = time.monotonic(), 0
        while not self._ending.is_set():
            try:
                self._take(self.bus.read())
                failures = 0
            except BusError as error:
                failures += 1
                if error.gone or failures >= MOST_FAILURES:
                    raise
                self.get_logger().warning(f"{error} (read skipped)", throttle_duration_sec=2.0)
            self._say()
            due = max(due + self.follow.period, time.monotonic() - self.follow.period)
            time.sleep(max(0.0, due - time.monotonic()))

    def _take(self, reading: Reading) -> None:
        q, opening = self._tracker.update(reading.ticks)
        now = time.monotonic()
        with self._lock:
            self.follow.reading(reading.time, q, opening, reading.duration)
            chunk = self.follow.chunk(now)
        stamp = convert.stamp(self.get_clock(), now - reading.time)
        signs, n = np.array(self.config.joint_signs), self.config.num_arm_joints
        self._joints.publish(convert.joints(self.profile.joint_names, q, signs * reading.velocity[:n], stamp))
        self._gripper.publish(Float32(data=opening))
        if chunk is not None:
            self._chunks.publish(convert.chunk_message(chunk, stamp))
        self._times = [*self._times[-50:], reading.time]
        self._durations = [*self._durations[-50:], reading.duration]

    # --- out -----------------------------------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        with self._lock:
            self.follow.lost(why)
        self._say()

    def _say(self) -> None:
        """Log a change, publish the status at a change and at its rate."""
        now = time.monotonic()
        with self._lock:
            phase, text, lag, sent = self.follow.phase, self.follow.text, self.follow.lag, self.follow.sent
        changed = (phase.value, text) != self._said
        if not changed and now - self._last_status < 1.0 / self.settings.status_rate:
            return
        if changed and phase is Phase.LOST:
            self.get_logger().error(f"{phase.value}: {text}")
        elif phase.value != self._said[0]:
            self.get_logger().info(f"{phase.value}: {text}")
        elif changed:
            self.get_logger().info(f"{phase.value}: {text}", throttle_duration_sec=2.0)
        self._said, self._last_status = (phase.value, text), now
        steps = np.diff(self._times)
        numbers = {
            "read_rate": 1.0 / float(np.mean(steps)) if len(steps) else 0.0,
            "read_time": float(np.median(self._durations)),
            "lag_p50": lag[0],
            "lag_p95": lag[1],
        }
        content = {"state": phase.value, "text": text, "chunks": sent}
        content |= {k: round(v, 4) if math.isfinite(v) else None for k, v in numbers.items()}
        self._status.publish(String(data=json.dumps(content)))


def main(args: list[str] | None = None) -> None:
    """Run until SIGINT or SIGTERM."""
    _, failure = serve(args, "gello", GelloNode)
    if failure is not None:
        print(f"gello: ended: {type(failure).__name__}: {failure}", flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
