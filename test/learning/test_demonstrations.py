"""Examples cut from episodes: padding, history, splits."""

import numpy as np
import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.learning import demonstrations


@pytest.fixture
def splits(data):
    return demonstrations.load(data, holdout=0.2, seed=0)


def test_no_episode_is_in_both_splits_and_every_task_is_held_out(data, splits):
    train, held = splits
    assert set(train.first[train.usable]).isdisjoint(held.first[held.usable])
    assert len(train.usable) + len(held.usable) == len(data)
    assert set(held.kind[held.usable]) == {0, 1} and held.kinds == ["go", "stay"]


def test_past_the_end_the_last_absolute_action_repeats(data, splits):
    train, _ = splits
    start = int(train.usable[0])
    chunk = train.chunks(np.array([start + 9]), 14)[0]
    actions = data.numeric("action")
    assert np.array_equal(chunk[:3], actions[start + 9 : start + 12])
    assert (chunk[3:] == actions[start + 11]).all()


def test_past_the_end_a_delta_is_zero_with_the_last_gripper_value(splits):
    train, _ = splits
    train.action_space = "joint_delta"
    start = int(train.usable[0])
    chunk = train.chunks(np.array([start + 9]), 14)[0]
    assert (chunk[3:, :-1] == 0).all() and (chunk[3:, -1] == -1.0).all() and (chunk[:3, :2] != 0).any()


def test_history_stops_at_the_start_of_the_episode(splits):
    train, _ = splits
    start = int(train.usable[0])
    assert train.history(np.array([start, start + 1, start + 5]), np.array([-2, 0])).tolist() == [
        [start, start],
        [start, start + 1],
        [start + 3, start + 5],
    ]


def test_few_demonstrations_are_spread_over_the_tasks(data):
    train, held = demonstrations.load(data, holdout=0.2, seed=0, episodes=2)
    assert len(set(train.first[train.usable])) == 2 and set(train.kind[train.usable]) == {0, 1}
    everything, same = demonstrations.load(data, holdout=0.2, seed=0)
    assert np.array_equal(held.usable, same.usable)
    assert set(train.usable) <= set(everything.usable)


def test_draws_cover_the_split_and_nothing_else(splits):
    train, _ = splits
    drawn = train.draw(torch.Generator().manual_seed(0), 5000)
    assert set(drawn) == set(train.usable)


def test_relative_statistics_are_those_of_the_offsets(data, splits):
    train, _ = splits
    table = train.statistics(relative=True, horizon=14)["action"]
    index = train.spread(10_000)
    offsets = train.chunks(index, 14)[..., :7] - train.states[index][:, None, :7]
    assert np.allclose(table["mean"][:7], offsets.reshape(-1, 7).mean(0), atol=1e-6)
    assert np.allclose(table["std"][:7], offsets.reshape(-1, 7).std(0), atol=1e-6)


def test_an_episode_without_an_instruction_is_named(data, monkeypatch):
    monkeypatch.setattr(data.episodes[3], "task", " ")
    with pytest.raises(ConfigError, match="episode 3 has no instruction; .*relabel"):
        demonstrations.load(data, 0.1, 0)


def test_wrong_data_are_refused(data, monkeypatch):
    monkeypatch.setattr(type(data), "__len__", lambda self: 3)
    with pytest.raises(ConfigError, match=f"3 frames for {len(data.numeric('action'))} rows"):
        demonstrations.load(data, 0.1, 0)
