"""The plan of a table: what its settings change, and what they leave."""

import json

import pytest

from vipra_ros.config import ConfigError
from vipra_ros.learning import presets
from vipra_ros.learning.reproduce import Plan
from vipra_ros.learning.table_plan import Reproduction


def read(preset="short", **changes):
    path = presets.share("config", "learning", preset, "reproduce.yaml")
    return presets.read(Reproduction, path, "reproduce", changes)


def test_an_override_of_the_user_changes_its_key_alone(tmp_path):
    plain, changed = (Plan(read(**c), 1, tmp_path).steps for c in (
        {}, {"overrides.finetune.loop.steps": 7, "overrides.finetune.policy.backbone.layers": 2}))
    for seed in (0, 1):
        before, after = (steps[f"finetune-vipra_fm-25-{seed}"].settings[0] for steps in (plain, changed))
        assert after["loop"] == before["loop"] | {"steps": 7} and after["loop"]["seed"] == seed
        assert after["policy"]["backbone"] == before["policy"]["backbone"] | {"layers": 2}
        assert {k for k in before if before[k] != after[k]} == {"loop", "policy"}


@pytest.mark.parametrize("preset, given, gone", [("tiny", "steps", "minutes"), ("short", "minutes", "steps")])
def test_steps_of_the_user_replace_minutes_of_the_preset_and_the_other_way_round(tmp_path, preset, given, gone):
    plan = Plan(read(preset, **{f"overrides.finetune.loop.{given}": 9}), 1, tmp_path)
    loop = plan.steps["finetune-vipra_fm-25-0"].settings[0]["loop"]
    assert (loop[given], loop[gone]) == (9, 0)
    both = {f"overrides.finetune.loop.{name}": 9 for name in (given, gone)}
    with pytest.raises(ConfigError, match="give exactly one of them"):
        Plan(read(preset, **both), 1, tmp_path)


def test_nested_and_dotted_keys_of_a_plan_are_the_same():
    assert presets.dotted({"loop": {"minutes": 3, "seed": 1}, "a": 2}) == {"loop.minutes": 3, "loop.seed": 1, "a": 2}


def test_a_given_pre_training_leaves_the_probes_of_its_latent_actions_out(tmp_path):
    given = {"given.pretrain-robot-future-14steps": str(tmp_path), "tables": {3: [{"variant": "vipra_fm"}]},
             "tasks": ["reach"]}
    machine = {"cpu": "none", "cores": 1}
    for folder, name in (("finetune-vipra_fm-25-0", "log.jsonl"), ("done", "eval-vipra_fm-25-0.json"), ("latent", "")):
        (tmp_path / folder).mkdir()
        if name:
            (tmp_path / folder / name).write_text(json.dumps({"seconds": 60.0}))
    (tmp_path / "eval-vipra_fm-25-0.json").write_text(json.dumps(
        {"tasks": [{"task": "reach", "success_rate": 0.5, "n": 2, "machine": machine}]}))
    plan = Plan(read(**given), 3, tmp_path)
    assert "latent-robot" not in plan.steps
    assert [r["task"] for r in plan.rows()] == ["reach", "average"] and "probe_pixels_r2" not in plan.rows()[0]
    (tmp_path / "latent" / "health.json").write_text(json.dumps({"figures": {"probe_pixels_r2": 0.5, "psnr": 30.0}}))
    rows = Plan(read(**given, **{"given.latent-robot": str(tmp_path / "latent")}), 3, tmp_path).rows()
    assert rows[0]["probe_pixels_r2"] == 0.5 and "psnr" not in rows[0]


def test_demonstrations_and_evaluations_do_not_share_starts_however_many_there_are(tmp_path):
    many = {"tables": {1: [{"variant": "scratch_fm", "demos": 2000}]}}
    with pytest.raises(ConfigError, match="demo_seed = 0 and eval_seed = 1000: .*further apart"):
        read(**many)
    assert Plan(read(**many, eval_seed=2200), 1, tmp_path).steps["demos"].settings[1:] == [2200, 0]
    read(demo_seed=890)  # 100 demonstrations and ten that are held out, seeds 890 to 999
    with pytest.raises(ConfigError, match="further apart"):
        read(demo_seed=891)


def test_another_body_and_another_limit_are_settings_of_the_steps_they_change(tmp_path):
    rows = {"tables": {2: [{"variant": "vipra_fm", "videos": "other"}]}}
    plans = [Plan(read(**rows, **more), 2, tmp_path).steps for more in (
        {}, {"other_videos": "/a"}, {"other_videos": "/b"}, {"seconds_limit": 5.0})]
    latents = [steps["latent-other"].settings for steps in plans]
    assert latents[0] == latents[3] != latents[1] != latents[2] != latents[0]
    limits = [steps["eval-vipra_fm-other-25-0"].settings for steps in plans]
    assert limits[0] == limits[1] and limits[3] == [*limits[0], 5.0]
