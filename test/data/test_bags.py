"""What the recorder's writer makes of an episode: a bag that ROS tools and we read, or none."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rosbags.rosbag2 import Reader

from vipra_ros.data import messages as m
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.bags import BagError, EpisodeReader, find_bags

WORDS = "schiebe den grünen Würfel in die blaue Zone — 推动"


def small(root: Path, name: str = "episode", **options) -> Path:
    writer = EpisodeWriter(root, name, **options)
    writer.write("joint_states", "sensor_msgs/JointState", m.joint_state(10, ["a"], [1.0]), 10)
    writer.write("executor/gripper_command", m.FLOAT32, m.typestore().types[m.FLOAT32](-1.0), 20)
    writer.write("/joint_states", m.JOINT_STATE, m.joint_state(30, ["a"], [2.0]), 30)
    return writer.close({"instruction": WORDS, "success": True, "seed": 3})


@pytest.mark.parametrize("compress", [False, True])
def test_round_trip(tmp_path, compress):
    path = small(tmp_path, compress=compress)
    with EpisodeReader(path) as bag:
        assert bag.meta() == {"instruction": WORDS, "success": True, "seed": 3}
        assert bag.counts == {"joint_states": 2, "executor/gripper_command": 1, "episode/meta": 1}
        assert bag.duration == pytest.approx(20e-9)
        got = list(bag.messages(["joint_states", "executor/gripper_command", "absent"]))
    assert [(topic, stamp) for topic, _, stamp, _ in got] == [
        ("joint_states", 10),
        ("executor/gripper_command", 20),
        ("joint_states", 30),
    ]
    assert got[0][3] == m.joint_state(10, ["a"], [1.0]) and got[1][3] == m.float32(-1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["episode"]


def test_metadata_is_what_ros_tools_read(tmp_path):
    path = small(tmp_path)
    info = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["storage_identifier"] == "mcap" and info["message_count"] == 4
    assert info["relative_file_paths"] == ["episode.mcap"] and (path / "episode.mcap").exists()
    topics = {t["topic_metadata"]["name"]: t["topic_metadata"] for t in info["topics_with_message_count"]}
    assert set(topics) == {"/joint_states", "/executor/gripper_command", "/episode/meta"}
    assert topics["/joint_states"]["type_description_hash"].startswith("RIHS01_")
    assert topics["/episode/meta"]["offered_qos_profiles"][0]["durability"] == "transient_local"
    with Reader(path) as bag:  # the directory reader checks metadata and file against each other
        assert sum(1 for _ in bag.messages()) == 4


def test_another_implementation_reads_it(tmp_path):
    reader = pytest.importorskip("mcap.reader")
    decoder = pytest.importorskip("mcap_ros2.decoder")
    path = small(tmp_path)
    with open(path / "episode.mcap", "rb") as file:
        bag = reader.make_reader(file, decoder_factories=[decoder.DecoderFactory()])
        got = [(channel.topic, msg.log_time, ros) for _, channel, msg, ros in bag.iter_decoded_messages()]
    assert [(t, s) for t, s, _ in got][:2] == [("/joint_states", 10), ("/executor/gripper_command", 20)]
    assert list(got[0][2].position) == [1.0]
    assert json.loads(got[-1][2].data)["instruction"] == WORDS


def test_meta_from_the_topic_when_custom_data_is_lost(tmp_path):
    path = small(tmp_path)
    text = (path / "metadata.yaml").read_text()
    info = yaml.safe_load(text)
    info["rosbag2_bagfile_information"]["custom_data"] = None
    (path / "metadata.yaml").write_text(yaml.safe_dump(info))
    with EpisodeReader(path) as bag:
        assert bag.meta()["instruction"] == WORDS


def test_namespaces(tmp_path):
    path = small(tmp_path, namespace="left")
    with EpisodeReader(path, namespace="/left/") as bag:
        assert bag.counts["executor/gripper_command"] == 1
    with EpisodeReader(path) as bag:
        assert "left/executor/gripper_command" in bag.topics


def test_an_episode_appears_only_when_finished(tmp_path):
    writer = EpisodeWriter(tmp_path, "a")
    writer.write("joint_states", m.JOINT_STATE, m.joint_state(1, ["a"], [1.0]), 1)
    assert not (tmp_path / "a").exists() and find_bags([tmp_path]) == []
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    writer.discard()
    with pytest.raises(BagError, match="closed"):
        writer.write("joint_states", m.JOINT_STATE, b"", 1)


def test_names_are_not_reused(tmp_path):
    small(tmp_path)
    with pytest.raises(BagError, match="exists"):
        EpisodeWriter(tmp_path, "episode")
    for bad in ("", "a/b", ".hidden"):
        with pytest.raises(BagError, match="name"):
            EpisodeWriter(tmp_path, bad)
    writer = EpisodeWriter(tmp_path, "late")
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "file").touch()
    with pytest.raises(BagError, match=r"recording is in .*\.partial"):
        writer.close({})
    assert (tmp_path / "late" / "file").exists()
    assert list(tmp_path.glob(".partial/*/late/metadata.yaml")), "the recording itself is kept"


def test_unknown_type_is_named(tmp_path):
    writer = EpisodeWriter(tmp_path, "a")
    with pytest.raises(BagError, match="foo_msgs/msg/Bar"):
        writer.write("x", "foo_msgs/Bar", b"", 1)
    writer.discard()


def test_a_kill_in_the_middle_leaves_nothing_that_looks_finished(tmp_path):
    small(tmp_path, "before")
    script = (
        "import sys\nfrom pathlib import Path\nfrom vipra_ros.data import messages as m\n"
        "from vipra_ros.data.bag_writer import EpisodeWriter\n"
        "w = EpisodeWriter(Path(sys.argv[1]), 'killed')\n"
        "raw = m.joint_state(1, ['a'] * 50, [0.0] * 50)\n"
        "for i in range(3000):\n    w.write('joint_states', m.JOINT_STATE, raw, i)\n"
        "print('half', flush=True)\nsys.stdin.read()\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    try:
        assert child.stdout.readline() == b"half\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert [p.name for p in find_bags([tmp_path])] == ["before"]
    assert not (tmp_path / "killed").exists()
    assert list(tmp_path.glob(".partial/*/killed/killed.mcap")), "what was written is left for a repair"
    assert small(tmp_path, "killed").exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_a_bag_error(tmp_path, keep):
    path = small(tmp_path)
    file = path / "episode.mcap"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(BagError, match="cannot be read"):
        EpisodeReader(path)


def test_a_damaged_middle_is_a_bag_error(tmp_path, record):
    path = record("a", seconds=1.0)
    file = path / "a.mcap"
    data = bytearray(file.read_bytes())
    data[2000:20000] = b"\xff" * 18000  # over several records: pictures themselves carry no checksum
    file.write_bytes(data)
    with pytest.raises(BagError, match="damaged"), EpisodeReader(path) as bag:
        list(bag.messages())


def test_find_bags_reports_bags_without_metadata(tmp_path):
    small(tmp_path / "day1", "b")
    small(tmp_path / "day1", "a")
    bare = small(tmp_path / "day2", "c")
    (bare / "metadata.yaml").unlink()
    assert [p.name for p in find_bags([tmp_path])] == ["a", "b", "c"]
    with pytest.raises(BagError, match="no such folder"):
        find_bags([tmp_path / "absent"])


def test_loose_files_links_and_split_bags_are_told_apart(record, tmp_path):
    loose, split = tmp_path / "loose", tmp_path / "split"
    for folder, names in ((loose, ("mon.mcap", "tue.mcap")), (split, ("x_0.mcap", "x_1.mcap", "x_10.mcap"))):
        folder.mkdir()
        for name in names:
            shutil.copy(record("a") / "a.mcap" if not (tmp_path / "bags/a").exists() else tmp_path / "bags/a/a.mcap",
                        folder / name)
    assert find_bags([loose]) == [loose / "mon.mcap", loose / "tue.mcap"] and find_bags([split]) == [split]
    subset = tmp_path / "subset"
    subset.mkdir()
    (subset / "one").symlink_to(tmp_path / "bags" / "a")
    (subset / "round").symlink_to(subset)
    assert find_bags([subset]) == [subset / "one"]
    from vipra_ros.data import bag_info

    assert bag_info.main([str(loose / "mon.mcap"), str(loose / "tue.mcap")], json=True) == 0


def test_a_description_that_only_the_topic_holds_survives_a_new_label(record):
    from vipra_ros.data.relabel import relabel

    bag = record("a", namespace="left")
    text = (bag / "metadata.yaml").read_text()
    (bag / "metadata.yaml").write_text(re.sub(r"(?ms)^  custom_data:.*?(?=^  \S|\Z)", "", text))
    with EpisodeReader(bag) as reader:
        assert reader.meta() == {}
    meta = relabel(bag, success=False)
    assert meta["instruction"].startswith("push the green") and meta["operator"] == "expert"
    assert meta["success"] is False
