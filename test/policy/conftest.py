"""What several tests of samplers begin with."""

import pytest
import torch

from vipra_ros.model.policy import Prefix


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
