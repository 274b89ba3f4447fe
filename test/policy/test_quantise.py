"""Matrices in 8 bits: how far a number moves, that the products are those of the moved numbers, and who takes them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from vipra_ros.cli import main
from vipra_ros.config import ConfigError, build
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.policy import FlowPolicy, PolicyConfig
from vipra_ros.nodes.policy_settings import PolicySettings
from vipra_ros.policy import floor
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.engine import load_engine, open_engine
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.prior import Prior
from vipra_ros.policy.quantise import ROWS, Quantised, keep, linear
from vipra_ros.policy.sampler import draw_noise
from vipra_ros.policy.static import StaticSampler
from vipra_ros.policy.weights import WEIGHTS

IN_8_BITS, DYNAMIC = WEIGHTS[1:], WEIGHTS[3:]
CONFIG = PolicyConfig(
    backbone=BackboneConfig(width=48, layers=3, heads=2, ffn=64, attention="sdpa"), text_vocab=32, codebook_size=16,
    grid=4, proprio_steps=2,
)  # fmt: skip


def matrix(dtype=torch.float32):
    """Rows of very different size, one of zeros."""
    rows = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 48)[:, None]
    rows[7] = 0.0
    return rows.to(dtype)


def activations(dtype=torch.float32):
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 10).view(2, 5, 1)
    x[1, 2] = 0.0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", IN_8_BITS)
def test_a_number_moves_by_half_a_step_of_its_own_row(weights, dtype):
    weight = matrix(dtype)
    kept, exact = Quantised(weight, weights), weight.float()
    moved, largest = (kept.dequantised() - exact).abs(), exact.abs().amax(1, keepdim=True)
    if weights.startswith("int8"):  # half of 1/127, and bfloat16's share: the largest number may be cut off
        bound = largest * (0.5 / 127 + (2**-8 if dtype == torch.bfloat16 else 1e-6))
    else:  # three bits behind the point; below 2^-6 of 448 steps of 2^-9
        bound = torch.maximum(exact.abs() / 16, largest / 448 / 1024) * 1.01
    assert (moved <= bound).all() and (moved > 0.2 * bound).any()
    assert not kept.dequantised()[7].any()
    assert kept.nbytes == 48 * 64 + 48 * kept.scale.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", IN_8_BITS)
def test_a_product_is_the_one_of_the_moved_numbers(weights, dtype):
    x, kept = activations(dtype), Quantised(matrix(dtype), weights)
    found, seen = linear(x, kept), x.float()
    if kept.dynamic:  # each token is moved by a scale of its own
        scale = seen.abs().amax(-1, keepdim=True).clamp_min(1e-30) / kept.largest
        seen = (seen / scale).round() if kept.dtype == torch.int8 else (seen / scale).to(kept.dtype).float()
        seen = seen * scale
    expected = F.linear(seen, kept.dequantised())
    close = 2e-6 if dtype == torch.float32 else 1e-2
    size = seen.norm(dim=-1, keepdim=True) * kept.dequantised().norm(dim=1)
    assert found.dtype == dtype and found.shape == (2, 5, 48)
    assert ((found.float() - expected).abs() <= close * size).all()
    assert not found[1, 2].any()
    assert torch.equal(linear(x, keep(matrix(dtype), "full")), F.linear(x, matrix(dtype)))


@pytest.mark.parametrize("weights", DYNAMIC)
def test_what_is_not_a_number_does_not_become_one(weights):
    x = activations()
    x[0, 1, 3] = torch.nan
    found = linear(x, Quantised(matrix(), weights))
    assert found[0, 1].isnan().all() and found[0, 0].isfinite().all()


@pytest.mark.parametrize("weights", IN_8_BITS)
def test_a_gpus_products_get_what_they_ask_for(weights, monkeypatch):
    """torch's own rules for tensors of a GPU that is not there; cuBLAS's rule of more than 16 rows is ours to keep."""
    taken = []
    original = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: taken.append(len(a)) or original(a, b))
    for dtype in (torch.bfloat16, torch.float32):
        with FakeTensorMode():
            kept = Quantised(torch.empty(96, 64, device="cuda", dtype=dtype), weights)
            for rows in (14, 664):
                found = kept(torch.empty(1, rows, 64, device="cuda", dtype=dtype))
                assert (found.shape, found.dtype, found.device.type) == ((1, rows, 96), dtype, "cuda")
    assert taken == ([32, 672] * 2 if weights == "int8_dynamic" else []) and ROWS > 16


@pytest.mark.parametrize("weights", IN_8_BITS)
def test_samplers_differ_from_full_weights_by_the_moved_numbers_alone(weights, prefix_of):
    torch.manual_seed(0)
    policy = FlowPolicy(CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(policy.head.weight, 0.0, 0.2)  # it begins with zeros, and everything would be alike
    prefix, noise = prefix_of(CONFIG, 1, False), draw_noise(policy, 1, 0)
    exact, ours = LeanSampler(policy, 4), LeanSampler(policy, 4, weights=weights)
    found, full = ours(prefix, noise), exact(prefix, noise)
    away = (found - full).abs().max()
    assert 1e-5 < away < (0.02 if weights.startswith("int8") else 0.1)
    assert torch.allclose(StaticSampler(policy, 4, weights=weights)(prefix, noise), found, atol=2e-5)
    assert ours.trunk_bytes < 0.3 * exact.trunk_bytes
    if weights not in DYNAMIC:
        exact.layers = [tuple(m.dequantised() for m in layer) for layer in ours.layers]
        assert torch.allclose(exact(prefix, noise), found, atol=2e-5)


def seen(checkpoint, seed=0, prior=None):
    size = checkpoint.config.image_size
    frames = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    return Observation(1.0, {"front": frames}, "reach above the red cube", prior=prior)


@pytest.mark.parametrize("kind", ["torch", "static"])
def test_an_engine_answers_nearly_as_with_full_weights_and_holds_nothing_twice(kind, micro_checkpoint):
    theirs = open_engine(micro_checkpoint, "torch", "cpu", 1)
    sizes = {}
    for weights in IN_8_BITS:
        ours = open_engine(micro_checkpoint, kind, "cpu", 1, weights=weights)
        ours.warm_up()
        assert ours.name == kind and not list(ours.checkpoint.policy.trunk.layers.parameters())
        observation = seen(ours.checkpoint)
        away = np.abs(ours.infer(observation, 3).actions - theirs.infer(observation, 3).actions)[:, :-1].max()
        sizes[weights] = away
        assert 0 < away < 5e-3  # rad; the network stays at home within 0.004
        assert ours.trunk_bytes < 0.3 * theirs.trunk_bytes
    assert max(sizes["int8"], sizes["fp8"]) == sizes["fp8"]


def test_auto_with_8_bits_is_torch(micro_checkpoint):
    assert open_engine(micro_checkpoint, "auto", "cpu", 1, weights="int8").name == "torch"


def test_a_discrete_decoder_takes_them_too(discrete_folder):
    checkpoint = Checkpoint.load(discrete_folder)
    ours, theirs = (load_engine(checkpoint, "torch", 1, weights=w) for w in ("int8", "full"))
    actions = [e.infer(seen(checkpoint), 0).actions for e in (ours, theirs)]
    assert np.isfinite(actions[0]).all() and ours.trunk_bytes < 0.3 * theirs.trunk_bytes
    assert np.mean(actions[0] == actions[1]) > 0.5  # the same bins, but where two are nearly alike


def test_guidance_goes_through_weights_of_8_bits(micro_checkpoint):
    checkpoint = Checkpoint.load(micro_checkpoint)
    ours, theirs = (load_engine(checkpoint, "torch", 1, rtc="guided", weights=w) for w in ("int8", "full"))
    rows = ours.infer(seen(checkpoint, 1), 1).actions + 0.002
    answers = [e.infer(seen(checkpoint, prior=Prior(rows[:8], 3)), 0).actions for e in (ours, theirs)]
    assert np.abs(answers[0] - answers[1])[:, :-1].max() < 2e-3
    assert np.array_equal(answers[0][:3], rows[:3])


@pytest.mark.parametrize(
    "given, said",
    [
        ({"weights": "int4"}, "weights = 'int4': choose 'full', 'int8', 'fp8'"),
        ({"kind": "fused", "weights": "int8"}, "'fused', which computes with full ones: choose engine 'torch'"),
        ({"kind": "eager", "weights": "fp8"}, "choose engine 'torch' or 'static', or weights 'full'"),
        ({"rtc": "guided", "weights": "int8_dynamic"}, "have no gradient: choose weights 'int8'"),
    ],
)
def test_what_does_not_go_together_is_one_line(given, said, micro_checkpoint):
    for opened in (open_engine, lambda folder, **given: load_engine(Checkpoint.load(folder), **given)):
        with pytest.raises(ConfigError, match=said) as error:
            opened(micro_checkpoint, **{"kind": "torch", **given})
        assert "\n" not in str(error.value)


def test_a_width_that_the_hardware_does_not_take_is_one_line():
    for weights, instead in zip(DYNAMIC, ("int8", "fp8")):
        with pytest.raises(CheckpointError, match=rf"\(48, 40\), both sides .* choose weights '{instead}'"):
            Quantised(torch.zeros(48, 40), weights)
        assert Quantised(torch.zeros(48, 40), instead)(torch.ones(3, 40)).shape == (3, 48)


def test_the_nodes_parameter_is_checked_before_anything_is_loaded():
    assert build(PolicySettings, {"weights": "int8"}, source="node").weights == "int8"
    assert PolicySettings().weights == "full"
    for given, said in (({"weights": "int9"}, "'int8', 'fp8'"), ({"weights": "fp8", "engine": "onnx"}, "full ones"),
                        ({"weights": "fp8", "engine": "remote"}, "where the server computes")):
        with pytest.raises(ConfigError, match=said):
            build(PolicySettings, given, source="node")


def test_the_bench_lists_time_size_and_error(micro_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(floor.SIDE, "cpu", 128)
    monkeypatch.setitem(floor.COPY, "cpu", 1_000_000)
    out = tmp_path / "weights.json"
    words = f"bench policy --checkpoint {micro_checkpoint} --engine eager,torch --device cpu --n 2 --observations 3"
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--weights", "int8,fp8,fp8_dynamic", "--json", str(out)])
    assert ended.value.code in (None, 0)
    figures = json.loads(out.read_text())
    rows = {row["engine"]: row for row in figures["engines"]}
    assert list(rows) == ["eager", "torch", "torch int8", "torch fp8", "torch fp8_dynamic"]
    assert rows["torch int8"]["weights"] == "int8" and rows["torch"]["weights"] == "full"
    assert rows["torch int8"]["trunk_mbytes"] < 0.3 * rows["torch"]["trunk_mbytes"]
    errors = {(row["activations"], row["weights"]): row for row in figures["weight_errors"]}
    assert list(errors) == [(d, w) for d in ("float32", "bfloat16") for w in ("full", "int8", "fp8", "fp8_dynamic")]
    assert errors["float32", "full"]["rad"]["max"] == 0.0 and errors["float32", "full"]["n"] == 3
    for row in list(errors.values())[1:]:
        rad = row["rad"]
        assert 0 < rad["p50"] <= rad["p95"] <= rad["max"] < 0.01 and row["executed_rad"]["max"] <= rad["max"]
        assert rad["p95"] <= row["chunk_max_rad"]["p95"] <= row["chunk_max_rad"]["max"] == rad["max"]
    assert errors["float32", "int8"]["rad"]["mean"] < errors["float32", "fp8"]["rad"]["mean"]
    assert errors["bfloat16", "full"]["trunk_mbytes"] == 0.5 * errors["float32", "full"]["trunk_mbytes"]
    assert "mrad, n = 3" in capsys.readouterr().out


def test_the_sizes_of_nobodys_weights_are_listed_without_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(floor.SIDE, "cpu", 128)
    monkeypatch.setitem(floor.COPY, "cpu", 1_000_000)
    out = tmp_path / "weights.json"
    with pytest.raises(SystemExit) as ended:
        main(["bench", "policy", "--random", "--device", "cpu", "--dtype", "bfloat16", "--engine", "static", "--n", "1",
              "--weights", "fp8_dynamic,int8_dynamic", "--json", str(out)])
    assert ended.value.code in (None, 0)
    figures = json.loads(out.read_text())
    assert [r["engine"] for r in figures["engines"]] == ["static", "static fp8_dynamic", "static int8_dynamic"]
    assert "weight_errors" not in figures


@pytest.mark.parametrize("words, said", [
    ("--weights int4", "weights = 'int4': choose"), ("--weights int8 --engine fused", "choose engine 'torch'")])
def test_the_bench_refuses_what_there_is_not(words, said, micro_checkpoint, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "policy", "--checkpoint", str(micro_checkpoint), "--device", "cpu", *words.split()])
    assert said in capsys.readouterr().err


def test_the_server_and_the_evaluation_pass_them_on(micro_checkpoint, monkeypatch, capsys):
    from vipra_ros.policy import engine

    asked = []

    def opened(*given, **named):
        asked.append(named.get("weights"))
        raise ConfigError("far enough")

    monkeypatch.setattr(engine, "open_engine", opened)
    for words in (["serve", str(micro_checkpoint)], ["eval", "--checkpoint", str(micro_checkpoint), "--episodes", "1"]):
        with pytest.raises(SystemExit):
            main([*words, "--weights", "int8"])
        assert "far enough" in capsys.readouterr().err
    assert asked == ["int8", "int8"]
    with pytest.raises(SystemExit):
        main(["eval", "--checkpoint", str(micro_checkpoint), "--weights", "int4"])
    assert "choose 'full'" in capsys.readouterr().err
