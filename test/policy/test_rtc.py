"""Real-time chunking: the guided sampler against its formulas, and what every prior must do."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.policy import FlowPolicy, PolicyConfig
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.prior import Prior, prior_of, soft_mask
from vipra_ros.policy.rtc import GuidedSampler, TrainedSampler, strength
from vipra_ros.policy.sampler import draw_noise

CONFIG = PolicyConfig(backbone=BackboneConfig(width=48, layers=2, heads=2, ffn=64), text_vocab=32, codebook_size=16,
                      grid=4, horizon=6, action_dim=3)


@pytest.fixture(scope="module", params=(False, True), ids=("causal", "both ways"))
def policy(request):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = FlowPolicy(dataclasses.replace(CONFIG, bidirectional_actions=request.param)).eval().requires_grad_(False)
    torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


def prior(policy, b, seed=1):
    """target (b, h, a) and weights (b, h) with two rows committed and four known."""
    h = policy.config.horizon
    target = torch.randn(b, h, policy.config.action_dim, generator=torch.Generator().manual_seed(seed))
    return target, torch.from_numpy(soft_mask(h, 4, 2)).float().expand(b, h)


@pytest.mark.parametrize("b, padded", [(1, False), (2, True)])
def test_it_is_the_formula_with_the_whole_jacobian(policy, prefix_of, b, padded):
    """Eq. 2-4 written out: the network without a cache, its full Jacobian, no vector-Jacobian product."""
    steps, (target, weights) = 3, prior(policy, b)
    prefix, noise = prefix_of(policy.config, b, padded), draw_noise(policy, b, 0)
    embedded, present = policy.embed_prefix(prefix)
    x = noise
    for k in range(steps):
        t = k / steps

        def velocity(x, t=t):
            return policy.joint_pass(embedded, present, x[:, None], x.new_full((b, 1), t))[:, 0]

        def end(x, t=t):
            return x + (1 - t) * velocity(x, t)

        jacobian = torch.autograd.functional.jacobian(end, x)  # (b, h, a, b, h, a)
        error = weights[..., None] * (target - end(x))
        r2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        scale = min(5.0, (1 - t) / (t * r2)) if t else 5.0
        x = x + (velocity(x) + scale * torch.einsum("bha,bhaijk->ijk", error, jacobian)) / steps
    made = GuidedSampler(policy, steps)(prefix, noise, target=target, weights=weights)
    assert torch.allclose(made, x, atol=5e-5)
    assert (made - LeanSampler(policy, steps)(prefix, noise)).abs().max() > 0.1  # and it does something


def test_without_a_prior_it_is_the_plain_sampler_bit_by_bit(policy, prefix_of):
    prefix, noise = prefix_of(policy.config, 2, True), draw_noise(policy, 2, 0)
    plain, guided = LeanSampler(policy, 5)(prefix, noise), GuidedSampler(policy, 5)
    target, weights = prior(policy, 2)
    assert torch.equal(guided(prefix, noise), plain)
    assert torch.equal(guided(prefix, noise, target=target, weights=torch.zeros_like(weights)), plain)


def test_one_of_a_batch_without_a_prior_is_not_touched(policy, prefix_of):
    prefix, noise = prefix_of(policy.config, 2, False), draw_noise(policy, 2, 0)
    target, weights = prior(policy, 2)
    weights = weights * torch.tensor([[1.0], [0.0]])
    made = GuidedSampler(policy, 5)(prefix, noise, target=target, weights=weights)
    assert torch.allclose(made[1], LeanSampler(policy, 5)(prefix, noise)[1], atol=2e-5)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_mask_falls_from_the_committed_rows_to_the_new_ones(data):
    horizon = data.draw(st.integers(1, 20))
    known = data.draw(st.integers(0, horizon))
    committed = data.draw(st.integers(0, known))
    weights = soft_mask(horizon, known, committed)
    assert (weights[:committed] == 1).all() and (weights[known:] == 0).all()
    between = weights[committed:known]
    assert ((0 < between) & (between < 1)).all() and (np.diff(between) < 0).all()
    assert strength(0.0) == strength(1e-9) == 5.0 and strength(0.5) == pytest.approx(2.0)


def test_rows_are_moved_to_the_steps_of_the_new_chunk():
    rows = np.column_stack([np.arange(6.0), 10 * np.arange(6.0), [1, 1, 1, -1, -1, -1]])
    moved = prior_of(rows, 5.0, 5.2, 0.1, 0.25, "joint_position")
    assert np.allclose(moved.rows, rows[2:]) and moved.committed == 3
    half = prior_of(rows, 5.0, 5.16, 0.1, 0.0, "joint_position")
    assert np.allclose(half.rows[:, 0], [1.6, 2.6, 3.6, 4.6]) and half.committed == 0
    assert half.rows[:, 2].tolist() == [1, -1, -1, -1]  # a hand has no places between open and closed
    assert prior_of(rows, 5.0, 5.16, 0.1, 0.0, "joint_delta").rows[:, 0].tolist() == [2, 3, 4, 5]
    assert prior_of(rows, 5.0, 5.3, 0.1, 9.0, "joint_position").committed == 3  # all that is known
    assert prior_of(rows, 5.0, 5.6, 0.1, 0.1, "joint_position") is None
    assert prior_of(rows, 5.0, 4.9, 0.1, 0.1, "joint_position") is None  # the clock was set back
    with pytest.raises(ValueError, match="3 committed"):
        Prior(rows[:2], 3)


@pytest.fixture(scope="module")
def engines(micro_checkpoint):
    checkpoint = Checkpoint.load(micro_checkpoint)
    return load_engine(checkpoint, threads=1), load_engine(checkpoint, threads=1, rtc="guided")


def seen(prior=None):
    frames = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    return Observation(1.0, {"front": frames}, "reach above the red cube", prior=prior)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), committed=st.integers(0, 5), known=st.integers(5, 9))
def test_committed_rows_are_honoured(engines, seed, committed, known):
    plain, guided = engines
    before = Prior(plain.infer(seen(), seed + 5000).actions[14 - known :] + 0.01, committed)
    made = guided.infer(seen(before), seed).actions
    assert np.array_equal(made[:committed], before.rows[:committed]) and made.shape == (14, 8)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_pulled_towards_the_prior_as_their_weights_say(policy, prefix_of, seed):
    """Sampled under the prior, not pasted: what comes out of the network itself is nearer to it."""
    prefix, noise = prefix_of(policy.config, 4, False), draw_noise(policy, 4, seed)
    target, weights = prior(policy, 4, seed + 100)
    free = (LeanSampler(policy, 5)(prefix, noise) - target).abs().mean(dim=(0, 2))
    made = (GuidedSampler(policy, 5)(prefix, noise, target=target, weights=weights) - target).abs().mean(dim=(0, 2))
    assert (made[:2] < 0.5 * free[:2]).all() and (made[2:4] < free[2:4]).all()


def test_without_a_prior_the_guided_engine_answers_as_the_plain_one(engines):
    plain, guided = engines
    assert guided.guided and not plain.guided
    assert np.array_equal(plain.infer(seen(), 3).actions, guided.infer(seen(), 3).actions)
    empty = Prior(np.zeros((0, 8)), 0)
    assert np.array_equal(plain.infer(seen(), 3).actions, guided.infer(seen(empty), 3).actions)


@pytest.mark.parametrize("kind", ["onnx", "fused", "static", "eager"])
@pytest.mark.parametrize("rtc", ["guided", "trained"])
def test_other_engines_refuse(engines, kind, rtc):
    with pytest.raises(CheckpointError, match="choose engine 'torch', or rtc 'none'"):
        load_engine(engines[0].checkpoint, kind, rtc=rtc)


# --- networks trained with a given beginning -------------------------------------------------------------------------


@pytest.mark.parametrize("b, padded", [(1, False), (2, True)])
def test_given_rows_stand_at_time_one(policy, prefix_of, b, padded):
    """The network without a cache, a time per row."""
    steps, (target, weights) = 4, prior(policy, b)
    given = (weights == 1)[..., None]
    prefix, noise = prefix_of(policy.config, b, padded), draw_noise(policy, b, 0)
    embedded, present = policy.embed_prefix(prefix)
    x = torch.where(given, target, noise)
    for k in range(steps):
        t = torch.where(given[..., 0], 1.0, k / steps)
        velocity = policy.joint_pass(embedded, present, x[:, None], t[:, None])[:, 0]
        x = torch.where(given, target, x + velocity / steps)
    made = TrainedSampler(policy, steps, 5)(prefix, noise, target=target, weights=given[..., 0].float())
    assert torch.allclose(made, x, atol=5e-5)
    plain = LeanSampler(policy, steps)(prefix, noise)
    assert torch.equal(TrainedSampler(policy, steps, 5)(prefix, noise), plain)
    assert (made - plain)[:, 2:].abs().max() > 1e-3, "rows that are not given answer to those that are"


def test_one_of_a_batch_without_given_rows_is_as_ever(policy, prefix_of):
    prefix, noise = prefix_of(policy.config, 2, False), draw_noise(policy, 2, 0)
    target, weights = prior(policy, 2)
    weights = (weights == 1) * torch.tensor([[1.0], [0.0]])
    made = TrainedSampler(policy, 5, 5)(prefix, noise, target=target, weights=weights)
    assert torch.allclose(made[1], LeanSampler(policy, 5)(prefix, noise)[1], atol=2e-5)


def test_no_more_rows_are_given_than_in_training(policy):
    sampler = TrainedSampler(policy, 5, 3)
    assert sampler.weights(6, 5, 2).tolist() == [1, 1, 0, 0, 0, 0]
    assert sampler.weights(6, 5, 5).tolist() == [1, 1, 1, 0, 0, 0]


def test_loss_leaves_given_rows_out(policy, prefix_of):
    prefix, b, s = prefix_of(policy.config, 2, True), 2, 3
    g = torch.Generator().manual_seed(3)
    actions, noise = torch.randn(b, 6, 3, generator=g), torch.randn(b, s, 6, 3, generator=g)
    t, given = torch.rand(b, s, generator=g), torch.tensor([[0, 2, 5], [1, 1, 3]])
    made = policy.loss(prefix, actions, noise, t, given)
    embedded, present = policy.embed_prefix(prefix)
    for i in range(b):
        per_draw = []
        for j in range(s):
            d = int(given[i, j])
            x = (1 - 0.999 * t[i, j]) * noise[i, j] + t[i, j] * actions[i]
            x[:d] = actions[i, :d]
            times = torch.full((6,), float(t[i, j]))
            times[:d] = 1.0
            v = policy.joint_pass(embedded[i : i + 1], present[i : i + 1], x[None, None], times[None, None])[0, 0]
            per_draw.append((v - (actions[i] - 0.999 * noise[i, j]))[d:].square().sum() / 3)
        # Every free row of the observation counts alike, whichever draw it is of.
        assert made[i] == pytest.approx(float(sum(per_draw) / (18 - given[i].sum())), rel=1e-4)
    none = policy.loss(prefix, actions, noise, t, torch.zeros_like(given))
    assert torch.allclose(none, policy.loss(prefix, actions, noise, t), atol=1e-5)


def test_a_trained_network_goes_on_as_it_was_begun(prefix_of):
    """Two answers to every question, all rows +1 or all -1: what follows the given row is the answer it began."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = dataclasses.replace(CONFIG, bidirectional_actions=True, time_band="wide")
    network, g = FlowPolicy(config), torch.Generator().manual_seed(0)
    prefix = prefix_of(config, 16, False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(250):
        sign = 2.0 * torch.randint(2, (16, 1, 1), generator=g) - 1
        noise, t = torch.randn(16, 2, 6, 3, generator=g), torch.rand(16, 2, generator=g)
        given = torch.randint(4, (16, 2), generator=g)
        network.loss(prefix, sign.expand(16, 6, 3), noise, t, given).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    network.eval().requires_grad_(False)
    sampler, noise = TrainedSampler(network, 10, 3), draw_noise(network, 16, 5)
    sign = torch.tensor([1.0, -1.0]).repeat(8)[:, None, None]
    weights = torch.zeros(16, 6)
    weights[:, 0] = 1.0
    made = sampler(prefix, noise, target=sign.expand(16, 6, 3), weights=weights)
    assert ((made * sign)[:, 1:].mean((1, 2)) > 0.5).all(), "all sixteen go on as begun"
    free = sampler(prefix, noise).mean((1, 2))
    assert (free > 0.5).any() and (free < -0.5).any(), "and without a beginning there are both answers"


def test_the_engine_goes_on_from_the_prior(micro_checkpoint):
    checkpoint = Checkpoint.load(micro_checkpoint)
    with pytest.raises(CheckpointError, match="committed_steps = 0"):
        load_engine(checkpoint, rtc="trained")
    checkpoint.config = dataclasses.replace(checkpoint.config, committed_steps=3)
    plain, trained = load_engine(checkpoint, threads=1), load_engine(checkpoint, threads=1, rtc="trained")
    assert np.array_equal(plain.infer(seen(), 3).actions, trained.infer(seen(), 3).actions)
    before = Prior(plain.infer(seen(), 5).actions[4:] + 0.01, 4)
    made = trained.infer(seen(before), 3).actions
    assert np.array_equal(made[:4], before.rows[:4])
