"""Two processes on one machine train a stage together, started by what torchrun and accelerate launch are made of."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEPS = 60


class Line:
    """y = 3 x, one weight; the bias is changed by hand at random, as a quantiser's codes are."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(1, 1)
        self.model.bias.requires_grad_(False)
        self.model.register_buffer("seen", torch.zeros((), dtype=torch.bool))
        self.by_hand = [self.model.bias]
        self.hidden_matrices, self.identity, self.drawn = [], "line", []

    def loss(self, generator, progress):
        x = torch.randn(8, 1, generator=generator)
        self.drawn.append(x[0].item())
        return (self.model(x) - 3 * x).pow(2).mean(), {}

    def after_step(self, generator, step, progress):
        self.model.bias.data += 0.01 * torch.randn(1, generator=generator)

    def evaluate(self):
        return {"off": abs(self.model.weight.item() - 3)}

    def export(self, figures, state):
        pass


def trained(out: Path, stop: int = 0) -> dict:
    """Weights, first numbers drawn and samples counted of one process."""
    from vipra_ros.learning.loop import Interrupted, LoopConfig, run

    job, config = Line(), LoopConfig(steps=STEPS, batch=8, lr=0.3, warmup_steps=0, bf16=False, log_every=1)
    samples, told = 0, bool(stop) and os.environ["RANK"] == "1"  # the other one must stop with it
    try:
        samples = run(job, config, out, lambda state: told and state.step >= stop).samples
    except Interrupted:
        pass
    return {"weight": job.model.weight.item(), "bias": job.model.bias.item(), "drawn": job.drawn, "samples": samples}


def launch(folder: Path) -> None:
    """torchrun --standalone --nproc_per_node 2, whose processes are forked and need not import torch again."""
    import torch._dynamo  # noqa: F401  imported once for both
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    import vipra_ros.learning.latent  # noqa: F401

    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="two", rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, start_method="fork")
    elastic_launch(config, member)(folder)


def member(folder: Path) -> None:
    """What each of the two processes does."""
    from vipra_ros.learning import latent
    from vipra_ros.learning.log import Log

    torch.set_num_threads(1)
    draw, Log.plot = Log.plot, lambda log: None  # takes longer than the rest
    said = {"whole": trained(folder / "whole"), "first": trained(folder / "cut", STEPS // 2),
            "then": trained(folder / "cut")}
    Log.plot = draw
    sharded = {"loop.shard": True, "loop.save_seconds": 60}
    latent.train(folder / "videos", folder / "together", folder / "latent.yaml", sharded)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from test_killed import STAGES
    from test_latent_training import write_video

    made = tmp_path_factory.mktemp("parallel")
    (made / "videos").mkdir()
    for i in range(3):
        write_video(made / "videos" / f"{i}.mp4", i, length=8)
    (made / "latent.yaml").write_text(STAGES["latent"].replace("steps: 6", "steps: 9") + "flow: none\n")
    here = Path(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parent)]),
                                "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(here), str(made)], check=True, env=environment, timeout=280)
    return made


def test_both_have_one_model_from_batches_of_their_own(folder):
    a, b = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    for run in ("whole", "then"):
        assert (a[run]["weight"], a[run]["bias"]) == (b[run]["weight"], b[run]["bias"])
    assert not set(a["whole"]["drawn"]) & set(b["whole"]["drawn"]) and a["whole"]["samples"] == 16 * STEPS
    assert abs(a["whole"]["weight"] - 3) < 0.2
    rows = [json.loads(line) for line in (folder / "whole" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(1, STEPS + 1)), "one process logs"


def test_stopped_together_they_go_on_identically(folder):
    for rank in (0, 1):
        said = json.loads((folder / f"{rank}.json").read_text())
        assert len(said["first"]["drawn"]) == STEPS // 2, "one was told to stop, both did"
        assert said["first"]["drawn"] + said["then"]["drawn"] == said["whole"]["drawn"]
        assert (said["then"]["weight"], said["then"]["bias"]) == (said["whole"]["weight"], said["whole"]["bias"])


def test_another_number_of_processes_is_refused(folder):
    from vipra_ros.config import ConfigError

    with pytest.raises(ConfigError, match="a run of 2 processes, not 1"):
        trained(folder / "whole")


def test_a_stage_trained_together_is_laid_out_as_one_trained_alone(folder):
    from vipra_ros.learning import latent

    alone = latent.train(folder / "videos", folder / "alone", folder / "latent.yaml", {"loop.steps": 3})

    def layout(out):
        return {str(p.relative_to(out)) for p in out.rglob("*")}

    assert layout(folder / "together") == layout(alone)
    rows = [json.loads(line) for line in (folder / "together" / "log.jsonl").read_text().splitlines()]
    losses = [r["l1"] for r in rows if r["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    model, notes = latent.load_latent(folder / "together")
    assert notes["state"]["samples"] == 6 * latent.load_latent(alone)[1]["state"]["samples"], "three times the steps"
    assert "psnr" in notes["figures"]


if __name__ == "__main__":
    launch(Path(sys.argv[1]))
