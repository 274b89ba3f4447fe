"""One demonstration from servo to replay, with every real part in the path."""

import json

import pytest

for part in ("rclpy", "franky", "franky_sim", "dynamixel_sdk"):
    pytest.importorskip(part)

from vipra_ros import demo_teleop  # noqa: E402
from vipra_ros.config import ConfigError  # noqa: E402
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


def test_what_somebody_recorded_is_not_replaced(tmp_path):
    (tmp_path / "bags" / "push-1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="bags is there already"):
        demo_teleop.run(("reach",), 1000, 1, tmp_path)
    assert (tmp_path / "bags" / "push-1").exists()


def test_the_reason_of_a_failure_is_found_in_the_log():
    text = "[demonstrator-5] [INFO] [1.0] [demonstrator]: reach: begin\n[demonstrator-5] demonstrator: no arm moves\n"
    assert demo_teleop.SAID.findall(text) == ["reach: begin", "no arm moves"]
