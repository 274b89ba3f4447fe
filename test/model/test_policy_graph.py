"""The policy network: one shared prefix trains exactly as separate sequences, nothing leaks, padding is invisible."""

import dataclasses

import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.model import flow
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.policy import FlowPolicy, PolicyConfig, Prefix

BASE = PolicyConfig(
    backbone=BackboneConfig(width=32, layers=2, heads=2, ffn=48),
    text_vocab=32,
    codebook_size=16,
    grid=4,
    horizon=5,
    action_dim=3,
)
VARIANTS = {
    "paper": BASE,
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
    "cameras": dataclasses.replace(BASE, cameras=2, code_groups=2, vision_position=True),
}


@pytest.fixture(params=VARIANTS)
def policy(request):
    torch.manual_seed(0)
    made = FlowPolicy(VARIANTS[request.param])
    torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


def observations(config, b, seed=0, padded=True):
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(b, 6, dtype=torch.bool)
    if padded:
        for i in range(b):
            mask[i, : i % 3] = False
    codes = torch.randint(
        0, config.codebook_size, (b, config.frames, config.cameras, config.grid**2 * config.code_groups), generator=g
    )
    proprio = torch.randn(b, config.proprio_steps, config.action_dim, generator=g) if config.proprio_steps else None
    return Prefix(
        torch.randint(0, 32, (b, 6), generator=g), mask, codes, torch.tensor([3, 4]), torch.tensor([5]), proprio
    )


def one(prefix, i):
    """Observation i alone, without its padding."""
    keep = prefix.before_mask[i]
    return Prefix(
        prefix.before[i : i + 1, keep],
        prefix.before_mask[i : i + 1, keep],
        prefix.codes[i : i + 1],
        prefix.between,
        prefix.after,
        None if prefix.proprio is None else prefix.proprio[i : i + 1],
    )


def draws(config, b, s, seed=1):
    g = torch.Generator().manual_seed(seed)
    actions = torch.randn(b, config.horizon, config.action_dim, generator=g)
    noise = torch.randn(b, s, config.horizon, config.action_dim, generator=g)
    return actions, noise, flow.sample_time((b, s), g)


def test_shared_prefix_gives_the_loss_and_gradients_of_separate_sequences(policy):
    config, b, s = policy.config, 3, 4
    prefix, (actions, noise, t) = observations(config, b), draws(policy.config, b, s)
    shared = policy.loss(prefix, actions, noise, t)
    shared.mean().backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    naive = torch.stack(
        [
            torch.stack(
                [
                    policy.loss(
                        one(prefix, i), actions[i : i + 1], noise[i : i + 1, k : k + 1], t[i : i + 1, k : k + 1]
                    )[0]
                    for k in range(s)
                ]
            ).mean()
            for i in range(b)
        ]
    )
    naive.mean().backward()
    assert torch.allclose(shared, naive, atol=1e-5)
    for name, p in policy.named_parameters():
        assert torch.allclose(gradients[name], p.grad, atol=2e-5, rtol=1e-3), name


def test_a_draw_sees_no_other_draw_and_the_prefix_sees_no_action(policy):
    config = policy.config
    prefix, (actions, noise, t) = observations(config, 2), draws(config, 2, 3)
    embedded, present = policy.embed_prefix(prefix)
    x = flow.interpolate(noise, actions[:, None], t[..., None, None])
    before = policy.joint_pass(embedded, present, x, t)
    x[:, 2] += 5.0
    after = policy.joint_pass(embedded, present, x, t)
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-5)
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-2)


def test_steps_of_a_chunk_are_causal_unless_asked_otherwise(policy):
    config = policy.config
    prefix, (_, noise, t) = observations(config, 1), draws(config, 1, 1)
    embedded, present = policy.embed_prefix(prefix)
    before = policy.joint_pass(embedded, present, noise, t)
    noise[:, :, -1] += 5.0
    changed = (policy.joint_pass(embedded, present, noise, t) - before).abs().amax(dim=(0, 1, 3)) > 1e-5
    assert changed[-1] and bool(changed[:-1].all()) == config.bidirectional_actions
    assert bool(changed[:-1].any()) == config.bidirectional_actions


def test_every_input_matters(policy):
    config = policy.config
    prefix, (_, noise, t) = observations(config, 1, padded=False), draws(config, 1, 1)

    def answer(p):
        embedded, present = policy.embed_prefix(p)
        return policy.joint_pass(embedded, present, noise, t)

    before = answer(prefix)
    other_text = dataclasses.replace(prefix, before=(prefix.before + 1) % 32)
    old_frame, new_frame = prefix.codes.clone(), prefix.codes.clone()
    old_frame[:, 0] = (old_frame[:, 0] + 1) % config.codebook_size
    new_frame[:, -1, -1, -1] = (new_frame[:, -1, -1, -1] + 1) % config.codebook_size
    changed = [other_text, dataclasses.replace(prefix, codes=old_frame), dataclasses.replace(prefix, codes=new_frame)]
    if config.proprio_steps:
        changed.append(dataclasses.replace(prefix, proprio=prefix.proprio + 1.0))
    for p in changed:
        assert (answer(p) - before).abs().max() > 1e-5
    assert (policy.joint_pass(*policy.embed_prefix(prefix), noise, t * 0.5) - before).abs().max() > 1e-5


def test_prefix_has_the_documented_length(policy):
    config = policy.config
    embedded, present = policy.embed_prefix(observations(config, 2))
    cells = (config.grid // config.vision_merge) ** 2
    assert config.vision_tokens == config.frames * config.cameras * (cells + 1)
    assert embedded.shape == (2, 6 + config.vision_tokens + 2 + config.proprio_steps + 1, 32)
    assert present.shape == embedded.shape[:2]


@pytest.mark.parametrize("name", VARIANTS)
def test_vision_table_starts_from_the_codebook(name):
    config = VARIANTS[name]
    torch.manual_seed(0)
    policy = FlowPolicy(config)
    codebook = torch.nn.functional.normalize(torch.randn(config.code_groups, config.codebook_size, 8), dim=-1)
    policy.start_vision_from(codebook, torch.Generator().manual_seed(0))
    rows = policy.vision.weight[:-2].detach().reshape(config.code_groups, config.codebook_size, -1)
    # Distances between codes survive an orthonormal map.
    assert torch.allclose(torch.cdist(rows, rows), torch.cdist(codebook, codebook), atol=1e-4)
    with pytest.raises(ValueError, match="expects"):
        policy.start_vision_from(codebook[:, :4], torch.Generator())


def test_merged_codes_keep_their_place():
    """With 2 x 2 merging, token (r, c) holds the codes of rows 2r, 2r+1 and columns 2c, 2c+1 and nothing else."""
    torch.manual_seed(0)
    policy = FlowPolicy(VARIANTS["beyond"])
    codes = torch.zeros(1, 2, 1, 16, dtype=torch.int64)
    moved = codes.clone()
    moved[0, 1, 0, 1 * 4 + 2] = 7
    changed = (policy.embed_vision(codes) - policy.embed_vision(moved)).abs().amax(-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == [5 + 1]


def test_impossible_configurations_are_refused():
    with pytest.raises(ConfigError, match="vision_merge"):
        dataclasses.replace(BASE, vision_merge=3)
    with pytest.raises(ValueError, match="joint vectors"):
        FlowPolicy(dataclasses.replace(BASE, proprio_steps=1)).embed_prefix(observations(BASE, 1))
