"""Bags that were cut: by a kill, by a full disk, at any byte."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vipra_ros.data import bag_info, repair
from vipra_ros.data import messages as m
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.bags import EpisodeReader, find_bags
from vipra_ros.data.salvage import Salvage

NS = m.NS
T0 = 1_700_000_000 * NS
IMAGE = "camera/front/image_raw/compressed"


def fill(writer, seconds, begin=0.0):
    """Joints at 100 Hz, pictures of 20 kB at 10 Hz, words; what was written, in order."""
    put = []

    def write(topic, kind, raw, t):
        writer.write(topic, kind, raw, T0 + round(t * NS))
        put.append((topic, round(t * NS), raw))

    write("policy/instruction", m.STRING, m.string("hebe den Würfel"), begin)
    for i in range(round(seconds * 100)):
        t = begin + i / 100
        write("joint_states", m.JOINT_STATE, m.joint_state(T0 + round(t * NS), ("a", "b"), (t, 2 * t)), t)
        if i % 10 == 0:
            picture = m.compressed_image(T0 + round(t * NS), "front", os.urandom(20_000))
            write(IMAGE, m.COMPRESSED_IMAGE, picture, t)
    return put


def contents(path, namespace=""):
    with EpisodeReader(path, namespace=namespace) as reader:
        found = [(topic, stamp - T0, raw) for topic, _, stamp, raw in reader.messages() if topic != "episode/meta"]
        return reader.meta(), found


@pytest.mark.parametrize("compress", [False, True])
def test_every_cut_leaves_a_prefix(tmp_path, compress):
    writer = EpisodeWriter(tmp_path, "whole", compress=compress)
    put = fill(writer, 3.0)
    writer.close({"instruction": "x"})
    data = (tmp_path / "whole" / "whole.mcap").read_bytes()
    cut, before = tmp_path / "cut.mcap", -1
    for size in [*range(0, len(data), len(data) // 60), len(data)]:
        cut.write_bytes(data[:size])
        salvage = Salvage(cut)
        got = [(c.topic[1:], stamp - T0, raw) for c, stamp, raw in salvage.messages()]
        got = [g for g in got if g[0] != "episode/meta"]
        assert got == put[: len(got)] and len(got) >= before
        assert salvage.complete == (size > len(data) - 10_000 and not salvage.reason)
        before = len(got)
    assert before == len(put) and salvage.complete


def test_damage_inside_ends_the_reading_there(tmp_path):
    writer = EpisodeWriter(tmp_path, "whole")
    put = fill(writer, 3.0)
    writer.close({})
    file = tmp_path / "whole" / "whole.mcap"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = bytes(5000)
    file.write_bytes(data)
    salvage = Salvage(file)
    got = [(c.topic[1:], stamp - T0, raw) for c, stamp, raw in salvage.messages()]
    assert len(got) > len(put) // 3 and got[:100] == put[:100]
    (tmp_path / "text.mcap").write_text("this is no bag at all")
    assert list((other := Salvage(tmp_path / "text.mcap")).messages()) == [] and "not begin" in other.reason


def test_a_killed_writer_loses_less_than_two_seconds_of_the_open_episode(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from test_repair import fill, EpisodeWriter
for name in ("done", "open"):
    writer = EpisodeWriter(Path({str(tmp_path)!r}), name, namespace="left")
    writer.note({{"operator": "me", "robot": "fr3", "instruction": "", "namespace": "left"}})
    fill(writer, 10.0)
    if name == "done":
        writer.close({{"instruction": "lift", "success": True}})
print("ready", flush=True); time.sleep(30)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    done = (tmp_path / "done" / "done.mcap").read_bytes()
    (busy,) = repair.repair(tmp_path)
    assert busy.path is None and "being written" in busy.text
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10.0)
    assert [b.name for b in find_bags([tmp_path])] == ["done"]
    assert repair.main(str(tmp_path)) == 0
    assert [b.name for b in find_bags([tmp_path])] == ["done", "open"] and not (tmp_path / ".partial").exists()
    assert (tmp_path / "done" / "done.mcap").read_bytes() == done
    meta, found = contents(tmp_path / "open", "left")
    assert 8.0 * NS < found[-1][1] < 10.0 * NS
    assert [f[0] for f in found].count("joint_states") == pytest.approx(found[-1][1] / NS * 100, abs=2)
    assert meta["operator"] == "me" and meta["instruction"] == "hebe den Würfel" and meta["repaired"]
    assert "success" not in meta and not meta["good"] and "label it" in meta["flags"][0] and "namespace" not in meta
    assert meta["reception"]["joint_states"]["rate"] == pytest.approx(100)
    assert list(repair.repair(tmp_path)) == []


def test_a_full_disk_costs_the_open_episode_at_most(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from test_recording import Bench
from test_repair import os, m, T0, NS, IMAGE
bench = Bench(Path({str(tmp_path)!r}), pre_roll=0.0, min_free=0)
for begin, pictures in ((0.0, 50), (10.0, 300), (50.0, 50)):
    bench.at(begin, "start"); bench.hand(begin, 1.0)
    for i in range(pictures):
        t = begin + i / 30
        bench.joints(t, t + 0.03)
        raw = m.compressed_image(T0 + round(t * NS), "front", os.urandom(20_000))
        bench.recorder.take(IMAGE, m.COMPRESSED_IMAGE, raw, T0 + round(t * NS)); bench.recorder.step()
    print(bench.at(begin + pictures / 30, "finish", True)); bench.recorder.step()
print(bench.said)
"""
    def few():  # a file grows to 3 MB and no further, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, preexec_fn=few)
    assert done.returncode == 0, done.stderr
    assert all(x in done.stdout for x in ("is lost", "vipra bags repair", "nothing is being recorded"))
    assert len(find_bags([tmp_path])) == 2
    (got,) = repair.repair(tmp_path)
    assert got.path is not None and got.seconds > 3.0
    meta, found = contents(got.path)
    assert sum(topic == IMAGE for topic, _, _ in found) > 100 and "bytes were lost" in meta["flags"][0]
    assert len(find_bags([tmp_path])) == 3


def test_a_foreign_bag_without_its_end_is_copied_and_kept(tmp_path, capsys):
    writer = EpisodeWriter(tmp_path / "made", "a")
    put = fill(writer, 2.0)
    bag = writer.close({})
    file = bag / "a.mcap"
    data = file.read_bytes()
    (tmp_path / "bags" / "theirs").mkdir(parents=True)
    (tmp_path / "bags" / "theirs" / "theirs_0.mcap").write_bytes(data[: len(data) // 2])
    (tmp_path / "bags" / "junk").mkdir()
    (tmp_path / "bags" / "junk" / "junk.mcap").write_bytes(b"x" * 100)
    shutil.copytree(bag, tmp_path / "bags" / "fine")
    assert repair.main(str(tmp_path / "bags")) == 1  # nothing can be had of junk
    output = capsys.readouterr().out
    assert "junk: holds no message" in output and "theirs-repaired: " in output and "fine" not in output
    _, found = contents(tmp_path / "bags" / "theirs-repaired")
    assert found == put[: len(found)] and len(found) > len(put) // 3
    assert (tmp_path / "bags" / "theirs" / "theirs_0.mcap").stat().st_size == len(data) // 2
    bag_info.main([str(tmp_path / "bags" / "fine")])
    assert bag_info.main([str(tmp_path / "bags")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "4 episodes" not in lines[-1] and "2 broken" in lines[-1]
    assert bag_info.main([str(tmp_path / "bags")], json=True) == 1
    told = json.loads(capsys.readouterr().out)["episodes"]
    assert sum("error" in e for e in told) == 2 and next(e for e in told if "error" not in e)["seconds"] > 0.5


def test_a_long_instruction_takes_no_room_from_the_numbers(tmp_path, capsys):
    for name in ("20260101-120000", "20260101-120100"):
        writer = EpisodeWriter(tmp_path, name)
        fill(writer, 1.0)
        writer.close({"instruction": "shove the blue cube into the yellow area and leave it there " * 2,
                      "success": True})
    assert bag_info.main([str(tmp_path)]) == 0
    head, *rows, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["episode", "s", "MB", "success", "flags", "instruction"]
    assert len(rows) == 2
    for row in rows:
        assert len(row) <= 80 and row.split()[1].replace(".", "").isdigit() and row.split()[3] == "yes"


def test_a_complete_bag_that_was_only_not_renamed(tmp_path):
    writer = EpisodeWriter(tmp_path, "late")
    put = fill(writer, 1.0)
    (tmp_path / "late").write_text("in the way")
    with pytest.raises(Exception, match="the recording is in"):
        writer.close({"instruction": "lift", "success": True})
    (tmp_path / "late").unlink()
    (got,) = repair.repair(tmp_path)
    meta, found = contents(got.path)
    assert got.path == Path(tmp_path / "late") and meta["success"] is True and "repaired" not in meta and found == put


def test_all_files_of_a_bag_that_was_split_in_the_order_of_their_numbers(tmp_path):
    folder, put = tmp_path / "bags" / "split", []
    folder.mkdir(parents=True)
    for number in (0, 1, 2, 10):
        writer = EpisodeWriter(tmp_path / "made", f"part{number}")
        put += fill(writer, 0.5, begin=number)
        (folder / f"split_{number}.mcap").write_bytes((writer.close({}) / f"part{number}.mcap").read_bytes())
    (got,) = repair.repair(tmp_path / "bags")
    assert contents(got.path)[1] == put
    assert list(repair.repair(tmp_path / "bags")) == [], "what was repaired and kept is not repaired again"


@pytest.mark.parametrize("at", ["copying", "tidying up"])
def test_a_repair_that_is_killed_doubles_no_episode(tmp_path, monkeypatch, at):
    writer = EpisodeWriter(tmp_path, "cut")
    put = fill(writer, 2.0)
    writer.abandon()
    (file,) = (tmp_path / ".partial").glob("*/*/*.mcap")
    child = os.fork()
    if not child:
        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        if at == "copying":
            repair.RawBag.close = die
        else:
            repair.shutil.rmtree = lambda path, **_: die() if Path(path) == file.parent else None
        list(repair.repair(tmp_path))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (got,) = repair.repair(tmp_path)
    assert got.path == tmp_path / "cut" and find_bags([tmp_path]) == [got.path]
    assert contents(got.path)[1] == put[: len(contents(got.path)[1])]
    assert list(repair.repair(tmp_path)) == []


def test_a_stage_of_a_killed_recorder_is_not_in_the_way(tmp_path, monkeypatch):
    """As after a power cut in a container, where the recorder has the same number again."""
    import itertools

    from vipra_ros.data import bag_writer

    monkeypatch.setattr(bag_writer, "_serial", itertools.count())
    (tmp_path / ".partial" / f"{os.getpid()}-0" / "old").mkdir(parents=True)
    writer = EpisodeWriter(tmp_path, "new")
    fill(writer, 0.2)
    assert writer.close({}).name == "new" and (tmp_path / ".partial" / f"{os.getpid()}-0" / "old").exists()


def test_a_folder_whose_disk_is_gone_is_an_error(tmp_path):
    (tmp_path / "bags").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="exists"):
        EpisodeWriter(tmp_path / "bags", "a")


def test_single_files_are_repaired_and_databases_pointed_on(record, tmp_path):
    bag = record("a")
    file = tmp_path / "alone.mcap"
    data = (bag / "a.mcap").read_bytes()
    file.write_bytes(data[: len(data) // 2])
    (one,) = repair.repair(file)
    assert one.path == tmp_path / "alone-repaired" and one.count > 100
    old = tmp_path / "old"
    old.mkdir()
    (old / "old_0.db3").write_bytes(b"")
    (one,) = repair.repair(old)
    assert one.path is None and "ros2 bag reindex" in one.text


def test_what_a_killed_repair_left_is_cleared(tmp_path):
    left = tmp_path / ".partial" / "repair-4194999" / "x"
    left.mkdir(parents=True)
    (left / "x.mcap").write_bytes(b"")
    assert list(repair.repair(tmp_path)) == [] and not (tmp_path / ".partial").exists()
