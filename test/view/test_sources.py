"""What is read of a recording before anything is drawn; needs no rerun."""

import shutil

import numpy as np
import pytest

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import load_profile
from vipra_ros.data import messages
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.view import main as command
from vipra_ros.view import sources

PROFILE = load_profile("fr3")
BEGIN = 10**18
RAW_IMAGE = "sensor_msgs/msg/Image"


def bag(folder, *topics, namespace="", rows=3, joints=PROFILE.joint_names):
    """A bag with joint states, on each of `topics`, and a picture that is no picture."""
    writer = EpisodeWriter(folder, "one", sync=False, namespace=namespace)
    for k in range(rows):
        now = BEGIN + k * 10**7
        for topic in topics:
            writer.write(topic, messages.JOINT_STATE, messages.joint_state(now, joints, [0.1 * k] * 7, [0.5] * 7), now)
        writer.write("camera/front/image_raw/compressed", messages.COMPRESSED_IMAGE,
                     messages.compressed_image(now, "front", b"jpeg"), now)
    return writer.close({})


def test_a_robot_in_a_namespace_is_found(tmp_path):
    path = bag(tmp_path, "joint_states", "gello/joint_states", namespace="left")  # the leader's too
    for seen in (sources.look(path), sources.look(path, namespace="/left")):
        assert len(seen.joints["measured"][0]) == len(list(seen.pictures())) == 3 and seen.cameras == ["front"]


def test_of_two_robots_one_is_asked_for(tmp_path):
    path = bag(tmp_path, "left/joint_states", "right/joint_states")
    with pytest.raises(ConfigError, match="several robots; give --namespace /left or /right"):
        sources.look(path)
    assert "measured" in sources.look(path, namespace="right").joints


def test_nothing_to_be_seen_is_no_success(tmp_path):
    path = bag(tmp_path, "joint_states")
    with pytest.raises(ConfigError, match=r"nothing that can be shown in namespace /left \(topics there: none\)"):
        sources.look(path, namespace="left")
    writer = EpisodeWriter(tmp_path, "foreign", sync=False)
    writer.write("scan", messages.STRING, messages.string("x"), BEGIN)
    with pytest.raises(ConfigError, match=r"topics there: scan"):
        sources.look(writer.close({}))


def test_only_what_is_drawn_is_read(tmp_path, monkeypatch):
    writer = EpisodeWriter(tmp_path, "raw", sync=False)
    for topic in ("joint_states", "camera/front/image_raw", "scan"):
        writer.write(topic, messages.JOINT_STATE, messages.joint_state(BEGIN, PROFILE.joint_names, [0.0] * 7), BEGIN)
    path, asked, read = writer.close({}), [], EpisodeReader.messages
    monkeypatch.setattr(EpisodeReader, "messages", lambda self, topics: (asked.extend(topics), read(self, topics))[1])
    sources.look(path)
    assert "joint_states" in asked and not {"camera/front/image_raw", "scan"} & set(asked)


def test_columns_are_those_of_each_message(tmp_path):
    names, finger = PROFILE.joint_names, PROFILE.finger_joint
    writer, values = EpisodeWriter(tmp_path, "mixed", sync=False), np.arange(7) / 10
    for k, (joints, q, dq) in enumerate((
            ([finger], [0.04], None),  # a driver of the hand on the arm's topic
            (names, values, values + 1), ([finger, *names[::-1]], [0.02, *values[::-1]], [0.0, *values[::-1] + 1]))):
        raw = messages.joint_state(BEGIN + k * 10**9, joints, q, dq)
        writer.write("joint_states", messages.JOINT_STATE, raw, BEGIN + k * 10**9)
    seen = sources.look(writer.close({}))
    times, q, dq = seen.joints["measured"]
    assert times.tolist() == [1.0, 2.0] and np.allclose(q, [values] * 2) and np.allclose(dq, [values + 1] * 2)
    assert [x.tolist() for x in seen.hand["measured"]] == [[0.0, 2.0], [0.04, 0.02]]


def test_a_recording_is_named_after_its_folder(tmp_path, monkeypatch, capsys):
    path = bag(tmp_path / "my bags", "joint_states")
    shutil.copytree(path, tmp_path / "other" / "one")
    monkeypatch.chdir(path)
    seen = sources.look(".")
    assert seen.name == "one" and seen.path == path.resolve() != sources.look(tmp_path / "other" / "one").path

    def write(seen, file):
        file.write_bytes(b"")
        return {}
    monkeypatch.setitem(command.sys.modules, "vipra_ros.view.rrd", type("rrd", (), {"write": staticmethod(write)}))
    assert command.main(str(path), save="my own.rrd") == 0
    assert f"vipra view '{path}' --open (or --web), or rerun 'my own.rrd'" in capsys.readouterr().out
