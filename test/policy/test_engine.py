"""The engine equals the naive sampler, is deterministic, remembers frames, and names what an observation lacks."""

import dataclasses

import numpy as np
import pytest
import torch

from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.policy import FlowPolicy, PolicyConfig, Prefix
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.observation import Observation, ObservationError
from vipra_ros.policy.pictures import resize
from vipra_ros.policy.sampler import draw_noise, sample, sample_naively

BASE = PolicyConfig(
    backbone=BackboneConfig(width=48, layers=3, heads=2, ffn=64), text_vocab=32, codebook_size=16, grid=4
)
CONFIGS = {
    "paper": dataclasses.replace(BASE, backbone=dataclasses.replace(BASE.backbone, attention="sdpa")),
    "beyond": dataclasses.replace(
        BASE,
        proprio_steps=2,
        vision_table_width=8,
        vision_merge=2,
        vision_position=True,
        bidirectional_prefix=True,
        bidirectional_actions=True,
        time_band="wide",
    ),
    "cameras": dataclasses.replace(BASE, cameras=2, code_groups=2, bidirectional_actions=True),
}


def network(name):
    torch.manual_seed(0)
    policy = FlowPolicy(CONFIGS[name]).eval()
    for module in policy.modules():
        if "Norm" in type(module).__name__:
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
    torch.nn.init.normal_(policy.head.weight, std=0.3)
    return policy


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("b, padded", [(1, False), (4, True)])
def test_cached_and_lean_sampling_equal_the_naive_one(name, b, padded, prefix_of):
    policy = network(name)
    prefix, noise = prefix_of(policy.config, b, padded), draw_noise(policy, b, 0)
    naive = sample_naively(policy, prefix, noise)
    assert (naive - noise).abs().max() > 0.1
    assert torch.allclose(sample(policy, prefix, noise), naive, atol=2e-5)
    assert torch.allclose(LeanSampler(policy, 10)(prefix, noise), naive, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_other_step_counts(steps, prefix_of):
    policy = network("beyond")
    prefix, noise = prefix_of(policy.config, 1, False), draw_noise(policy, 1, 0)
    assert torch.allclose(
        LeanSampler(policy, steps)(prefix, noise), sample_naively(policy, prefix, noise, steps), atol=2e-5
    )


@pytest.fixture(scope="module")
def engine(micro_checkpoint):
    made = load_engine(Checkpoint.load(micro_checkpoint))
    made.warm_up()
    return made


def observation(engine, seed=0, **changes):
    size = engine.checkpoint.config.image_size
    frames = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    return dataclasses.replace(Observation(1.0, {"front": frames}, "reach above the red cube"), **changes)


def test_the_engine_does_what_the_pieces_do(engine):
    seen = observation(engine)
    c = engine.checkpoint
    before = torch.tensor([engine.prompt.before(seen.instruction)])
    codes = c.vq.encode(seen.frames["front"])[None, :, None]
    prefix = Prefix(
        before,
        torch.ones_like(before, dtype=torch.bool),
        codes,
        torch.tensor(engine.prompt.between),
        torch.tensor(engine.prompt.after),
    )
    normal = sample_naively(c.policy, prefix, draw_noise(c.policy, 1, 5), c.config.euler_steps)[0].double().numpy()
    expected = normal * c.normaliser.action_std + c.normaliser.action_mean
    made = engine.infer(seen, seed=5)
    assert made.actions.dtype == np.float64 and made.actions.shape == (c.config.horizon, c.config.policy.action_dim)
    assert np.allclose(made.actions, expected, atol=1e-5)
    assert {"resize", "encode", "prefill", "denoise", "total"} <= made.timing.keys()
    assert made.timing["total"] >= sum(v for k, v in made.timing.items() if k != "total") - 1e-6


def test_same_seed_same_chunk_other_seed_other_chunk(engine):
    one, two, other = (engine.infer(observation(engine), seed=s).actions for s in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    fresh = [engine.infer(observation(engine)).actions for _ in range(2)]
    assert not np.array_equal(*fresh)


def test_a_frame_with_a_stamp_is_encoded_once(engine):
    count = []
    original = engine._vq.encode
    engine._vq.encode = lambda images: count.append(len(images)) or original(images)
    try:
        seen = observation(engine, 7)
        plain = engine.infer(seen, seed=0).actions
        first = engine.infer(dataclasses.replace(seen, frame_stamps={"front": (0.8, 1.0)}), seed=0).actions
        # The newer frame is the older one of the next observation.
        shifted = np.stack([seen.frames["front"][1], seen.frames["front"][0]])
        engine.infer(dataclasses.replace(seen, frames={"front": shifted}, frame_stamps={"front": (1.0, 1.2)}), seed=0)
        again = engine.infer(dataclasses.replace(seen, frame_stamps={"front": (0.8, 1.0)}), seed=0).actions
        for i in range(200):
            engine.infer(dataclasses.replace(seen, frame_stamps={"front": (2.0 + i, 2.5 + i)}), seed=0)
    finally:
        engine._vq.encode = original
    assert count[:3] == [2, 2, 1] and len(count) == 3 + 200
    assert np.array_equal(plain, first) and np.array_equal(first, again)
    assert len(engine._codes) <= 64


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(frames={}), "no frames of camera 'front'"),
        (dict(frames={"front": np.zeros((1, 32, 32, 3), np.uint8)}), "expected uint8"),
        (dict(frames={"front": np.zeros((2, 32, 32, 3), np.float32)}), "float32"),
    ],
)
def test_incomplete_observations_are_refused(engine, change, word):
    with pytest.raises(ObservationError, match=word):
        engine.infer(observation(engine, **change))


def test_an_engine_that_is_not_there_is_refused(engine):
    with pytest.raises(CheckpointError, match="warp"):
        load_engine(engine.checkpoint, "warp")


def test_resize_takes_the_centre_square_by_area():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = np.arange(40, dtype=np.uint8)[:, None, None]
    small = resize(image, 10)
    assert small.shape == (10, 10, 3)
    assert small[:, 0, 0].tolist() == [2, 6, 10, 14, 18, 22, 26, 30, 34, 38]
    assert resize(small, 10) is small
