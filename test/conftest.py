"""Shared by the rooms: a complete checkpoint of toy size, and a ROS graph of one's own."""

import os
from pathlib import Path

import pytest

import vipra_ros.sim  # noqa: F401 - says how to draw before anything imports mujoco


def make_micro_checkpoint(path, cameras=("front",), proprio_steps=0, scatter=0.004, arms=()):
    """Save a policy of toy size, trained for a second to stay at home within `scatter` rad, hand open."""
    import torch

    from vipra_ros.control.chunk import GRIPPER_CONVENTION
    from vipra_ros.control.profile import load_profile
    from vipra_ros.model.backbone import BackboneConfig
    from vipra_ros.model.policy import FlowPolicy, PolicyConfig, Prefix
    from vipra_ros.model.vq import VQ, VQConfig
    from vipra_ros.policy.checkpoint import FORMAT, Checkpoint, CheckpointConfig
    from vipra_ros.policy.text import Prompt, train_word_tokenizer
    from vipra_ros.sim import scene, tasks

    torch.manual_seed(0)
    words = [
        p.format(colour=c, zone=z)
        for phrases in tasks.PHRASES.values()
        for p in phrases
        for c in tasks.COLOURS
        for z in tasks.ZONES
    ]
    tokenizer = train_word_tokenizer(words)
    vq = VQConfig(image_size=32, widths=(8, 8, 8), blocks=(0, 0, 0), codebook_size=16, code_dim=4)
    count = len(arms) or 1
    policy = PolicyConfig(
        action_dim=8 * count,
        backbone=BackboneConfig(width=32, layers=1, heads=2, ffn=32),
        cameras=len(cameras),
        codebook_size=16,
        grid=vq.grid,
        text_vocab=Prompt(tokenizer, "{task}", True).size,
        proprio_steps=proprio_steps,
    )
    config = CheckpointConfig(
        format=FORMAT,
        variant="Scratch-FM",
        preset="tiny",
        policy=policy,
        vq=vq,
        cameras=cameras,
        image_size=32,
        preprocessing="resize",
        rate=15.0,
        frame_stride=2,
        horizon=14,
        execute_steps=7,
        action_space="joint_position",
        joint_names=load_profile("fr3").joint_names * count,
        gripper=GRIPPER_CONVENTION,
        relative_actions=False,
        proprio_steps=proprio_steps,
        prompt="{task}",
        euler_steps=4,
        noise_scale=1.0,
        attention_order="causal",
        flow_estimator="none",
        perceptual_loss="none",
        seed=0,
        data="none",
        code_version="test",
        arms=arms,
    )
    network, stay = FlowPolicy(policy), torch.tensor(([0.0] * 7 + [1.0]) * count).expand(16, 14, -1)
    prompt = Prompt(tokenizer, "{task}", proprio_steps > 0)
    before = torch.tensor([prompt.before(words[0])]).expand(16, -1)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(120):
        prefix = Prefix(
            before,
            torch.ones_like(before, dtype=torch.bool),
            torch.randint(16, (16, 2, len(cameras), vq.codes_per_frame)),
            torch.tensor(prompt.between),
            torch.tensor(prompt.after),
            torch.randn(16, proprio_steps, 8 * count) if proprio_steps else None,
        )
        optimiser.zero_grad()
        network.loss(prefix, stay, torch.randn(16, 2, 14, 8 * count), torch.rand(16, 2)).mean().backward()
        optimiser.step()
    rows = {"mean": [*scene.HOME, 0.0] * count, "std": ([scatter] * 7 + [1.0]) * count}
    Checkpoint(config, network, VQ(vq), {"action": rows, "state": rows}, tokenizer).save(path)
    return path


@pytest.fixture(scope="session")
def micro_checkpoint(tmp_path_factory):
    """Folder of a one-camera policy of toy size that stays where it is."""
    return make_micro_checkpoint(tmp_path_factory.mktemp("checkpoint") / "micro")


@pytest.fixture(scope="session")
def two_arm_checkpoint(tmp_path_factory):
    """As micro_checkpoint, for the arms left and right."""
    path = tmp_path_factory.mktemp("checkpoint") / "arms"
    return make_micro_checkpoint(path, proprio_steps=1, arms=("left", "right"))


@pytest.fixture(scope="session")
def discrete_folder(micro_checkpoint, tmp_path_factory):
    """The checkpoint of toy size with a discrete decoder (not trained) that stays near where it is."""
    import dataclasses

    import numpy as np
    import torch

    from vipra_ros.model.discrete import make_policy
    from vipra_ros.policy.checkpoint import Checkpoint

    made = Checkpoint.load(micro_checkpoint)
    config = dataclasses.replace(made.config.policy, decoder="discrete", action_bins=15)
    torch.manual_seed(0)
    policy = make_policy(config)
    policy.fit(np.random.default_rng(0).normal(size=(200, 8)))
    described = dataclasses.replace(made.config, policy=config, variant="ViPRA-AR")
    folder = tmp_path_factory.mktemp("ar") / "ar"
    Checkpoint(described, policy, made.vq, made.statistics, made.tokenizer).save(folder)
    return folder


@pytest.fixture
def ray_cluster(monkeypatch):
    """Address of a Ray cluster of two processors on this machine, whose workers find this source tree.

    Skips the test where the optional extra `ray` is not installed.
    """
    ray = pytest.importorskip("ray")
    root = str(Path(__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", f"{root}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    context = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def unused_ros_domain():
    """ROS_DOMAIN_ID (also set in the environment) by which this test run meets no other ROS system."""
    # 0 is everybody's default; above 101 the ports leave the range that Linux keeps free of ephemeral ones.
    # Every second one, so that a test may have domain + 1 for a system of its own.
    domain = 1 + 2 * (os.getpid() % 50)
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return domain
