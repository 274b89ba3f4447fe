"""A recorded episode as chunks in time, without its pictures."""

import numpy as np
import pytest

from vipra_ros.data.bags import robots_in
from vipra_ros.data.convert import ConvertSettings, convert
from vipra_ros.data.dataset import Dataset, DatasetError
from vipra_ros.data.replay import dataset_replay, load_replay
from vipra_ros.data.resample import EpisodeError

ARM = [f"fr3_joint{i + 1}" for i in range(7)]


def line(t: float) -> np.ndarray:
    """Commanded joints at t s: every joint at a speed of its own, so that interpolation is exact."""
    return 0.1 * np.arange(7) + 0.05 * t * np.arange(1, 8)


def test_rows_are_the_commands_one_period_later(record):
    replay = load_replay(record("e", q_cmd=line, cameras=()))
    assert replay.joint_names == tuple(ARM) and replay.instruction.startswith("push the green")
    assert len(replay.rows) == 30 and replay.duration == pytest.approx(2.0)
    np.testing.assert_allclose(replay.first, line(0.0), atol=1e-9)
    times = np.arange(1, 31) / 15
    np.testing.assert_allclose(replay.rows[:, :7], [line(t) for t in times], atol=1e-9)
    np.testing.assert_array_equal(replay.rows[:, 7], np.where(times < 2 / 3 - 1e-6, 1.0, -1.0))


def test_a_robot_in_a_namespace_is_found(record):
    bag = record("e", q_cmd=line, namespace="cell/left")
    assert robots_in(bag) == ["/cell/left"]
    for namespace in ("", "/cell/left", "/right"):  # a bag of the left arm may be replayed on the right one
        assert len(load_replay(bag, namespace=namespace).rows) == 30


def test_chunks_keep_the_grid_of_time_and_stand_still_behind_the_end(record):
    replay = load_replay(record("e", q_cmd=line))
    chunk = replay.chunk(5, 7, 7, start=100.0, chunk_id=2, policy_id="p", epoch=3)
    assert chunk.stamp == pytest.approx(100 + 5 / 15) and (chunk.chunk_id, chunk.epoch, chunk.policy_id) == (2, 3, "p")
    np.testing.assert_array_equal(np.vstack([chunk.actions, chunk.lookahead]), replay.rows[5:19])
    assert chunk.target_time(0) == pytest.approx(100 + 6 / 15)  # row 5 is due 6 periods after the start
    last = replay.chunk(28, 7, 7, start=100.0, chunk_id=3)
    assert last.actions.shape == last.lookahead.shape == (7, 8)
    assert (last.actions[1:] == replay.rows[-1]).all() and (last.lookahead == replay.rows[-1]).all()


def test_distance_names_the_joint_whatever_the_order(record):
    replay = load_replay(record("e", q_cmd=line))
    q = line(0.0) + 0.3 * np.eye(7)[2]
    assert replay.distance(["finger", *ARM[::-1]], [0.04, *q[::-1]]) == (pytest.approx(0.3), "fr3_joint3")
    with pytest.raises(EpisodeError, match="no joint 'fr3_joint1', it has panda_joint1"):
        replay.distance(["panda_joint1"], [0.0])


def test_deviation_is_over_the_time_of_the_episode(record):
    replay = load_replay(record("e", q_cmd=line))
    times = np.arange(-50, 400) / 100  # from before the start to after the end
    q = np.array([line(t) for t in times])
    assert replay.deviation(times, q) == pytest.approx((0.0, 0.0), abs=1e-9)
    q[120, 3] += 0.07
    largest, rms = replay.deviation(times, q)
    assert largest == pytest.approx(0.07) and rms == pytest.approx(0.07 / np.sqrt(201 * 7), rel=0.02)
    assert np.isnan(replay.deviation(times[:10], q[:10])).all()


@pytest.mark.parametrize("changes, said", [
    ({"skip": ("executor/gripper_command",)}, "executor/gripper_command is missing"),
    ({"drop": lambda topic, t: topic == "executor/joint_command" and 0.5 < t < 0.8}, "gap of 0.3"),
    ({"seconds": 0.2}, "at least 4 are needed"),
])
def test_what_cannot_be_replayed_is_said(record, changes, said):
    with pytest.raises(EpisodeError, match=said):
        load_replay(record("e", **changes))


def test_a_data_set_is_replayed_as_its_actions_stand(record, tmp_path):
    bags = [record(f"e{i}", q_cmd=lambda t, i=i: line(t) + 0.01 * i) for i in range(2)]
    convert(bags, tmp_path / "set", quiet=True)
    d = Dataset(tmp_path / "set")
    replay = dataset_replay(tmp_path / "set", 1)
    rows = slice(d.episodes[1].start, d.episodes[1].start + d.episodes[1].length)
    assert replay.joint_names == tuple(ARM) and replay.instruction == d.episodes[1].task
    np.testing.assert_array_equal(replay.rows, d.numeric("action")[rows])
    np.testing.assert_array_equal(replay.first, d.numeric("observation.state")[rows.start, :7].astype(float))
    assert replay.deviation(np.arange(1, 20) / 15, replay.rows[:19, :7]) == (0.0, 0.0)
    with pytest.raises(DatasetError, match="episode 2: .* has episodes 0 to 1"):
        dataset_replay(tmp_path / "set", 2)


def test_actions_that_are_no_joint_positions_are_refused(record, tmp_path):
    convert([record("e")], tmp_path / "set", settings=ConvertSettings(action_space="joint_delta"), quiet=True)
    with pytest.raises(DatasetError, match="actions are joint_delta"):
        dataset_replay(tmp_path / "set", 0)
