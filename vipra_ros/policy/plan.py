"""What the checkpoint and the operator ask of the policy's loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What the checkpoint asks of the loop. `period` in s; `joints`: vectors per observation, 0 for none.

    `arms`: namespaces of the arms that share the columns, each its joints and gripper; none: one arm.
    """

    cameras: tuple[str, ...]
    period: float
    stride: int
    execute: int
    action_space: str
    joint_names: tuple[str, ...]
    checkpoint: str
    joints: int = 0
    arms: tuple[str, ...] = ()

    @classmethod
    def of(cls, checkpoint) -> Plan:
        """From a loaded `vipra_ros.policy.checkpoint.Checkpoint`."""
        c = checkpoint.config
        return cls(
            c.cameras,
            1.0 / c.rate,
            c.frame_stride,
            c.execute_steps,
            c.action_space,
            c.joint_names,
            checkpoint.hash[:16],
            max(c.proprio_steps, int(c.relative_actions)),
            c.arms,
        )


@dataclass(frozen=True)
class Timing:
    """How the loop is paced; see the node's parameters."""

    mode: str = "async"
    rate: float = 0.0
    margin: int = 1
    follow_executor: bool = True
    seed: int | None = None
