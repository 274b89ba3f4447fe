"""What several tests of samplers begin with."""

import dataclasses

import numpy as np
import pytest
import torch

from vipra_ros.model.discrete import make_policy
from vipra_ros.model.policy import Prefix
from vipra_ros.policy.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def prefix_of():
    """(config, batch, whether the text is padded on the left) -> the same random prefix every time."""

    def make(config, b, padded):
        g = torch.Generator().manual_seed(1)
        mask = torch.ones(b, 6, dtype=torch.bool)
        for i in range(b if padded else 0):
            mask[i, : i % 3] = False
        shape = b, config.frames, config.cameras, config.grid**2 * config.code_groups
        codes = torch.randint(0, 16, shape, generator=g)
        proprio = torch.randn(b, config.proprio_steps, config.action_dim, generator=g) if config.proprio_steps else None
        return Prefix(
            torch.randint(0, 32, (b, 6), generator=g), mask, codes, torch.tensor([3, 4]), torch.tensor([5]), proprio
        )

    return make


@pytest.fixture(scope="session")
def discrete_folder(micro_checkpoint, tmp_path_factory):
    """The checkpoint of toy size with a discrete decoder (not trained) that stays near where it is."""
    made = Checkpoint.load(micro_checkpoint)
    config = dataclasses.replace(made.config.policy, decoder="discrete", action_bins=15)
    torch.manual_seed(0)
    policy = make_policy(config)
    policy.fit(np.random.default_rng(0).normal(size=(200, 8)))
    described = dataclasses.replace(made.config, policy=config, variant="ViPRA-AR")
    folder = tmp_path_factory.mktemp("ar") / "ar"
    Checkpoint(described, policy, made.vq, made.statistics, made.tokenizer).save(folder)
    return folder
