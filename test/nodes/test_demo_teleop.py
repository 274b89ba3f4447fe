"""One demonstration from servo to replay, with every real part in the path."""

import json

import pytest

for part in ("rclpy", "franky", "franky_sim", "dynamixel_sdk"):
    pytest.importorskip(part)

from vipra_ros import demo_teleop  # noqa: E402
from vipra_ros.data.bags import EpisodeReader  # noqa: E402
from vipra_ros.data.dataset import Dataset  # noqa: E402


def test_an_emulated_gello_demonstrates_and_the_data_set_replays(tmp_path, unused_ros_domain, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(unused_ros_domain))
    assert demo_teleop.run(("reach",), 1000, 1, tmp_path) == 0
    (bag,) = (tmp_path / "bags").iterdir()
    with EpisodeReader(bag) as episode:
        assert episode.meta()["success"] is True
        assert {"joint_states", "executor/joint_command", "camera/front/image_raw/compressed"} <= set(episode.topics)
        assert any("gello" in topic for topic in episode.topics)
    data = Dataset(tmp_path / "dataset")
    assert len(data.episodes) == 1 and len(data) > 15
    (replayed,) = json.loads((tmp_path / "replay.json").read_text())
    assert replayed["success"]
