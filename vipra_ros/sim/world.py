"""Reading, resetting and drawing the simulated table, whoever steps its physics."""

from __future__ import annotations

import mujoco
import numpy as np

from . import scene, tasks


class World:
    """A view of one MuJoCo model and its data.

    The caller owns the lock: nothing here may run while another thread steps `data`.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData):
        self.model, self.data = model, data
        joint = model.joint
        self.arm_qpos = np.array([joint(f"robot0_fr3_joint{i}").qposadr[0] for i in range(1, 8)])
        self.arm_dof = np.array([joint(f"robot0_fr3_joint{i}").dofadr[0] for i in range(1, 8)])
        self.finger_qpos = np.array([joint(f"robot0_finger_joint{i}").qposadr[0] for i in (1, 2)])
        self.finger_dof = np.array([joint(f"robot0_finger_joint{i}").dofadr[0] for i in (1, 2)])
        self._cube_qpos = {c: joint(f"cube_{c}").qposadr[0] for c in tasks.COLOURS}
        self._cube_dof = {c: joint(f"cube_{c}").dofadr[0] for c in tasks.COLOURS}
        self._cube_body = {c: model.body(f"cube_{c}").id for c in tasks.COLOURS}
        self._hand_body = model.body("robot0_hand").id

    def place(self, start: tasks.Start, q: np.ndarray | None = None, opening: float = 0.08) -> None:
        """Put the cubes where `start` says, and the arm at `q` (rad) when given, everything at rest.

        Without `q` the arm is left alone: a robot that a controller holds is not teleported.
        """
        d = self.data
        for colour, (x, y, yaw) in start.cubes.items():
            a, v = self._cube_qpos[colour], self._cube_dof[colour]
            d.qpos[a:a + 7] = x, y, tasks.CUBE_SIZE / 2, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
            d.qvel[v:v + 6] = 0.0
        if q is not None:
            d.qpos[self.arm_qpos], d.qvel[self.arm_dof] = q, 0.0
            d.qpos[self.finger_qpos], d.qvel[self.finger_dof] = opening / 2, 0.0
        mujoco.mj_forward(self.model, d)

    def snapshot(self) -> tasks.Snapshot:
        """Where the gripper and the cubes are now."""
        return tasks.Snapshot(float(self.data.time), self.tcp(),
                              {c: self.data.xpos[b].copy() for c, b in self._cube_body.items()})

    def tcp(self) -> np.ndarray:
        """Tool centre point between the finger tips, (3,) m."""
        rotation = self.data.xmat[self._hand_body].reshape(3, 3)
        return self.data.xpos[self._hand_body] + rotation @ (0.0, 0.0, 0.1034)

    def cube_yaw(self, colour: str) -> float:
        """Rotation of a cube about the vertical, rad in [-pi/4, pi/4): a cube looks the same every quarter turn."""
        r = self.data.xmat[self._cube_body[colour]]
        return float((np.arctan2(r[3], r[0]) + np.pi / 4) % (np.pi / 2) - np.pi / 4)

    @property
    def q(self) -> np.ndarray:
        """Measured joint positions, (7,) rad."""
        return self.data.qpos[self.arm_qpos].copy()

    @property
    def dq(self) -> np.ndarray:
        """Measured joint velocities, (7,) rad/s."""
        return self.data.qvel[self.arm_dof].copy()

    @property
    def width(self) -> float:
        """Distance between the fingers, m."""
        return float(self.data.qpos[self.finger_qpos].sum())


class Eyes:
    """The cameras of a world, drawn on this thread (one renderer per thread).

    Args:
        size: pixels, square.
        fine: draw the arm's visual meshes (3 to 7 times slower) instead of its collision meshes.
    """

    def __init__(self, model: mujoco.MjModel, size: int = 128, fine: bool = False):
        self._renderer = mujoco.Renderer(model, size, size)
        self._scene_option = mujoco.MjvOption()
        self._scene_option.geomgroup[:] = 0
        self._scene_option.geomgroup[0] = 1
        self._scene_option.geomgroup[2 if fine else 3] = 1
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def see(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """One RGB frame, uint8 (size, size, 3)."""
        if camera not in scene.CAMERAS:
            raise ValueError(f"camera {camera!r} is not in the scene; choose one of {', '.join(scene.CAMERAS)}")
        self._renderer.update_scene(data, camera=camera, scene_option=self._scene_option)
        return self._renderer.render()

    def close(self) -> None:
        """Free the GL context (on the thread that made it)."""
        self._renderer.close()
