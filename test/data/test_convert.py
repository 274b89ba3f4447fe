"""From bags to a data set: values, refusals, workers, going on after an interruption."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from vipra_ros.data import messages as m
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.convert import ConvertError, ConvertSettings, convert
from vipra_ros.data.dataset import Dataset
from vipra_ros.data.episode import load_episode
from vipra_ros.data.relabel import relabel
from vipra_ros.data.resample import Resampling

META = {"instruction": "lift the blue cube", "task": "lift", "colour": "blue", "seed": 3, "success": True}
UNICODE = "schiebe den grünen Würfel in die blaue Zone 推动"


def run(bags, out, **options):
    return convert(bags, out, quiet=True, progress=False, **options)


def test_bags_become_a_data_set_equal_to_them(record, tmp_path):
    paths = [record("a", seconds=1.2), record("b", seconds=0.8, meta=META | {"instruction": UNICODE})]
    report = run(tmp_path / "bags", tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    assert report.count("converted") == 2 and report.frames == len(dataset)
    assert [e.task for e in dataset.episodes] == ["push the green cube into the blue zone", UNICODE]
    assert [(e.task_key, e.colour, e.seed, e.success, e.source) for e in dataset.episodes] == [
        ("push", "green", 7, True, "a"),
        ("lift", "blue", 3, True, "b"),
    ]
    for info, path in zip(dataset.episodes, paths, strict=True):
        with EpisodeReader(path) as bag:
            episode = load_episode(bag, Resampling())
            pictures = {(c, i): bytes(data) for c, i, data in episode.pictures()}
        rows = slice(info.start, info.start + info.length)
        assert np.array_equal(dataset.numeric("action")[rows], episode.action)
        assert np.array_equal(dataset.numeric("observation.state")[rows], episode.state)
        assert np.array_equal(dataset.numeric("stamp_ns")[rows, 0], episode.stamp_ns)
        assert np.array_equal(
            dataset.numeric("stamp_ns.wrist")[rows, 0], episode.image_ns["wrist"][episode.picks["wrist"]]
        )
        for camera in ("front", "wrist"):
            for index, image in dataset.frames(camera, info.start, info.start + info.length):
                data = np.frombuffer(pictures[camera, index - info.start], np.uint8)
                error = np.abs(image.astype(int) - cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])
                assert error.mean() < 1.5 and np.percentile(error, 99) < 12
    assert dataset.features["action"]["names"][-1] == "gripper"
    assert dataset.info["robot_type"] == "fr3" and "open=+1" in dataset.info["vipra_ros"]["gripper"]
    assert not list(tmp_path.glob(".*partial*")), "nothing is left beside the data set"


def test_bad_bags_are_reported_and_left_out(record, tmp_path):
    record("good", seconds=0.8)
    record("failed", seconds=0.8, meta=META | {"success": False})
    record("gone", seconds=0.8, skip=["joint_states"])
    cut = record("cut", seconds=0.8) / "cut.mcap"
    cut.write_bytes(cut.read_bytes()[:5000])
    (record("bare", seconds=0.8) / "metadata.yaml").unlink()
    record("small", seconds=0.8, cameras=("front",))
    odd = record("odd", seconds=0.8, picture=lambda k, shift: np.zeros((32, 32, 3), np.uint8))
    rotten = record("rotten", seconds=0.8)
    data = (rotten / "rotten.mcap").read_bytes()
    (rotten / "rotten.mcap").write_bytes(data.replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    report = run(tmp_path / "bags", tmp_path / "set", settings=ConvertSettings())
    by_name = {Path(e["bag"]).name: e for e in report.episodes}
    # sorted by name: "failed" comes before "good", and "good" is the first that can be used
    assert {n: e["status"] for n, e in by_name.items()} == {
        "bare": "broken",
        "cut": "broken",
        "failed": "failed",
        "gone": "broken",
        "good": "converted",
        "odd": "broken",
        "rotten": "broken",
        "small": "broken",
    }
    assert "joint_states is missing" in by_name["gone"]["reason"]
    assert "cannot be read as a rosbag2" in by_name["cut"]["reason"]
    assert "64" in by_name["odd"]["reason"] and "32" in by_name["odd"]["reason"]
    assert "front" in by_name["small"]["reason"] and "cannot be decoded" in by_name["rotten"]["reason"]
    written = json.loads((tmp_path / "set/meta/report.json").read_text(encoding="utf-8"))
    assert written["converted"] == 1 and written["broken"] == 6 and written["failed"] == 1
    assert len(Dataset(tmp_path / "set").episodes) == 1 and odd.exists()
    text = str(report)
    assert "1 of 8 episodes" in text and "broken 6" in text and "broken gone: joint_states is missing" in text


def test_flags_are_counted_and_can_refuse(record, tmp_path):
    record("a", seconds=1.0)
    record("b", seconds=1.0, frozen=True)
    report = run(tmp_path / "bags", tmp_path / "one")
    assert report.flags() == {"frozen": 1} and report.count("converted") == 2
    frozen = next(f for f in report.episodes[1]["flags"])
    assert "the same picture from frame 0" in frozen["text"]
    report = run(tmp_path / "bags", tmp_path / "two", settings=ConvertSettings(refuse=("frozen",)))
    assert [e["status"] for e in report.episodes] == ["converted", "refused"]


def test_cameras_rate_and_failures_by_choice(record, tmp_path):
    record("a", seconds=1.0, meta=META | {"success": False})
    settings = ConvertSettings(cameras=("wrist",), keep_failed=True)
    run(tmp_path / "bags", tmp_path / "set", fps=10.0, settings=settings)
    dataset = Dataset(tmp_path / "set")
    assert dataset.cameras == ["wrist"] and dataset.fps == 10.0 and dataset.episodes[0].success is False
    assert np.allclose(np.diff(dataset.numeric("timestamp")[:, 0]), 0.1, atol=1e-6)


def test_workers_give_the_same_data_set(record, tmp_path):
    for k in range(5):
        record(f"bag{k}", seconds=0.6 + 0.1 * k)
    run(tmp_path / "bags", tmp_path / "one")
    run(tmp_path / "bags", tmp_path / "two", workers=2)
    one, two = Dataset(tmp_path / "one"), Dataset(tmp_path / "two")
    assert one.episodes == two.episodes and len(one.episodes) == 5
    for column in ("action", "stamp_ns"):
        assert np.array_equal(one.numeric(column), two.numeric(column))
    for (_, a), (_, b) in zip(one.frames("front"), two.frames("front"), strict=True):
        assert np.array_equal(a, b)


def test_resume_leaves_a_finished_conversion_of_the_same_bags(record, tmp_path):
    record("a", seconds=0.6)
    out = tmp_path / "set"
    report = run(tmp_path / "bags", out)
    again = run(tmp_path / "bags", out, resume=True)
    assert again.to_json() == report.to_json()
    with pytest.raises(ConvertError, match="exists; choose another"):
        run(tmp_path / "bags", out)
    with pytest.raises(ConvertError, match="or with other settings"):
        run(tmp_path / "bags", out, resume=True, fps=7.0)
    relabel(tmp_path / "bags" / "a", success=False)
    with pytest.raises(ConvertError, match="was made of other bags"):
        run(tmp_path / "bags", out, resume=True)


def test_results_are_kept_only_for_the_same_bag_and_settings(record, tmp_path):
    from vipra_ros.data.work import convert_episode

    bag, folder, settings = record("a", seconds=0.8), tmp_path / "result", ConvertSettings()
    first = convert_episode(bag, folder, settings)
    kept = (folder / "result.json").stat().st_mtime_ns
    assert convert_episode(bag, folder, settings) == first
    assert (folder / "result.json").stat().st_mtime_ns == kept
    (folder / "result.json").write_text(json.dumps(first | {"status": "broken", "reason": "no space left"}))
    assert convert_episode(bag, folder, settings)["status"] == "converted", "it may have been the disk"
    other = ConvertSettings(resampling=Resampling(fps=10.0))
    assert convert_episode(bag, folder, other)["frames"] < first["frames"]
    shutil.rmtree(bag)
    record("a", seconds=1.0)
    assert convert_episode(bag, folder, other)["key"] != first["key"]


def test_a_worker_that_dies_costs_its_bag_only(record, tmp_path, monkeypatch):
    """A decoder that crashes is played by a camera's name that ends the process when its folder is made."""
    for k in range(3):
        record(f"bag{k}", seconds=0.6)
    fatal = tmp_path / "sitecustomize.py"  # read by every spawned process
    fatal.write_text(
        "import os, pathlib\n_mkdir = pathlib.Path.mkdir\n"
        "def mkdir(self, *a, **k):\n"
        "    if self.name.startswith('bag1-') and 'episodes' in str(self):\n        os._exit(9)\n"
        "    return _mkdir(self, *a, **k)\n"
        "pathlib.Path.mkdir = mkdir\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    report = run(tmp_path / "bags", tmp_path / "set", workers=2)
    assert [e["status"] for e in report.episodes] == ["converted", "broken", "converted"]
    assert "the process working on it died" in report.episodes[1]["reason"]


def test_nothing_usable_is_an_error_and_leaves_nothing(record, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConvertError, match="no bags"):
        run(tmp_path / "empty", tmp_path / "set")
    record("a", seconds=0.8, skip=["joint_states"])
    with pytest.raises(ConvertError, match="none of 1 bags could be used; a: joint_states is missing"):
        run(tmp_path / "bags", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    with pytest.raises(ConvertError, match="workers = 0"):
        run(tmp_path / "bags", tmp_path / "set", workers=0)


def test_bags_of_ros_itself_convert(record, tmp_path):
    """Bytes as rclpy writes them: arbitrary padding, bytes left behind the message."""
    rclpy = pytest.importorskip("rclpy.serialization")
    sensor = pytest.importorskip("sensor_msgs.msg")
    from vipra_ros.data.bag_writer import EpisodeWriter

    source = record("ours", seconds=0.8)
    writer = EpisodeWriter(tmp_path / "theirs", "a", sync=False)
    kinds = {m.JOINT_STATE: sensor.JointState, m.COMPRESSED_IMAGE: sensor.CompressedImage}
    with EpisodeReader(source) as bag:
        for topic, msgtype, stamp, raw in bag.messages():
            if msgtype in kinds:
                raw = rclpy.serialize_message(rclpy.deserialize_message(raw, kinds[msgtype]))
            if topic != "episode/meta":
                writer.write(topic, msgtype, raw, stamp)
        writer.close(bag.meta())
    run(tmp_path / "bags", tmp_path / "one")
    run(tmp_path / "theirs", tmp_path / "two")
    one, two = Dataset(tmp_path / "one"), Dataset(tmp_path / "two")
    assert np.array_equal(one.numeric("action"), two.numeric("action"))
    assert all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(one.frames("front"), two.frames("front"), strict=True)
    )
