"""Another body: seen otherwise, moving the same."""

import numpy as np
import pytest

from vipra_ros.data.bags import EpisodeReader
from vipra_ros.sim import bodies, collect, tasks
from vipra_ros.sim.lane import Lane


def seen(body: str) -> tuple[np.ndarray, np.ndarray]:
    lane, frames = Lane(size=64, body=body), []
    out = lane.run(tasks.sample_start("reach", 3), collect.Demonstrator(lane, 3, varied=False), seconds=0.5,
                   on_frame=lambda view: frames.append(view.frames["front"][-1][1]))
    lane.eyes.close()
    return np.stack(frames), out.measured


def test_a_hand_floats_where_the_robots_hand_is():
    robot, moved = seen("robot")
    hand, moved_too = seen("hand")
    assert np.array_equal(moved, moved_too), "physics are the same"
    skin = np.array(bodies.SKIN[:3]) / np.linalg.norm(bodies.SKIN[:3])

    def skinny(images):
        """Pixels whose hue is near the skin's."""
        x = images.astype(float)
        return (x @ skin) / (np.linalg.norm(x, axis=-1) + 1e-9) > 0.995

    differ = np.abs(robot.astype(int) - hand).max(-1) > 30
    assert 0.02 < differ.mean() < 0.5, "the arm is gone, the table is not"
    assert skinny(hand).mean() > 3 * skinny(robot).mean() + 0.002, "a skin-coloured hand is there"


def test_bags_say_whose_body_it_is(tmp_path):
    collect.collect(tmp_path, ("reach",), 1, 7, cameras=("front",), body="hand")
    with EpisodeReader(tmp_path / "reach-000007") as reader:
        assert reader.meta()["body"] == "hand"


@pytest.mark.parametrize("more, word", [({"body": "foot"}, "choose robot or hand"), ({"lane": "fci"}, "lockstep lane"),
                                        ({"after": "x"}, "by the expert alone")])
def test_what_does_not_go_together_is_refused(tmp_path, more, word):
    with pytest.raises(ValueError, match=word):
        collect.collect(tmp_path, **{"body": "hand"} | more)
