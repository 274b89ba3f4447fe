"""One bag as rows: values, pictures, where they begin, what is flagged."""

import cv2
import numpy as np
import pytest

from vipra_ros.data import messages as m
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.checks import Limits, check
from vipra_ros.data.episode import load_episode
from vipra_ros.data.resample import EpisodeError, Resampling

START = 1_000_000_000


def joints(t):
    return 0.4 * np.sin(1.3 * t + 0.3 * np.arange(7))


def codes(path, **limits):
    with EpisodeReader(path) as bag:
        return {f.code for f in check(load_episode(bag, Resampling()), Limits(**limits))}


def test_values_are_those_of_the_functions_recorded(record):
    with EpisodeReader(record("a", seconds=3.0)) as bag:
        episode = load_episode(bag, Resampling())
    t = (episode.stamp_ns - START) / 1e9
    assert len(episode) == 45 and np.allclose(np.diff(t), 1 / 15, atol=2e-9)
    assert np.allclose(episode.state[:, :7], [joints(x) for x in t], atol=1e-5)
    assert np.allclose(episode.action[:, :7], [joints(x + 1 / 15 + 0.04) for x in t], atol=1e-5)
    assert episode.state.dtype == episode.action.dtype == np.float32
    # the hand: fingers at 40 mm are open, 10 mm is a quarter; the command at t + 1/15 closes from 1 s on
    assert np.allclose(episode.state[t < 1.19, 7], 1.0) and np.allclose(episode.state[t > 1.21, 7], -0.5)
    assert (episode.action[:, 7] == np.where(t + 1 / 15 < 1.0 - 1e-6, 1.0, -1.0)).all()
    assert episode.joint_names == tuple(f"fr3_joint{i + 1}" for i in range(7))
    assert list(episode.picks) == ["front", "wrist"] and episode.instruction.startswith("push the green")
    assert (episode.image_ns["front"][episode.picks["front"]] == episode.stamp_ns).all()


@pytest.mark.parametrize("cache", [0, 10**9])
def test_pictures_come_in_order_cached_or_read_again(record, monkeypatch, cache):
    monkeypatch.setattr("vipra_ros.data.gathering.CACHE_BYTES", cache)
    path = record("a", seconds=1.0, rate=10.0)
    with EpisodeReader(path) as bag:
        episode = load_episode(bag, Resampling(fps=15.0, image_age=0.2))
        got = [(c, i, bytes(data)) for c, i, data in episode.pictures()]
        raw = [m.image_data(r) for _, _, _, r in bag.messages(["camera/front/image_raw/compressed"])]
    front = [(i, data) for c, i, data in got if c == "front"]
    assert [i for i, _ in front] == list(range(len(episode)))
    expected = [int(np.floor(i / 15 * 10 + 1e-6)) for i in range(len(episode))]  # 10 Hz: some pictures twice
    assert episode.picks["front"].tolist() == expected
    assert all(data == raw[k] for (_, data), k in zip(front, expected, strict=True))
    assert cv2.imdecode(np.frombuffer(front[0][1], np.uint8), 1).shape == (64, 64, 3)


def test_late_streams_move_the_start(record):
    path = record("a", seconds=2.0, drop=lambda topic, t: "joint_command" in topic and t < 0.5)
    with EpisodeReader(path) as bag:
        episode = load_episode(bag, Resampling())
    start = (episode.stamp_ns[0] - START) / 1e9
    assert (
        start >= 0.5 - 1 / 15 - 1e-6 and start < 0.5 and np.isclose(start * 30, round(start * 30), atol=1e-6)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(skip=["joint_states"]), "joint_states is missing or empty; the bag has camera/front"),
        (dict(skip=["executor/gripper_command"]), "executor/gripper_command is missing"),
        (dict(cameras=()), "no pictures"),
        (dict(drop=lambda topic, t: "wrist" in topic and 0.5 < t < 1.0), "camera wrist: newest picture is"),
        (
            dict(drop=lambda topic, t: topic == "joint_states" and 0.5 < t < 1.0),
            "joint_states: gap of 0.50 s at 0.50",
        ),
        (
            dict(drop=lambda topic, t: topic == "executor/joint_command" and 0.5 < t < 1.0),
            "joint_command: gap",
        ),
        (dict(seconds=0.2), "frames have pictures"),
        (dict(seconds=0.0), "joint_states: 1 message"),
        (dict(meta={"task": "push"}), "no instruction in episode/meta or policy/instruction"),
        (dict(offset_ns=3600 * 10**9), "two clocks"),
        (dict(q=lambda t: joints(t) * (np.nan if t > 1 else 1)), "not finite"),
    ],
)
def test_errors_name_what_is_missing(record, changes, message):
    with EpisodeReader(record("a", **changes)) as bag, pytest.raises(EpisodeError) as error:
        load_episode(bag, Resampling())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_good_episode_has_no_flags(record):
    assert codes(record("a")) == set()


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("polarity", dict(polarity=-1, seconds=4.0)),
        ("still", dict(q=lambda t: np.zeros(7), q_cmd=lambda t: np.zeros(7))),
        ("constant", dict(q=lambda t: joints(t) * (np.arange(7) != 3))),
        ("jump", dict(q=lambda t: joints(t) + (0.2 if t > 1.0 else 0.0))),
        ("tracking", dict(q_cmd=lambda t: joints(t)[::-1])),
        ("lag", dict(q_cmd=lambda t: joints(t + 0.4), seconds=4.0)),
        ("lag", dict(q_cmd=lambda t: joints(t - 0.1), seconds=4.0)),
        ("gap", dict(drop=lambda topic, t: topic == "joint_states" and 0.5 < t < 0.59)),
        ("rate", dict(rate=10.0)),
        ("lost", dict(drop=lambda topic, t: "front" in topic and round(t * 30) % 10 == 7)),
        ("jitter", dict(when=lambda k: (k + (0.45 if k % 2 else 0.0)) / 30)),
        ("unlabelled", dict(meta={"instruction": "lift the blue cube"})),
    ],
)
def test_flags(record, code, changes):
    found = codes(record("a", **changes))
    assert code in found
    assert found <= {code, "lost", "tracking", "constant", "lag"}, "nothing else is wrong"


def test_stamps_that_step_back_are_flagged_and_left_out(record, tmp_path):
    from vipra_ros.data.bag_writer import EpisodeWriter

    source = record("a")
    writer = EpisodeWriter(tmp_path, "b", sync=False)
    with EpisodeReader(source) as bag:
        for k, (topic, msgtype, stamp, raw) in enumerate(bag.messages()):
            if topic == "joint_states" and k % 50 == 0:  # the same message twice, and an older one
                writer.write(topic, msgtype, raw, stamp)
            if topic != "episode/meta":
                writer.write(topic, msgtype, raw, stamp)
        writer.close(bag.meta())
    with EpisodeReader(source) as one, EpisodeReader(tmp_path / "b") as two:
        good, doubled = load_episode(one, Resampling()), load_episode(two, Resampling())
    assert np.array_equal(good.state, doubled.state)
    assert [f.code for f in check(doubled)] == ["clock"]
