"""Discrete actions: bins and back, the sequence token by token, and where its loss sits."""

import dataclasses

import numpy as np
import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.discrete import DiscretePolicy, make_policy
from vipra_ros.model.policy import FlowPolicy, PolicyConfig, Prefix

BASE = PolicyConfig(
    backbone=BackboneConfig(width=16, layers=2, heads=2, ffn=16), text_vocab=16, codebook_size=8, grid=2,
    action_dim=3, horizon=2, decoder="discrete", action_bins=5)
BEYOND = dataclasses.replace(BASE, proprio_steps=1, vision_table_width=8, vision_position=True,
                             bidirectional_prefix=True, action_position=True)


def network(config):
    torch.manual_seed(0)
    policy = make_policy(config)
    policy.fit(np.random.default_rng(0).normal(size=(400, 3)) * (1.0, 3.0, 1.0))
    return policy


def observations(config, b, padding=0):
    g = torch.Generator().manual_seed(1)
    before = torch.randint(3, 16, (b, 4), generator=g)
    codes = torch.randint(0, 8, (b, 2, 1, 4), generator=g)
    proprio = torch.randn(b, config.proprio_steps, 3, generator=g) if config.proprio_steps else None
    mask = torch.ones(b, 4 + padding, dtype=torch.bool)
    mask[:, :padding] = False
    before = torch.cat([before.new_zeros(b, padding), before], dim=1)
    return Prefix(before, mask, codes, torch.tensor([3, 4]), torch.tensor([5]), proprio)


def test_bins_hold_equal_shares_and_give_back_what_went_in_to_half_a_bin():
    config = dataclasses.replace(BASE, action_bins=50)
    policy = make_policy(config)
    rows = np.random.default_rng(1).normal(size=(5000, 3)) * (1.0, 100.0, 1.0)
    rows[:, 2] = np.sign(rows[:, 2])
    policy.fit(rows)
    actions = torch.from_numpy(rows).float()
    ids = policy.encode(actions)
    for k in range(2):
        assert torch.bincount(ids[:, k], minlength=50).tolist() == pytest.approx([100] * 50, abs=2)
    widths = policy.edges.diff(dim=1)[torch.arange(2), ids[:, :2]]
    assert ((policy.decode(ids)[:, :2] - actions[:, :2]).abs() <= widths / 2 + 1e-4).all()
    assert torch.equal(policy.decode(ids)[:, 2], actions[:, 2]) and set(ids[:, 2].tolist()) == {50, 51}
    # Beyond the data: the outer bins. A joint that never moved: itself.
    assert policy.encode(torch.tensor([[-99.0, 9999.0, 0.3]])).tolist() == [[0, 49, 51]]
    policy.fit(np.full((10, 3), 0.25))
    assert policy.decode(policy.encode(torch.full((1, 3), 0.25))).tolist() == [[0.25, 0.25, 1.0]]
    assert isinstance(policy, DiscretePolicy) and type(make_policy(PolicyConfig())) is FlowPolicy


def test_bins_that_are_none_are_refused():
    policy = make_policy(BASE)
    with pytest.raises(ConfigError, match="no bin edges"):
        policy.check_bins()
    for rows in (np.zeros((0, 3)), np.full((4, 3), np.nan)):
        with pytest.raises(ConfigError, match="training rows"):
            policy.fit(rows)
    policy.fit(np.random.default_rng(0).normal(size=(50, 3)))
    policy.check_bins()
    policy.edges[0] = policy.edges[0].flip(0)
    with pytest.raises(ConfigError, match="ascending"):
        policy.check_bins()
    with pytest.raises(ConfigError, match="bidirectional_actions = true with decoder = discrete"):
        dataclasses.replace(BASE, bidirectional_actions=True)


@pytest.mark.parametrize("config", [BASE, BEYOND], ids=["base", "beyond"])
def test_loss_by_hand(config):
    policy, prefix = network(config), observations(config, 2)
    actions = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(2))
    ids = policy.encode(actions)
    embedded, present = policy.embed_prefix(prefix)
    tokens = policy.action.weight[ids] + (policy.action_place if config.action_position else 0.0)
    outputs = policy.hidden(embedded, present, tokens.flatten(1, 2)).detach()
    # Token i is read at the token before it, a joint among 5 bins, the gripper among the last two rows.
    for b in range(2):
        expected = 0.0
        for i in range(6):
            rows = policy.action_head.weight[5:] if i % 3 == 2 else policy.action_head.weight[:5]
            target = int(ids[b].flatten()[i]) - (5 if i % 3 == 2 else 0)
            expected -= float((rows.detach() @ outputs[b, i]).log_softmax(-1)[target]) / 6
        assert float(policy.loss(prefix, actions)[b].detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("config", [BASE, BEYOND], ids=["base", "beyond"])
def test_a_token_sees_none_after_it_and_no_padding(config):
    policy, prefix = network(config).eval(), observations(config, 1)
    embedded, present = policy.embed_prefix(prefix)
    tokens = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(3))
    plain = policy.hidden(embedded, present, tokens)
    for i in range(6):
        other = tokens.clone()
        other[:, i:] += 1.0
        changed = policy.hidden(embedded, present, other)
        assert torch.allclose(plain[:, : i + 1], changed[:, : i + 1], atol=1e-6)
        assert not torch.allclose(plain[:, i + 1], changed[:, i + 1], atol=1e-3)
    actions = torch.randn(1, 2, 3)
    assert torch.allclose(policy.loss(prefix, actions), policy.loss(observations(config, 1, 3), actions), atol=1e-5)


def test_ordered_bins_begin_alike_where_they_are_near():
    policy = network(dataclasses.replace(BASE, action_bins=200, action_order=True))
    for table in (policy.action.weight, policy.action_head.weight):
        rows = torch.nn.functional.normalize(table.detach()[:200], dim=-1)
        alike = rows @ rows.T
        near, far = alike.diagonal(1), alike.diagonal(60)
        assert near.min() > 0.9 > far.abs().mean() and table.detach()[:200].std() == pytest.approx(0.02, rel=0.01)
    plain = network(dataclasses.replace(BASE, action_bins=200)).action.weight.detach()[:200]
    assert torch.nn.functional.cosine_similarity(plain[:-1], plain[1:]).abs().mean() < 0.5
