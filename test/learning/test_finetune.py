"""Fine-tuning end to end at toy size: it learns, resumes as if never killed, and ships a checkpoint that acts."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from stand_in import StandIn

from vipra_ros.config import ConfigError
from vipra_ros.learning import finetune, lora, vq
from vipra_ros.learning.loop import Interrupted, run
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.sampler import sample


def log(out, kind):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def trained(data, quantiser, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "ft"
    path = out.parent / "micro.yaml"
    path.write_text(f"""
vq: {quantiser}
draws: 4
holdout: 0.2
evaluate_on: 32
relative_actions: true
loop: {{steps: 240, batch: 32, lr: 0.01, warmup_steps: 10, evaluate_every: 120, log_every: 5, bf16: false}}
policy: {{proprio_steps: 1, backbone: {{width: 32, layers: 1, heads: 2, ffn: 64}}}}
""")
    finetune.train(data, out, path)
    return out


def test_loss_and_sampled_error_fall(trained):
    losses = [row["loss"] for row in log(trained, "train")]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    first, last = log(trained, "eval")
    assert last["train_chunk_rad"] < min(first["train_chunk_rad"], 0.6 * last["hold_rad"])
    # Seven pictures do not teach where an eighth dot is; that they are told apart is what counts here.
    assert last["chunk_rad"] > last["train_chunk_rad"]
    assert {"first_rad", "go_first_rad", "stay_first_rad", "gripper_wrong", "train_chunk_rad"} <= last.keys()
    assert (trained / "loss.png").stat().st_size > 1000


def test_checkpoint_acts_as_the_evaluation_said(trained, data):
    checkpoint = Checkpoint.load(trained / "checkpoint")
    c = checkpoint.config
    assert (c.rate, c.frame_stride, c.horizon, c.execute_steps, c.relative_actions) == (15.0, 2, 14, 7, True)
    assert c.joint_names == tuple(f"fr3_joint{i}" for i in range(1, 8))
    assert "held out" in checkpoint.card
    engine = load_engine(checkpoint)
    engine.warm_up()
    errors, hold = [], []
    for episode in data.episodes:
        t = episode.start
        frames = np.stack([image for _, image in data.frames("front", t, t + 1)] * 2)
        state = data.numeric("observation.state")[t : t + 1].astype(float)
        made = engine.infer(Observation(0.0, {"front": frames}, episode.task, state), seed=3).actions
        truth = data.numeric("action")[np.minimum(t + np.arange(14), t + episode.length - 1)]
        errors.append(np.abs(made - truth)[:, :7].mean())
        hold.append(np.abs(state[0] - truth)[:, :7].mean())
    assert np.mean(errors) < 0.6 * np.mean(hold)


def test_killed_and_resumed_equals_uninterrupted(data, preset, tmp_path):
    whole, cut = tmp_path / "a" / "ft", tmp_path / "b" / "ft"
    finetune.train(data, whole, preset)
    original = finetune.run
    try:
        for stop in (7, 23):
            finetune.run = lambda job, config, out, stop=stop: original(job, config, out, lambda s: s.step >= stop)
            with pytest.raises(Interrupted, match=str(stop)):
                finetune.train(data, cut, preset)
    finally:
        finetune.run = original
    finetune.train(data, cut, preset)
    mine, theirs = log(cut, "train"), log(whole, "train")
    assert [r["step"] for r in mine] == [r["step"] for r in theirs] == list(range(1, 41))
    assert [r["loss"] for r in mine] == [r["loss"] for r in theirs]
    assert Checkpoint.load(cut / "checkpoint").hash == Checkpoint.load(whole / "checkpoint").hash
    # A finished run is not trained further by the same command.
    finetune.train(data, cut, preset)
    assert len(log(cut, "train")) == 40


def test_init_takes_the_network_over_and_refuses_another_shape(trained, data, tmp_path):
    preset = trained.parent / "micro.yaml"
    overrides = {"vq": "", "loop.steps": 1, "loop.lr": 0.0}
    of_tokens = {"policy.action_position": True, "policy.action_order": True}  # as in preset tiny
    finetune.train(data, tmp_path / "ft", preset, trained / "checkpoint", overrides | of_tokens)
    made, start = (Checkpoint.load(p / "checkpoint") for p in (tmp_path / "ft", trained))
    assert made.config.policy == start.config.policy
    mine, theirs = made.policy.state_dict(), start.policy.state_dict()
    assert all((mine[k] == theirs[k]).all() for k in theirs)
    for key, value in {"policy.horizon": 10, "frame_stride": 1, "prompt": "do {task}"}.items():
        with pytest.raises(ConfigError, match=key.split(".")[-1]):
            finetune.train(data, tmp_path / "x", preset, trained / "checkpoint", overrides | {key: value})


def test_columns_without_names_are_refused_before_frames_are_coded(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.tokenise, "tokenise", lambda *_: pytest.fail("frames were coded"))
    other = StandIn()
    other.features["action"] = {"names": None}
    with pytest.raises(ConfigError, match="action columns are not named"):
        finetune.train(other, tmp_path / "ft", preset)


def test_init_that_cannot_read_the_instructions_is_refused(trained, tmp_path):
    other = StandIn()
    for episode in other.episodes:
        episode.task = episode.task.replace("dot", "banana")
    with pytest.raises(ConfigError, match="knows no word 'banana', so it could not tell instructions with it apart"):
        finetune.train(other, tmp_path / "ft", trained.parent / "micro.yaml", trained / "checkpoint", {"vq": ""})


def test_a_tokenizer_that_numbers_words_in_another_way_than_init_is_refused(trained, data, tmp_path):
    known = json.loads((trained / "checkpoint" / "tokenizer.json").read_text())
    words = known["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(known))
    with pytest.raises(ConfigError, match="'(red|blue)' has another number than in that of `init`; leave tokenizer"):
        finetune.train(data, tmp_path / "ft", trained.parent / "micro.yaml", trained / "checkpoint",
                       {"vq": "", "tokenizer": str(tmp_path / "tokenizer.json")})


def test_discrete_actions_are_learnt_resumed_and_taken_over(data, quantiser, tmp_path):
    path = tmp_path / "micro.yaml"
    path.write_text(f"""
vq: {quantiser}
holdout: 0.2
evaluate_on: 16
relative_actions: true
loop: {{steps: 60, batch: 16, lr: 0.01, warmup_steps: 5, evaluate_every: 30, log_every: 5, bf16: false}}
policy: {{proprio_steps: 1, horizon: 4, decoder: discrete, action_bins: 15, action_position: true,
         backbone: {{width: 32, layers: 1, heads: 2, ffn: 64}}}}
execute_steps: 2
""")
    finetune.train(data, tmp_path / "ft", path)
    losses = [row["loss"] for row in log(tmp_path / "ft", "train")]
    assert losses[-1] < 0.6 * losses[0]
    last = log(tmp_path / "ft", "eval")[-1]
    assert last["train_chunk_rad"] < 0.8 * last["hold_rad"]
    made = Checkpoint.load(tmp_path / "ft" / "checkpoint")
    assert made.config.decoder == "discrete" and made.config.attention_order == "causal"
    # Its bins are those of the training frames, in normalised numbers.
    assert made.policy.edges.shape == (7, 16) and made.policy.edges.abs().max() < 6
    finetune.train(data, tmp_path / "more", path, tmp_path / "ft" / "checkpoint",
                   {"vq": "", "loop.steps": 1, "loop.lr": 0.0})
    again = Checkpoint.load(tmp_path / "more" / "checkpoint").policy.state_dict()
    assert all((v == again[k]).all() for k, v in made.policy.state_dict().items())
    with pytest.raises(ConfigError, match="decoder"):
        finetune.train(data, tmp_path / "x", path, tmp_path / "ft" / "checkpoint",
                       {"vq": "", "policy.decoder": "flow"})


def test_beginnings_of_chunks_are_given_and_the_checkpoint_says_so(data, preset, tmp_path):
    finetune.train(data, tmp_path / "ft", preset, overrides={"loop.steps": 2, "committed_steps": 6})
    made = Checkpoint.load(tmp_path / "ft" / "checkpoint")
    assert made.config.committed_steps == 6
    assert load_engine(made, rtc="trained").guided
    made.config = dataclasses.replace(made.config, committed_steps=0)
    with pytest.raises(CheckpointError, match="was not trained"):
        load_engine(made, rtc="trained")


def test_low_rank_updates_leave_init_alone_and_are_added_in(trained, data, tmp_path):
    pytest.importorskip("peft")
    path, before = trained.parent / "micro.yaml", Checkpoint.load(trained / "checkpoint")
    more = {"vq": "", "lora_rank": 2, "loop.steps": 30, "loop.evaluate_every": 30, "loop.lr": 0.02}
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "run", lambda job, *rest: (jobs.append(job), run(job, *rest)))
        finetune.train(data, tmp_path / "ft", path, trained / "checkpoint", more)
    trained_ones = {n for n, p in jobs[0].policy.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trained_ones if n.startswith("trunk")) and "head.weight" in trained_ones
    assert not any(n.startswith(("vision", "text")) for n in trained_ones)
    after = Checkpoint.load(tmp_path / "ft" / "checkpoint")  # plain names and shapes, or it would be refused
    old, new = before.policy.state_dict(), after.policy.state_dict()
    changed = {n for n in old if not torch.equal(old[n], new[n])}
    acting = {n for n in old if n.startswith(("action_", "head", "proprio"))}
    assert changed == acting | {n for n in old if n.split(".")[-2] in lora.TARGETS}
    for n in changed & {n for n in old if n.startswith("trunk")}:
        assert torch.linalg.matrix_rank(new[n].double() - old[n].double(), rtol=1e-4) <= 2
    job, rows = jobs[0], np.array([3, 8])
    prefix, noise = job.example(job.data, rows)[0], torch.randn(2, 14, 8, generator=torch.Generator().manual_seed(1))
    job.policy.eval()
    assert torch.allclose(sample(job.policy, prefix, noise), sample(after.policy, prefix, noise), atol=1e-4)
    log_rows = log(tmp_path / "ft", "train")
    assert log_rows[-1]["loss"] < 1.5 * log_rows[0]["loss"]


def test_low_rank_updates_resume_as_if_nothing_had_been(trained, data, tmp_path):
    pytest.importorskip("peft")
    path, more = trained.parent / "micro.yaml", {"vq": "", "lora_rank": 2, "loop.schedule": "constant"}
    for name, stops in (("whole", (8,)), ("parts", (4, 8))):
        for steps in stops:
            finetune.train(data, tmp_path / name, path, trained / "checkpoint", more | {"loop.steps": steps})
    whole, parts = (Checkpoint.load(tmp_path / n / "checkpoint").policy.state_dict() for n in ("whole", "parts"))
    assert all(torch.equal(v, parts[k]) for k, v in whole.items())


@pytest.mark.parametrize(
    "overrides, word",
    [
        ({"policy.grid": 8}, "follows from the data"),
        ({"vq": ""}, "trained frame quantiser"),
        ({"loop.steps": 5, "loop.minutes": 5}, "exactly one"),
        ({"policy.unheard": 1}, "unheard"),
        ({"vq.path": "x"}, "not a table"),
        ({"loop.lr": "fast"}, "number"),
        ({"committed_steps": 14}, "fewer than the horizon"),
        ({"lora_rank": 4}, "give --init"),
        ({"lora_rank": 4, "loop.shard": True}, "shard to false"),
        ({"execute_steps": 15}, "exceeds the horizon"),
    ],
)
def test_mistakes_in_the_configuration_are_named(data, preset, tmp_path, monkeypatch, overrides, word):
    monkeypatch.setattr(finetune.tokenise, "tokenise", lambda *_: pytest.fail("frames were coded"))
    with pytest.raises(ConfigError, match=word):
        finetune.train(data, tmp_path / "ft", preset, overrides=overrides)


@pytest.mark.parametrize("more", ({}, {"policy.decoder": "discrete", "policy.bidirectional_actions": False}))
def test_batches_go_to_where_the_model_is(data, preset, tmp_path, monkeypatch, more):
    """The meta device, in place of a GPU, refuses a batch that was left on the CPU."""
    jobs = []
    monkeypatch.setattr(finetune, "run", lambda job, config, out: jobs.append(job))
    finetune.train(data, tmp_path / "ft", preset, overrides=more)
    job = jobs[0]
    job.model.to("meta")
    with pytest.raises(RuntimeError, match="device"):
        job.loss(torch.Generator(), 0.0)
    job.device = "meta"
    assert job.loss(torch.Generator(), 0.0)[0].is_meta


def test_state_of_another_configuration_is_refused(data, preset, tmp_path):
    finetune.train(data, tmp_path / "ft", preset, overrides={"loop.steps": 1})
    with pytest.raises(ConfigError, match="new output folder"):
        finetune.train(data, tmp_path / "ft", preset, overrides={"loop.steps": 2, "relative_actions": True})


def test_state_of_another_start_or_quantiser_is_refused(trained, data, quantiser, preset, tmp_path):
    again = {"vq": "", "loop.steps": 1}
    finetune.train(data, tmp_path / "ft", trained.parent / "micro.yaml", trained / "checkpoint", again)
    finetune.train(data, tmp_path / "other", trained.parent / "micro.yaml", trained / "checkpoint", again)
    with pytest.raises(ConfigError, match="another configuration or other data"):
        finetune.train(data, tmp_path / "ft", trained.parent / "micro.yaml", tmp_path / "other" / "checkpoint", again)
    # A quantiser made anew in the same folder.
    folder = tmp_path / "vq"
    shutil.copytree(quantiser, folder)
    finetune.train(data, tmp_path / "scratch", preset, overrides={"vq": str(folder), "loop.steps": 1})
    model = vq.load_vq(folder)
    model.codebook.mul_(1.01)
    vq.save(model, folder, {})
    with pytest.raises(ConfigError, match="another configuration or other data"):
        finetune.train(data, tmp_path / "scratch", preset, overrides={"vq": str(folder), "loop.steps": 2})
