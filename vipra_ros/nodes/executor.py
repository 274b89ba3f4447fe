"""ROS shell of the executor: messages in, the core's pass at a steady rate, messages out.

The control loop has a thread of its own on the monotonic clock; ROS callbacks only hand chunks and
commands to the core. SIGINT and SIGTERM end in a limited stop before the process goes.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float32
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vipra_ros.config import ConfigError, param
from vipra_ros.control.chunk import ActionChunk, RobotState, Waypoint
from vipra_ros.control.executor import ExecutorCore, Result
from vipra_ros.control.guard import State
from vipra_ros.control.profile import JOINTS, load_profile
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.control.sinks import PreviewHand, PreviewSink
from vipra_ros.msg import ActionChunk as ActionChunkMessage
from vipra_ros.msg import ExecutorStatus as ExecutorStatusMessage
from vipra_ros.nodes.parameters import declare

RELIABLE, LATEST = QoSProfile(depth=10), QoSProfile(depth=1)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@dataclass(frozen=True)
class ExecutorNodeSettings:
    """Parameters of the node; those of the core are :class:`ExecutorSettings`."""

    host: str = param("172.16.0.2", doc="address of the arm's control unit")
    profile: str = param("fr3", doc="robot profile: a name in config/robots or the path of a YAML file")
    realtime_config: str = param("enforce", doc="enforce needs a real-time kernel, ignore is for simulated arms",
                                 choices=("enforce", "ignore"))
    dry_run: bool = param(False, doc="no robot: a virtual arm follows, commands go to executor/preview")
    arm_on_start: bool = param(False, doc="arm without being asked, once")
    hand: bool = param(True, doc="whether the arm has a hand")
    control_rate: float = param(100.0, doc="passes of the loop, and joint states", unit="Hz", low=20.0, high=500.0)
    status_rate: float = param(10.0, doc="status messages, beside one at every change", unit="Hz", low=0.5, high=50.0)
    connect_timeout: float = param(30.0, doc="how long to wait for the arm at start", unit="s", low=0.0, high=600.0)


class VirtualArm:
    """Dry run: an arm that is always where it is commanded to be."""

    def __init__(self, home: np.ndarray):
        self._home, self.core = home, None

    def state(self) -> RobotState:
        """The reference's state now."""
        now = time.monotonic()
        reference = self.core.reference() if self.core else None
        q, dq = (self._home, np.zeros(JOINTS)) if reference is None else reference.at(now)[:2]
        return RobotState(now, q, dq, q, dq, in_control=True)

    def close(self) -> None:
        """Nothing to let go of."""


class ExecutorNode(Node):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__("executor")
        self.settings = s = declare(self, ExecutorNodeSettings)
        settings = declare(self, ExecutorSettings)
        self.profile = load_profile(s.profile)
        self.failure: Exception | None = None
        self._notes: dict[str, str] = {}
        self._said: tuple = ()
        self._opening = float("nan")
        events = PublisherEventCallbacks(incompatible_qos=lambda e: self._mismatch("a subscriber", e))
        make = lambda kind, topic, qos: self.create_publisher(kind, topic, qos, event_callbacks=events)  # noqa: E731
        self._states = make(JointState, "joint_states", RELIABLE)
        self._commands = make(JointState, "executor/joint_command", RELIABLE)
        self._gripper = make(Float32, "executor/gripper_command", LATCHED)
        self._status = make(ExecutorStatusMessage, "executor/status", LATCHED)
        self._preview = make(JointTrajectory, "executor/preview", LATEST) if s.dry_run else None
        self._connect(settings)
        listen = SubscriptionEventCallbacks(incompatible_qos=lambda e: self._mismatch("policy/chunk's publisher", e))
        self.create_subscription(ActionChunkMessage, "policy/chunk", self._on_chunk, LATEST, event_callbacks=listen,
                                 callback_group=MutuallyExclusiveCallbackGroup())
        if settings.deadman_timeout > 0:
            self.create_subscription(Bool, "executor/deadman", self._on_deadman, LATEST)
        for name in ("arm", "stop", "hold", "home", "recover", "reset"):
            # A group each: stop never waits behind a recovery that takes a second.
            self.create_service(Trigger, f"executor/{name}", self._service(getattr(self.core, name)),
                                callback_group=MutuallyExclusiveCallbackGroup())
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="control", daemon=True)

    def _connect(self, settings: ExecutorSettings) -> None:
        s = self.settings
        if s.dry_run:
            self.arm, self.hand = VirtualArm(self.profile.home_q), None
            self.core = ExecutorCore(self.profile, settings, PreviewSink(self._show), PreviewHand(), dry_run=True,
                                     name=f"{self.profile.name}, dry run")
            self.arm.core = self.core
            return
        from vipra_ros.robot.arm import ArmError, FrankyArm
        from vipra_ros.robot.hand import FrankyHand
        give_up = time.monotonic() + s.connect_timeout
        while True:
            try:
                self.arm = FrankyArm(self.profile, s.host, s.realtime_config)
                break
            except ArmError as error:
                if time.monotonic() > give_up:
                    raise
                self.get_logger().warning(str(error), throttle_duration_sec=5.0)
                time.sleep(0.5)
        self.hand = FrankyHand(s.host, self.profile.gripper_width) if s.hand else None
        self.core = ExecutorCore(self.profile, settings, self.arm, self.hand or PreviewHand(),
                                 recover_robot=self.arm.recover, name=f"{self.profile.name} at {s.host}")
        self.get_logger().info(f"connected to {self.profile.name} at {s.host}")

    # --- in ------------------------------------------------------------------------------------------------

    def _on_chunk(self, message: ActionChunkMessage) -> None:
        # The offset of the two clocks is measured at every arrival, so a jump of the ROS clock shows as an age.
        age = (self.get_clock().now() - Time.from_msg(message.header.stamp, self.get_clock().clock_type)).nanoseconds / 1e9
        now = time.monotonic()
        verdict = self.core.offer(chunk_of(message, now - age), now)
        if not verdict:
            self.get_logger().warning(f"chunk {message.chunk_id} refused, {verdict}", throttle_duration_sec=2.0)

    def _on_deadman(self, message: Bool) -> None:
        if message.data:
            self.core.deadman(time.monotonic())

    def _service(self, command: Callable[[float], Result]) -> Callable:
        def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            del request
            result = command(time.monotonic())
            response.success, response.message = result.success, result.message
            return response
        return answer

    def _mismatch(self, who: str, event: object) -> None:
        self._notes["qos"] = (f"{who} asks for another quality of service (policy {event.last_policy_kind}); match "
                              f"reliability and durability")

    # --- the loop ------------------------------------------------------------------------------------------

    def __enter__(self) -> ExecutorNode:
        self._running.set()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Limited stop, then let go of the robot."""
        self.core.stop(time.monotonic())
        patience = time.monotonic() + self.core.limiter.stop_time() + 0.5
        while (self.failure is None and self.core.machine.state is State.STOPPING and time.monotonic() < patience):
            time.sleep(0.01)
        self._running.clear()
        self._thread.join(timeout=2.0)
        if self.hand:
            self.hand.close()
        self.arm.close()

    def _loop(self) -> None:
        period, due, armed, last_status = 1.0 / self.settings.control_rate, time.monotonic(), False, -np.inf
        try:
            while self._running.is_set():
                state, now = self.arm.state(), time.monotonic()
                if self.hand:
                    state = replace(state, gripper_width=self.hand.width)
                    self._note("hand", self.hand.error)
                self.core.tick(now, state)
                if self.settings.arm_on_start and not armed:
                    armed = self.core.arm(time.monotonic()).success
                self._publish(state)
                status = self.core.status
                said = (status.state, status.reasons, status.rejected, tuple(self._notes.values()))
                if said != self._said or now - last_status >= 1.0 / self.settings.status_rate:
                    self._said, last_status = said, now
                    self._say(status)
                due = max(due + period, time.monotonic() - period)   # after a pause: go on, do not catch up in a burst
                time.sleep(max(0.0, due - time.monotonic()))
        except Exception as error:   # a dead loop must end the process: main sees it
            self.failure = error

    def _note(self, key: str, text: str) -> None:
        if text:
            self._notes[key] = text
        else:
            self._notes.pop(key, None)

    # --- out -----------------------------------------------------------------------------------------------

    def _publish(self, state: RobotState) -> None:
        stamp = self.get_clock().now().to_msg()
        names, q, dq = list(self.profile.joint_names), state.q.tolist(), state.dq.tolist()
        if np.isfinite(q).all():
            message = JointState(name=names, position=q, velocity=dq)
            if np.isfinite(state.gripper_width):
                message = JointState(name=[*names, self.profile.finger_joint],
                                     position=[*q, state.gripper_width / 2], velocity=[*dq, 0.0])
            message.header.stamp = stamp
            self._states.publish(message)
        reference = self.core.reference()
        if reference is not None:
            q_d, dq_d, _ = reference.at(state.time)
            command = JointState(name=names, position=q_d.tolist(), velocity=dq_d.tolist())
            command.header.stamp = stamp
            self._commands.publish(command)
        opening = self.core.opening
        if np.isfinite(opening) and opening != self._opening:
            self._opening = opening
            self._gripper.publish(Float32(data=opening))

    def _say(self, status: object) -> None:
        message = ExecutorStatusMessage()
        message.header.stamp = self.get_clock().now().to_msg()
        for f in fields(status):
            value = getattr(status, f.name)
            setattr(message, f.name, [*value, *self._notes.values()] if f.name == "reasons" else value)
        self._status.publish(message)

    def _show(self, waypoints: tuple[Waypoint, ...]) -> None:
        now = time.monotonic()
        message = JointTrajectory(joint_names=list(self.profile.joint_names))
        message.header.stamp = self.get_clock().now().to_msg()
        for w in waypoints:
            point = JointTrajectoryPoint(positions=w.q.tolist(), velocities=w.dq.tolist(), accelerations=w.ddq.tolist())
            point.time_from_start.sec, rest = divmod(round(max(0.0, w.time - now) * 1e9), 10**9)
            point.time_from_start.nanosec = rest
            message.points.append(point)
        self._preview.publish(message)


def chunk_of(message: ActionChunkMessage, stamp: float) -> ActionChunk:
    """The message as the core takes it, its `stamp` in s on the monotonic clock.

    Sizes that do not fit are left as they came: the core refuses them with a reason.
    """
    actions, ahead = np.array(message.actions, float), np.array(message.lookahead, float)
    rows, width, horizon = message.execute_steps, message.action_size, message.horizon
    if width and actions.size == rows * width and ahead.size == (horizon - rows) * width:
        actions, ahead = actions.reshape(rows, width), ahead.reshape(-1, width)
    return ActionChunk(stamp=stamp, chunk_id=message.chunk_id, step_period=message.step_period, actions=actions,
                       lookahead=ahead, action_space=message.action_space, joint_names=tuple(message.joint_names),
                       task_id=message.task_id, instruction=message.instruction, checkpoint=message.checkpoint,
                       epoch=message.epoch, policy_id=message.policy_id)


def main(args: list[str] | None = None) -> None:
    """Run until SIGINT or SIGTERM, or until the loop dies."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    try:
        node = ExecutorNode()
    except (ConfigError, RuntimeError) as error:
        print(f"executor: {error}", flush=True)
        rclpy.try_shutdown()
        raise SystemExit(1) from None
    executor = MultiThreadedExecutor(num_threads=3)
    executor.add_node(node)
    spinner = threading.Thread(target=_spin, args=(executor,), name="ros", daemon=True)
    with node:
        spinner.start()
        while not ending.wait(0.1) and node.failure is None and rclpy.ok():
            pass
    failure = node.failure
    executor.shutdown(timeout_sec=1.0)
    node.destroy_node()
    rclpy.try_shutdown()
    if failure is not None:
        print(f"executor: the control loop ended: {type(failure).__name__}: {failure}", flush=True)
        raise SystemExit(1)


def _spin(executor: MultiThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        pass


if __name__ == "__main__":
    main()
