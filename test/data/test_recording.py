"""Recording with a fake clock: pre-roll, labels, losses, full disks, a process killed in the middle."""

import json
import threading

import numpy as np
import pytest

from vipra_ros.data import disk
from vipra_ros.data import messages as m
from vipra_ros.data.bags import EpisodeReader, find_bags
from vipra_ros.data.disk import MB
from vipra_ros.data.preroll import Message as Kept
from vipra_ros.data.preroll import PreRoll
from vipra_ros.data.reception import Demands, Meter, judge
from vipra_ros.data.recording import Recorder, RecordingSettings

NS = m.NS
T0 = 1_700_000_000 * NS
JOINTS, HAND, WORDS = "joint_states", "executor/gripper_command", "policy/instruction"


def joint(t):
    return m.joint_state(T0 + round(t * NS), ("a", "b"), (t, 2 * t))


class Bench:
    """A recorder whose writing thread is stepped by hand."""

    def __init__(self, root, free=10**12, **settings):
        self.free, self.said, self.shown, self.changes = free, [], [], 0
        self.recorder = Recorder(
            root, RecordingSettings(**settings), Demands(seconds=0.2), joints=(JOINTS,), needed=(HAND,),
            describe=lambda said: {"instruction": m.read_string(said[WORDS]) if WORDS in said else "",
                                   "robot": "fr3"},
            say=lambda severity, text: self.said.append((severity, text)), show=self.shown.append,
            changed=self.changed, free=lambda root: self.free,
        )

    def changed(self):
        self.changes += 1

    def joints(self, begin, end, rate=100.0, drop=lambda t: False):
        """Joint states from `begin` to before `end`, s after T0."""
        for t in np.arange(round(begin * rate), round(end * rate)) / rate:
            if not drop(t):
                self.recorder.take(JOINTS, m.JOINT_STATE, joint(t), T0 + round(t * NS))

    def hand(self, t, value):
        self.recorder.take(HAND, m.FLOAT32, m.float32(value), T0 + round(t * NS))

    def words(self, t, text):
        self.recorder.take(WORDS, m.STRING, m.string(text), T0 + round(t * NS))

    def at(self, t, command, *arguments):
        return getattr(self.recorder, command)(T0 + round(t * NS), *arguments)


def contents(path):
    with EpisodeReader(path) as reader:
        return reader.meta(), [(topic, (stamp - T0) / NS, raw) for topic, _, stamp, raw in reader.messages()]


def test_an_episode_has_its_pre_roll_and_the_latched_values_in_force(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.5)
    bench.words(0.0, "lift the old cube")
    bench.words(0.1, "lift the red cube")
    bench.joints(0.0, 1.0)
    bench.hand(1.0, 1.0)
    bench.joints(1.0, 1.8)
    bench.hand(1.8, -1.0)  # within the pre-roll: the hand was still open when the episode begins
    bench.joints(1.8, 2.0)
    assert bench.at(2.0, "start") == (True, "recording 20231114-221322")
    assert bench.recorder.status()["state"] == "RECORDING"
    bench.joints(2.0, 3.0)
    assert not list(tmp_path.glob("2023*"))
    bench.at(3.0, "finish", True)
    assert bench.recorder.status()["state"] == "SAVING"
    bench.recorder.step()
    assert bench.recorder.status()["state"] == "IDLE" and bench.changes == 2
    meta, found = contents(tmp_path / "20231114-221322")
    assert meta["success"] is True and meta["good"] and meta["flags"] == []
    assert meta["instruction"] == "lift the red cube" and meta["robot"] == "fr3"
    assert meta["seconds"] == pytest.approx(1.5)
    joints = [(t, raw) for topic, t, raw in found if topic == JOINTS]
    assert [raw for _, raw in joints] == [joint(t) for t in np.arange(150, 300) / 100]
    assert [t for t, _ in joints] == pytest.approx(list(np.arange(150, 300) / 100))
    hand = [(round(t, 3), m.read_float32(raw)) for topic, t, raw in found if topic == HAND]
    assert hand == [(1.5, 1.0), (1.8, -1.0)]
    assert [m.read_string(raw) for topic, _, raw in found if topic == WORDS] == ["lift the red cube"]
    assert meta["reception"][JOINTS]["received"] == 150 and meta["reception"][JOINTS]["rate"] == pytest.approx(100)
    assert not (tmp_path / ".partial").exists()


def test_losses_are_counted_flagged_and_kept_in_the_bag(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.0)
    bench.at(0.0, "start")
    bench.joints(0.0, 3.0, drop=lambda t: 1.0 <= t < 1.3)
    bench.at(3.5, "finish", False)
    bench.recorder.step()
    meta, _ = contents(find_bags([tmp_path])[0])
    r = meta["reception"][JOINTS]
    assert (r["received"], r["lost"], r["expected"]) == (270, 30, 300)
    assert r["gap"] == pytest.approx(0.51)  # nothing came for the last half second
    assert meta["success"] is False and not meta["good"]
    text = "\n".join(meta["flags"])
    assert "joint_states: gap of 0.510 s, 0.1 s is allowed" in text
    assert "joint_states: 30 of 300 messages missing" in text
    assert "executor/gripper_command: nothing received" in text and "no instruction" in text
    assert bench.recorder.status()["last"]["flags"] == meta["flags"]
    assert sum(severity == "warning" for severity, _ in bench.said) == len(meta["flags"])


def test_the_table_marks_what_is_bad_and_fits_a_terminal(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.0)
    bench.at(0.0, "start")
    bench.hand(0.0, 1.0)
    bench.words(0.0, "lift")
    for k in range(20):  # a tenth of a second each
        for stamp in (T0 + i * NS // 30 for i in range(3 * k, 3 * k + 3)):
            picture = m.compressed_image(stamp, "front", bytes(100))
            bench.recorder.take("camera/front/image_raw/compressed", m.COMPRESSED_IMAGE, picture, stamp)
        bench.joints(k / 10, (k + 1) / 10, drop=lambda t: 1.0 <= t < 1.3)
    bench.at(2.0, "finish", True)
    bench.recorder.step()
    (text,) = bench.shown
    assert max(map(len, text.splitlines())) <= 66
    rows = {line.lstrip("! ").split()[0]: line for line in text.splitlines()}
    assert rows["joint_states"].startswith("!") and rows["joint_states"].split()[2:5] == ["170", "200", "30"]
    assert not rows["front"].startswith("!") and "front image" in rows["front"] and " 30.0 " in rows["front"]
    assert "! joint_states: gap of 0.310 s" in text and "gap of 0.310" in text.splitlines()[-2]


def test_words_given_before_the_first_episode_are_those_of_all(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.0)
    assert "next episodes" in bench.recorder.relabel("lift the red cube").message
    for k, after in enumerate((None, "discard", "lift the blue cube")):
        bench.at(4.0 * k, "start")
        assert bench.recorder.status()["instruction"] == "lift the red cube"
        bench.joints(4.0 * k, 4.0 * k + 2)
        bench.hand(4.0 * k, 1.0)
        bench.at(4.0 * k + 2, *(("discard",) if after == "discard" else ("finish", True)))
        bench.recorder.step()
        if k == 2:  # of the last one alone
            assert bench.recorder.relabel(after).success
            bench.recorder.step()
    assert [contents(b)[0]["instruction"] for b in find_bags([tmp_path])] == ["lift the red cube", "lift the blue cube"]
    bench.at(12.0, "start")
    assert bench.recorder.status()["instruction"] == "lift the red cube"


def test_relabel_before_and_after_the_end(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.0, compress=True)
    assert not bench.recorder.relabel("  ").success
    bench.at(0.0, "start")
    bench.hand(0.0, 1.0)
    bench.words(0.0, "lift the red cube")
    bench.joints(0.0, 3.0)
    assert bench.recorder.relabel("hebe den grünen Würfel").success
    bench.at(3.0, "finish", True)
    bench.recorder.step()
    (bag,) = find_bags([tmp_path])
    before, found = contents(bag)
    assert before["instruction"] == "hebe den grünen Würfel" and before["success"] is True
    assert bench.recorder.relabel("push").success
    bench.recorder.step()
    meta, after = contents(bag)
    assert meta["instruction"] == bench.recorder.status()["last"]["instruction"] == "push"
    assert meta["relabelled"] == [{"instruction": "hebe den grünen Würfel", "success": True}]
    strip = [x for x in found if x[0] != "episode/meta"]
    assert strip == [x for x in after if x[0] != "episode/meta"] and len(after) == len(found)
    with EpisodeReader(bag) as reader:
        assert reader.compressed
    assert not (tmp_path / ".partial").exists()


def test_relabel_while_an_episode_is_being_saved_means_that_one(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.0)

    def episode(t, *end):
        bench.at(t, "start")
        bench.joints(t, t + 2)
        bench.hand(t, 1.0)
        bench.at(t + 2, *end)

    episode(0.0, "finish", True)
    bench.recorder.step()
    episode(4.0, "finish", True)
    assert bench.recorder.relabel("the second").success  # it is not on disk yet
    bench.recorder.step()
    assert [contents(b)[0]["instruction"] for b in find_bags([tmp_path])] == ["", "the second"]
    episode(8.0, "discard")
    assert "next episodes" in bench.recorder.relabel("the rest").message
    bench.recorder.step()
    assert [contents(b)[0]["instruction"] for b in find_bags([tmp_path])] == ["", "the second"]


def test_a_disk_too_slow_for_the_topics_is_said_before_the_start(tmp_path):
    bench = Bench(tmp_path, speed_test=1)
    bench.recorder.try_disk()
    assert bench.said[-1][0] == "info" and "MB/s" in bench.said[-1][1] and list(tmp_path.iterdir()) == []
    bench.recorder._speed = 30 * MB  # a memory card
    for i in range(30):
        bench.recorder.take("camera/front/image_raw", m.COMPRESSED_IMAGE, bytes(921_600), T0 + i * NS // 60)
    refused = bench.at(0.5, "start")
    assert not refused.success and "the topics bring 5" in refused.message and "took 30 MB/s" in refused.message
    assert disk.refusal(tmp_path, 10 * MB, 0, 20.0 * MB, 30.0 * MB) == ""


def test_commands_out_of_turn_are_refused_with_the_remedy(tmp_path):
    bench = Bench(tmp_path)
    for command, arguments in (("finish", (True,)), ("discard", ())):
        result = bench.at(0.0, command, *arguments)
        assert not result.success and "call start first" in result.message
    started = bench.at(1.0, "start")
    assert started.success and "nothing yet of joint_states, executor/gripper_command" in started.message
    again = bench.at(1.1, "start")
    assert not again.success and "end it with success, failure or discard" in again.message
    bench.joints(1.0, 2.0)
    assert bench.at(2.0, "discard").success
    assert bench.at(2.0, "start").success  # while the first is not yet thrown away
    bench.joints(2.0, 3.0)
    bench.at(3.0, "finish", True)
    assert bench.at(3.0, "start").message.startswith("recording 20231114-221323")
    bench.joints(3.0, 4.0)
    bench.recorder.close(T0 + 4 * NS)
    bench.recorder.run()  # returns when all is on disk
    names = [p.name for p in find_bags([tmp_path])]
    assert names == ["20231114-221322", "20231114-221323"]
    meta, _ = contents(tmp_path / names[1])
    assert "success" not in meta and any("ended with the recorder" in f for f in meta["flags"])


def test_a_full_disk_refuses_the_start_and_ends_a_running_episode(tmp_path):
    bench = Bench(tmp_path, free=999 * MB)
    refused = bench.at(0.0, "start")
    assert not refused.success and "999 MB are free" in refused.message and "1000 MB are needed" in refused.message
    bench.free = 1001 * MB
    assert bench.at(0.0, "start").success
    bench.joints(0.0, 1.5)
    bench.recorder.step()
    bench.free = 100 * MB
    bench.joints(1.5, 3.0)
    bench.recorder.step()
    assert bench.recorder.status()["state"] == "IDLE"
    meta, _ = contents(find_bags([tmp_path])[0])
    assert "success" not in meta and any("ended early: 100 MB were free" in f for f in meta["flags"])


def test_a_slow_disk_costs_counted_messages_and_never_waits(tmp_path):
    bench = Bench(tmp_path, queue_size=1, pre_roll=0.0)
    bench.at(0.0, "start")
    picture = m.compressed_image(T0, "front", bytes(300_000))
    for i in range(5):
        bench.recorder.take("camera/front/image_raw/compressed", m.COMPRESSED_IMAGE, picture, T0 + i * NS // 30)
    assert bench.recorder.status()["dropped"] == 2
    bench.at(1.0, "finish", True)
    bench.recorder.step()
    meta, found = contents(find_bags([tmp_path])[0])
    assert len(found) == 3 + 1  # and episode/meta
    assert "camera/front/image_raw/compressed: 2 messages dropped, the disk was too slow" in meta["flags"]


def test_an_episode_that_cannot_be_written_is_said_and_the_next_one_can(tmp_path):
    bench = Bench(tmp_path)
    bench.at(0.0, "start")
    bench.recorder.take("odd", "no_such/msg/Type", b"\0\1\0\0", T0)
    bench.recorder.step()
    assert bench.recorder.status()["state"] == "IDLE"
    assert "odd" in bench.recorder.status()["last"]["flags"][0] and bench.said[-1][0] == "error"
    assert bench.at(5.0, "start").success
    bench.joints(5.0, 6.0)
    bench.at(6.0, "finish", True)
    bench.recorder.step()
    assert len(find_bags([tmp_path])) == 1


def test_pre_roll_is_bounded_and_survives_a_clock_that_jumps_back():
    ring = PreRoll(1.0, size=1000)
    for i in range(50):
        ring.add(Kept(JOINTS, m.JOINT_STATE, i * NS // 100, bytes(100)))
    assert len(ring.begin(50 * NS // 100)[1]) == 10
    ring.add(Kept(HAND, m.FLOAT32, 51 * NS // 100, b"x"))
    ring.add(Kept(JOINTS, m.JOINT_STATE, -5 * NS, b"y"))  # the simulation was started anew
    begin, early = ring.begin(-5 * NS)
    assert begin == -5 * NS and {e.topic for e in early} == {HAND, JOINTS}
    assert [e.raw for e in early if e.topic == HAND] == [b"x"]


def test_reception_sees_the_rate_the_gap_and_the_skew():
    meter = Meter()
    rng = np.random.default_rng(0)
    stamps = T0 + (np.delete(np.arange(300), [50, 120, 121]) / 30 * NS + rng.normal(0, 1e6, 297)).astype(np.int64)
    for s in stamps:
        meter.note(int(s) + 6 * NS, int(s), 10)
    r = meter.reception(T0 + 6 * NS, T0 + 16 * NS)
    assert (r.received, r.lost, r.size) == (297, 3, 2970)
    assert r.rate == pytest.approx(30, rel=0.02) and r.gap == pytest.approx(0.1, abs=0.005)
    assert r.skew == pytest.approx(6.0)
    flags = judge({"camera": r}, ["camera"], [], [], 10.0, Demands(gap=0.2, image_rate=31.0))
    assert len(flags) == 2 and "31 Hz are wanted" in flags[0] and "two clocks" in flags[1]
    json.dumps(r.as_dict())
    assert Meter().reception(0, NS).gap == 1.0


def test_a_thread_writes_while_another_takes(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.0)
    thread = threading.Thread(target=bench.recorder.run)
    thread.start()
    for i in range(3):
        bench.at(10.0 * i, "start")
        bench.hand(10.0 * i, 1.0)
        bench.joints(10.0 * i, 10.0 * i + 5.0)
        bench.at(10.0 * i + 5.0, "finish", True)
    bench.recorder.close(T0 + 99 * NS)
    thread.join(timeout=20.0)
    assert not thread.is_alive()
    bags = find_bags([tmp_path])
    assert [len(contents(b)[1]) for b in bags] == [502, 503, 503]  # the hand was open before, too


def test_a_clock_that_was_set_back_is_said(tmp_path):
    bench = Bench(tmp_path, pre_roll=0.0)
    bench.at(0.0, "start")
    bench.words(0.0, "lift")
    bench.joints(0.0, 2.0)
    bench.joints(0.5, 2.5)
    bench.at(2.5, "finish", True)
    bench.recorder.step()
    (path,) = tmp_path.glob("2023*")
    meta, _ = contents(path)
    assert "episode: the clock went back by 1.49 s; record it again" in meta["flags"] and not meta["good"]


def test_a_folder_that_has_gone_has_no_room(tmp_path):
    from vipra_ros.data import disk

    assert disk.free_space(tmp_path / "unplugged") == 0
    assert "make room" in disk.refusal(tmp_path, 0, 1, 0.0, 0.0)
