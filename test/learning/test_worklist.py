"""A worklist: steps in the order of their needs, shared by processes, taken over from one that died."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from chores import NEEDS, do, listed

from vipra_ros.config import ConfigError
from vipra_ros.learning import worklist
from vipra_ros.learning.worklist import Step, Worklist


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(worklist, "PAUSE", 0.05)


def entries(folder: Path) -> list[tuple[str, int]]:
    return [(name, int(pid)) for name, pid in map(str.split, (folder / "log").read_text().splitlines())]


def test_a_step_waits_for_what_it_builds_on(tmp_path):
    seen = []
    listed(tmp_path).run(lambda step: seen.append(step.name))
    assert [name for name, _ in entries(tmp_path)] == seen == ["demos", "videos", "latent", "labels", "policy"]


def test_only_what_the_wanted_steps_build_on_is_kept(tmp_path):
    work = listed(tmp_path)
    work.keep(["labels", "no step"])
    assert sorted(work.steps) == ["labels", "latent", "videos"]


def test_processes_share_the_steps_and_do_none_twice(tmp_path, capfd):
    pair = [multiprocessing.get_context("spawn").Process(target=do, args=(tmp_path, 1.5)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == [0, 0]
    done = entries(tmp_path)
    names = [name for name, _ in done]
    assert sorted(names) == sorted(NEEDS), names
    assert all(names.index(need) < names.index(name) for name in NEEDS for need in NEEDS[name])
    assert {pid for _, pid in done} == {process.pid for process in pair}, "each did some"
    assert "waiting for another process: " in capfd.readouterr().out


def test_what_a_killed_process_was_at_is_taken_over(tmp_path):
    victim = multiprocessing.get_context("spawn").Process(target=do, args=(tmp_path, 600.0))
    victim.start()
    work = listed(tmp_path)
    until = time.monotonic() + 60
    while not work.under_way("demos") and time.monotonic() < until:
        time.sleep(0.05)
    assert work.under_way("demos") and not work.under_way("videos")
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(30)
    assert not work.under_way("demos")
    work.run(lambda step: None)
    assert {pid for _, pid in entries(tmp_path)} == {os.getpid()} and len(entries(tmp_path)) == len(NEEDS)


def test_a_step_that_fails_is_not_done_and_is_free_again(tmp_path):
    work = Worklist(tmp_path)
    work.add(Step("broken", 1.0, [], lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        work.run(lambda step: None)
    assert not work.done("broken") and not work.under_way("broken")


def test_other_settings_are_refused_before_anything_is_done(tmp_path):
    listed(tmp_path).run(lambda step: None)
    work = listed(tmp_path)
    work.steps["policy"].settings = ["another"]
    work.add(Step("more", 1.0, [], lambda: pytest.fail("began")))
    with pytest.raises(ConfigError, match="policy was done with other settings"):
        work.run(lambda step: None)


def test_what_was_begun_goes_on_with_the_same_settings_only(tmp_path):
    def broken():
        raise KeyboardInterrupt

    def work(settings, do):
        made = Worklist(tmp_path)
        made.add(Step("demos", 1.0, settings, do))
        return made

    with pytest.raises(KeyboardInterrupt):
        work(["reach", 20], broken).run(lambda step: None)
    with pytest.raises(ConfigError, match="demos.begun: demos was begun with other settings; delete"):
        work(["reach", 10], lambda: pytest.fail("began")).run(lambda step: None)
    work(["reach", 20], lambda: None).run(lambda step: None)
    assert work([], broken).done("demos") and not (tmp_path / "demos.begun").exists()


def test_a_step_begun_with_other_settings_meanwhile_is_refused(tmp_path):
    work = Worklist(tmp_path)
    work.add(Step("first", 1.0, [], lambda: (tmp_path / "second.begun").write_text('{"settings": [1]}')))
    work.add(Step("second", 1.0, [2], lambda: pytest.fail("began"), ("first",)))
    with pytest.raises(ConfigError, match="second was begun with other settings"):
        work.run(lambda step: None)
