"""Every stage, killed by SIGKILL while it writes its state, goes on with the losses of the run that nobody killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STEPS, KILLED_AT = 6, 4
LOOP = (f"{{steps: {STEPS}, batch: 4, lr: 0.01, muon_lr: 0.01, ema: 0.9, warmup_steps: 2, evaluate_every: 100, "
        "log_every: 1, bf16: false, save_seconds: 0, threads: 1}")
TRUNK = "vision_merge: 2, backbone: {width: 16, layers: 1, heads: 2, ffn: 16}"
STAGES = {
    "latent": f"""
fps: 15
frames: 3
evaluate_on: 2
flow_from_step: 0
replace_every: 2
loop: {LOOP.replace("muon_lr: 0.01, ", "")}
model: {{image_size: 32, patch: 8, image_encoder: vit, image_layers: 1, width: 16, heads: 2, inverse_blocks: 1,
        forward_blocks: 1, code_dim: 8}}
""",
    "pretrain": f"vq: VQ\nevaluate_on: 4\nloop: {LOOP}\npolicy: {{{TRUNK}}}\n",
    "finetune": f"vq: VQ\nevaluate_on: 4\nproprio_noise: 0.1\nloop: {LOOP}\npolicy: {{proprio_steps: 1, {TRUNK}}}\n",
}


def train(stage: str, folder: Path, out: Path) -> None:
    """One run of a stage on what `folder` holds."""
    from stand_in import StandIn

    from vipra_ros.learning import finetune, latent, pretrain

    preset = folder / f"{stage}.yaml"
    if stage == "latent":
        latent.train(folder / "videos", out, preset)
    elif stage == "pretrain":
        pretrain.train(StandIn(), folder / "labels", out, preset)
    else:
        finetune.train(StandIn(), out, preset)


def killed(folder: Path) -> None:
    """Every stage in a process of its own that is killed in the middle of writing its state after KILLED_AT steps."""
    import torch

    import vipra_ros.learning.finetune  # noqa: F401  what the children need is imported once

    write = torch.save

    def save_or_die(value: dict, path: Path) -> None:
        if value["state"]["step"] < KILLED_AT:
            return write(value, path)
        Path(path).write_bytes(b"half a state")
        os.kill(os.getpid(), signal.SIGKILL)

    for stage in STAGES:
        child = os.fork()
        if not child:
            torch.save = save_or_die
            train(stage, folder, folder / stage / "cut")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def outcome(out: Path) -> tuple[list, list[str]]:
    """(step, loss) of every row of the log, and what the weights' files hold."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    files = sorted(out.rglob("*.safetensors"))
    return ([(r["step"], r["loss"]) for r in rows if r["kind"] == "train"],
            [hashlib.sha256(f.read_bytes()).hexdigest() for f in files])


@pytest.fixture(scope="module")
def folder(data, quantiser, tmp_path_factory):
    from test_latent_training import write_video
    from test_pretrain import write_labels

    made = tmp_path_factory.mktemp("killed")
    (made / "videos").mkdir()
    for i in range(3):
        write_video(made / "videos" / f"{i}.mp4", i, length=8)
    write_labels(made / "labels", data)
    for stage, text in STAGES.items():
        (made / f"{stage}.yaml").write_text(text.replace("VQ", str(quantiser)))
    here = Path(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parent)])}
    subprocess.run([sys.executable, str(here), str(made)], check=True, env=environment, timeout=280)
    return made


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_started_again_equals_uninterrupted(folder, stage):
    whole, cut = folder / stage / "whole", folder / stage / "cut"
    assert (cut / "state.pt.part").read_bytes() == b"half a state"
    assert max(step for step, _ in outcome(cut)[0]) == KILLED_AT
    train(stage, folder, whole)
    train(stage, folder, cut)
    losses, weights = outcome(cut)
    assert [step for step, _ in losses] == list(range(1, STEPS + 1)) and weights
    assert (losses, weights) == outcome(whole)


if __name__ == "__main__":
    killed(Path(sys.argv[1]))
