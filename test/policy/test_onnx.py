"""Exported graphs answer as torch does, at any length of instruction, and refuse what is not theirs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.policy import FlowPolicy, PolicyConfig, Prefix
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.observation import Observation

pytest.importorskip("onnxruntime")
#: Largest difference in normalised actions: fp32 is rounding, fp16 has 11 bits.
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2}


@pytest.fixture(scope="module")
def checkpoint(micro_checkpoint):
    return Checkpoint.load(micro_checkpoint)


@pytest.fixture(scope="module")
def graphs(micro_checkpoint, tmp_path_factory):
    """By the command, in a process of its own: under pytest's log handler the exporter writes megabytes of traces."""
    out = tmp_path_factory.mktemp("onnx") / "graphs"
    command = [sys.executable, "-m", "vipra_ros.cli", "export", str(micro_checkpoint), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def observation(checkpoint, words, seed=0):
    size = checkpoint.config.image_size
    frames = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    return Observation(1.0, {"front": frames}, words)


def test_the_same_chunk_as_torch_at_any_length_and_number_of_steps(checkpoint, graphs):
    for steps in (0, 3):
        ours = load_engine(checkpoint, "onnx", 1, steps, graphs=graphs)
        theirs = load_engine(checkpoint, "torch", 1, steps)
        for words in ("reach", "reach above the red cube", "push the blue cube into the left zone please now"):
            seen = observation(checkpoint, words)
            a, b = ours.infer(seen, seed=3), theirs.infer(seen, seed=3)
            difference = np.abs(a.actions - b.actions) / checkpoint.normaliser.action_std
            assert difference.max() < TOLERANCE["fp32"], words
            assert {"encode", "prefill", "denoise", "total"} <= a.timing.keys()
    moved = ours.infer(observation(checkpoint, "reach", 1), seed=4).actions
    assert np.abs(moved - a.actions).max() > 1e-4


@pytest.mark.parametrize("dtype, name", [(torch.float32, "fp32"), (torch.float16, "fp16")])
@pytest.mark.parametrize("causal", [True, False])
def test_the_graphs_are_the_samplers_arithmetic(dtype, name, causal):
    """What is exported, run by torch: causal and two-way masks, joints as tokens, half precision."""
    from vipra_ros.policy.export import PrefillGraph, StepGraph
    from vipra_ros.policy.lean import LeanSampler

    torch.manual_seed(0)
    config = PolicyConfig(
        backbone=BackboneConfig(width=48, layers=3, heads=2, ffn=64), text_vocab=32, codebook_size=16, grid=4,
        proprio_steps=2, bidirectional_prefix=not causal, bidirectional_actions=not causal,
    )
    policy = FlowPolicy(config).eval().requires_grad_(False)
    torch.nn.init.normal_(policy.head.weight, std=0.3)
    before, codes = torch.randint(0, 32, (1, 6)), torch.randint(0, 16, (1, 2, 1, 16))
    proprio, noise = torch.randn(1, 2, 8), torch.randn(1, 14, 8)
    prefix = Prefix(
        before, torch.ones_like(before, dtype=torch.bool), codes, torch.tensor([3, 4]), torch.tensor([5]), proprio
    )
    lean = LeanSampler(policy, 4)
    keys, values = PrefillGraph(lean, [3, 4], [5], dtype)(before, codes, proprio)
    step, x, dt = StepGraph(lean, dtype), noise, torch.tensor([0.25])
    for k in range(4):
        x = step(x, k * dt, dt, keys, values)
    expected = lean(prefix, noise)
    assert (expected - noise).abs().max() > 0.1
    assert (x - expected).abs().max() < TOLERANCE[name]


def test_weights_too_large_for_one_message_lie_beside_the_graph(checkpoint, micro_checkpoint, graphs, tmp_path):
    """The limit made small instead of the network large; moved afterwards, as a robot's copy is."""
    out, moved = tmp_path / "made" / "graphs", tmp_path / "elsewhere"
    program = (
        "import sys; from vipra_ros.policy import export; from vipra_ros.policy.checkpoint import Checkpoint; "
        "export.EXTERNAL = 1000; export.export(Checkpoint.load(sys.argv[1]), sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(micro_checkpoint), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    out.rename(moved)
    beside = {p.name: p.stat().st_size for p in moved.iterdir() if p.name.endswith(".data")}
    about = json.loads((moved / "graphs.json").read_text())
    assert set(beside) == {"prefill.onnx.data", "step.onnx.data"} and set(beside) < set(about["files"])
    for name in ("prefill", "step"):
        graph, whole = (folder / f"{name}.onnx" for folder in (moved, graphs))
        assert beside[f"{name}.onnx.data"] > 10_000 and graph.stat().st_size < whole.stat().st_size
    ours, theirs = (load_engine(checkpoint, "onnx", 1, graphs=folder) for folder in (moved, graphs))
    seen = observation(checkpoint, "reach above the red cube")
    assert np.array_equal(ours.infer(seen, seed=3).actions, theirs.infer(seen, seed=3).actions)


def test_graphs_keep_to_themselves_where_they_were_made(graphs):
    for file in graphs.glob("*.onnx"):
        assert b"export.py" not in file.read_bytes(), file


def test_graphs_of_another_checkpoint_are_refused(checkpoint, graphs, tmp_path):
    with pytest.raises(CheckpointError, match=r"no graphs\.json"):
        load_engine(checkpoint, "onnx", graphs=tmp_path)
    about = json.loads((graphs / "graphs.json").read_text())
    (tmp_path / "graphs.json").write_text(json.dumps({**about, "checkpoint": "f" * 64}))
    with pytest.raises(CheckpointError, match="ffffffff"):
        load_engine(checkpoint, "onnx", graphs=tmp_path)
    with pytest.raises(CheckpointError, match="this onnxruntime has"):
        load_engine(checkpoint, "tensorrt", graphs=graphs, device="cuda")


def test_nothing_that_is_not_a_graph_is_overwritten(checkpoint, tmp_path):
    from vipra_ros.policy.export import export

    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="other files"):
        export(checkpoint, tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(ConfigError, match="int4"):
        export(checkpoint, tmp_path / "new", "int4")
