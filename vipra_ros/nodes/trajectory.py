"""The last hop for an arm that franka_ros2 runs: the limited reference as JointTrajectory, states from joint_states.

Only conversions. The controller (joint_trajectory_controller) must accept position, velocity and acceleration; the
trajectory that is published ends at rest, so a controller that hears nothing more stops there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.profile import JOINTS, RobotProfile
from vipra_ros.nodes import convert

#: s; points nearer than this are left out, for a controller refuses what is past. s of the shortest braking.
LEAST, BRAKE = 0.005, 0.05
#: s; a state that is older says nothing of where a moving arm is.
FRESH = 0.1


class TrajectoryArm:
    """A MotionSink and a source of robot states; the core knows no difference.

    Args:
        node: publishes and listens.
        topic: where the controller takes trajectories.
        states: where it, or its broadcaster, publishes joint states; fingers may be among them.
    """

    def __init__(self, node: Node, profile: RobotProfile, topic: str, states: str):
        self.profile, self._clock = profile, node.get_clock()
        nothing = np.full(JOINTS, np.nan)
        self._state = RobotState(time.monotonic(), nothing, nothing, nothing, nothing)
        self._end = -np.inf
        self._publisher = node.create_publisher(JointTrajectory, topic, QoSProfile(depth=1))
        # best effort hears both kinds of publishers: broadcasters have changed from one to the other
        node.create_subscription(JointState, states, self._on_states, qos_profile_sensor_data)

    def _on_states(self, message: JointState) -> None:
        at = {name: k for k, name in enumerate(message.name)}
        places = [at.get(name, -1) for name in self.profile.joint_names]
        if min(places) < 0 or len(message.position) < len(at) or len(message.velocity) < len(at):
            return  # another robot's, or a broadcaster's that has fingers alone: silence is noticed by the core
        q, dq = np.array(message.position)[places], np.array(message.velocity)[places]
        finger = at.get(self.profile.finger_joint)
        width = self._state.gripper_width if finger is None else 2 * message.position[finger]
        unknown = np.full(JOINTS, np.nan)  # what the controller commands is not published
        self._state = RobotState(time.monotonic(), q, dq, unknown, unknown, width)

    def state(self) -> RobotState:
        """The newest state; an error when no controller listens."""
        listened = self._publisher.get_subscription_count() > 0
        error = "" if listened else f"no controller takes {self._publisher.topic_name}; start or activate it"
        return replace(self._state, in_control=listened, error=error)

    def stream(self, waypoints: Sequence[Waypoint], now: float) -> None:
        """Publish the waypoints that lie ahead; where none does, brake."""
        now = max(now, time.monotonic())
        points = [w for w in waypoints if w.time > now + LEAST]
        if points:
            self._publish(points, now)
        else:  # it ends too soon to be told, and what was published before does not
            with contextlib.suppress(RuntimeError):  # states that stay away are a fault of their own, a little later
                self.stop(now)

    def stop(self, now: float) -> None:
        """Brake evenly with the profile's acceleration.

        Nothing is sent when what was sent before has ended, which is at rest.

        Raises:
            RuntimeError: the arm was not heard lately: it would be called back to where it was then.
        """
        now = max(now, time.monotonic())
        q, dq, age = self._state.q, self._state.dq, now - self._state.time
        if not np.isfinite(q).all() or now > self._end:
            return
        if age > FRESH:
            raise RuntimeError(
                f"no joint states for {age:.2f} s: no stop was sent, and what was sent before goes on for "
                f"{self._end - now:.2f} s; look at the controller"
            )
        span = max(BRAKE, float(np.max(np.abs(dq) / self.profile.limits[1])))
        self._publish([Waypoint(now + span, q + (age + 0.5 * span) * dq, np.zeros(JOINTS))], now)

    def _publish(self, points: Sequence[Waypoint], now: float) -> None:
        self._end = points[-1].time
        self._publisher.publish(convert.trajectory(points, self.profile, now, self._clock.now().to_msg()))

    def recover(self) -> str:
        """Errors of the arm are franka_ros2's to clear; "" when the controller listens."""
        error = self.state().error
        return f"{error}; call franka_ros2's error_recovery action if the arm reports a reflex" if error else ""

    def close(self) -> None:
        """Nothing: the arm is the controller's."""
