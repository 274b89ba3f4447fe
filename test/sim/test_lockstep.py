"""The stepped world and the scripted demonstrator in it, through the executor core."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from vipra_ros import cli
from vipra_ros.control import kinematics
from vipra_ros.control.reference import Reference
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.sim import collect, scene, tasks
from vipra_ros.sim.lane import Lane
from vipra_ros.sim.world import Eyes


@pytest.fixture(scope="module")
def lane():
    return Lane(cameras=())


def test_home_is_the_profiles(lane):
    assert np.allclose(lane.profile.home_q, scene.HOME)


def test_tool_point_agrees_with_the_control_rooms_kinematics(lane):
    start = tasks.sample_start("reach", 1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        q = np.array(scene.HOME) + rng.uniform(-0.3, 0.3, 7)
        lane.world.reset(start, q)
        assert np.allclose(lane.world.tcp(), kinematics.forward(lane.profile, q)[:3, 3], atol=1e-3)


def test_servos_follow_a_moving_reference(lane):
    home = np.array(scene.HOME)
    lane.world.reset(tasks.sample_start("reach", 1), home)

    class Path:
        def at(self, t):
            turn = 0.2 * (1 - np.cos(np.pi * min(t, 2.0) / 2))
            return home + turn * np.eye(7)[0], None, None

    lane.world.advance(Path(), 2.0)
    assert abs(lane.world.q[0] - Path().at(2.0)[0][0]) < 0.02
    assert lane.world.data.time == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(4))
def test_an_arm_at_rest_is_where_it_was_told_to_be(lane, seed):
    """Its weight is carried, as the real controller carries it: no millimetres of sag for a policy to learn."""
    q = np.array(scene.HOME) + np.random.default_rng(seed).uniform(-0.3, 0.3, 7)
    lane.world.reset(tasks.sample_start("reach", 1), q)
    lane.world.advance(Reference.rest(0.0, q), 2.0)
    assert np.abs(lane.world.q - q).max() < 1e-4


def test_same_seed_same_episode(lane):
    def once():
        start = tasks.sample_start("push", 3)
        return lane.run(start, collect.Demonstrator(lane, 3, varied=False))

    one, two = once(), once()
    assert np.array_equal(one.measured, two.measured)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_expert_succeeds_from_home(lane, task):
    outcomes = []
    for seed in range(500, 508):
        outcome = lane.run(tasks.sample_start(task, seed), collect.Demonstrator(lane, seed, varied=False))
        assert all(v == "accepted" for v in outcome.verdicts), outcome.verdicts
        outcomes.append(outcome)
    assert sum(o.success for o in outcomes) >= 7
    assert all(o.acted_on == o.start.goal.colour for o in outcomes if o.success)


def test_thinking_time_is_charged(lane):
    """With a late policy the arm has not moved when the first chunk arrives, and late rows are dropped."""
    late = lane.run(tasks.sample_start("reach", 5), collect.Demonstrator(lane, 5, varied=False), latency=0.2)
    still = late.commanded[late.time < 0.2]
    assert np.allclose(still, scene.HOME)
    assert late.status.late > 0 and late.success


@pytest.mark.parametrize("fps, ticks", [(10.0, 6), (15.0, 4), (30.0, 2), (60.0, 1)])
def test_the_executor_passes_at_its_own_rate_whatever_that_of_the_frames(fps, ticks):
    lane = Lane(cameras=(), fps=fps)
    assert lane.ticks == ticks
    outcome = lane.run(tasks.sample_start("reach", 5), collect.Demonstrator(lane, 5, varied=False), seconds=0.5)
    assert np.allclose(np.diff(outcome.time), 1 / 60) and outcome.speed.shape == outcome.commanded.shape


@pytest.mark.parametrize("fps", [7.0, 22.0, 25.0, 50.0])
def test_frames_keep_their_rate_whether_or_not_it_divides_that_of_the_physics(fps):
    lane, frames = Lane(cameras=(), fps=fps), []
    outcome = lane.run(tasks.sample_start("reach", 5), collect.Demonstrator(lane, 5, varied=False), seconds=2.0,
                       on_frame=lambda view: frames.append(view.time))
    assert np.abs(np.array(frames) - np.arange(len(frames)) / fps).max() <= 1 / 480 + 1e-9
    assert outcome.seconds == pytest.approx(len(frames) / fps, abs=1 / 480 + 1e-9)


def test_frames_and_states_of_two_threads_make_a_whole_bag(lane, tmp_path):
    """As through franky, where the control loop is a thread of its own and does not stop for the end of a bag."""
    recorder = collect.Recorder(tmp_path, "reach-000001", lane, tasks.sample_start("reach", 1))
    state = SimpleNamespace(q=np.zeros(7), dq=np.zeros(7), gripper_width=0.08)
    running, refused, told = threading.Event(), [], 0
    running.set()

    def control():
        nonlocal told
        try:
            while running.is_set():
                recorder.state(told / 1e3, state, state.q, state.dq, 1.0 - 2.0 * (told % 2))
                told += 1
        except Exception as error:
            refused.append(error)

    thread = threading.Thread(target=control)
    thread.start()
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    for i in range(150):
        recorder.frame(SimpleNamespace(time=i / 15, frames={"front": [(0.0, noise)]}))
    recorder.close({"success": True})
    before = told
    while told < before + 10 and thread.is_alive():
        pass
    running.clear()
    thread.join()
    assert not refused
    with EpisodeReader(tmp_path / "reach-000001") as bag:
        read = [topic for topic, *_ in bag.messages()]
    assert read.count("camera/front/image_raw/compressed") == 150 and "joint_states" in read


def test_what_a_killed_run_left_of_an_episode_goes_when_it_is_recorded_anew(lane, tmp_path, monkeypatch):
    left, others, open_now = (collect.Recorder(tmp_path, name, lane, tasks.sample_start("reach", 1)).bag
                              for name in ("reach-000001", "reach-000009", "reach-000002"))
    left.abandon()
    others.abandon()
    monkeypatch.setattr(collect, "_begin", lambda *_: None)
    monkeypatch.setattr(collect, "_work", lambda job: (job, True))
    assert collect.collect(tmp_path, ["reach"], 3) == {"reach": [3, 3]}
    assert {bag.name for bag in tmp_path.glob(".partial/*/*")} == {"reach-000009", "reach-000002"}
    open_now.discard()


@pytest.mark.parametrize("wrong, says", [
    ({"seed": -1}, "seed = -1: give 0 or more"),
    ({"episodes": 0}, "episodes = 0: give at least 1"),
    ({"workers": 0}, "workers = 0: give at least 1"),
    ({"lane": "fci", "workers": 2}, "workers = 2: lane fci is one controller .*drop --workers"),
])
def test_what_cannot_be_collected_is_said_before_anything_starts(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        collect.collect(tmp_path / "bags", ["reach"], **{"episodes": 1} | wrong)
    assert not (tmp_path / "bags").exists()


def test_the_command_says_how_many_succeeded(monkeypatch, capsys):
    monkeypatch.setattr(collect, "collect", lambda *_, **__: {"push": [3, 4], "lift": [0, 4]})
    with pytest.raises(SystemExit):
        cli.main(["collect", "--expert", "out/bags"])
    said = capsys.readouterr().out.splitlines()
    assert said == ["push: 3 of 4 new demonstrations successful", "lift: 0 of 4 new demonstrations successful"]


def test_an_episode_on_disk_is_what_happened(tmp_path):
    own = Lane(cameras=("front",))
    own.eyes = Eyes(own.world.model, 64)
    job = collect.Job("reach", 3, random_start=False)
    assert collect.record(own, job, tmp_path)
    with EpisodeReader(tmp_path / "reach-000003") as bag:
        meta = bag.meta()
        assert meta["success"] and meta["task"] == "reach"
        assert meta["instruction"] == tasks.sample_start("reach", 3).goal.instruction
        frames = bag.counts["camera/front/image_raw/compressed"]
        assert frames == pytest.approx(meta["seconds"] * 15, abs=1.5)
        assert bag.counts["joint_states"] == pytest.approx(meta["seconds"] * 30, abs=2)
        assert bag.counts["executor/joint_command"] == bag.counts["joint_states"]
    # a second run keeps what is there
    assert collect.collect(tmp_path, ["reach"], episodes=1, seed=3, cameras=("front",)) == {"reach": [0, 0]}
