"""True flow of the simulated table, and how near the weight-free estimator comes to it."""

import mujoco
import numpy as np
import pytest

from vipra_ros.sim import scene, tasks
from vipra_ros.sim.lockstep import LockstepWorld
from vipra_ros.sim.projection import Pinhole
from vipra_ros.sim.true_flow import TrueFlow


def test_a_moved_cube_flows_as_its_corners_project():
    world = LockstepWorld()
    start = tasks.sample_start("reach", 3)
    world.reset(start, np.array(scene.HOME))
    truth, camera = TrueFlow(world.model, "front", 128), Pinhole.of(world.model, "front", 128)
    before = truth.look(world.data)
    flow, known = truth.flow(before, world.data)
    assert known.mean() > 0.5 and np.abs(flow[known]).max() < 1e-6, "nothing has moved"
    cube = before.geom == world.model.geom("cube_red").id
    at = world.data.geom_xpos[world.model.geom("cube_red").id].copy()
    place = world.model.joint("cube_red").qposadr[0]
    world.data.qpos[place : place + 3] += 0.03, -0.02, 0.0
    mujoco.mj_forward(world.model, world.data)
    flow, known = truth.flow(before, world.data)
    moved = known & cube
    assert moved.sum() > 30 and np.abs(flow[known & ~cube]).max() < 1e-6
    # The top of the cube is what the camera sees most of.
    top = at + (0.0, 0.0, tasks.CUBE_SIZE / 2)
    wanted = camera.pixels(top + (0.03, -0.02, 0.0)) - camera.pixels(top)
    assert np.median(flow[moved], axis=0) == pytest.approx(wanted, abs=0.15)
    # What the cube now covers is not known to be anywhere.
    assert (~known & ~cube & (before.geom >= 0)).sum() > 10
    truth.close()


def test_the_pyramid_follows_most_of_the_motion():
    pytest.importorskip("torch")
    from vipra_ros.learning.flow_check import examine
    from vipra_ros.model.optical_flow import PyramidFlow

    figures = examine(PyramidFlow(), size=64, frames=10)
    assert figures["pairs"] == 27 and figures["still"] > 0.8
    assert figures["moving"] < 0.5 * figures["still"] and figures["all"] < 0.4
