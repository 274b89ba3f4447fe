"""Names of what an episode holds, the same on the robot, in the simulator and in a bag.

A bag stores resolved ROS names (`/joint_states`, `/left/joint_states` in a namespace); the rooms use
the relative names below. A foreign recording is described by another `Topics` with its own names.
"""

from __future__ import annotations

from dataclasses import dataclass

from vipra_ros.config import param


@dataclass(frozen=True)
class Topics:
    """Relative topic names of an episode; `{camera}` stands for the camera's name."""

    image: str = param("camera/{camera}/image_raw/compressed", doc="sensor_msgs/CompressedImage of a camera")
    camera_info: str = param("camera/{camera}/camera_info", doc="sensor_msgs/CameraInfo of a camera")
    joint_states: str = param("joint_states", doc="measured sensor_msgs/JointState, finger joint included")
    joint_command: str = param("executor/joint_command", doc="sensor_msgs/JointState sent to the arm")
    gripper_command: str = param("executor/gripper_command", doc="std_msgs/Float32, +1 open, -1 closed")
    status: str = param("executor/status", doc="vipra_ros/ExecutorStatus")
    instruction: str = param("policy/instruction", doc="std_msgs/String, the words given to the policy")
    chunk: str = param("policy/chunk", doc="vipra_ros/ActionChunk")
    meta: str = param("episode/meta", doc="std_msgs/String, JSON describing the episode")

    def image_of(self, camera: str) -> str:
        """Topic of the compressed images of `camera`."""
        return self.image.format(camera=camera)

    def cameras_in(self, topics: list[str]) -> list[str]:
        """Names of the cameras whose image topic is among the relative names `topics`, sorted."""
        if "{camera}" not in self.image:
            return ["camera"] if self.image in topics else []
        head, tail = self.image.split("{camera}", 1)
        return sorted(
            t[len(head) : len(t) - len(tail)]
            for t in topics
            if t.startswith(head) and t.endswith(tail) and len(t) > len(head) + len(tail)
        )


def latched(topic: str) -> bool:
    """Whether a relative topic keeps its last message for late subscribers."""
    return topic in (
        "executor/gripper_command",
        "executor/status",
        "policy/status",
        "policy/instruction",
        "episode/meta",
        "sim/outcome",
        "gello/status",
    )
