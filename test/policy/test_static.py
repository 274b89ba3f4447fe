"""Static buffers and fused graphs give the chunks of the lean sampler, at any instruction, in any order."""

import dataclasses

import numpy as np
import pytest
import torch

from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.patch_vq import PatchVQ
from vipra_ros.model.policy import FlowPolicy, PolicyConfig, Prefix
from vipra_ros.model.vq import VQConfig
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.sampler import draw_noise, sample_naively
from vipra_ros.policy.static import StaticSampler

PAPER = PolicyConfig(
    backbone=BackboneConfig(width=48, layers=3, heads=2, ffn=64, attention="sdpa"), text_vocab=32, codebook_size=16,
    grid=4,
)  # fmt: skip
CONFIGS = {
    "causal": PAPER,
    "both ways": dataclasses.replace(
        PAPER, proprio_steps=2, bidirectional_prefix=True, bidirectional_actions=True, time_band="wide"
    ),
    "chunk both ways": dataclasses.replace(PAPER, cameras=2, bidirectional_actions=True),
}


def network(config):
    torch.manual_seed(0)
    policy = FlowPolicy(config).eval().requires_grad_(False)
    for module in policy.modules():
        if "Norm" in type(module).__name__:
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
    torch.nn.init.normal_(policy.head.weight, std=0.3)
    return policy


def prefix_of(config, words, seed):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (1, config.frames, config.cameras, config.grid**2), generator=g)
    proprio = torch.randn(1, config.proprio_steps, config.action_dim, generator=g) if config.proprio_steps else None
    before = torch.tensor([words])
    mask = torch.ones_like(before, dtype=torch.bool)
    return Prefix(before, mask, codes, torch.tensor([3, 4]), torch.tensor([5]), proprio)


def samplers(policy):
    from vipra_ros.policy.fused import FusedSampler

    yield "static", StaticSampler(policy, 4, buckets=(4, 8))
    yield "fused", FusedSampler(policy, 4, threads=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_chunks_are_those_of_the_plain_network(name):
    pytest.importorskip("onnxruntime")
    policy = network(CONFIGS[name])
    noise = draw_noise(policy, 1, 0)
    # Lengths below and at a bucket, the same instruction again with other frames, and back to a former one.
    asked = [([1, 2, 3], 0), ([1, 2, 3], 1), ([9, 8, 7, 6, 5, 4], 2), ([1, 2, 3, 4], 3), ([1, 2, 3], 4)]
    for kind, sampler in samplers(policy):
        for words, seed in asked:
            prefix = prefix_of(policy.config, words, seed)
            expected = sample_naively(policy, prefix, noise, 4)
            found = sampler(prefix, noise)
            assert (expected - noise).abs().max() > 0.1
            assert torch.allclose(found, expected, atol=2e-5), (kind, words, seed)


def test_the_instruction_is_computed_once_where_the_prefix_is_causal():
    for name, reused in (("causal", True), ("both ways", False)):
        policy, rows = network(CONFIGS[name]), []
        sampler = StaticSampler(policy, 2, buckets=(8,))
        original = sampler._qkv
        sampler._qkv = lambda x, *rest: rows.append(x.shape[1]) or original(x, *rest)  # noqa: B023
        layers = policy.config.backbone.layers
        for seed in (0, 1):
            sampler(prefix_of(policy.config, [1, 2, 3], seed), draw_noise(policy, 1, 0))
        first, again = rows[0], rows[2 * layers]
        assert first - again == (8 if reused else 0)


def test_bfloat16_runs_and_stays_near():
    """The types of a GPU; what they cost in accuracy is the network's, about three digits."""
    policy = network(PAPER)
    prefix, noise = prefix_of(PAPER, [1, 2, 3], 0), draw_noise(policy, 1, 0)
    expected = LeanSampler(policy, 4)(prefix, noise)
    half = policy.to(torch.bfloat16)
    for sampler in (StaticSampler(half, 4), LeanSampler(half, 4)):
        found = sampler(prefix, noise)
        assert found.dtype == torch.float32 and (found - expected).abs().max() < 0.1


def test_released_layers_are_gone_and_not_missed():
    policy = network(PAPER)
    prefix, noise = prefix_of(PAPER, [1, 2, 3], 0), draw_noise(policy, 1, 0)
    expected, count = LeanSampler(policy, 2)(prefix, noise), sum(p.numel() for p in policy.trunk.parameters())
    sampler = StaticSampler(policy, 2, release=True)
    assert torch.equal(StaticSampler(network(PAPER), 2)(prefix, noise), sampler(prefix, noise))
    assert torch.allclose(sampler(prefix, noise), expected, atol=2e-5)
    assert sum(p.numel() for p in policy.trunk.parameters()) < 0.01 * count


def test_more_than_one_observation_or_too_long_an_instruction_is_refused():
    policy = network(PAPER)
    sampler = StaticSampler(policy, 2, buckets=(4,))
    with pytest.raises(ValueError, match="with 5 tokens"):
        sampler(prefix_of(PAPER, [1, 2, 3, 4, 5], 0), draw_noise(policy, 1, 0))


def test_patch_codes_are_the_quantisers():
    pytest.importorskip("onnxruntime")
    from vipra_ros.policy.fused import PatchCodes, session_options

    rng, g = np.random.default_rng(0), torch.Generator().manual_seed(0)
    coarse = rng.integers(0, 256, (40, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    frames = (coarse + rng.integers(-20, 20, coarse.shape)).clip(0, 255).astype(np.uint8)
    vq = PatchVQ(VQConfig(kind="patch", image_size=32, patch=8, codebook_size=64, code_dim=12))
    vq.fit(frames[:30], g, iterations=3)
    expected = vq.encode(frames)
    found = PatchCodes(vq, session_options(1))(torch.from_numpy(frames))
    assert found.shape == expected.shape and len(expected.unique()) > 20
    # Another rounding may choose another one of two codes that are equally near.
    z = vq.latents(vq.patches(torch.from_numpy(frames)))
    far = [(z - vq.codebook[0][codes.reshape(-1)]).norm(dim=1) for codes in (found, expected)]
    assert torch.allclose(*far, atol=1e-4) and (found == expected).float().mean() > 0.99


@pytest.mark.parametrize("kind", ["static", "fused"])
def test_the_engines_answer_as_torch(kind, micro_checkpoint):
    pytest.importorskip("onnxruntime")
    checkpoint = Checkpoint.load(micro_checkpoint)
    size = checkpoint.config.image_size
    ours, theirs = load_engine(checkpoint, kind, 1), load_engine(checkpoint, "torch", 1)
    ours.warm_up()
    for seed, words in enumerate(["reach", "reach above the red cube", "reach above the red cube"]):
        frames = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
        seen = Observation(1.0, {"front": frames}, words)
        a, b = ours.infer(seen, seed=seed), theirs.infer(seen, seed=seed)
        assert np.allclose(a.actions, b.actions, atol=2e-5)
        assert {"encode", "prefill", "denoise", "total"} <= a.timing.keys()
    with pytest.raises(CheckpointError, match="'fused', 'static'"):
        load_engine(checkpoint, "quick")
