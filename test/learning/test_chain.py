"""The whole way at toy size on real simulated episodes: collect, convert, latent, label, pretrain, finetune, eval."""

import json
import shutil

import pytest
import yaml

from vipra_ros.config import ConfigError
from vipra_ros.learning import presets, pretrain, reproduce
from vipra_ros.learning.loop import Interrupted
from vipra_ros.policy.checkpoint import Checkpoint

LOOP = {"steps": 2, "batch": 4, "lr": 0.001, "bf16": False, "evaluate_every": 2, "threads": 1}
TRUNK = {"vision_merge": 4, "vision_position": True, "vision_table_width": 8, "bidirectional_prefix": True,
         "backbone": {"width": 32, "layers": 1, "heads": 2, "ffn": 32}}
ACTS = {**TRUNK, "proprio_steps": 1, "bidirectional_actions": True, "action_bins": 15}
JOBS = {
    "vq": {"loop": LOOP, "cameras": ["front"], "frames": 60,
           "model": {"kind": "patch", "image_size": 128, "patch": 8, "codebook_size": 32, "code_dim": 8}},
    "latent": {"loop": LOOP, "frames": 3, "fps": 15, "evaluate_on": 4, "flow_from_step": 0, "codes_from_data": True,
               "model": {"image_size": 32, "patch": 8, "image_encoder": "vit", "image_layers": 1, "width": 32,
                         "heads": 2, "inverse_blocks": 1, "forward_blocks": 1, "codebook_size": 8, "code_dim": 8}},
    "pretrain": {"loop": LOOP, "evaluate_on": 4, "policy": TRUNK},
    "finetune": {"loop": LOOP, "evaluate_on": 4, "draws": 1, "relative_actions": True, "policy": ACTS},
}
VARIANTS = ["scratch_fm", "vipra_fm", "vipra_ar", "vipra_ac", "sp3_fm", "la", "lapa"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Table 1 of a world with one task, two episodes a source and a second of evaluation."""
    folder = tmp_path_factory.mktemp("chain")
    for job, values in JOBS.items():
        (folder / f"{job}.yaml").write_text(yaml.safe_dump(values))
    (folder / "reproduce.yaml").write_text(yaml.safe_dump({
        "presets": {job: str(folder / f"{job}.yaml") for job in JOBS}, "tasks": ["reach"], "videos": 2, "episodes": 1,
        "seconds_limit": 0.6, "tables": {1: [{"variant": v, "demos": 2} for v in VARIANTS],
                                         2: [{"variant": "vipra_fm", "videos": "other"}]}}))
    run, steps = pretrain.run, []

    def stopped_once(job, loop, out):
        """The first pre-training is stopped after its first step."""
        return run(job, loop, out, lambda state: steps.append(state.step) or len(steps) == 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "run", stopped_once)
        with pytest.raises(Interrupted):
            reproduce.reproduce(folder / "out", 1, folder / "reproduce.yaml", save_to=folder)
        before = {p.name: p.read_text() for p in (folder / "out" / "done").glob("*.json")}
        so_far = json.loads((folder / "table1.json").read_text())["rows"]
        rows = reproduce.reproduce(folder / "out", 1, folder / "reproduce.yaml", save_to=folder)
    return folder, rows, steps, before, so_far


def test_every_variant_is_trained_evaluated_and_has_its_rows(made):
    folder, rows, *_ = made
    assert [(r["variant"], r["task"]) for r in rows] == [(v, t) for v in VARIANTS for t in ("reach", "average")]
    kept = json.loads((folder / "table1.json").read_text())["rows"]
    assert kept == rows and list(rows[0]) == ["variant", "demos", "task", "success_rate", "n", "wilson_low",
                                              "wilson_high", "train_seed", "machine", "minutes"]
    assert (folder / "table1.png").stat().st_size > 1000
    for variant in VARIANTS:
        c = Checkpoint.load(folder / "out" / f"finetune-{variant}-2-0" / "checkpoint").config
        assert c.decoder == ("discrete" if variant in ("vipra_ar", "la", "lapa") else "flow")
        assert c.horizon == (1 if variant in ("vipra_ac", "lapa") else 14)
        part = json.loads((folder / "out" / f"eval-{variant}-2-0.json").read_text())["tasks"][0]
        # Chunks of one row arrive too late to be joined to a moving plan: they are played when they come.
        assert part["mode"] == ("sync" if c.execute_steps == 1 else "async")
        assert any(e["rows"] for e in part["episodes"]) or part["rejected_chunks"] == 0


def test_interrupted_it_goes_on_within_the_training(made):
    folder, rows, steps, before, so_far = made
    assert steps == [1, 2] * 4, "four pre-trainings of two steps, the first of them in two runs"
    assert len(before) == 7 and all((folder / "out" / "done" / n).read_text() == text for n, text in before.items())
    assert so_far == rows[:2] and so_far[0]["variant"] == "scratch_fm"


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(made, monkeypatch, capsys):
    folder, rows, *_ = made
    monkeypatch.setattr(reproduce, "collect", lambda *a: pytest.fail("collected again"))
    assert reproduce.reproduce(folder / "out", 1, folder / "reproduce.yaml", save_to=folder) == rows
    said = capsys.readouterr().out
    assert "done  pretrain-robot-future-14steps" in said and "expected: 0.0 hours" in said
    with pytest.raises(ConfigError, match="eval-scratch_fm-2-0 was done with other settings"):
        reproduce.reproduce(folder / "out", 1, folder / "reproduce.yaml", {"eval_seed": 2000}, folder)
    with pytest.raises(ConfigError, match="no table 9"):
        reproduce.reproduce(folder / "out", 9, folder / "reproduce.yaml")
    with pytest.raises(ConfigError, match="further apart"):
        reproduce.reproduce(folder / "out", 1, folder / "reproduce.yaml", {"eval_seed": 5})


def test_options_that_came_later_do_not_undo_what_is_done(made):
    folder, *_ = made
    read = reproduce.presets.read(reproduce.Reproduction, folder / "reproduce.yaml", "reproduce", {})
    step = reproduce.Plan(read, 1, folder / "out").steps["finetune-scratch_fm-2-0"]
    kept = json.loads((folder / "out" / "done" / "finetune-scratch_fm-2-0.json").read_text())["settings"]
    assert step.done_with(kept)
    del kept[0]["early_frames"], kept[0]["lora_rank"], kept[0]["loop"]["ema"]  # as a version without them left it
    assert step.done_with(kept)
    kept[0]["lora_rank"] = 4
    assert not step.done_with(kept)
    del kept[0]["lora_rank"], kept[0]["draws"]
    assert not step.done_with(kept), "this one does not stand at its default"


def test_another_body_is_collected_or_brought(made, tmp_path, monkeypatch, capsys):
    folder, *_ = made
    asked = []
    monkeypatch.setattr(reproduce, "collect", lambda path, *rest: asked.append((path.name, *rest)))
    plan = reproduce.Plan(reproduce.presets.read(reproduce.Reproduction, folder / "reproduce.yaml", "reproduce", {}), 2,
                          tmp_path)
    plan.steps["other"].work()
    assert asked == [("other", ("reach",), 2, 200_000, "hand")]
    assert plan.dataset("other") == tmp_path / "other" / "dataset"
    reproduce.reproduce(tmp_path, 2, folder / "reproduce.yaml", {"other_videos": "mine"}, plan_only=True)
    said = capsys.readouterr().out
    assert "latent-other" in said and "  other\n" not in said


def test_what_is_given_is_not_made_nor_what_only_that_needs(made, tmp_path, monkeypatch):
    folder, *_ = made
    there = folder / "out"
    given = {"vq": there / "pretrain-robot-future-14steps" / "checkpoint", "latent-robot": there / "latent-robot",
             "pretrain-robot-future-14steps": there / "pretrain-robot-future-14steps" / "checkpoint"}
    given = {f"given.{name}": str(path) for name, path in given.items()}
    monkeypatch.setattr(reproduce, "collect", lambda path, *a: shutil.copytree(there / path.name, path))
    plan = folder / "reproduce.yaml"
    rows = [{"variant": v, "demos": 2} for v in ("vipra_fm", "scratch_fm")]
    made_now = reproduce.reproduce(tmp_path / "out", 1, plan, {**given, "tables": {1: rows}}, tmp_path)
    names = ("demos", *(f"{step}-{v}-2-0" for v in ("vipra_fm", "scratch_fm") for step in ("finetune", "eval")))
    assert sorted(p.stem for p in (tmp_path / "out" / "done").glob("*.json")) == sorted(names)
    for row in made_now:  # as good as what was made whole: it is the same
        whole = next(r for r in made[1] if (r["variant"], r["task"]) == (row["variant"], row["task"]))
        assert row["success_rate"] == whole["success_rate"]
        weights = [f / f"finetune-{row['variant']}-2-0" / "checkpoint" / "policy.safetensors"
                   for f in (there, tmp_path / "out")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    # Other variants need the videos, whose labels are of the latent actions that are given.
    read = presets.read(reproduce.Reproduction, plan, "reproduce", given)
    steps = reproduce.Plan(read, 1, tmp_path / "more").steps
    assert {"videos", "labels-latent-robot", "pretrain-robot-future"} <= steps.keys()
    assert not {"vq", "latent-robot", "pretrain-robot-future-14steps"} & steps.keys()
    with pytest.raises(ConfigError, match="finetune-vipra_fm-2-0 was done with other settings"):
        reproduce.reproduce(tmp_path / "out", 1, plan, {"tables": {1: rows[:1]}}, tmp_path)
    with pytest.raises(ConfigError, match="has no training 'latent-robt'; it has latent-robot, .*, vq"):
        reproduce.reproduce(tmp_path / "out", 1, plan, {"given.latent-robt": str(there)}, tmp_path)
    with pytest.raises(ConfigError, match="given: vq: .*nowhere is no folder"):
        reproduce.reproduce(tmp_path / "out", 1, plan, {"given.vq": str(tmp_path / "nowhere")}, tmp_path)


def test_the_shipped_plan_names_its_hours(tmp_path, capsys):
    assert reproduce.reproduce(tmp_path / "out", 1, plan_only=True) == []
    lines = capsys.readouterr().out.splitlines()
    # Variants with the same pre-training share it.
    assert max(map(len, lines)) <= 80
    assert sum("  pretrain-" in line for line in lines) == 5 and sum("  finetune-" in line for line in lines) == 15
    assert "15 policies" in lines[-1] and not (tmp_path / "out").exists()


def test_tables_on_one_task_share_their_pre_training_and_take_hundred_demonstrations(tmp_path):
    reach = presets.read(reproduce.Reproduction, presets.share("config", "learning", "reach", "reproduce.yaml"),
                         "reproduce", {})
    plans = [reproduce.Plan(reach, table, tmp_path) for table in (1, 2, 3)]
    steps = plans[0].steps
    for plan in plans[1:]:
        assert all(step.settings == steps[name].settings for name, step in plan.steps.items() if name in steps)
        assert {"pretrain-robot-future-14steps", "eval-vipra_fm-100-0"} <= plan.steps.keys() & steps.keys()
    assert "labels-latent-robot-flow_weight0" in plans[2].steps


def test_trainings_by_steps_have_hours_too_and_the_tables_of_a_plan_share_what_they_can(tmp_path, capsys):
    short = presets.share("config", "learning", "short", "reproduce.yaml")
    read = presets.read(reproduce.Reproduction, short, "reproduce", {})
    plans = [reproduce.Plan(read, table, tmp_path) for table in (1, 2, 3)]
    steps = plans[0].steps
    assert steps["finetune-vipra_ar-25-0"].expected == pytest.approx(400 * 3.0 / 60)
    assert steps["pretrain-robot-14steps"].expected == pytest.approx(2344 * 1.1 / 60)
    assert plans[0].describe().splitlines()[-1] == "expected: 9.7 hours for 15 policies"
    for plan in plans[1:]:
        assert all(step.settings == steps[name].settings for name, step in plan.steps.items() if name in steps)
        assert {"demos", "videos", "pretrain-robot-future-14steps", "eval-vipra_fm-25-0"} <= plan.steps.keys()
    with pytest.raises(ConfigError, match="step_seconds of evaluation"):
        presets.read(reproduce.Reproduction, short, "reproduce", {"step_seconds": {"evaluation": 1.0}})
