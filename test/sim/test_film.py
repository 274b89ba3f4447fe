"""The plan in the film lies where the tool is seen."""

import numpy as np

from vipra_ros.control.profile import load_profile
from vipra_ros.sim import film, scene
from vipra_ros.sim.lockstep import LockstepWorld
from vipra_ros.sim.projection import Pinhole


def test_plan_is_drawn_at_the_tool_executed_rows_before_the_rest():
    world, profile = LockstepWorld(), load_profile("fr3")
    world.data.qpos[world.arm_qpos] = scene.HOME
    camera = Pinhole.of(world.model, "front", film.SIDE)
    rows = np.tile([*scene.HOME, 1.0], (14, 1))
    rows[:, 0] += np.linspace(0.0, 0.3, 14)  # the base turns, the tool moves along y
    image = np.zeros((film.SIDE, film.SIDE, 3), np.uint8)
    film.draw_plan(image, camera, profile, rows, 7)
    import mujoco

    mujoco.mj_forward(world.model, world.data)
    x, y = camera.pixels(world.tcp())
    yellow = np.argwhere((image == film.EXECUTED).all(axis=2))
    lilac = np.argwhere((image == film.AHEAD).all(axis=2))
    assert np.abs(yellow - (y, x)).sum(axis=1).min() < 4
    assert len(lilac) > 20 and np.abs(lilac - (y, x)).sum(axis=1).min() > 20


def test_frame_has_both_pictures_and_the_words():
    grey = np.full((film.SIDE, film.SIDE, 3), 90, np.uint8)
    frame = film.side_by_side(grey, None, ("push the red cube", "1.0 s"))
    assert frame.shape == (film.SIDE, 2 * film.SIDE, 3)
    assert (frame[100, 100] == 90).all() and (frame[100, 500] == 0).all()
    assert (frame[-46:, :200] == 255).any() and not (frame[:-46] == 255).any()
