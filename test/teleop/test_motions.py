"""What moves an emulated leader: calls, a script, the scripted expert, a recording."""

import numpy as np
import pytest

from vipra_ros.config import ConfigError
from vipra_ros.control import kinematics
from vipra_ros.control.profile import load_profile
from vipra_ros.teleop.demonstration import PERIOD, demonstrate
from vipra_ros.teleop.motions import SPEED, Puppet, motion, recorded, scripted

PROFILE = load_profile("fr3")
HOME = np.array(PROFILE.home_q)


def test_a_puppet_goes_smoothly_and_stays():
    puppet = Puppet(HOME)
    end = puppet.go(2.0, HOME + 0.4 * np.eye(7)[2], opening=0.0)
    assert end == pytest.approx(2.0 + 0.4 / SPEED)
    times = np.linspace(1.5, end + 0.5, 400)
    q = np.array([puppet(t)[0] for t in times])
    speed = np.gradient(q[:, 2], times)
    assert speed.max() < 1.9 * SPEED and speed.min() > -1e-9 and np.ptp(np.delete(q, 2, 1), axis=0).max() == 0
    assert puppet(0.0) == (pytest.approx(HOME), 1.0) and puppet(end + 9)[1] == 0.0
    half = puppet((2.0 + end) / 2)[0]
    puppet.go((2.0 + end) / 2, HOME)  # another way begins where the first one is left
    np.testing.assert_allclose(puppet((2.0 + end) / 2)[0], half, atol=1e-3)


def test_rows_are_played_from_where_it_stands():
    puppet = Puppet(HOME)
    rows = np.column_stack([HOME + np.linspace(0.1, 1.0, 10)[:, None] * np.eye(7)[0], np.repeat([1.0, -1.0], 5)])
    assert puppet.play(1.0, rows, 0.1) == pytest.approx(2.0)
    assert puppet(1.35)[0][0] == pytest.approx(HOME[0] + 0.35) and puppet(1.3)[1] == 1.0 and puppet(2.0)[1] == 0.0


def test_a_script_is_its_poses_with_times(tmp_path):
    path = tmp_path / "script.yaml"
    poses = [f"{{q: {[x] * 7}, seconds: 1.0, hold: 0.5, opening: {o}}}" for x, o in ((0.0, 1.0), (0.4, 0.0))]
    path.write_text("repeat: true\nposes:\n" + "".join(f"  - {p}\n" for p in poses))
    move = scripted(path)
    for t, expected, opening in ((0.2, 0.0, 1.0), (1.0, 0.2, 0.5), (1.7, 0.4, 0.0), (2.5, 0.2, 0.5), (3.2, 0.0, 1.0)):
        q, found = move(t)
        assert q == pytest.approx([expected] * 7, abs=1e-3) and found == pytest.approx(opening, abs=1e-6)
    # A round is 3 s: the first pose is held once in it, and the next round is the same.
    for t in (0.2, 1.0, 1.7, 2.5):
        assert move(t + 3.0)[0] == pytest.approx(move(t)[0], abs=1e-9)
    path.write_text("poses: [{q: [0, 0]}]")
    with pytest.raises(ConfigError, match=r"poses\[0\].q has 2 angles; the arm has 7 joints"):
        scripted(path)


@pytest.mark.parametrize("task", ["reach", "push", "lift"])
@pytest.mark.parametrize("seed", [3, 1000])
def test_the_expert_goes_where_the_cubes_of_the_seed_are(task, seed):
    from vipra_ros.sim import tasks

    plan, start = demonstrate(PROFILE, task, seed, HOME), tasks.sample_start(task, seed)
    assert plan.instruction == start.goal.instruction and plan.rows.shape[1] == 8
    tool = kinematics.forward(PROFILE, plan.rows[:, :7])[:, :3, 3]
    cube = np.array(start.cubes[start.goal.colour][:2])
    assert np.linalg.norm(tool[:, :2] - cube, axis=1).min() < (0.09 if task == "push" else 0.002)
    assert (plan.rows[-1, 7] == 1.0) == (task == "reach")
    steps = np.abs(np.diff(np.vstack([HOME, plan.rows[:, :7]]), axis=0)) / PERIOD
    assert steps.max() < PROFILE.velocity[0], "faster than the follower can"


def test_a_task_nobody_knows_is_said():
    with pytest.raises(ConfigError, match="task 'juggle' is unknown"):
        demonstrate(PROFILE, "juggle", 1, HOME)
    with pytest.raises(ValueError, match="choose home or sine"):
        motion("jump", HOME)


def test_a_recording_moves_the_leader(tmp_path):
    from vipra_ros.data import messages
    from vipra_ros.data.bag_writer import EpisodeWriter

    writer = EpisodeWriter(tmp_path, "episode", sync=False)
    for k in range(100):
        stamp, q = 10**18 + k * 20_000_000, HOME + 0.002 * k
        message = messages.joint_state(stamp, PROFILE.joint_names, q, np.zeros(7))
        writer.write("executor/joint_command", messages.JOINT_STATE, message, stamp)
        if k in (0, 50):
            opening = messages.float32(1.0 if k == 0 else -1.0)
            writer.write("executor/gripper_command", messages.FLOAT32, opening, stamp)
    move = recorded(writer.close({"instruction": "x"}))
    np.testing.assert_allclose(move(0.0)[0], HOME, atol=1e-9)
    np.testing.assert_allclose(move(1.0)[0], HOME + 0.1, atol=1e-6)
    assert move(0.5)[1] == 1.0 and move(1.5)[1] == 0.0
