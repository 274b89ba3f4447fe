"""The quickened controller is the same controller."""

import struct

import numpy as np
import pytest

pytest.importorskip("franky_sim")
from franky_sim import SimulationServer
from franky_sim.mujoco_simulator import MujocoSimulator

from vipra_ros.sim import scene
from vipra_ros.sim.brisk import HELD, brisk, tick

JOINTS = slice(struct.calcsize("<96f26f4f"), struct.calcsize("<96f26f4f56f"))
DTAU_J = slice(14, 21)  # one of the derivatives that are kept


@pytest.fixture
def controllers():
    made = []
    for host in ("127.0.91.1", "127.0.91.2"):
        sim = scene.build(MujocoSimulator())
        sim.init()
        server = SimulationServer(sim, hostname_candidates=[host])
        server.init()
        made.append((sim, server))
    brisk(*made[1])
    yield made
    for _, server in made:
        server.cleanup()


def drive(sim, command, value):
    getattr(sim.robots[0], command)(value)
    sim.step()


@pytest.mark.parametrize("command", ["joint_position_control", "joint_velocity_control"])
def test_same_motion_and_same_bytes_as_franky_sim(controllers, command):
    (plain, its), (quick, own) = controllers
    for k in range(3 * HELD + 4):
        swing = 0.2 * np.sin(0.02 * k) * np.array([1, -1, 1, 0.5, 1, -1, 1])
        value = np.array(scene.HOME) + swing if command == "joint_position_control" else swing
        drive(plain, command, value)
        drive(quick, command, value)
        expected, got = its.robot_servers[0]._get_state_bytes(), own.robot_servers[0]._get_state_bytes()
        assert len(expected) == len(got)
        a, b = (np.delete(np.frombuffer(x[JOINTS], "<f4"), DTAU_J) for x in (expected, got))
        assert np.allclose(a, b, rtol=1e-5, atol=1e-5), k
        if k % HELD == 0:  # the transforms too, which are kept in between
            assert np.allclose(*(np.frombuffer(x[:384], "<f4") for x in (expected, got)), atol=1e-6), k
    moved = np.abs(np.array(quick.robots[0].inner_state.q) - scene.HOME).max()
    assert moved > 0.001
    assert np.allclose(plain.data.qpos, quick.data.qpos, atol=1e-9)


def test_a_changed_mode_is_told_at_once(controllers):
    sim, server = controllers[1]
    robot_server = server.robot_servers[0]
    for _ in range(3):
        tick(sim, server)
        robot_server._get_state_bytes()
    before = robot_server._get_state_bytes()
    robot_server._FrankaRobotServer__current_motion_id = 7
    after = robot_server._get_state_bytes()
    robot_server._FrankaRobotServer__current_motion_id = 0
    assert before[-5] != after[-5]  # robot_mode
