"""Fault table of the converter: what a bag can be like, what the report says, and that the rest goes on."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vipra_ros.data import messages as m
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.convert import ConvertSettings, convert
from vipra_ros.data.dataset import Dataset

UNICODE = "räum 🧊 weg: 把绿色方块推到蓝色区域 \u202e‮ “quoted” <b>&amp;</b>"


def run(bags, out, **options):
    return convert(bags, out, quiet=True, progress=False, **options)


def cut(path):
    file = path / f"{path.name}.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(path):
    """Damaged in the middle, index intact."""
    file = path / f"{path.name}.mcap"
    data = bytearray(file.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 20000] = b"\xff" * 20000
    file.write_bytes(data)


def gone(path):
    (path / f"{path.name}.mcap").unlink()


def no_metadata(path):
    (path / "metadata.yaml").unlink()


def not_yaml(path):
    (path / "metadata.yaml").write_text("{a: [")


def rewritten(path, change):
    """The bag again with its messages changed: `change(topic, type, stamp, raw)` -> the same four, or None."""
    with EpisodeReader(path) as reader:
        meta, found = reader.meta(), list(reader.messages())
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    writer = EpisodeWriter(path.parent, path.name, sync=False)
    for one in found:
        new = change(*one) if one[0] != "episode/meta" else None
        if new:
            writer.write(*new[:2], new[3], new[2])
    writer.close(meta)


def wrong_type(path):
    def change(topic, kind, stamp, raw):
        return (topic, m.STRING, stamp, m.string("0.1")) if topic == "joint_states" else (topic, kind, stamp, raw)

    rewritten(path, change)


def wrong_picture_type(path):
    def change(topic, kind, stamp, raw):
        return (
            (topic, m.STRING, stamp, m.string("x")) if topic.startswith("camera/front") else (topic, kind, stamp, raw)
        )

    rewritten(path, change)


def two_clocks(path):
    def change(topic, kind, stamp, raw):
        if topic.startswith("camera/front"):
            raw = raw[:4] + struct.pack("<iI", m.header_stamp(raw) // m.NS + 3600, 0) + raw[12:]
        return topic, kind, stamp, raw

    rewritten(path, change)


def empty_pictures(path):
    def change(topic, kind, stamp, raw):
        return (
            (topic, kind, stamp, m.compressed_image(stamp, "front", b""))
            if "front" in topic
            else (topic, kind, stamp, raw)
        )

    rewritten(path, change)


def no_joints(path):
    def change(topic, kind, stamp, raw):
        return (
            (topic, kind, stamp, m.joint_state(stamp, [], [])) if topic == "joint_states" else (topic, kind, stamp, raw)
        )

    rewritten(path, change)


def messages_cut(path):
    def change(topic, kind, stamp, raw):
        return (topic, kind, stamp, raw[:30] if topic == "joint_states" else raw)

    rewritten(path, change)


FAULTS = [
    (cut, {}, "cannot be read as a rosbag2"),
    (flip, {}, "is damaged inside"),
    (gone, {}, "cannot be read as a rosbag2"),
    (no_metadata, {}, "cannot be read as a rosbag2"),
    (not_yaml, {}, "cannot be read as a rosbag2"),
    (wrong_type, {}, "joint_states is a std_msgs__msg__String, which is no list of numbers"),
    (wrong_picture_type, {}, "image_raw/compressed is a std_msgs/msg/String; one of"),
    (two_clocks, {}, "two clocks"),
    (empty_pictures, {}, "camera front: picture of frame 0 (0 bytes) cannot be decoded"),
    (no_joints, {}, "no joint 'fr3_joint1'"),
    (messages_cut, {}, "not a sensor_msgs/msg/JointState"),
    (None, dict(skip=["executor/joint_command"]), "executor/joint_command is missing or empty"),
    (None, dict(skip=["camera/wrist/image_raw/compressed", "camera/front/image_raw/compressed"]), "no pictures"),
    (None, dict(seconds=0.0), "1 message with a stamp of its own"),
    (None, dict(seconds=0.25), "frames have pictures"),
    (None, dict(meta={"instruction": "  "}), "no instruction"),
    (None, dict(meta={"instruction": 7}), "no instruction"),
    (None, dict(q=lambda t: np.full(7, np.inf)), "not finite"),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_named_and_the_rest_goes_on(record, tmp_path, workers):
    record("00_good", seconds=0.6)
    for k, (damage, changes, _) in enumerate(FAULTS):
        path = record(f"10_{k:02d}", **{"seconds": 0.6, **changes})
        if damage is not None:
            damage(path)
    record("20_good", seconds=0.6)
    report = run(tmp_path / "bags", tmp_path / "set", workers=workers)
    assert [e["status"] for e in report.episodes] == ["converted", *["broken"] * len(FAULTS), "converted"]
    for (_, _, said), entry in zip(FAULTS, report.episodes[1:-1], strict=True):
        assert said in entry["reason"] and "\n" not in entry["reason"], entry
    assert [e.source for e in Dataset(tmp_path / "set").episodes] == ["00_good", "20_good"]
    page = (tmp_path / "set/meta/report.html").read_text(encoding="utf-8")
    assert page.count(">broken<") == len(FAULTS) and "two clocks" in page


def test_an_instruction_in_any_script_survives_to_table_and_page(record, tmp_path):
    record("a", seconds=0.6, meta={"instruction": UNICODE, "success": True})
    run(tmp_path / "bags", tmp_path / "set")
    assert Dataset(tmp_path / "set").episodes[0].task == UNICODE
    page = (tmp_path / "set/meta/report.html").read_text(encoding="utf-8")
    assert "把绿色方块推到蓝色区域" in page and "<b>&amp;</b>" not in page, "shown as text, not as markup"
    assert json.loads((tmp_path / "set/meta/report.json").read_text())["episodes"][0]["instruction"] == UNICODE


def test_a_hundred_thousand_messages(record, tmp_path):
    """Joints at 1 kHz for 49 s, pictures at 5 Hz: memory holds numbers, not messages."""
    writer = EpisodeWriter(tmp_path / "bags", "long", sync=False)
    names, picture = [f"fr3_joint{i + 1}" for i in range(7)], None
    with EpisodeReader(record("short", seconds=0.1, root=tmp_path / "other")) as reader:
        picture = bytes(m.image_data(next(reader.messages(["camera/front/image_raw/compressed"]))[3]))
    for k in range(49_501):
        stamp = m.NS + k * 1_000_000
        q = 0.4 * np.sin(1.3e-3 * k + 0.3 * np.arange(7))
        writer.write("joint_states", m.JOINT_STATE, m.joint_state(stamp, [*names, "finger"], [*q, 0.04]), stamp)
        writer.write("executor/joint_command", m.JOINT_STATE, m.joint_state(stamp, names, q), stamp)
        if k % 49 == 0:
            writer.write("executor/gripper_command", m.FLOAT32, m.float32(1.0), stamp)
        if k % 200 == 0:
            raw = m.compressed_image(stamp, "front", picture)
            writer.write("camera/front/image_raw/compressed", m.COMPRESSED_IMAGE, raw, stamp)
    writer.close({"instruction": "wait", "success": True})
    report = run(tmp_path / "bags", tmp_path / "set", fps=5.0)
    assert report.count("converted") == 1 and report.frames == 247, report.episodes[0]["reason"]
    streams = report.episodes[0]["figures"]["streams"]
    assert streams["joints"]["messages"] == 49_501 and streams["joints"]["hz"] == 1000.0
    t = np.arange(247) * 0.2
    assert np.allclose(Dataset(tmp_path / "set").numeric("action")[:, 0], 0.4 * np.sin(1.3 * (t + 0.2)), atol=1e-5)


def test_refusal_by_policy_from_a_file(record, tmp_path):
    from vipra_ros.config import ConfigError
    from vipra_ros.data.work import load_settings

    record("a", seconds=1.0, frozen=True)
    record("b", seconds=1.0)
    file = tmp_path / "convert.yaml"
    file.write_text("refuse: [frozen]\nresampling: {fps: 10}\nlimits: {frozen_motion: 0.1}\n")
    report = run(tmp_path / "bags", tmp_path / "set", settings=load_settings(file))
    assert [e["status"] for e in report.episodes] == ["refused", "converted"]
    assert "the same picture" in report.episodes[0]["reason"] and Dataset(tmp_path / "set").fps == 10.0
    with pytest.raises(ConfigError, match="no finding 'forzen'; there are clock, rate"):
        load_settings(refuse=("forzen",))
    file.write_text("limits: {frozen: 1}\n")
    with pytest.raises(ConfigError, match="unknown key 'frozen'"):
        load_settings(file)


def test_the_shipped_settings_file_says_the_defaults():
    from vipra_ros.config import share
    from vipra_ros.data.work import load_settings

    assert load_settings(share("config", "convert.yaml")) == ConvertSettings()


def shown(shift):
    """Pictures whose square sits where joint 1 is `shift` s later than the stamp."""

    def picture(k, camera_shift):
        at = round(30 + 55 * 0.4 * np.sin(1.3 * 3 * (k / 30 + shift)))
        image = np.full((64, 64, 3), 60, np.uint8)
        image[20:32, at : at + 12] = (220, 40, 30)
        return image

    return picture


@pytest.mark.parametrize(("shift", "flagged"), [(0.0, False), (-0.2, True), (0.2, True)])
def test_skew_between_camera_and_joints_is_found(record, tmp_path, shift, flagged):
    def q(t):
        return 0.4 * np.sin(1.3 * 3 * t) * np.ones(7)

    record("a", seconds=8.0, q=q, q_cmd=lambda t: q(t + 0.04), picture=shown(shift), cameras=("front",))
    report = run(tmp_path / "bags", tmp_path / "set")
    found = report.episodes[0]["figures"]["skew"]["front"]
    assert abs(found["s"] - shift) < 0.05 and found["r"] > 0.5
    assert any(f["code"] == "skew" for f in report.episodes[0]["flags"]) == flagged, report.episodes[0]["flags"]


def test_lag_is_measured(record, tmp_path):
    record("a", seconds=3.0, q_cmd=lambda t: 0.4 * np.sin(1.3 * (t + 0.13) + 0.3 * np.arange(7)))
    report = run(tmp_path / "bags", tmp_path / "set")
    assert report.episodes[0]["figures"]["lag_s"] == pytest.approx(0.13, abs=0.005)


KILLED = """
import os, signal, sys
from pathlib import Path
from vipra_ros.data import convert, video
add, frames = video.VideoEncoder.add, 0
def count(self, image):
    global frames
    frames += 1
    if frames == 100:  # in the middle of the fourth episode that can be used
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, image)
video.VideoEncoder.add = count
convert.convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=False)
"""


def test_resume_after_a_kill_gives_what_an_uninterrupted_conversion_gives(record, tmp_path):
    for k in range(6):
        record(f"bag{k}", seconds=1.0, **({"skip": ["joint_states"]} if k == 1 else {}))
    out, stage = tmp_path / "set", tmp_path / ".set.partial" / "episodes"
    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "bags"), str(out)],
        env={**os.environ, "PYTHONPATH": root},
        timeout=120,
    )
    done = {p.parent.name for p in stage.glob("*/result.json")}
    assert child.returncode == -signal.SIGKILL and len(done) == 4 and not out.exists()
    report = run(tmp_path / "bags", out, resume=True)
    straight = run(tmp_path / "bags", tmp_path / "straight")
    assert report.count("converted") == 5 and report.episodes == straight.episodes
    one, two = (
        {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and "report" not in p.name}
        for root in (out, tmp_path / "straight")
    )
    assert one == two, "byte by byte: tables, videos, statistics"


def test_a_full_disk_is_not_the_bags_fault(record, tmp_path, monkeypatch):
    import errno

    from vipra_ros.data import work
    from vipra_ros.data.convert import ConvertError

    bags, real, full = [record(n) for n in ("a", "b")], work._write_results, [True]

    def write(episode, folder, settings, result):
        if folder.name.startswith("b") and full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(episode, folder, settings, result)

    monkeypatch.setattr(work, "_write_results", write)
    with pytest.raises(ConvertError, match="No space left on device; what is done stays: make room, .* --resume"):
        run(bags, tmp_path / "out")
    full.clear()
    assert run(bags, tmp_path / "out", resume=True).count("converted") == 2


def test_two_conversions_into_one_folder(record, tmp_path):
    from vipra_ros.config import ConfigError
    from vipra_ros.data.stage import staged

    bag = record("a")
    with staged(tmp_path / "out") as stage:
        (stage / "dataset").mkdir()
        for resume in (False, True):
            with pytest.raises(ConfigError, match="out is being made by another process; wait for it, or end it"):
                run([bag], tmp_path / "out", resume=resume)
        assert (stage / "dataset").is_dir()
    assert run([bag], tmp_path / "out").count("converted") == 1
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("fps", [0.0, -5.0, float("nan"), 1000.0])
def test_a_rate_that_cannot_be(record, tmp_path, fps):
    from vipra_ros.config import ConfigError

    with pytest.raises(ConfigError, match="fps"):
        run([record("a")], tmp_path / "out", fps=fps)


def test_a_hand_of_states_alone_must_go_on_to_the_end(record, tmp_path):
    from vipra_ros.config import build
    from vipra_ros.data.mapping import TopicMap

    topics = build(TopicMap, {"gripper_command": {"topic": ""}, "gripper_state": {
        "topic": "hand", "joint": "fr3_finger_joint1", "open": 0.04, "closed": 0.0}})
    for name, until in (("whole", 9.0), ("cut", 0.8)):
        bag = record(name, skip=("executor/gripper_command",))
        writer = EpisodeWriter(tmp_path / "hands", name, sync=False)
        with EpisodeReader(bag) as reader:
            meta = reader.meta()
            for topic, kind, stamp, raw in reader.messages():
                writer.write(topic, kind, raw, stamp)
                if topic == "joint_states" and (stamp - 10**9) / 1e9 < until:
                    writer.write("hand", kind, raw, stamp)
        writer.close(meta)
    report = run([tmp_path / "hands"], tmp_path / "out", settings=ConvertSettings(topics=topics))
    lengths = {Path(e["bag"]).name: e["frames"] for e in report.episodes}
    assert lengths["whole"] == 30 and lengths["cut"] == 11, "no frame has a hand that was not seen"
    action = Dataset(tmp_path / "out").numeric("action")[:, 7]
    assert action.max() == pytest.approx(1.0) and action.min() == pytest.approx(-0.5)


def test_a_depth_picture_is_not_cut_to_eight_bits():
    import cv2

    from vipra_ros.data import pictures
    from vipra_ros.data.resample import EpisodeError

    depth = np.linspace(300, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    with pytest.raises(EpisodeError, match="PNG of 16 bits, a depth image"):
        pictures.decode(cv2.imencode(".png", depth)[1].tobytes(), None, "camera depth: picture of frame 0")
    plain = pictures.decode(cv2.imencode(".png", (depth // 16).astype(np.uint8))[1].tobytes(), None, "x")
    assert plain.shape == (64, 64, 3)
