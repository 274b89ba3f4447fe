"""The expert takes over from wherever a policy has got to."""

import json
import shutil

import numpy as np
import pytest

from vipra_ros.config import ConfigError
from vipra_ros.control import kinematics
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.sim import collect, expert, scene, tasks
from vipra_ros.sim.lane import Lane

CUBE = np.array([0.5, 0.05, 0.025])


@pytest.fixture(scope="module")
def lane():
    return Lane(cameras=("front",))


def goal(task, zone="yellow"):
    return tasks.Goal(task, "red", zone, "")


def test_a_low_tool_beside_the_cube_rises_before_it_approaches():
    low = CUBE + (0.06, -0.03, 0.0)
    for task in tasks.TASKS:
        first = expert.legs(goal(task), CUBE, 0.0, low, width=0.0)[0]
        assert first.position[:2] == pytest.approx(low[:2]) and first.position[2] > tasks.CUBE_SIZE + 0.05
    assert expert.legs(goal("lift"), CUBE, 0.0, low, width=0.0)[0].opening == 1.0


def test_a_held_cube_is_lifted_and_an_open_hand_above_it_goes_down():
    (up, _) = expert.legs(goal("lift"), CUBE, 0.0, CUBE, width=tasks.CUBE_SIZE)
    assert up.position[2] > 0.15 and up.opening == -1.0
    first = expert.legs(goal("lift"), CUBE, 0.0, CUBE + (0.0, 0.0, 0.06), width=0.08)[0]
    assert first.position == pytest.approx((*CUBE[:2], expert.GRASP_Z)) and first.opening == 1.0


def test_a_push_under_way_goes_on_and_a_cube_beyond_the_zone_comes_back():
    behind = CUBE - (0.0, expert.PUSH_CONTACT, 0.0)
    assert len(expert.legs(goal("push"), CUBE, 0.0, behind, width=0.0)) == 2
    beyond = np.array([0.5, 0.33, 0.025])
    *_, push, _ = expert.legs(goal("push"), beyond, 0.0, np.array([0.5, 0.0, 0.3]), width=0.0)
    assert push.position[1] == pytest.approx(tasks.ZONE_Y["yellow"] + expert.PUSH_CONTACT)


def test_a_way_begins_where_a_tilted_tool_is_and_keeps_its_speed(lane):
    """Straightened in the first row, the tool would jump; no slowing down of the way would make that jump shorter."""
    q = np.array(scene.HOME) + 0.05 * np.array([1, -1, 1, 1, -1, 1, 1])
    pose = kinematics.forward(lane.profile, q)
    way = expert.legs(goal("reach"), CUBE, 0.0, pose[:3, 3])
    rows = expert.rows(way, pose[:3, 3], q, 1 / 15, lane.ik, float(np.arctan2(pose[1, 0], pose[0, 0])))[:, :7]
    assert np.abs(rows[0] - q).max() < 0.01
    assert np.abs(np.diff(rows, axis=0)).max() * 15 <= expert.JOINT_SPEED + 1e-6
    end = kinematics.forward(lane.profile, rows[-1])
    assert end[2, 2] == pytest.approx(-1.0, abs=1e-6) and end[:2, 3] == pytest.approx(CUBE[:2], abs=1e-3)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_expert_succeeds_from_a_wrong_place(lane, task):
    """The tool stands low beside the cube, hand closed as after a missed grasp."""
    good = 0
    for seed in (601, 602, 603, 604):
        start = tasks.sample_start(task, seed)
        x, y, _ = start.cubes[start.goal.colour]
        pose = kinematics.forward(lane.profile, np.array(scene.HOME))
        pose[:3, 3] = x - 0.07, y, 0.09
        q0 = lane.ik(pose, np.array(scene.HOME))
        good += lane.run(start, collect.Demonstrator(lane, seed, varied=False), q0=q0).success
    assert good >= 3


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """`policy(execute_steps=3, ...)`: a copy of the shipped one with another configuration."""
    pytest.importorskip("torch")
    from vipra_ros.policy.shipped import resolve

    def changed(**changes):
        folder = shutil.copytree(resolve("models/tiny"), tmp_path_factory.mktemp("policy") / "copy")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return changed


def first_takeover(takeover, out, seeds):
    """The first seed at which the expert brings the task to its end."""
    return next(s for s in seeds if takeover.record(collect.Job("lift", s, random_start=False), out))


@pytest.mark.parametrize("changes", [{}, {"rate": 10.0, "execute_steps": 9}])
def test_what_is_recorded_begins_at_the_handover(policy, tmp_path, changes):
    """Whatever the rows and the rate of the policy: the executor takes no others from the expert behind it."""
    from vipra_ros.sim.takeover import Takeover

    seed = first_takeover(Takeover(policy(**changes), ("front",)), tmp_path, range(700, 710))
    with EpisodeReader(tmp_path / f"lift-{seed:06d}") as bag:
        meta = bag.meta()
        stamps = [t for _, _, t, _ in bag.messages(["camera/front/image_raw/compressed"])]
    rate = changes.get("rate", 15.0)
    began = (min(stamps) - collect.EPOCH_NS) / 1e9
    assert began == pytest.approx(meta["handover"], abs=9 / rate) and began >= meta["handover"] - 1e-6
    assert meta["operator"] == collect.EXPERT and len(meta["after_checkpoint"]) == 16
    assert len(stamps) == pytest.approx(meta["seconds"] * rate, abs=12)


@pytest.mark.parametrize("changes, cameras, says", [
    ({"execute_steps": 1}, ("front",), "execute_steps 1: at 15 Hz a chunk comes every 5 rows, .*executes 5 or more"),
    ({"action_space": "joint_delta", "relative_actions": False}, ("front",),
     "action_space joint_delta: .*give a policy of joint positions"),
    ({}, ("wrist",), "looks at camera front, not recorded here: give --cameras wrist,front"),
])
def test_a_policy_that_the_expert_cannot_follow_is_refused(policy, changes, cameras, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        collect.collect(tmp_path, ["lift"], 1, cameras=cameras, after=str(policy(**changes)), workers=2)


def test_an_arm_without_a_way_costs_its_own_demonstration_alone(policy, tmp_path, monkeypatch, capsys):
    """The same seed leads there at every attempt, and would end every collection."""
    plan, asked = expert.rows, []

    def rows(*a):
        asked.append(a)
        if len(asked) == 1:
            raise kinematics.IkError("0.1 m are left")
        return plan(*a)

    monkeypatch.setattr(expert, "rows", rows)
    made = collect.collect(tmp_path, ["lift"], 2, seed=700, cameras=("front",), after=str(policy()))
    assert len(asked) == 2 and made["lift"][1] == 1
    assert "1 of 2 left out, " in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 1
