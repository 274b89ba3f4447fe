"""The simulated controller as franky sees it, and the slow lane through it."""

import time

import numpy as np
import pytest

from vipra_ros.control.chunk import Waypoint
from vipra_ros.control.profile import load_profile
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.robot.arm import FrankyArm
from vipra_ros.sim import collect, tasks
from vipra_ros.sim.server import TableServer

HOST = "127.0.44.8"


def test_only_loopback_is_bound():
    with pytest.raises(ValueError, match="loopback only"):
        TableServer("0.0.0.0")


def test_franky_moves_the_arm_and_cubes_are_placed_under_it():
    start = tasks.sample_start("push", 4)
    with TableServer(HOST) as server:
        server.place(start)
        arm = FrankyArm(load_profile("fr3"), HOST, "ignore")
        state = arm.state()
        goal = state.q + np.array([0.15, 0, 0, 0, 0, 0, 0])
        now = time.monotonic()
        arm.stream([Waypoint(now + 1.5, goal, np.zeros(7))], now)
        deadline = now + 8.0
        while np.abs(arm.state().q - goal).max() > 0.02 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert np.abs(arm.state().q - goal).max() < 0.02
        assert np.allclose(server.look(lambda w: w.q), arm.state().q, atol=0.01)
        cubes = server.look(lambda w: w.snapshot().cubes)
        for colour, (x, y, _) in start.cubes.items():
            assert np.allclose(cubes[colour], (x, y, tasks.CUBE_SIZE / 2), atol=3e-3)
        assert server.failure is None
        arm.close()


def test_a_taken_address_is_an_error():
    with TableServer("127.0.44.9"), pytest.raises(OSError), TableServer("127.0.44.9"):
        pass


def test_a_demonstration_through_franky(tmp_path):
    """The lane `fci` of collect: real franky, real FCI, real time; the bag converts like any other."""
    assert collect.collect(tmp_path, ["reach"], episodes=1, seed=12, lane="fci") == {"reach": [1, 1]}
    with EpisodeReader(tmp_path / "reach-000012") as bag:
        assert bag.meta()["success"]
        assert {"camera/front/image_raw/compressed", "camera/wrist/image_raw/compressed"} <= set(bag.topics)
        assert bag.counts["joint_states"] > 20 * bag.meta()["seconds"]
