"""Discrete chunks: cached and lean sampling equal the naive one, and a checkpoint says what it is."""

import dataclasses

import numpy as np
import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.discrete import make_policy
from vipra_ros.model.policy import PolicyConfig
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.deployment import check_deployment, check_folder
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.export import export
from vipra_ros.policy.generator import LeanGenerator, choose, generate, generate_naively
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.sampler import draw_noise
from vipra_ros.serving.contract import Contract

BASE = PolicyConfig(backbone=BackboneConfig(width=32, layers=2, heads=2, ffn=32), text_vocab=32, codebook_size=16,
                    grid=4, action_dim=3, horizon=3, decoder="discrete", action_bins=9)
CONFIGS = {"paper": dataclasses.replace(BASE, backbone=dataclasses.replace(BASE.backbone, attention="sdpa")),
           "beyond": dataclasses.replace(BASE, proprio_steps=2, vision_table_width=8, vision_merge=2,
                                         bidirectional_prefix=True, action_position=True)}


def network(name):
    torch.manual_seed(0)
    policy = make_policy(CONFIGS[name]).eval()
    policy.fit(np.random.default_rng(0).normal(size=(200, 3)))
    for module in policy.modules():
        if "Norm" in type(module).__name__:
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
    torch.nn.init.normal_(policy.action.weight, std=1.0)
    torch.nn.init.normal_(policy.action_head.weight, std=0.2)
    return policy


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("b, padded", [(1, False), (4, True)])
def test_cached_and_lean_sampling_equal_the_naive_one(name, b, padded, prefix_of):
    policy = network(name)
    prefix, noise = prefix_of(policy.config, b, padded), draw_noise(policy, b, 0)
    for temperature in (0.0, 1.0):
        naive = generate_naively(policy, prefix, noise, temperature)
        assert torch.equal(generate(policy, prefix, noise, temperature), naive)
        assert torch.equal(LeanGenerator(policy, 0, temperature)(prefix, noise), naive)
    greedy = generate(policy, prefix, noise)
    assert torch.equal(greedy, generate(policy, prefix, draw_noise(policy, b, 1)))
    assert not torch.equal(naive, generate(policy, prefix, draw_noise(policy, b, 1), 1.0))
    assert set(greedy[..., -1].unique().tolist()) <= {-1.0, 1.0}


def test_the_likeliest_token_is_the_one_the_loss_likes_best(prefix_of):
    policy = network("paper")
    prefix = prefix_of(policy.config, 1, False)
    chunk = generate(policy, prefix, draw_noise(policy, 1, 0))
    ids = policy.encode(chunk)
    assert torch.equal(policy.decode(ids), chunk)
    best = float(policy.loss(prefix, chunk)[0])
    for last in range(2):  # the last token alone: nothing after it changes
        other = ids.clone()
        other[0, -1, -1] = 9 + last
        assert best <= float(policy.loss(prefix, policy.decode(other))[0]) + 1e-6


def test_temperature_draws_by_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(4000, -1)
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(choose(logits, noise, 1.0), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert choose(logits, noise, 0.0).unique().tolist() == [0] and choose(logits, noise, 0.1).bincount()[0] > 3950


def test_a_checkpoint_says_how_it_decodes_and_the_engine_does_so(discrete_folder, tmp_path):
    loaded = Checkpoint.load(discrete_folder)
    assert loaded.config.decoder == Contract.of(loaded).decoder == "discrete"
    engine, eager = load_engine(loaded), load_engine(Checkpoint.load(discrete_folder), "eager")
    engine.warm_up()
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    seen = Observation(1.0, {"front": frames}, "reach above the red cube")
    made = engine.infer(seen, seed=1)
    assert made.actions.shape == (14, 8) and {"prefill", "tokens"} <= made.timing.keys()
    assert np.allclose(made.actions, eager.infer(seen, seed=2).actions)
    # Every joint is a middle of its bins, in raw units.
    middles = ((loaded.policy.edges[:, 1:] + loaded.policy.edges[:, :-1]) / 2).double().numpy()
    n = loaded.normaliser
    for k in range(7):
        raw = middles[k] * n.action_std[k] + n.action_mean[k]
        assert (np.abs(made.actions[:, k, None] - raw).min(1) < 1e-6).all()
    with pytest.raises(CheckpointError, match="no graph of a discrete decoder"):
        load_engine(loaded, "onnx")
    with pytest.raises(ConfigError, match="discrete decoder"):
        export(loaded, tmp_path / "graphs")


def test_only_simulated_arms_are_driven_by_it(discrete_folder, micro_checkpoint):
    check_folder(discrete_folder, simulated=True)
    check_folder(micro_checkpoint, simulated=False)
    check_folder("/none/such", simulated=False)
    with pytest.raises(ConfigError, match="ViPRA-AR has a discrete decoder: .*safety stop"):
        check_folder(discrete_folder, simulated=False)
    with pytest.raises(ConfigError, match="this policy"):
        check_deployment("discrete", "", simulated=False)


def test_edges_that_are_gone_or_out_of_order_are_refused(discrete_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in discrete_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(discrete_folder / "policy.safetensors")
    for edges, word in ((torch.zeros_like(weights["edges"]), "no bin edges"), (weights["edges"].flip(1), "ascending")):
        save_file(weights | {"edges": edges.contiguous()}, tmp_path / "policy.safetensors")
        with pytest.raises(CheckpointError, match=word):
            Checkpoint.load(tmp_path)
