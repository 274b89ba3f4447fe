"""The plan is drawn where the camera sees it."""

import numpy as np
import pytest

from vipra_ros.sim import scene, tasks
from vipra_ros.sim.lockstep import LockstepWorld
from vipra_ros.sim.projection import Pinhole
from vipra_ros.sim.world import Eyes


def test_projected_cubes_lie_on_their_pixels():
    world, size = LockstepWorld(), 128
    start = tasks.sample_start("reach", 3)
    world.reset(start, np.array(scene.HOME))
    eyes = Eyes(world.model, size)
    image = eyes.see(world.data, "front").astype(int)
    eyes.close()
    camera = Pinhole.of(world.model, "front", size)
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        x, y = camera.pixels(world.snapshot().cubes[colour])
        others = np.delete(image, channel, axis=2).max(axis=2)
        rows, columns = np.nonzero(image[..., channel] - others > 40)
        assert np.hypot(columns.mean() + 0.5 - x, rows.mean() + 0.5 - y) < 2.0, colour


def test_behind_the_camera_is_nowhere_and_a_moving_camera_is_refused():
    world = LockstepWorld()
    camera = Pinhole.of(world.model, "front", 128)
    assert np.isnan(camera.pixels(camera.position + camera.rotation @ (0.0, 0.0, 1.0))).all()
    with pytest.raises(ValueError, match="moves with the arm"):
        Pinhole.of(world.model, "wrist", 128)


def test_the_front_camera_without_a_model_is_the_one_with():
    with_model, without = Pinhole.of(LockstepWorld().model, "front", 128), Pinhole.front(128)
    point = np.array([[0.5, 0.1, 0.05], [0.3, -0.3, 0.4]])
    np.testing.assert_allclose(without.pixels(point), with_model.pixels(point), atol=1e-3)
