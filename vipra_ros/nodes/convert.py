"""Messages from and to the dataclasses of `control`; nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.clock import Clock
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vipra_ros.control.chunk import ActionChunk, RobotState, Waypoint
from vipra_ros.control.profile import RobotProfile
from vipra_ros.control.status import ExecutorStatus
from vipra_ros.msg import ActionChunk as ActionChunkMessage
from vipra_ros.msg import ExecutorStatus as ExecutorStatusMessage


def nanoseconds(stamp: Time) -> int:
    """ns since 1970 of a message's stamp."""
    return stamp.sec * 10**9 + stamp.nanosec


def stamp(clock: Clock, age: float) -> Time:
    """Of what happened `age` s ago on the node's clock; 0 where a simulated one that nobody has set yet says 0."""
    then = max(0, clock.now().nanoseconds - round(age * 1e9))
    return Time(sec=then // 10**9, nanosec=then % 10**9)


def chunk(message: ActionChunkMessage, stamp: float) -> ActionChunk:
    """The message as the core takes it, its `stamp` in s on the monotonic clock.

    Sizes that do not fit are left as they came: the core refuses them with a reason.
    """
    actions, ahead = np.array(message.actions, float), np.array(message.lookahead, float)
    rows, width = message.execute_steps, message.action_size
    if width and actions.size == rows * width and ahead.size == (message.horizon - rows) * width:
        actions, ahead = actions.reshape(rows, width), ahead.reshape(-1, width)
    return ActionChunk(
        stamp=stamp,
        chunk_id=message.chunk_id,
        step_period=message.step_period,
        actions=actions,
        lookahead=ahead,
        action_space=message.action_space,
        joint_names=tuple(message.joint_names),
        task_id=message.task_id,
        instruction=message.instruction,
        checkpoint=message.checkpoint,
        epoch=message.epoch,
        policy_id=message.policy_id,
    )


def chunk_message(source: ActionChunk, stamp: Time) -> ActionChunkMessage:
    """The chunk as a message; `stamp` is its stamp on the ROS clock."""
    message = ActionChunkMessage(
        chunk_id=source.chunk_id,
        policy_id=source.policy_id,
        task_id=source.task_id,
        epoch=source.epoch,
        instruction=source.instruction,
        checkpoint=source.checkpoint,
        action_space=source.action_space,
        joint_names=list(source.joint_names),
        step_period=source.step_period,
        horizon=source.horizon,
        execute_steps=len(source.actions),
        action_size=source.actions.shape[1],
        actions=source.actions.ravel().tolist(),
        lookahead=source.lookahead.ravel().tolist(),
    )
    message.header.stamp = stamp
    return message


def joints(names: Sequence[str], q: np.ndarray, dq: np.ndarray, stamp: Time) -> JointState:
    """Positions (rad) and velocities (rad/s) of the joints `names`."""
    message = JointState(name=list(names), position=q.tolist(), velocity=dq.tolist())
    message.header.stamp = stamp
    return message


def measured(state: RobotState, profile: RobotProfile, stamp: Time) -> JointState:
    """The measured arm; with the finger joint (half the width, m) once the hand's width is known."""
    message = joints(profile.joint_names, state.q, state.dq, stamp)
    if np.isfinite(state.gripper_width):
        message.name = [*profile.joint_names, profile.finger_joint]
        message.position = [*message.position, state.gripper_width / 2]
        message.velocity = [*message.velocity, 0.0]
    return message


def status(state: ExecutorStatus, notes: list[str], stamp: Time) -> ExecutorStatusMessage:
    """The status, field by field, with the node's own notes among the reasons."""
    message = ExecutorStatusMessage()
    message.header.stamp = stamp
    for f in fields(state):
        value = getattr(state, f.name)
        setattr(message, f.name, [*value, *notes] if f.name == "reasons" else value)
    return message


def trajectory(
    waypoints: Sequence[Waypoint], profile: RobotProfile, now: float, stamp: Time
) -> JointTrajectory:
    """The limited reference for a preview, or for a joint trajectory controller; `now` in s is the stamp."""
    message = JointTrajectory(joint_names=list(profile.joint_names))
    message.header.stamp = stamp
    for w in waypoints:
        point = JointTrajectoryPoint(
            positions=w.q.tolist(), velocities=w.dq.tolist(), accelerations=w.ddq.tolist()
        )
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(
            round(max(0.0, w.time - now) * 1e9), 10**9
        )
        message.points.append(point)
    return message
