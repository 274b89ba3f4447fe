"""The simulator's ROS shell, before a table that is none."""

from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2 (make setup)")

from vipra_ros.srv import ResetScene  # noqa: E402

from vipra_ros.nodes import sim  # noqa: E402
from vipra_ros.sim import tasks  # noqa: E402
from vipra_ros.sim.server import SimulatorError  # noqa: E402


class Table:
    """Stands at 12.5 s; `hangs`: does not answer."""

    failure, hangs = None, False

    def __init__(self, host):
        cubes = {c: np.zeros(3) for c in tasks.COLOURS}
        self.world = SimpleNamespace(model=None, data=SimpleNamespace(time=12.5),
                                     snapshot=lambda: tasks.Snapshot(12.5, np.ones(3), cubes))

    def place(self, start):
        if self.hangs:
            raise SimulatorError("the simulated controller at 127.0.0.8 does not answer; start it again")

    def look(self, read):
        return read(self.world)

    def freeze(self):
        return self.world.data


@pytest.fixture
def node(unused_ros_domain, monkeypatch):
    monkeypatch.setattr(sim, "TableServer", Table)
    monkeypatch.setattr(sim, "Eyes", lambda *_: SimpleNamespace(see=lambda *_: None, close=lambda: None))
    rclpy.init(args=["--ros-args", "-p", "publish_clock:=true", "-p", "use_sim_time:=true"],
               domain_id=unused_ros_domain)
    made = sim.SimNode()
    made._begin(tasks.sample_start("push", 4), 4)
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def test_an_image_has_the_time_at_which_it_was_drawn(node):
    """By /clock, which says so at the same moment: the node's own clock is behind it, and at the start at 0."""
    said, stamps = [], []
    node._clock_out = SimpleNamespace(publish=lambda message: said.append(message.clock))
    node._watched = lambda camera: True

    def publish(camera, image, stamp):
        stamps.append(stamp)
        node._running.clear()

    node._publish = publish
    node._running.set()
    node._draw_until_stopped()
    assert {(t.sec, t.nanosec) for t in stamps + said} == {(12, 500_000_000)} and len(stamps) == 2


def test_a_scene_that_cannot_be_set_is_answered(node):
    def reset(**request):
        return node._reset(ResetScene.Request(task="push", **request), ResetScene.Response())

    assert reset(seed=5).success
    answer = reset(seed=-1)
    assert not answer.success and answer.message == "seed = -1: give 0 or more"
    node.server.hangs = True
    answer = reset(seed=6)
    assert not answer.success and "does not answer; start it again" in answer.message
