"""`vipra rollouts` with a simulated arm: the shipped policy against itself, with an operator and without."""

import json
import sys
import threading
import time
from contextlib import nullcontext

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros.config import ConfigError
from vipra_ros.learning.trial_journal import Journal
from vipra_ros.learning.trials import Blind, load_plan, schedule
from vipra_ros.lock import held
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

    def forget(self):
        pass


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
                        (real + "arguments: {rat: 2}\n", "unknown argument 'rat'"),
                        (real + "arguments: {namespace: left}\n", "namespace = 'left'.*leave it out")):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=said):
            rollouts.run(str(file), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_policy_that_no_robot_takes_is_refused_before_the_first_trial(tmp_path, monkeypatch):
    def refuse(folder, simulated):
        raise ConfigError(f"{folder}: not for a real arm")

    monkeypatch.setattr("vipra_ros.graph.check_folder", refuse)
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.replace("sim: reach", "instruction: reach it") + "robot: 172.16.0.2\n")
    with pytest.raises(ConfigError, match="not for a real arm"):
        rollouts.run(str(file), str(tmp_path / "out"))


def test_one_run_at_a_time_in_a_folder_and_a_report_at_any(tmp_path):
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text(PLAN)
    with pytest.raises(ConfigError, match="has no results.jsonl.*give the folder of the trials"):
        rollouts.run(str(file), str(out), report=True)
    assert not out.exists()
    out.mkdir()
    with held(out / "rollouts.lock"):
        with pytest.raises(ConfigError, match="in use by another vipra rollouts"):
            rollouts.run(str(file), str(out))
        file.write_text(PLAN.replace("models/tiny", "gone/from/here"))
        Journal(out, load_plan(str(file))).write()
        assert rollouts.run(str(file), str(out), report=True) == 0, "a report needs no checkpoints"


class Robot:
    """An arm of metal, as a session has it: `halts` says what comes of a stop, `pictures` what the camera gives."""

    Status = rollouts.ExecutorStatus

    def __init__(self, pictures=(), halts="", finger=0.04):
        self.outcome, self.finger, self._halts, self._pictures = {}, finger, halts, pictures
        self.executor_status, self.armed, self.runs = self.Status(state=self.Status.IDLE), 0, None

    def home(self, tick):
        self.executor_status = self.Status(state=self.Status.IDLE)

    def instruct(self, words):
        pass

    def arm(self):
        self.armed += 1
        self.executor_status = self.Status(state=self.Status.RUNNING, state_text="RUNNING")

    def check(self):
        if self.executor_status.state == self.Status.RUNNING:
            for picture in self._pictures:
                self.runs._on_image("front", time.monotonic(), picture)

    def halt(self):
        if self._halts:
            raise SessionError(self._halts)
        self.home(None)


class Typist(AtThePage):
    """An operator whose next key comes when its words are shown; each is (words, key, s of thinking)."""

    def __init__(self, *keys):
        self.keys, self.said, self.line, self.forgot = list(keys), [], "", []

    def say(self, text):
        self.said.append(text)

    def show(self, line):
        self.line = line

    def key(self, seconds):
        super().key(seconds)
        if not self.keys or self.keys[0][0] not in self.line:
            return ""
        words, key, *thinking = self.keys.pop(0)
        time.sleep(sum(thinking))
        return key

    def forget(self):
        self.forgot.append(self.line)


class Buttons:
    tell = key = lambda self, *_: ""

    def asking(self, *_, **__):
        return nullcontext()


START = [("the arm goes home", "\n"), ("laid out", "\n")]


def trial_by_hand(folder, robot, *keys, video=True):
    """One trial on an arm of metal: the evaluation and its operator."""
    folder.mkdir(exist_ok=True)
    file = folder / "plan.yaml"
    file.write_text(PLAN.replace("sim: reach", "instruction: reach it") + "robot: 172.16.0.2\n")
    operator = Typist(*keys)
    runs = robot.runs = rollouts.Rollouts(load_plan(file), folder, operator, video)
    runs._session, runs._buttons, runs._model = robot, Buttons(), "0123"
    runs._slot(runs.slots[0])
    return runs, operator


@pytest.mark.parametrize("robot, said", [
    (Robot([b"no picture"]), "no video: 10 bytes are no image"),
    (Robot(), "no video: no picture came on camera/front/image_raw/compressed"),
    (Robot(halts="a stop did not happen in 20 s"), "a stop did not happen"),
])
def test_neither_a_broken_picture_nor_an_arm_that_faults_costs_a_label(tmp_path, robot, said):
    runs, operator = trial_by_hand(tmp_path, robot, *START, ("RUNNING", "", 0.05), ("RUNNING", "n"))
    (kept,) = Journal(tmp_path, runs.plan).trials
    assert (kept.label, kept.by, kept.video, kept.model) == ("failure", "operator", "", "0123")
    assert any(said in line for line in operator.said), operator.said


def test_a_label_is_kept_before_its_video_is_made(tmp_path, monkeypatch):
    def interrupted(path, pictures, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(rollouts, "film", interrupted)
    robot = Robot([b"picture"])
    with pytest.raises(KeyboardInterrupt):
        trial_by_hand(tmp_path, robot, *START, ("RUNNING", "", 0.05), ("RUNNING", "y"))
    assert [t.label for t in Journal(tmp_path, robot.runs.plan).trials] == ["success"]
    monkeypatch.setattr(rollouts, "film", lambda path, pictures, text: None)
    runs, _ = trial_by_hand(tmp_path, Robot([b"picture"]), *START, ("RUNNING", "", 0.05), ("RUNNING", "y"))
    assert [t.video for t in Journal(tmp_path, runs.plan).trials] == ["", "videos/trial-0001-2.mp4"]


def test_the_time_that_a_label_takes_is_not_the_trials(tmp_path):
    robot = Robot([b"picture"])
    runs, operator = trial_by_hand(tmp_path, robot, *START, ("RUNNING", " "), ("stopped", "y", 1.0), video=False)
    assert runs.journal.trials[0].label == "success" and runs.journal.trials[0].seconds < 0.5
    assert runs._pictures is None and operator.line.startswith("y success")
    assert len(operator.forgot) == 4, "before each question, and before the arm is armed"


def test_a_hand_that_is_not_open_is_asked_about(tmp_path):
    robot = Robot(finger=0.006)
    keys = [START[0], ("the hand is not open (12 mm)", "\n"), START[1], ("RUNNING", "y")]
    runs, operator = trial_by_hand(tmp_path, robot, *keys, video=False)
    assert not operator.keys and robot.armed == 1 and runs.journal.trials[0].label == "success"


def test_a_name_in_our_own_words_stays(tmp_path):
    """A checkpoint called `last` does not change what the keys do, nor does the line tell its letter."""
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.replace("models/tiny", "out/last", 1).replace("sim: reach", "instruction: reach it")
                    + "robot: 172.16.0.2\n")
    runs = rollouts.Rollouts(load_plan(file), tmp_path, operator := Typist(("take the last trial back", "\n")))
    runs._session, runs._buttons = Robot(), Buttons()
    runs._session.executor_status = Robot.Status(state=Robot.Status.FAULT, reasons=["out/last is cut"])
    assert runs._wait("the arm goes home") == "\n"
    assert "FAULT: policy" in operator.line


def test_each_start_has_a_log_of_its_own(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    runs = rollouts.Rollouts(load_plan(file), tmp_path, Typist())
    first = runs._log("0001-A")
    first.parent.mkdir()
    first.write_text("crashed")
    assert runs._log("0001-A") not in (first, runs._log("0001-B"))


def test_the_report_as_json_is_all_that_stdout_gets(tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    Journal(tmp_path / "out", load_plan(str(file))).write()
    assert rollouts.run(str(file), str(tmp_path / "out"), report=True, json=True) == 0
    told = capsys.readouterr()
    figures = json.loads(told.out)
    assert figures["missing"] == figures["trials"] == 2 and "trials are left" in told.err
    assert figures == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "ours-to-win" not in told.out + told.err, "a script is as blind as the operator"


def test_the_shipped_plan_can_run():
    from vipra_ros.config import share
    plan = load_plan(share("config", "rollouts.yaml"))
    plan.check()
    assert plan.simulated and len(schedule(plan)) == 20
