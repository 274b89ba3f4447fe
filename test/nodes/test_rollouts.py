"""`vipra rollouts` with a simulated arm: the shipped policy against itself, with an operator and without."""

import json
import sys
import threading
import time

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros.config import ConfigError
from vipra_ros.learning.trials import Blind, Journal, load_plan, schedule
from vipra_ros.nodes import rollouts
from vipra_ros.nodes.system import SessionError
from vipra_ros.nodes.trial_buttons import LABELS, TrialButtons

PLAN = """
policies:
  - {name: ours-to-win, checkpoint: models/tiny}
  - {name: theirs-to-lose, checkpoint: models/tiny}
tasks: [{label: reach, sim: reach}]
trials: 1
seconds: 8
seed: 5
"""


class Fingers(rollouts.Unattended):
    """An operator who presses the next of `keys` when the line that is shown begins with its word."""

    def __init__(self, keys):
        self.keys, self.said, self.line = list(keys), [], ""

    def say(self, text):
        self.said.append(text)
        self.line = text

    def show(self, line):
        self.line = line

    def key(self, seconds):
        super().key(seconds)
        if self.keys and self.keys[0][0] in self.line:
            return self.keys.pop(0)[1]
        return ""


@pytest.mark.slow
def test_an_evaluation_in_the_simulator_that_is_interrupted(unused_ros_domain, tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    plan, out = load_plan(file), tmp_path / "out"
    first, second = (Blind(plan).codes[s.policy] for s in schedule(plan))
    operator = Fingers([("  1.", "i"), ("  1.", "n"), (f"starting policy {second}", "q")])
    assert rollouts.Rollouts(plan, out, operator, video=True).run() is False
    trials = Journal(out, plan).trials
    assert [(t.slot, t.code, t.label, t.by) for t in trials] == [
        (0, first, "invalid", "operator"), (0, first, "failure", "operator")]
    assert all(0.9 <= t.seconds < 7.0 and t.chunks + t.rejected > 0 and not t.stopped for t in trials), trials
    said = "\n".join(operator.said)
    assert f"policy {first}, task reach" in said and not any(w in said for w in ("ours", "theirs", "tiny"))

    assert rollouts.run(str(file), str(out), video=True) == 0
    told = capsys.readouterr().out
    assert "tiny" not in told.partition("report:")[0].partition("ours-to-win")[0]
    journal = Journal(out, plan)
    last = journal.trials[-1]
    assert len(journal.trials) == 3 and not journal.remaining(schedule(plan))
    assert (last.slot, last.code, last.seed) == (1, second, trials[0].seed), "the same scene for both"
    assert (last.label, last.by) in (("success", "simulator"), ("failure", "time limit"))
    assert sorted(p.name for p in (out / "videos").iterdir()) == [
        "trial-0001-1.mp4", "trial-0001-2.mp4", "trial-0002-1.mp4"]
    page, figures = (out / "report.html").read_text(), json.loads((out / "report.json").read_text())
    assert "ours-to-win" in page and page.count("<video") == 3 and figures["unblinded"]
    assert figures["comparisons"][0]["pairs"] == 1 and "ours-to-win" in told


class AtThePage:
    """An operator who is there, and leaves the terminal's keys alone."""

    def say(self, text):
        pass

    def show(self, line):
        pass

    def key(self, seconds):
        time.sleep(seconds)
        return ""


@pytest.fixture
def console(unused_ros_domain, monkeypatch):
    """The node of `vipra console`, without its page; what a click calls is `node.act`. A process has one page only."""
    fastapi = pytest.importorskip("fastapi", reason="the console's server is not installed; pip install nicegui")
    monkeypatch.setattr("vipra_ros.console.page.make_app", lambda *_: fastapi.FastAPI())
    sys.path.insert(0, __file__.rpartition("/")[0])
    from test_console_node import Rig

    made = Rig(unused_ros_domain)
    yield made
    made.close()


def asks(console, text, button):
    """Wait until the page shows `text` as the question, then press; whether it counted, and the answer."""
    console.wait(lambda: console.node.state.trial.get("asks") == text, 90.0)
    return console.node.act(f"trial_{button}")


@pytest.mark.slow
def test_labels_come_from_the_console(console, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.replace("  - {name: theirs-to-lose, checkpoint: models/tiny}\n", "")
                    .replace("sim: reach", "sim: lift").replace("trials: 1", "trials: 2").replace("ours", "mine"))
    plan, done = load_plan(file), []
    runs = rollouts.Rollouts(plan, tmp_path / "out", AtThePage())
    thread = threading.Thread(target=lambda: done.append(runs.run()))
    thread.start()
    try:
        assert asks(console, "how did it go?", "start") == (False, "not asked for now; how did it go?")
        counted, said = asks(console, "how did it go?", "invalid")
        assert counted and said == "trial 1 of 2: policy A, task reach, block 1"
        console.wait(lambda: not console.node.state.trial["buttons"])
        assert console.node.act("trial_success")[0] is False, "kept for the next trial"
        assert asks(console, "how did it go?", "failure")[0]
        console.wait(lambda: console.node.state.trial["lines"][0].startswith("trial 2 of 2: policy A"))
        shown = console.node.state.trial_lines()
        assert shown[2].startswith("  before: trial 1, failure (operator) after")
        assert not any(name in " ".join(shown) for name in ("mine", "tiny"))
        console.wait(lambda: console.node.state.trial["asks"] == "how did it go?")
        assert console.node.act("stop")[0]
        assert asks(console, "stopped", "success")[0], "STOP on the page ends the trial; how it went is asked then"
    finally:
        thread.join(60.0)
    assert done == [True]
    labels = [(t.slot, t.label, t.by) for t in runs.journal.trials]
    assert labels == [(0, "invalid", "operator"), (0, "failure", "operator"), (1, "success", "operator")]


def test_an_arm_of_metal_waits_for_the_page_and_a_refusal_is_asked_again(console, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.replace("sim: reach", "instruction: reach it") + "robot: 172.16.0.2\n")
    runs, done, tries = rollouts.Rollouts(load_plan(file), tmp_path / "out", AtThePage()), [], []

    class Standing:
        executor_status = rollouts.ExecutorStatus(state=rollouts.ExecutorStatus.IDLE)

        def check(self):
            pass

    def home():
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise SessionError("executor/home: the dead-man is not held")

    runs._session, runs._buttons = Standing(), TrialButtons(console.ear)
    thread = threading.Thread(target=lambda: done.append(runs._granted("the arm goes home", home)))
    thread.start()
    assert asks(console, "the arm goes home", "success")[0] is False
    time.sleep(0.2)
    assert not tries, "nothing moves before Go"
    assert asks(console, "the arm goes home", "start") == (True, "the arm goes home")
    console.wait(lambda: console.node.state.trial["refused"] == "executor/home: the dead-man is not held")
    assert asks(console, "the arm goes home", "start")[0]
    thread.join(5.0)
    assert done == [True] and len(tries) == 2
    assert asks(console, "", LABELS[0])[0] is False


def test_a_robot_needs_an_operator_and_a_plan_that_can_run(tmp_path):
    file = tmp_path / "plan.yaml"
    real = PLAN.replace("sim: reach", "instruction: reach it") + "robot: 172.16.0.2\n"
    file.write_text(real)
    with pytest.raises(ConfigError, match="needs a terminal"):
        rollouts.run(str(file), str(tmp_path / "out"))
    for wrong, said in ((real + "arguments: {camera_rate: 15}\n", "camera_rate:=15 is for robot:=sim only"),
                        (real.replace("models/tiny", "models/none"), "no folder and none of the shipped"),
                        (real + "arguments: {rat: 2}\n", "unknown argument 'rat'")):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=said):
            rollouts.run(str(file), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_report_as_json_is_all_that_stdout_gets(tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    assert rollouts.run(str(file), str(tmp_path / "out"), report=True, json=True) == 0
    told = capsys.readouterr()
    figures = json.loads(told.out)
    assert figures["missing"] == figures["trials"] == 2 and "trials are left" in told.err
    assert figures == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "ours-to-win" not in told.out + told.err, "a script is as blind as the operator"


def test_the_shipped_plan_can_run():
    from vipra_ros.config import share
    plan = load_plan(share("config", "rollouts.yaml"))
    rollouts._check(plan)
    assert plan.simulated and len(schedule(plan)) == 20
