"""franky-sim's controller with a tick that fits into its millisecond on slow machines.

The same protocol, the same control law, the same numbers; what is left out is work that nobody sees. Cartesian values
of the state are renewed every `HELD` ms instead of every one, the state's bytes are patched instead of packed anew,
joint positions are read once a tick, and the dynamics are computed without the mass matrix. On a core that needs
1.4 ms for a tick, simulated time falls behind and every watchdog of a controller speaks up: see `test_brisk.py`.

It reaches into private names of franky-sim, whose release is pinned.
"""

from __future__ import annotations

import struct

import numpy as np
import pinocchio as pin
from franky_sim import SimulationServer
from franky_sim.base_simulator import FRANKA_TORQUE_LIMITS_HIGH, FRANKA_TORQUE_LIMITS_LOW, InnerRobotState
from franky_sim.mujoco_simulator import FRANKA_HAND_FORCE_LIMIT, FrankaMujocoRobot, MujocoSimulator

#: Ticks (ms) for which Cartesian values of the state are kept.
HELD = 10
#: Components of the state that are kept; a commanded one is renewed at once. Derivatives in time among them are
#: filtered over as many steps as ever, so over a longer time.
_KEPT = ("elbow_c", "delbow_c", "ddelbow_c", "O_T_EE", "O_T_EE_d", "O_dP_EE_d", "O_T_EE_c", "O_dP_EE_c", "O_ddP_EE_c",
         "tau_J", "dtau_J")
#: tau_J, tau_J_d, dtau_J, q, q_d, dq, dq_d, ddq_d: 7 floats each, behind the transforms, the loads and the elbow.
_JOINTS, _JOINTS_AT = struct.Struct("<56f"), struct.calcsize("<96f26f4f")


def brisk(sim: MujocoSimulator, server: SimulationServer) -> None:
    """Quicken the robots of a simulator and its initialised server."""
    for robot, robot_server in zip(sim.robots, server.robot_servers):
        robot.__class__ = BriskRobot
        components = robot._tracked_state_components
        kept = {components[name]: _Kept(components[name]) for name in _KEPT}
        for name, component in components.items():
            components[name] = kept.get(component, component)
            component._TrackedStateComponent__depends_on = tuple(kept.get(c, c) for c in component.depends_on)
        robot_server._get_state_bytes = _Packed(robot, robot_server)
        if robot_server.gripper_server:
            _Seldom(robot_server.gripper_server)


def tick(sim: MujocoSimulator, server: SimulationServer) -> None:
    """One millisecond: commands in, physics, state out; `SimulationServer.run_once` without its sleep."""
    for robot_server in server.robot_servers:
        robot_server.process_commands()
    sim.step()
    for robot_server in server.robot_servers:
        robot_server.send_state()


class BriskRobot(FrankaMujocoRobot):
    """Reads the world once a tick and computes no more dynamics than its control law needs."""

    _seen: tuple[float, InnerRobotState] | None = None

    def _get_state(self) -> InnerRobotState:
        now = self._data.time
        if self._seen is None or self._seen[0] != now:
            q, dq = self._data.qpos[self._qpos_addrs], self._data.qvel[self._dof_addrs]
            self._seen = now, InnerRobotState(
                q=tuple(q.tolist()), dq=tuple(dq.tolist()), tau_j=tuple(self._applied_torques.tolist())
            )
        return self._seen[1]

    def _joint_position_control(self, target_q: np.ndarray) -> None:
        """tau = kp (q_d - q) - kv dq + coriolis(q, dq); gravity is added by `torque_control`."""
        state = self._get_state()
        q, dq = np.array(state.q), np.array(state.dq)
        self.torque_control(self.kp * (target_q - q) - self.kv * dq + self._coriolis(q, dq))

    def _joint_velocity_control(self, target_dq: np.ndarray) -> None:
        state = self._get_state()
        q, dq = np.array(state.q), np.array(state.dq)
        self.torque_control(self.kv * (target_dq - dq) + self._coriolis(q, dq))

    def _torque_control(self, torques: np.ndarray) -> None:
        self._applied_torques = np.minimum(np.maximum(torques, FRANKA_TORQUE_LIMITS_LOW), FRANKA_TORQUE_LIMITS_HIGH)
        self._data.qfrc_applied[self._dof_addrs] = self._applied_torques

    def _pre_step(self) -> None:
        """The fingers' servo: a damped spring to the goal, slowed above the goal's speed, within its force."""
        d, most = self._data, min(FRANKA_HAND_FORCE_LIMIT, self._hand_goal_force)
        for k in range(2):
            dq = float(d.qvel[self._finger_dof_addrs[k]])
            damping = -float(self._kv_hand[k]) * dq
            spring = float(self._kp_hand[k]) * (self._hand_goal_width / 2 - float(d.qpos[self._finger_qpos_addrs[k]]))
            force = spring + damping
            if abs(dq) > self._hand_goal_velocity and dq * force > 0:
                force = damping
            d.qfrc_applied[self._finger_dof_addrs[k]] = max(-most, min(most, force))

    def _coriolis(self, q: np.ndarray, dq: np.ndarray) -> np.ndarray:
        model, data = self._BaseRobot__model, self._BaseRobot__data
        both = pin.nonLinearEffects(model, data, q, dq).copy()
        return both - pin.computeGeneralizedGravity(model, data, q)


class _Kept:
    """A component of the state that is renewed every `HELD` finalisations, or when it was commanded."""

    def __init__(self, inner: object):
        self._inner, self._count, self._value, self._time = inner, 0, None, None
        self.set, self.has_explicit_value = inner.set, inner.has_explicit_value

    def finalize(self, time: float, *args: object, **kwargs: object) -> None:
        if time == self._time:  # asked by another component before
            return
        self._time = time
        if self._count % HELD == 0 or self._inner.has_explicit_value(time):
            self._inner.finalize(time, *args, **kwargs)
            self._value = self._inner.get(time)
        self._count += 1

    def get(self, time: float) -> object:
        del time
        return self._value

    @property
    def observers(self) -> dict:
        return self._inner.observers


class _Packed:
    """Bytes of the state: packed whole every `HELD` ticks and when a mode changes, else only the joints anew."""

    def __init__(self, robot: FrankaMujocoRobot, server: object):
        self._robot, self._server = robot, server
        self._bytes, self._modes, self._count = bytearray(), None, 0

    def __call__(self) -> bytes:
        s = self._server
        control, impedance = s._FrankaRobotServer__control_mode, s._FrankaRobotServer__impedance_control_mode
        modes = s.current_motion_id > 0, control, impedance
        if modes != self._modes or self._count % HELD == 0:
            self._bytes, self._modes, self._count = bytearray(s.robot_state.pack_state()), modes, 0
        else:
            sc, t = self._robot._tracked_state_components, self._robot._BaseRobot__prev_t
            inner = self._robot._get_state()
            desired = (sc[name].get(t) for name in ("tau_J_d", "dtau_J"))
            command = (sc[name].get(t) for name in ("dq_d", "ddq_d"))
            _JOINTS.pack_into(
                self._bytes, _JOINTS_AT, *inner.tau_j, *(x for v in desired for x in v), *inner.q, *sc["q_d"].get(t),
                *inner.dq, *(x for v in command for x in v),
            )
        self._count += 1
        return bytes(self._bytes)


class _Seldom:
    """The hand's sockets are looked at every `HELD` ticks, as its real ones are; its motion is judged at each."""

    def __init__(self, server: object):
        self._server, self._count = server, 0
        self._commands, self._state = server.process_commands, server.send_state
        server.process_commands, server.send_state = self.process_commands, self.send_state

    def process_commands(self) -> None:
        self._count += 1
        if self._count % HELD == 0:
            self._commands()
        else:
            self._server._post_process_commands()

    def send_state(self) -> None:
        if self._count % HELD == 0:
            self._state()
