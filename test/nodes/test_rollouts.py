"""`vipra rollouts` with a simulated arm: the shipped policy against itself, with an operator and without."""

import json

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros.config import ConfigError
from vipra_ros.learning.trials import Blind, Journal, load_plan, schedule
from vipra_ros.nodes import rollouts

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
