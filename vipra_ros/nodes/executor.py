"""ROS shell of the executor: messages in, the core's pass at a steady rate, messages out.

The control loop has a thread of its own on the monotonic clock; ROS callbacks only hand chunks and
commands to the core. SIGINT and SIGTERM end in a limited stop before the process goes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float32
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vipra_ros.config import param
from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.executor import ExecutorCore, Result
from vipra_ros.control.flight import FlightRecorder
from vipra_ros.control.guard import State
from vipra_ros.control.profile import load_profile
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.control.sinks import PreviewArm, PreviewHand, PreviewSink
from vipra_ros.control.status import ExecutorStatus
from vipra_ros.data.incident import IncidentWriter
from vipra_ros.msg import ActionChunk as ActionChunkMessage
from vipra_ros.msg import ExecutorStatus as ExecutorStatusMessage
from vipra_ros.nodes import convert
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.run import serve
from vipra_ros.nodes.trajectory import TrajectoryArm
from vipra_ros.robot.connect import ConnectionSettings, connect

RELIABLE, LATEST = QoSProfile(depth=10), QoSProfile(depth=1)
#: s between two looks at publishers that could not be heard; s after which a simulated clock counts as standing.
LOOK_PERIOD, STANDSTILL = 1.0, 0.5


@dataclass(frozen=True)
class ExecutorNodeSettings:
    """Parameters of the node, beside ConnectionSettings and ExecutorSettings."""

    dry_run: bool = param(False, doc="no robot: a virtual arm follows, commands go to executor/preview")
    arm_on_start: bool = param(False, doc="arm without being asked, once")
    control_rate: float = param(
        100.0, doc="passes of the loop, and joint states", unit="Hz", low=20.0, high=500.0
    )
    status_rate: float = param(
        10.0, doc="status messages, beside one at every change", unit="Hz", low=0.5, high=50.0
    )
    trajectory_topic: str = param(
        "joint_trajectory_controller/joint_trajectory", doc="sink trajectory: where the controller takes trajectories"
    )
    trajectory_states: str = param(
        "joint_states", doc="sink trajectory: where the controller's arm publishes joint states; the executor does not"
    )


class ExecutorNode(Node):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__("executor")
        self.settings = s = declare(self, ExecutorNodeSettings)
        connection, settings = declare(self, ConnectionSettings), declare(self, ExecutorSettings)
        self.profile = load_profile(connection.profile)
        self.failure: Exception | None = None
        self._notes: dict[str, str] = {}
        self._ros_time, self._ros_moved = -1, time.monotonic()  # ns of the ROS clock, when it last went on
        self._said: tuple = ()
        self._opening = float("nan")
        events = PublisherEventCallbacks(incompatible_qos=lambda e: self._mismatch("out", "a subscriber", e))

        def make(kind: type, topic: str, qos: QoSProfile) -> Publisher:
            return self.create_publisher(kind, topic, qos, event_callbacks=events)

        foreign = settings.sink == "trajectory" and not s.dry_run  # joint_states are the controller's then
        self._states = None if foreign else make(JointState, "joint_states", RELIABLE)
        self._commands = make(JointState, "executor/joint_command", RELIABLE)
        self._gripper = make(Float32, "executor/gripper_command", LATCHED)
        self._status = make(ExecutorStatusMessage, "executor/status", LATCHED)
        self._preview = make(JointTrajectory, "executor/preview", LATEST) if s.dry_run else None
        self._connect(connection, settings)
        listen = SubscriptionEventCallbacks(
            incompatible_qos=lambda e: self._mismatch("in", "policy/chunk's publisher", e)
        )
        self.create_timer(LOOK_PERIOD, self._match, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_subscription(
            ActionChunkMessage,
            "policy/chunk",
            self._on_chunk,
            LATEST,
            event_callbacks=listen,
        )
        if settings.deadman_timeout > 0:
            self.create_subscription(Bool, "executor/deadman", self._on_deadman, LATEST)
        self._commanded, self._orders = False, threading.Lock()
        for name in ("recover", "reset", "arm", "home", "hold", "stop"):
            # One thread serves all: a stop may wait for a recovery, about a second in which nothing can move. What has
            # come meanwhile is served in the order of this list, so a stop has the last word.
            self.create_service(
                Trigger,
                f"executor/{name}",
                self._service(getattr(self.core, name)),
            )
        self._incidents = None
        if settings.incident_keep:
            self._incidents = IncidentWriter(
                self.core.flight, self.profile, settings, self.get_logger().warning, self.core.status.robot
            )
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="control", daemon=True)

    def _connect(self, connection: ConnectionSettings, settings: ExecutorSettings) -> None:
        name, flight = self.profile.name, FlightRecorder(self.settings.control_rate)
        if self.settings.dry_run:
            self.arm, self.hand = PreviewArm(self.profile.home_q, time.monotonic), None
            sink = PreviewSink(self._show)
            self.core = ExecutorCore(
                self.profile, settings, sink, PreviewHand(), dry_run=True, name=f"{name}, dry run", flight=flight
            )
            self.arm.core = self.core
            asked = "" if self.settings.arm_on_start else ", once executor/arm is called"
            self.get_logger().info(f"dry run: nothing goes to {connection.host}, a virtual arm follows{asked}")
            return
        if settings.sink == "trajectory":
            s = self.settings
            self.arm, self.hand = TrajectoryArm(self, self.profile, s.trajectory_topic, s.trajectory_states), None
            name = f"{name} by {s.trajectory_topic}"
        else:
            self.arm, self.hand = connect(
                self.profile, connection, self.get_logger().warning, settings.sink
            )
            self.profile = self.arm.profile  # tightened by what the robot reports
            name = f"{name} at {connection.host}"
        self.core = ExecutorCore(
            self.profile,
            settings,
            self.arm,
            self.hand or PreviewHand(),
            recover_robot=self.arm.recover,
            name=name,
            flight=flight,
        )
        self.get_logger().info(f"connected to {name}")

    # --- in ------------------------------------------------------------------------------------------------

    def _on_chunk(self, message: ActionChunkMessage) -> None:
        # The clocks' offset is measured at every arrival, so a jump of the ROS clock shows as an age.
        # In whole numbers: a Time refuses stamps before 1970, and what is only a bad chunk would be an error of ours.
        age = (self.get_clock().now().nanoseconds - convert.nanoseconds(message.header.stamp)) / 1e9
        now = time.monotonic()
        age += self._stood(now)  # a clock that stands still makes no observation young
        verdict = self.core.offer(convert.chunk(message, now - age), now)
        if not verdict:
            self.get_logger().warning(
                f"chunk {message.chunk_id} refused, {verdict}", throttle_duration_sec=2.0
            )

    def _on_deadman(self, message: Bool) -> None:
        if message.data:
            self.core.deadman(time.monotonic())

    def _other(self) -> str:
        """Why nothing may move: a service reaches every executor of its name, and what they say is taken for ours."""
        if self.count_publishers("executor/status") < 2:
            return ""
        return (f"another executor, or a bag that is played, publishes {self.resolve_topic_name('executor/status')}; "
                "end it, or give each arm a namespace or a ROS_DOMAIN_ID")

    def _service(self, command: Callable[[float], Result]) -> Callable:
        safe = (self.core.stop, self.core.hold, self.core.recover, self.core.reset)

        def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            del request
            with self._orders:
                self._commanded = True
            other = "" if command in safe else self._other()
            result = Result(False, other) if other else command(time.monotonic())
            response.success, response.message = result.success, result.message
            return response

        return answer

    def _mismatch(self, way: str, who: str, event: object) -> None:
        self._notes[f"qos {way}"] = (
            f"{who} asks for another quality of service (policy {event.last_policy_kind}); match "
            f"reliability and durability"
        )

    def _match(self) -> None:
        """Take the note back when the publisher that was not heard is gone; note an executor beside this one."""
        self._note("other", self._other())
        if "qos in" not in self._notes:
            return
        others = self.get_publishers_info_by_topic("policy/chunk")
        verdicts = [qos_check_compatible(p.qos_profile, LATEST)[0] for p in others]
        if QoSCompatibility.ERROR not in verdicts:
            self._note("qos in", "")

    def _stood(self, now: float) -> float:
        """s that a simulated ROS clock has stood still, 0 for one that goes."""
        ros = self.get_clock().now().nanoseconds
        if ros != self._ros_time:
            self._ros_time, self._ros_moved = ros, now
        stood = now - self._ros_moved
        return stood if stood > STANDSTILL else 0.0

    # --- the loop ------------------------------------------------------------------------------------------

    def __enter__(self) -> ExecutorNode:
        self._running.set()
        if self._incidents:
            self._incidents.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Limited stop, then let go of the robot."""
        self.core.stop(time.monotonic())
        patience = time.monotonic() + self.core.limiter.stop_time() + 0.5
        while (
            self._thread.is_alive() and self.core.machine.state is State.STOPPING and time.monotonic() < patience
        ):
            time.sleep(0.01)
        self._running.clear()
        self._thread.join(timeout=2.0)
        self.arm.close()
        if self._incidents:
            self._incidents.__exit__()
        if self.hand:  # last: it may be at a command, and whoever ends us has little patience
            self.hand.close()

    def _loop(self) -> None:
        period, due, armed, last_status = 1.0 / self.settings.control_rate, time.monotonic(), False, -np.inf
        try:
            while self._running.is_set():
                state, now = self.arm.state(), time.monotonic()
                if self.hand:
                    state = replace(state, gripper_width=self.hand.width)
                    self._note("hand", self.hand.error)
                stood = self._stood(now)
                self._note("clock", f"/clock has stood still for {stood:.0f} s; let the simulation go on, or set "
                           f"use_sim_time to false" if stood else "")
                self.core.tick(now, state)
                if self.settings.arm_on_start and not armed:  # no longer, once an operator has said anything
                    armed = self._arm_unasked()
                self._publish(state)
                status = self.core.status
                said = (status.state, status.reasons, status.rejected, tuple(self._notes.values()))
                if said != self._said or now - last_status >= 1.0 / self.settings.status_rate:
                    self._said, last_status = said, now
                    self._say(status)
                due = max(
                    due + period, time.monotonic() - period
                )  # after a pause: go on, do not catch up in a burst
                time.sleep(max(0.0, due - time.monotonic()))
        except Exception as error:  # a dead loop must end the process: main sees it
            self.failure = error

    def _arm_unasked(self) -> bool:
        """Arm, unless an operator has spoken, whose stop must not be undone; whether that is settled."""
        alone = not self._other()
        with self._orders:
            return self._commanded or alone and self.core.arm(time.monotonic()).success

    def _note(self, key: str, text: str) -> None:
        if text:
            self._notes[key] = text
        else:
            self._notes.pop(key, None)

    # --- out -----------------------------------------------------------------------------------------------

    def _publish(self, state: RobotState) -> None:
        # Of the time the state was read, not of now: the limiter may have worked for 10 ms in between.
        stamp = convert.stamp(self.get_clock(), time.monotonic() - state.time)
        profile = self.profile
        if self._states and np.isfinite(state.q).all():
            self._states.publish(convert.measured(state, profile, stamp))
        reference = self.core.reference()
        if reference is not None:
            q, dq, _ = reference.at(state.time)
            self._commands.publish(convert.joints(profile.joint_names, q, dq, stamp))
        if np.isfinite(self.core.opening) and self.core.opening != self._opening:
            self._opening = self.core.opening
            self._gripper.publish(Float32(data=self._opening))

    def _say(self, status: ExecutorStatus) -> None:
        stamp = self.get_clock().now().to_msg()
        self._status.publish(convert.status(status, list(self._notes.values()), stamp))

    def _show(self, waypoints: Sequence[Waypoint]) -> None:
        stamp = self.get_clock().now().to_msg()
        self._preview.publish(convert.trajectory(waypoints, self.profile, time.monotonic(), stamp))


def main(args: list[str] | None = None) -> None:
    """Run until SIGINT or SIGTERM, or until the loop or a callback dies."""
    _, failure = serve(args, "executor", ExecutorNode)
    if failure is not None:
        print(f"executor: ended: {type(failure).__name__}: {failure}", flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
