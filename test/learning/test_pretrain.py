"""Pre-training end to end at toy size: it learns held-out labels, and fine-tuning starts from it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.learning import finetune, imagine, presets, pretrain, tokenise
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.pretrained import Pretrained

LOSSES = {"flow_estimator": "pyramid", "perceptual_loss": "lpips:0123"}
POLICY = ("vision_position: true, vision_table_width: 8, vision_merge: 2, "
          "backbone: {width: 32, layers: 1, heads: 2, ffn: 32}")


def write_labels(folder, data, steps=14, codes=2):
    """Labels as `vipra label` writes them; the codes follow from the task, so they can be learnt."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    rows = {"episode_index": [], "frame_index": [], "codes": [], "future_index": []}
    for e in data.episodes:
        for t in range(e.length):
            rows["episode_index"].append(e.index)
            rows["frame_index"].append(t)
            rows["codes"].append([1 + 2 * (e.task == data.episodes[0].task)] * steps * codes)
            rows["future_index"].append(min(t + steps, e.length - 1))
    schema = pa.schema([("episode_index", pa.int64()), ("frame_index", pa.int64()), ("codes", pa.list_(pa.int8())),
                        ("future_index", pa.int64())])
    pq.write_table(pa.table(rows, schema), folder / "labels-00000.parquet")
    (folder / "labels.json").write_text(json.dumps({"steps": steps, "codes_per_step": codes, "codebook": 8,
                                                    "dataset": str(data.path), "data": tokenise.fingerprint(data),
                                                    "latent_hash": "abc", "losses": LOSSES}))
    return folder


@pytest.fixture(scope="module")
def pretrained(data, quantiser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pre")
    labels = write_labels(folder / "labels", data)
    (folder / "micro.yaml").write_text(f"""
vq: {quantiser}
holdout: 0.2
evaluate_on: 16
loop: {{steps: 40, batch: 8, lr: 0.01, warmup_steps: 2, evaluate_every: 10, bf16: false}}
policy: {{{POLICY}}}
""")
    pretrain.train(data, labels, folder / "run", folder / "micro.yaml")
    return folder


def test_batches_may_begin_where_episodes_do(pretrained, data, monkeypatch):
    jobs, seen = [], []
    monkeypatch.setattr(pretrain, "run", lambda job, *_: jobs.append(job))
    pretrain.train(data, pretrained / "labels", pretrained / "x", pretrained / "micro.yaml",
                   {"early_share": 0.5, "early_frames": 2})
    job = jobs[0]
    example = job.example
    monkeypatch.setattr(job, "example", lambda index, *a: seen.append(index) or example(index, *a))
    job.loss(torch.Generator().manual_seed(0), 0.0)
    late = seen[0] - job.first[seen[0]]
    assert len(late) == 8 and (late[4:] < 2).all() and (late[:4] >= 2).any()
    assert not set(seen[0]) & set(job.held)


def test_part_of_a_batch_predicts_latents_blind(pretrained, data, monkeypatch):
    jobs = []
    monkeypatch.setattr(pretrain, "run", lambda job, *_: jobs.append(job))
    for i, change in enumerate([{"blind_share": 0.4}, {}, {"blind_share": 0.4, "latent_steps": 0}]):
        pretrain.train(data, pretrained / "labels", pretrained / f"d{i}", pretrained / "micro.yaml", change)
    job, whole, without = jobs
    index = np.arange(8)
    assert job.example(index, 0.4).blind.tolist() == [False, False, True, False, True, False, False, True]
    assert whole.example(index).blind is None and without.example(index, 0.4).blind is None
    # Every observation trains the future frame and the latents, whoever is blind.
    total, parts = job.loss(torch.Generator().manual_seed(0), 0.0)
    drawn = pretrain.draw(torch.Generator().manual_seed(0), 8, job.usable, job.early, 0.0)
    alone = job.example(index, 0.4).blind.numpy()
    seen, blind = job.model.losses(job.example(drawn[~alone])), job.model.losses(job.example(drawn[alone], 1.0))
    future = job.model.losses(job.example(drawn))["future"]
    assert torch.allclose(total, future + (5 * seen["latent"] + 3 * blind["latent"]) / 8, atol=1e-6)
    assert parts["latent_blind"] == pytest.approx(blind["latent"].item(), abs=1e-6)
    assert {"held_latent", "held_latent_blind"} <= job.evaluate().keys()
    assert "held_latent_blind" not in whole.evaluate()


def test_held_out_parts_fall(pretrained):
    rows = [json.loads(line) for line in (pretrained / "run" / "log.jsonl").read_text().splitlines()]
    first, *_, last = [row for row in rows if row["kind"] == "eval"]
    assert last["held_latent"] < 0.5 * last["latent_guess"]
    # Forty steps are too few to beat the frequencies of a nearly empty picture; they do have to help.
    assert last["held_future"] < 0.9 * first["held_future"] and last["future_guess"] > 0


def test_finetune_takes_trunk_and_tables_over(pretrained, data, tmp_path):
    preset = tmp_path / "ft.yaml"
    preset.write_text(f"""
holdout: 0.2
evaluate_on: 8
loop: {{steps: 1, batch: 4, lr: 0.0, bf16: false}}
policy: {{proprio_steps: 1, bidirectional_actions: true, {POLICY}}}
""")
    start = pretrained / "run" / "checkpoint"
    finetune.train(data, tmp_path / "ft", preset, start)
    made = Checkpoint.load(tmp_path / "ft" / "checkpoint")
    assert {key: getattr(made.config, key) for key in LOSSES} == LOSSES, "those of the latent actions"
    mine, theirs = made.policy.state_dict(), Pretrained.load(start).model.state_dict()
    shared = mine.keys() & theirs.keys()
    assert {"text.weight", "vision.weight", "vision_in.weight", "trunk.norm.weight"} <= shared
    assert all(torch.equal(mine[k], theirs[k]) for k in shared)
    for change in ({"pretrain_stride": 2}, {"policy.vision_merge": 1}, {"prompt": "do {task}"}):
        with pytest.raises(ConfigError, match=next(iter(change)).split(".")[-1]):
            finetune.train(data, tmp_path / "x", preset, start, change)


@pytest.mark.parametrize("decoder", ["flow", "discrete"])
def test_the_future_frame_is_a_target_while_fine_tuning_and_not_part_of_the_policy(pretrained, data, tmp_path, decoder):
    """SP3: the frame's head comes from pre-training, falls with the actions, and stays out of the checkpoint."""
    preset = tmp_path / "ft.yaml"
    preset.write_text(f"""
holdout: 0.2
evaluate_on: 16
future_weight: 1.0
loop: {{steps: 30, batch: 8, lr: 0.01, warmup_steps: 2, evaluate_every: 10, log_every: 1, bf16: false}}
policy: {{proprio_steps: 1, decoder: {decoder}, action_bins: 15, {POLICY}}}
""")
    start = pretrained / "run" / "checkpoint"
    finetune.train(data, tmp_path / "ft", preset, start)
    rows = [json.loads(line) for line in (tmp_path / "ft" / "log.jsonl").read_text().splitlines()]
    steps, evals = ([r for r in rows if r["kind"] == k] for k in ("train", "eval"))
    assert steps[-1]["future"] < steps[0]["future"] and steps[-1]["actions"] < steps[0]["actions"]
    assert steps[0]["loss"] == pytest.approx(steps[0]["future"] + steps[0]["actions"], rel=1e-4)
    # It starts where pre-training ended: far below a head that knows nothing.
    assert steps[0]["future"] < 0.95 * np.log(32) and evals[-1]["held_future"] > 0
    assert not any("vision_head" in k for k in Checkpoint.load(tmp_path / "ft" / "checkpoint").policy.state_dict())
    presets_without = finetune.train(data, tmp_path / "plain", preset, start, {"future_weight": 0.0, "loop.steps": 1})
    assert Checkpoint.load(presets_without).policy.state_dict().keys() == \
        Checkpoint.load(tmp_path / "ft" / "checkpoint").policy.state_dict().keys()


def test_the_future_frame_is_as_far_away_as_the_labels_say(pretrained):
    assert Pretrained.load(pretrained / "run" / "checkpoint").config.ahead == 11  # the episodes have 12 frames
    future = np.minimum(np.arange(60) + 28, 59)
    assert pretrain.reach(future) == 28 and pretrain.reach(np.arange(3)) == 1


def test_pretraining_begins_at_labelled_frames(data, tmp_path, pretrained, monkeypatch):
    folder = write_labels(tmp_path / "labels", data)
    table = pq.read_table(folder / "labels-00000.parquet")
    third = table.filter([i % 3 == 0 for i in table["frame_index"].to_pylist()])
    pq.write_table(third, folder / "labels-00000.parquet")
    with pytest.raises(ConfigError, match="frames have no label; delete labels-00000.parquet and run `vipra label`"):
        pretrain.read_labels(folder, data)
    (folder / "labels.json").write_text(json.dumps(json.loads((folder / "labels.json").read_text()) | {"every": 3}))
    jobs = []
    monkeypatch.setattr(pretrain, "run", lambda job, *_: jobs.append(job))
    pretrain.train(data, folder, tmp_path / "x", pretrained / "micro.yaml")
    seen = np.concatenate([jobs[0].usable, jobs[0].held])
    assert ((seen - jobs[0].first[seen]) % 3 == 0).all()
    assert len(seen) == sum(-(-e.length // 3) for e in data.episodes)


def test_labels_that_do_not_fit_are_refused(data, tmp_path):
    labels = pretrain.read_labels(write_labels(tmp_path / "a", data), data)
    e = data.episodes[1]
    assert labels.latents.shape[1:] == (14, 2) and labels.future[e.start] == e.start + min(14, e.length - 1)
    head = json.loads((tmp_path / "a" / "labels.json").read_text())
    (tmp_path / "a" / "labels.json").write_text(json.dumps(head | {"data": "another"}))
    with pytest.raises(ConfigError, match="has labels of .*, which is not .*; label this data set"):
        pretrain.read_labels(tmp_path / "a", data)
    (tmp_path / "a" / "labels.json").write_text(json.dumps(head | {"codebook": 2}))
    with pytest.raises(ConfigError, match="codebook has 2"):
        pretrain.read_labels(tmp_path / "a", data)
    (tmp_path / "a" / "labels-00000.parquet").unlink()
    with pytest.raises(ConfigError, match="have no label; run `vipra label` again"):
        pretrain.read_labels(tmp_path / "a", data)
    assert np.isclose(pretrain.guess(np.array([0, 0, 1]), np.array([0]), 2), -np.log(3 / 5))


@pytest.mark.parametrize("name", ["vipra_fm", "vipra_ar", "vipra_ac", "sp2", "sp2_ar", "sp3_fm", "sp3_ar", "la",
                                  "la_fm", "lapa", "scratch_fm"])
def test_variants_fit_both_stages(name):
    for job, cls in (("pretrain", pretrain.Pretrain), ("finetune", finetune.Finetune)):
        if (name, job) == ("scratch_fm", "pretrain"):
            with pytest.raises(ConfigError, match="has no pretrain"):
                presets.variant(name, job)
            continue
        for preset in ("tiny", "paper"):
            config = presets.read(cls, preset, job, presets.variant(name, job))
            assert config.variant.lower().replace("-", "_").endswith(name)
    with pytest.raises(ConfigError, match="choose one of"):
        presets.variant("unheard", "finetune")


def test_imagine_draws_a_sheet(pretrained, data, tmp_path):
    import cv2

    figures = imagine.imagine(pretrained / "run" / "checkpoint", data, tmp_path / "sheet.png", count=2)
    side = Pretrained.load(pretrained / "run" / "checkpoint").config.vq.image_size
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (2 * side, 4 * side, 3)
    # Most of the picture is background, which even a toy model has learnt to repeat.
    assert figures["codes_right"] > 0.3
    with pytest.raises(ConfigError, match="pretrain.json"):
        imagine.imagine(tmp_path, data, tmp_path / "x.png")
    with pytest.raises(ConfigError, match="count = 0: give the number of moments"):
        imagine.imagine(pretrained / "run" / "checkpoint", data, tmp_path / "x.png", count=0)
    for out in ("sheet", "none/sheet.png"):
        with pytest.raises(ConfigError, match="ends in .png in an existing folder"):
            imagine.imagine(pretrained / "run" / "checkpoint", data, tmp_path / out)
