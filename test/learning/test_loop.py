"""The loop's schedule, log and averaging."""

import json
import math
import sys
import time

import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.learning import resume
from vipra_ros.learning.finetune_job import Finetune
from vipra_ros.learning.log import Log
from vipra_ros.learning.loop import (
    Interrupted,
    LoopConfig,
    State,
    averaged,
    drawing,
    identity_of,
    learning_rate_scale,
    run,
)
from vipra_ros.learning.parallel import Team


class Line:
    """y = 3 x, one weight."""

    def __init__(self):
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.hidden_matrices = []
        self.identity = "line"
        self.exported = []

    def loss(self, generator, progress):
        x = torch.randn(8, 1, generator=generator)
        return (self.model(x) - 3 * x).pow(2).mean(), {}

    def after_step(self, generator, step, progress):
        pass

    def evaluate(self):
        return {"off": abs(self.model.weight.item() - 3)}

    def export(self, figures, state):
        self.exported.append((state.step, self.model.weight.item()))


def test_learns_logs_and_plots(tmp_path):
    job = Line()
    state = run(
        job,
        LoopConfig(steps=100, batch=8, lr=0.2, warmup_steps=0, bf16=False, ema=0.9, evaluate_every=40, log_every=10),
        tmp_path,
    )
    assert state.step == 100 and state.samples == 800
    assert [step for step, _ in job.exported] == [40, 80, 100] and abs(job.exported[-1][1] - 3) < 0.2
    # The exported weight is the average, the one left in the model is not.
    assert job.exported[-1][1] != job.model.weight.item()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"samples_per_s", "grad_norm", "lr_scale", "loss"} <= rows[0].keys() and (tmp_path / "loss.png").exists()


def test_the_log_says_what_share_of_the_time_is_spent_on_drawing_batches(tmp_path):
    class Slow(Line):
        def loss(self, generator, progress):
            with drawing():
                time.sleep(0.02 if progress >= 0.5 else 0.0)
            return super().loss(generator, progress)

    config = LoopConfig(steps=20, batch=8, lr=0.1, bf16=False, warmup_steps=0, log_every=10, evaluate_every=10)
    run(Slow(), config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"train"' in line]
    share = {row["step"]: row["drawing_share"] for row in rows}
    assert 0 <= share[10] < share[20] <= 1.001, share


def test_budget_in_minutes_ends_and_fits_the_schedule(tmp_path):
    state = run(
        Line(),
        LoopConfig(minutes=0.01, batch=8, lr=0.1, bf16=False, warmup_steps=0, log_every=1, evaluate_every=10**9),
        tmp_path,
    )
    assert 0.6 <= state.seconds < 3.0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"train"' in line]
    assert rows[-1]["lr_scale"] < 0.2 < rows[0]["lr_scale"]


def test_lines_for_the_terminal_fit_and_an_evaluation_loses_nothing(tmp_path, capsys):
    figures = {"loss": 1.757, "grad_norm": 2.325, "lr_scale": 0.1917, "samples_per_s": 51.84, "progress": 0.1383}
    Log(tmp_path / "a.jsonl", " of 3 min", 0).write("train", 20, 24.0, 640, figures)
    Log(tmp_path / "b.jsonl", "/100", 0).write("eval", 20, 24.0, 640, {f"reach_{i}_rad": 0.25 for i in range(9)})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[train] step 20, 0.4 of 3 min  loss 1.757  grad_norm 2.325  lr_scale 0.1917"
    assert lines[1].startswith("[eval] step 20/100, 0.4 min  reach_0_rad 0.25") and len(lines) > 2
    assert max(map(len, lines)) <= 80 and " ".join(lines).count("_rad 0.25") == 9


def test_a_line_says_the_time_left_at_the_pace_of_this_start(tmp_path, capsys):
    log = Log(tmp_path / "log.jsonl", "/100", 50)  # resumed at step 50 after an hour on a slower machine
    for step, seconds in ((51, 3620.0), (71, 3660.0), (91, 3700.0)):  # then 2 s a step
        log._shown = 0.0
        log.write("train", step, seconds, 8 * step, {"loss": 1.0, "progress": step / 100})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[train] step 51/100, 60.3 min  loss 1"  # much is done once in the first step
    assert lines[1] == "[train] step 71/100, 61.0 min, left 58 s  loss 1" and "left 18 s" in lines[2]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all("left" not in row for row in rows)


def test_a_line_that_a_power_cut_left_in_part_is_told_and_left_out(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2, 3)]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([lines[0], lines[1][:9], lines[2]]) + "\n")
    assert [row["step"] for row in Log(path, "/100", 3).rows] == [1, 3]
    assert "in part, and left out: '" + lines[1][:9] in capsys.readouterr().err
    assert path.read_text().splitlines() == [lines[0], lines[2]]


def test_schedule():
    config = LoopConfig(steps=100, warmup_steps=10, final_lr=0.1)
    assert learning_rate_scale(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate_scale(config, 50, 0.5) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate_scale(config, 100, 1.0) == pytest.approx(0.1)
    assert learning_rate_scale(LoopConfig(steps=9, schedule="constant", warmup_steps=0), 5, 0.9) == 1.0
    assert math.isclose(learning_rate_scale(config, 50, 2.0), 0.1)


def test_tensorboard_has_the_log(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = LoopConfig(steps=6, lr=0.1, bf16=False, log_every=1, tensorboard=True)
    with pytest.raises(Interrupted):
        run(Line(), config, tmp_path, lambda state: state.step == 3)
    run(Line(), config, tmp_path)
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for kind, name in (("train", "loss"), ("eval", "off")):
        wanted = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in rows if r["kind"] == kind]
        assert [(e.step, e.value) for e in read.Scalars(f"{kind}/{name}")] == wanted and wanted


def test_tensorboard_that_is_not_there_is_told(tmp_path, monkeypatch):
    for name in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"loop.tensorboard = true: .*pip install '\.\[tensorboard\]'"):
        run(Line(), LoopConfig(steps=5, tensorboard=True), tmp_path)


def test_average_stands_in_only_inside_the_with():
    model = torch.nn.Linear(2, 2)
    kept = model.weight.detach().clone()
    with averaged(model, [torch.zeros_like(p) for p in model.parameters()]):
        assert not model.weight.any()
    assert torch.equal(model.weight, kept)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    job = Line()
    torch.nn.init.constant_(job.model.weight, float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        run(job, LoopConfig(steps=5, bf16=False), tmp_path)


def test_one_of_steps_and_minutes():
    for wrong in (dict(), dict(steps=5, minutes=5.0)):
        with pytest.raises(ConfigError, match="exactly one"):
            LoopConfig(**wrong)


def test_the_quantiser_may_be_named_in_another_way(tmp_path):
    def config(path):
        return Finetune(loop=LoopConfig(steps=5), policy={}, vq=path)

    job = Line()
    job.identity = identity_of(config("vq"), "hash")
    assert job.identity == identity_of(config("/else/where/vq"), "hash") != identity_of(config("vq"), "other")
    values, *more = json.loads(job.identity)
    for vq in ("vq", 'a "b", \\'):  # as states were that held the path
        earlier = json.dumps([values | {"vq": vq}, *more], sort_keys=True)
        torch.save({"model": job.model.state_dict(), "generators": [0], "identity": earlier}, tmp_path / "state.pt")
        resume.read(tmp_path / "state.pt", job, Team(0, 1))


def test_a_state_is_a_step_a_time_and_a_count():
    assert vars(State()) == dict(step=0, seconds=0.0, samples=0)
