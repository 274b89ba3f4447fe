"""The table stepped by its caller: for collection and evaluation far faster than real time.

The same model, servo gains and hand as the simulated FCI controller of `server.py`, without the
wire: the limited reference of `vipra_ros.control` is sampled straight into the joint servos. Time is
simulation time, so frames and actions stay correct at any speed. Success rates of both lanes are
compared in the evaluation; this one is never a path to a real arm.
"""

from __future__ import annotations

import mujoco
import numpy as np
from franky_sim.mujoco_simulator import MujocoSimulator

from . import scene, tasks
from .world import World

#: s; divides the 15 Hz frame period. Grasps and pushes come out as at the 1 ms of the controller.
PHYSICS_STEP = 1 / 480
#: Physics steps per new servo target: a 240 Hz command, at most 4 ms old.
SUBSTEPS = 2
HAND_SPEED, HAND_FORCE = 0.05, 70.0  # m/s per finger, N: what franky-sim's hand does for `move` and `grasp`
_HAND_KP, _HAND_KV = 1000.0, 50.0


class LockstepWorld(World):
    """Physics that advance only when told to."""

    def __init__(self):
        sim = scene.build(MujocoSimulator())
        # Before the model is compiled: MuJoCo counts then which bodies want it, and forgets those that want it later.
        for body in sim.worldbody.iter("body"):
            if body.get("name", "").startswith("robot0_"):
                body.set("gravcomp", "1")
        with sim:
            sim.start()
            model = sim.model
        model.opt.timestep = PHYSICS_STEP
        super().__init__(model, mujoco.MjData(model))
        self._servo = np.array([model.actuator(f"robot0_fr3_joint{i}").id for i in range(1, 8)])
        # franky-sim's torque law kp (q_c - q) - kv dq + gravity, as MuJoCo's own position servo
        model.actuator_gaintype[self._servo] = mujoco.mjtGain.mjGAIN_FIXED
        model.actuator_biastype[self._servo] = mujoco.mjtBias.mjBIAS_AFFINE
        model.actuator_gainprm[self._servo, 0] = scene.SERVO_KP
        model.actuator_biasprm[self._servo, 1] = -np.array(scene.SERVO_KP)
        model.actuator_biasprm[self._servo, 2] = -np.array(scene.SERVO_KV)
        model.actuator_ctrllimited[self._servo] = 0
        self._hand_goal = 0.08

    def reset(self, start: tasks.Start, q: np.ndarray) -> None:
        """Begin an episode with the arm at rest at `q`, hand open."""
        mujoco.mj_resetData(self.model, self.data)
        self.place(start, q)
        self.data.ctrl[self._servo] = q
        self._hand_goal = 0.08

    def hand(self, width: float) -> None:
        """Set the goal of the hand, m between the fingers."""
        self._hand_goal = float(np.clip(width, 0.0, 0.08))

    def advance(self, reference, until: float) -> None:
        """Run the physics on to the time `until`, s, the servos following `reference.at(t)[0]` (7,) rad.

        To the nearest command, of which there are 240 a second: what one call rounds off the next one makes good.
        """
        command = SUBSTEPS * PHYSICS_STEP
        for _ in range(round(until / command) - round(self.data.time / command)):
            self.data.ctrl[self._servo] = reference.at(self.data.time)[0]
            self._hand_force()
            mujoco.mj_step(self.model, self.data, SUBSTEPS)

    def _hand_force(self) -> None:
        q, v = self.data.qpos[self.finger_qpos], self.data.qvel[self.finger_dof]
        force = _HAND_KP * (self._hand_goal / 2 - q) - _HAND_KV * v
        too_fast = (np.abs(v) > HAND_SPEED) & (np.sign(v) == np.sign(force))
        force[too_fast] = -_HAND_KV * v[too_fast]
        self.data.qfrc_applied[self.finger_dof] = np.clip(force, -HAND_FORCE, HAND_FORCE)
