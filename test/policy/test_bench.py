"""The floor's arithmetic against numbers worked out by hand, and the shape of what `vipra bench policy` writes."""

import dataclasses
import json

import pytest
import torch

from vipra_ros.cli import main
from vipra_ros.config import ConfigError
from vipra_ros.model.policy import PolicyConfig
from vipra_ros.model.vq import VQConfig
from vipra_ros.policy import floor
from vipra_ros.policy.floor import Machine, Pass
from vipra_ros.policy.random_policy import random_checkpoint, sizes

PATCH = VQConfig(kind="patch", image_size=128, patch=8, codebook_size=2048, code_dim=24)


def test_flop_and_bytes_of_the_tiny_network():
    """Width 192, 6 layers, inner 512; 47 tokens before a chunk of 14, everything seen both ways."""
    config = PolicyConfig(bidirectional_prefix=True, bidirectional_actions=True, grid=16)
    encode, first, step = floor.passes(config, PATCH, 47, 10)
    layer = 4 * 192 * 192 + 3 * 192 * 512
    assert layer == 442_368 and floor.trunk_weights(config) == 2_654_208
    # in: 8 x 96, mixing the action's half 96 x 192, out 192 x 192, head 192 x 8
    ends = 768 + 18_432 + 36_864 + 1_536
    assert step.flop == 2 * 14 * (2_654_208 + ends) + 6 * 4 * 192 * 14 * (47 + 14) == 79_865_856
    # Five whole layers of the prefix, keys and values of the sixth, 47 x 47 scores in five of them.
    assert first.flop == step.flop + 2 * 47 * (5 * layer + 2 * 192 * 192) + 5 * 4 * 192 * 47 * 47
    assert step.bytes == 4 * (2_654_208 + ends) + 4 * 2 * 6 * 192 * 47 == first.bytes
    assert (encode.count, first.count, step.count) == (1, 1, 9)
    # Two frames of 256 cells: 192 numbers to 24, those against 2048 codes.
    assert encode.flop == 2 * 256 * 2 * (192 * 24 + 24 * 2048) == 55_050_240


def test_the_papers_network_is_bound_by_its_weights():
    """LLaMA-7B's trunk has 6.48 G numbers; at 3.35 TB/s a step of bfloat16 takes 3.9 ms whatever its FLOP."""
    config, vq = sizes("paper")
    encode, first, step = floor.passes(config, vq, 650, 10, 2)
    assert floor.trunk_weights(config) == 32 * (4 * 4096**2 + 3 * 4096 * 11008) == 6_476_005_376
    assert abs(step.bytes / 1e9 - 13.34) < 0.02 and abs(step.flop / 1e9 - 186.8) < 1.0
    h100 = Machine(989e12, 3.35e12, "data sheet")
    assert abs(h100.ms(step) / 9 - 3.98) < 0.02
    assert abs(h100.ms(first) - 8.6) < 0.3
    assert abs(encode.flop / 2 / 1e12 - 0.22) < 0.02  # of a frame, by LWM's convolutions


def test_causal_blocks_cost_the_pairs_that_are_looked_at():
    both = PolicyConfig(bidirectional_prefix=True, bidirectional_actions=True)
    causal = dataclasses.replace(both, bidirectional_prefix=False, bidirectional_actions=False)
    (_, one, a), (_, two, b) = (floor.passes(c, PATCH, 40, 10)[:3] for c in (both, causal))
    assert a.flop - b.flop == 6 * 4 * 192 * (14 * 14 - 105)
    assert (one.flop - a.flop) - (two.flop - b.flop) == 5 * 4 * 192 * (1600 - 820)


def test_flop_and_bytes_of_a_chunk_token_by_token():
    """A causal chunk of 14 x 8 tokens behind 40: one pass over the prefix, whose end gives the first, and 111 more."""
    flow = PolicyConfig()
    discrete = dataclasses.replace(flow, decoder="discrete", action_bins=100)
    (encode, first, _), (same, prefix, token) = (floor.passes(c, PATCH, 40, 10) for c in (flow, discrete))
    trunk, layer = floor.trunk_weights(discrete), 4 * 192 * 192 + 3 * 192 * 512
    assert encode == same and (prefix.count, token.count) == (1, 111)
    lead = 2 * 40 * (5 * layer + 2 * 192 * 192) + 5 * 4 * 192 * 820
    assert prefix.flop == lead + 2 * (2 * 192 * 192 + 3 * 192 * 512) + 4 * 192 * 40 + 2 * 192 * 100
    # Heads of the 111 later tokens: 97 of joints with 100 rows, 14 of the hand with two. Half of 112 tokens lie before.
    rows = (97 * 100 + 14 * 2) / 111
    assert token.flop == int(2 * trunk + 2 * 192 * rows + 6 * 4 * 192 * 96)
    assert token.bytes == int(4 * (trunk + 192 * rows + 2 * 6 * 192 * 96))
    assert first.flop > prefix.flop


def test_the_slower_of_arithmetic_and_memory_counts():
    machine = Machine(1e9, 1e9, "")
    assert machine.ms(Pass("", 2_000_000, 1_000_000, 3)) == pytest.approx(6.0)
    assert machine.ms(Pass("", 1_000_000, 4_000_000)) == pytest.approx(4.0)


def test_memory_of_the_papers_network():
    config, vq = sizes("paper")
    half, eighth = (floor.memory(config, vq, 650, b) for b in (2, 1))
    assert half["trunk"] == pytest.approx(12.952, abs=1e-3) and eighth["trunk"] == pytest.approx(6.476, abs=1e-3)
    assert half["keys and values"] == pytest.approx(2 * 32 * 664 * 4096 * 2 / 1e9)
    assert half["sum"] - eighth["sum"] == pytest.approx(6.476, abs=1e-3)
    # 32000 + 8194 rows of 4096, the three action layers and the head
    rest = (32000 + 8194) * 4096 + (8 * 2048 + 2048) + 2 * (4096**2 + 4096) + (4096 * 8 + 8) + 65 * 4096
    assert half["tables and heads"] == pytest.approx(2 * rest / 1e9, rel=1e-3)


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setitem(floor.SIDE, "cpu", 128)
    monkeypatch.setitem(floor.COPY, "cpu", 1_000_000)


def test_the_figures_of_a_run(micro_checkpoint, small_machine, tmp_path, capsys):
    out = tmp_path / "new" / "figures.json"
    words = f"bench policy --checkpoint {micro_checkpoint} --engine eager,torch,static --n 12 --steps 2,4 --device cpu"
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--observations", "3", "--json", str(out), "--plot", str(tmp_path / "p.png")])
    assert ended.value.code in (None, 0)
    figures = json.loads(out.read_text())
    assert [row["engine"] for row in figures["engines"]] == ["eager", "torch", "static"]
    for row in [figures, *figures["engines"]]:
        assert row["n"] == 12 and row["device"] == "cpu" and row["preset"] == "tiny"
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["ratio_to_floor"] == pytest.approx(row["p50_ms"] / row["floor_ms"], rel=0.05)
        assert {"decode", "resize", "encode", "denoise", "denormalise"} <= row["stages"].keys()
    counted = {row["engine"]: row["operations"] for row in figures["engines"]}
    assert 50 < counted["static"] < counted["torch"] < counted["eager"]
    best = min(figures["engines"], key=lambda row: row["p50_ms"])
    assert all(figures[key] == value for key, value in best.items())
    # eager has no prefix of its own; the others' first step is counted with it, or beside it
    assert [len(row["euler_steps_p50_ms"]) for row in figures["engines"]] == [4, 4, 3]
    assert sum(p["floor_ms"] for p in figures["work"]) == pytest.approx(figures["floor_ms"], abs=1e-2)
    assert {"load_before", "load_after", "gflops", "copy_gbytes_per_s", "versions"} <= figures["machine"].keys()
    two, four = figures["steps"]
    assert 0 < four["to_100_rad"]["mean"] < two["to_100_rad"]["mean"]
    assert 0 < two["to_10_rad"]["mean"] <= two["to_10_rad"]["max"]
    assert all(row["p50_ms"] > 0 and row["engine"] == best["engine"] for row in (two, four))
    assert (tmp_path / "p.png").stat().st_size > 10_000
    assert "/floor" in capsys.readouterr().out


def test_a_chunk_token_by_token_is_measured_by_the_same_stages(discrete_folder, small_machine, tmp_path, capsys):
    out = tmp_path / "ar.json"
    words = ["bench", "policy", "--checkpoint", str(discrete_folder), "--device", "cpu", "--n", "2", "--json", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--plot", str(tmp_path / "p.png")])
    assert ended.value.code in (None, 0)
    figures = json.loads(out.read_text())
    assert (figures["decoder"], figures["tokens"]) == ("discrete", 112) and "euler_steps" not in figures
    assert [row["engine"] for row in figures["engines"]] == ["eager", "torch"]
    lean = figures["engines"][1]
    assert {"decode", "resize", "encode", "prefill", "tokens", "denormalise"} == lean["stages"].keys()
    assert lean["euler_steps_p50_ms"] == [] and 0 < lean["token_p50_ms"] < lean["stages"]["tokens"]["p50_ms"] / 50
    assert [p["pass"] for p in figures["work"]] == ["encode", "prefix", "token"]
    assert "112 tokens" in capsys.readouterr().out
    for more, said in ((["--steps", "4"], "without Euler steps"), (["--euler-steps", "4"], "without Euler steps")):
        with pytest.raises(SystemExit):
            main([*words, *more])
        assert said in capsys.readouterr().err


def test_fewer_euler_steps_are_what_is_timed(micro_checkpoint, small_machine, tmp_path):
    out = tmp_path / "figures.json"
    words = f"bench policy --checkpoint {micro_checkpoint} --engine torch --device cpu --n 2 --euler-steps 3"
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--json", str(out)])
    figures = json.loads(out.read_text())
    assert ended.value.code in (None, 0)
    assert figures["euler_steps"] == len(figures["euler_steps_p50_ms"]) == 3
    assert figures["work"][-1]["count"] == 2


def test_random_weights_stay_numbers():
    from vipra_ros.policy.bench import observe, pictures
    from vipra_ros.policy.engine import load_engine

    loaded = random_checkpoint("tiny", dtype=torch.bfloat16)
    prediction = load_engine(loaded, "static", 1).infer(observe(loaded, pictures(loaded, 1)[0])[0], seed=0)
    assert prediction.actions.shape == (14, 8)
    loaded = random_checkpoint("tiny", dtype=torch.bfloat16, decoder="discrete")
    prediction = load_engine(loaded, "torch", 1).infer(observe(loaded, pictures(loaded, 1)[0])[0], seed=0)
    assert prediction.actions.shape == (14, 8) and set(prediction.actions[:, -1]) <= {-1.0, 1.0}
    with pytest.raises(ConfigError, match="huge"):
        random_checkpoint("huge")


@pytest.mark.parametrize(
    "words, said",
    [
        ("--preset paper", "add --random"),
        ("--decoder discrete", "add --random"),
        ("--n 0", "at least one"),
        ("--engine warp", "'warp'"),
        ("--steps 4,x", "for instance 4,5,10"),
        ("--device cuda:99", "device = 'cuda:99'"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "policy", *words.split()])
    assert said in capsys.readouterr().err
