"""The fast lane of the evaluation, with a toy policy that stays near home."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import chores
import numpy as np
import pytest
from rich.console import Console

from vipra_ros import json_file
from vipra_ros.config import ConfigError
from vipra_ros.data.workers import each
from vipra_ros.learning import evaluate, results, stepped_lane
from vipra_ros.learning.results import EpisodeRecord
from vipra_ros.sim import collect, tasks


@pytest.fixture(scope="module")
def outcome(micro_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    result = evaluate.main(
        micro_checkpoint,
        "push",
        episodes=1,
        seed=7,
        json_path=folder / "out.json",
        video=folder / "video",
        latency=0.1,
        seconds=2.0,
    )
    return folder, result


def test_json_holds_the_figures(outcome):
    folder, _ = outcome
    said = json.loads((folder / "out.json").read_text())
    for key in (
        "task",
        "n",
        "success_rate",
        "wilson_low",
        "wilson_high",
        "seeds",
        "chunk_rate_hz",
        "action_rate_hz",
        "obs_to_action_ms",
        "rms_jerk",
        "peak_jerk",
        "boundary_step_rad",
        "limiter_active_fraction",
        "rejected_chunks",
        "time_to_success",
        "by_colour",
        "machine",
        "lane",
        "checkpoint_hash",
        "episodes",
    ):
        assert key in said, key
    assert said["task"] == "push" and said["n"] == 1 and said["seeds"] == [7] and said["lane"] == "in-process"
    assert said["success_rate"] == 0.0 and said["time_to_success"]["p50"] is None
    assert set(said["by_colour"]) == set(tasks.COLOURS)


def test_the_arm_was_driven_at_the_rates_the_latency_allows(outcome):
    _, said = outcome
    # 0.1 s are two steps of 1/15 s: with a margin of one, observations are 7 - 2 - 1 = 4 steps apart
    assert said["chunk_rate_hz"] == pytest.approx(15 / 4, rel=0.15)
    assert said["action_rate_hz"] == pytest.approx(15.0, rel=0.12)
    assert said["obs_to_action_ms"]["p50"] == pytest.approx(100.0, abs=1.0)
    assert said["rejected_chunks"] == 0 and said["stopped_episodes"] == 0
    assert 0 < said["rms_jerk"] < said["peak_jerk"] and said["boundary_step_rad"] > 0


def test_a_video_per_episode(outcome):
    from vipra_ros.data.video import read_frames

    folder, _ = outcome
    frames = list(read_frames(folder / "video" / "push-000007.mp4", 15.0))
    assert len(frames) == 30 and frames[0].shape == (384, 384, 3)


def test_the_same_seed_gives_the_same_episode(micro_checkpoint):
    job = stepped_lane.Job(str(micro_checkpoint), "async", 1, 0.1, seconds=0.8)
    lane = stepped_lane.FastLane(job)
    a, b = lane.episode("reach", 3), lane.episode("reach", 3)
    assert np.array_equal(a.commanded, b.commanded) and a.row() == b.row()


@pytest.mark.parametrize("rate", [15.0, 25.0, 30.0])
def test_commands_are_on_one_grid_whatever_the_rate_of_the_policy(micro_checkpoint, tmp_path, rate):
    folder = shutil.copytree(micro_checkpoint, tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rate": rate}))
    lane = stepped_lane.FastLane(stepped_lane.Job(str(folder), "async", 1, 0.1, seconds=0.8))
    record = lane.episode("reach", 3)
    assert len(record.commanded) == pytest.approx(results.JERK_RATE * record.seconds, abs=2)
    assert record.seconds == pytest.approx(0.8, abs=1 / rate)
    tick = 1 / (lane.lanes[0].fps * lane.lanes[0].ticks)
    assert all(0.1 - 1e-9 <= late < 0.1 + tick + 1 / 240 for late in record.latencies)


def test_a_policy_sees_the_frame_it_was_trained_to_look_back_on(micro_checkpoint, tmp_path):
    folder = shutil.copytree(micro_checkpoint, tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"frame_stride": 20}))
    lane, looked = stepped_lane.FastLane(stepped_lane.Job(str(folder), "async", 1, 0.1, seconds=2.0)), []
    answer = lane.engine.infer_many

    def infer_many(observations, seeds):
        looked.append(observations[0])
        return answer(observations, seeds)

    lane.engine.infer_many = infer_many
    (own,), drawn = lane.lanes, {}
    look = own._look
    own._look = lambda camera: drawn.setdefault(own.world.data.time, look(camera))
    lane.episode("push", 3)
    old, new = next(iter(looked[-1].frames.values()))
    times = list(drawn)
    at = times.index(looked[-1].stamp)
    assert at >= 20 and np.array_equal(new, drawn[times[at]]) and np.array_equal(old, drawn[times[at - 20]])


@pytest.mark.parametrize("decoder", ["flow", "discrete"])
def test_episodes_stepped_together_are_those_stepped_alone(micro_checkpoint, discrete_folder, decoder):
    folder = str(discrete_folder if decoder == "discrete" else micro_checkpoint)
    job = stepped_lane.Job(folder, "async", 1, 0.1, seconds=0.8, engine="torch", together=3)
    starts = [("reach", 3), ("push", 4)]  # fewer than lanes
    lane = stepped_lane.FastLane(job)
    asked = []
    answer = lane.engine.infer_many
    lane.engine.infer_many = lambda observations, seeds: asked.append(len(observations)) or answer(observations, seeds)
    both = lane.episodes(starts)
    assert [(r.task, r.seed) for r in both] == starts and set(asked) == {2}
    for record, start in zip(both, starts):
        alone = lane.episode(*start)
        assert np.abs(record.commanded - alone.commanded).max() < 1e-4 and record.chunks == alone.chunks


def test_sync_mode_rests_while_the_policy_thinks(micro_checkpoint):
    lane = stepped_lane.FastLane(stepped_lane.Job(str(micro_checkpoint), "sync", 1, 0.2, seconds=2.0))
    record = lane.episode("reach", 3)
    assert record.chunks == 3 and record.rejected == 0  # 7 rows and 3 steps of thinking are 0.67 s


def test_unknown_names_are_refused(micro_checkpoint):
    with pytest.raises(ConfigError, match="task 'juggle' is unknown; choose one of reach, push, lift, all"):
        evaluate.main(micro_checkpoint, "juggle")
    with pytest.raises(ConfigError, match="workers = 0: give at least 1"):
        evaluate.main(micro_checkpoint, "push", workers=0)
    with pytest.raises(ConfigError, match="latency = -0.1 s"):
        evaluate.main(micro_checkpoint, "push", latency=-0.1)
    with pytest.raises(ConfigError, match="no folder and none of the shipped models"):
        evaluate.main("models/none-such", "push")


def test_a_result_that_cannot_be_written_is_refused_before_the_first_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_fast", lambda *_: pytest.fail("an episode was done"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.json", tmp_path):
        with pytest.raises(ConfigError, match="give a file in a folder"):
            evaluate.main("models/tiny", "push", episodes=1, json_path=path)


def test_a_full_disk_costs_the_file_and_not_the_tables(monkeypatch, capsys, tmp_path):
    about = {"checkpoint_hash": "0" * 64, "lane": "in-process", "latency_charged": None}
    monkeypatch.setattr(evaluate, "_fast", lambda *_: ([record("red", None)], about))
    monkeypatch.setattr(json_file, "write_json", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        evaluate.main("models/tiny", "push", episodes=1, json_path=tmp_path / "out.json")
    assert "success on unseen starts" in capsys.readouterr().out


def test_a_worker_that_dies_ends_the_run(micro_checkpoint, tmp_path, monkeypatch):
    for module in (evaluate, collect):
        monkeypatch.setattr(module, "_begin", chores.begin)
        monkeypatch.setattr(module, "_work", chores.die)
    with pytest.raises(ConfigError, match="one of 2 worker processes died, .*fewer workers"):
        evaluate.main(micro_checkpoint, "reach", episodes=2, workers=2, latency=0.1, quiet=True)
    with pytest.raises(ConfigError, match="one of 2 worker processes died"):
        collect.collect(tmp_path, ("reach",), 2, workers=2)


def test_a_worker_that_is_told_to_end_tidies_up_and_begins_nothing_new(tmp_path):
    folders = [tmp_path / name for name in ("quick", "slow", "after")]
    for folder in folders:
        folder.mkdir()
    jobs = each(chores.tidy, folders, 1, chores.begin, ())
    next(jobs)
    end = time.monotonic() + 30.0
    while not (tmp_path / "slow" / "begun").exists() and time.monotonic() < end:
        time.sleep(0.02)
    jobs.close()
    assert (tmp_path / "slow" / "tidied").exists() and not (tmp_path / "after" / "begun").exists()


def test_workers_end_with_the_process_that_began_them(tmp_path):
    """Killed, it cannot tell them; each would keep a policy in memory."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import chores
from vipra_ros.data.workers import each
if __name__ == "__main__":
    for number in each(chores.number, [1, 2], 1, chores.begin, ()):
        print(number, flush=True)
        time.sleep(60)
"""
    (tmp_path / "job.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, tmp_path / "job.py"], stdout=subprocess.PIPE, text=True,
                               env=environment)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + 10.0
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def record(colour, acted_on, success=False, **more):
    return EpisodeRecord(
        task="push",
        seed=1,
        instruction="",
        colour=colour,
        zone="yellow",
        success=success,
        acted_on=acted_on,
        time_to_success=3.0 if success else math.nan,
        seconds=4.0,
        **more,
    )


def test_summary_and_tables_fit_80_columns(capsys):
    made = results.summarise(
        "push",
        [
            record("red", "red", True, chunks=10, rows=50, limited=5),
            record("red", "blue", chunks=10, rejected=2),
            record("blue", None),
        ],
        tasks.COLOURS,
    )
    assert made["success_rate"] == pytest.approx(1 / 3) and made["limiter_active_fraction"] == pytest.approx(0.1)
    assert made["chunk_rate_hz"] == pytest.approx(18 / 12) and made["time_to_success"]["mean"] == 3.0
    results.print_tables([made], tasks.COLOURS, Console(width=80, no_color=True))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    green = next(line for line in lines if line.startswith("│ green"))
    assert green.split("│")[2].strip() == "0"  # rows of nothing stand too


def test_fewer_euler_steps_and_the_device_are_told(micro_checkpoint, monkeypatch):
    asked = []

    def episodes(self, starts):
        asked.append(self.engine)
        return [record("red", None) for _ in starts]

    monkeypatch.setattr(stepped_lane.FastLane, "episodes", episodes)
    said = evaluate.main(micro_checkpoint, "reach", 1, latency=0.1, quiet=True, engine="torch", euler_steps=3)
    assert said["euler_steps"] == 3 and said["device"] == asked[0].device and asked[0].steps == 3
    said = evaluate.main(micro_checkpoint, "reach", 1, latency=0.1, quiet=True, engine="torch", weights="int8")
    assert said["weights"] == "int8" and asked[1].trunk_bytes < 0.3 * asked[0].trunk_bytes
    with pytest.raises(ConfigError, match="device = 'gpu'"):
        evaluate.main(micro_checkpoint, "reach", 1, device="gpu")
    with pytest.raises(ConfigError, match="device = 'cuda:99'"):
        evaluate.main(micro_checkpoint, "reach", 1, device="cuda:99")
