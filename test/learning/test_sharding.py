"""Weights divided among two processes, passes that add up to a step, layers computed again: the same training."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEPS, KILLED_AT, BATCH = 6, 4, 8


class Acts:
    """A policy of toy size learns chunks. Each step has 8 observations, of which a process or a pass takes a half."""

    def __init__(self, halves: str, by_hand: bool = True):
        from vipra_ros.learning.parallel import team
        from vipra_ros.model.backbone import BackboneConfig
        from vipra_ros.model.policy import FlowPolicy, PolicyConfig

        torch.manual_seed(0)
        # 13 text rows and a head of 3 do not divide by two.
        self.model = FlowPolicy(PolicyConfig(
            backbone=BackboneConfig(width=16, layers=2, heads=2, ffn=24), text_vocab=13, codebook_size=8, grid=2,
            frames=1, action_dim=3, horizon=3))
        torch.nn.init.normal_(self.model.head.weight, std=0.1)
        self.by_hand = [self.model.vision.weight] if by_hand else []  # as a codebook is
        self.rates = {id(self.model.head.weight): 0.5}
        self.layers = list(self.model.trunk.layers)
        self.hidden_matrices = [p for p in self.model.trunk.layers.parameters() if p.ndim == 2]
        self.identity, self.halves, self.rank, self.calls, self.drawn = "acts", halves, team().rank, 0, []

    def batch(self, seed: int, rows: slice):
        from vipra_ros.model.policy import Prefix

        g = torch.Generator().manual_seed(seed)
        text, codes = torch.randint(13, (BATCH, 4), generator=g), torch.randint(8, (BATCH, 1, 1, 4), generator=g)
        actions, noise, t = (torch.rand(BATCH, *shape, generator=g) for shape in ((3, 3), (2, 3, 3), (2,)))
        mask = torch.ones_like(text[rows], dtype=torch.bool)
        prefix = Prefix(text[rows], mask, codes[rows], text[0, :1], text[0, 1:3])
        return prefix, actions[rows], noise[rows], t[rows]

    def loss(self, generator, progress):
        self.drawn.append(torch.rand(1, generator=generator).item())
        rows = slice(self.rank + self.calls % 2, None, 2) if self.halves else slice(None)
        self.calls += self.halves == "passes"
        return self.model.loss(*self.batch(round(progress * STEPS), rows)).mean(), {}

    @torch.no_grad()
    def after_step(self, generator, step, progress):
        for weight in self.by_hand:
            weight.mul_(0.99)

    @torch.inference_mode()
    def evaluate(self):
        return {"held": self.model.loss(*self.batch(1000, slice(None))).mean().item()}

    def export(self, figures, state):
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, self.out / "acts.safetensors")


def acts(out: Path, halves="", die: bool = False, low: bool = False, **changes) -> None:
    """Train the policy into `out`; `die`: while writing the state after KILLED_AT steps; `low`: in bfloat16."""
    from vipra_ros.learning import precision
    from vipra_ros.learning.loop import LoopConfig, run

    torch.set_num_threads(1)
    if low:
        precision.has_bf16 = lambda device: True
    write = torch.save

    def save_or_die(value, path, **options):
        if die and path == out / "state.pt.part" and value["state"]["step"] == KILLED_AT:
            Path(path).write_bytes(b"half a state")
            os.kill(os.getpid(), signal.SIGKILL)
        write(value, path, **options)

    torch.save = save_or_die
    job = Acts(halves, by_hand=not low)
    config = dict(steps=STEPS, batch=BATCH // (2 if halves else 1), lr=0.01, muon_lr=0.01, ema=0.9, warmup_steps=0,
                  bf16=low, clip=0.5, log_every=1, evaluate_every=3, save_seconds=0 if die else 60)
    job.out = out
    run(job, LoopConfig(**config | changes), out)
    (out / f"drawn{job.rank}.json").write_text(json.dumps(job.drawn))


def everything(folder: Path) -> None:
    """All trainings, each in processes of its own."""
    import torch._dynamo  # noqa: F401  what the children need is imported once
    from together import alone, together

    import vipra_ros.model.policy  # noqa: F401
    from vipra_ros.learning.log import Log

    Log.plot = lambda log: None  # takes longer than the rest

    said = {
        "one": alone(acts, folder / "one"),
        "passes": alone(lambda: acts(folder / "passes", "passes", accumulate=2)),
        "again": alone(lambda: acts(folder / "again", checkpointing=True)),
        "sharded": together(lambda: acts(folder / "sharded", "ranks", shard=True, checkpointing=True)),
        "cut": together(lambda: acts(folder / "cut", "ranks", die=True, shard=True)),
        "then": together(lambda: acts(folder / "cut", "ranks", shard=True)),
        "whole": together(lambda: acts(folder / "later", "ranks", die=True)),
        "divided": together(lambda: acts(folder / "later", "ranks", shard=True)),
        "low": together(lambda: acts(folder / "low", "ranks", low=True, shard=True)),
    }
    (folder / "said.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sharding")
    here = Path(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parent)])}
    subprocess.run([sys.executable, str(here), str(made)], check=True, env=environment, timeout=280)
    return made


def rows(out: Path, *names: str) -> dict[str, list[float]]:
    """Columns of the rows of a log."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {name: [r[name] for r in found if name in r] for name in names}


def test_all_ended_as_they_should(folder):
    said = json.loads((folder / "said.json").read_text())
    assert said.pop("cut")[0] == said.pop("whole")[0] == -signal.SIGKILL
    assert all(not any(code) if isinstance(code, list) else not code for code in said.values()), said


@pytest.mark.parametrize("name", ("sharded", "passes", "again", "later"))
def test_the_same_losses_as_one_process_with_the_whole_batch(folder, name):
    one, other = (rows(folder / n, "loss", "grad_norm", "held", "samples") for n in ("one", name))
    assert len(one["loss"]) == STEPS and one["loss"][-1] < one["loss"][0] and len(one["held"]) == 2
    assert other == {k: pytest.approx(v, rel=2e-4) for k, v in one.items()}


def test_bfloat16_stays_close(folder):
    one, low = (rows(folder / n, "loss")["loss"] for n in ("one", "low"))
    assert low != one and low == pytest.approx(one, rel=0.05)


def test_one_whole_checkpoint_and_state(folder):
    from safetensors.torch import load_file

    from vipra_ros.learning import resume
    from vipra_ros.learning.parallel import Team

    one, sharded = (load_file(folder / name / "acts.safetensors") for name in ("one", "sharded"))
    assert one.keys() == sharded.keys()
    for name in one:
        # Adam's first steps are as long as lr, 0.01, however small a gradient: its rounding shows.
        torch.testing.assert_close(sharded[name], one[name], rtol=1e-3, atol=1e-3)
    job = Acts("")
    kept = resume.read(folder / "sharded" / "state.pt", job, Team(0, 2))
    alone = torch.load(folder / "one" / "state.pt", weights_only=True)
    for optimiser, other in zip(kept["optimisers"], alone["optimisers"], strict=True):
        assert optimiser["state"].keys() == other["state"].keys()
        for number, moments in other["state"].items():
            for name, value in moments.items():
                torch.testing.assert_close(optimiser["state"][number][name], value, rtol=1e-2, atol=1e-4)
    assert [a.shape for a in kept["average"]] == [p.shape for p in job.model.parameters()]


def test_killed_and_started_again_equals_uninterrupted(folder):
    names = ("step", "loss", "grad_norm", "held")
    whole, cut = (rows(folder / n, *names) for n in ("sharded", "cut"))
    assert cut == {k: pytest.approx(v, rel=1e-6) for k, v in whole.items()}
    for rank in (0, 1):
        drawn = [json.loads((folder / n / f"drawn{rank}.json").read_text()) for n in ("sharded", "cut")]
        assert len(drawn[1]) == STEPS - KILLED_AT + 1 and drawn[0][KILLED_AT - 1:] == drawn[1], "as if never stopped"


def test_a_state_from_before_these_options_goes_on():
    from vipra_ros.learning.latent import LatentTraining
    from vipra_ros.learning.loop import LoopConfig, identity_of

    config = LatentTraining(loop=LoopConfig(steps=5))
    loop = json.loads(identity_of(config))[0]["loop"]
    assert not {"accumulate", "shard", "checkpointing", "tensorboard"} & loop.keys()
    other = dataclasses.replace(config, loop=LoopConfig(steps=5, accumulate=2))
    assert identity_of(other) != identity_of(config), "another number of observations a step"


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
