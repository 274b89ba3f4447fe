"""The stand-in data set, a quantiser of it, and a training configuration of toy size."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stand_in import SIZE, StandIn


@pytest.fixture(scope="session")
def data():
    return StandIn()


@pytest.fixture(scope="session")
def quantiser(data, tmp_path_factory):
    """Folder of a patch quantiser of toy size fitted to the data."""
    import numpy as np
    import torch

    from vipra_ros.learning.vq import save
    from vipra_ros.model.patch_vq import PatchVQ
    from vipra_ros.model.vq import VQConfig

    made = PatchVQ(VQConfig(kind="patch", image_size=SIZE, patch=4, codebook_size=32, code_dim=8))
    made.fit(np.stack([image for _, image in data.frames("front")]), torch.Generator().manual_seed(0))
    out = tmp_path_factory.mktemp("vq") / "vq"
    save(made, out, {})
    return out


@pytest.fixture
def preset(tmp_path, quantiser):
    """A YAML of toy size."""
    path = tmp_path / "micro.yaml"
    path.write_text(f"""
vq: {quantiser}
draws: 2
holdout: 0.2
evaluate_on: 8
proprio_noise: 0.01
loop: {{steps: 40, batch: 16, lr: 0.003, muon_lr: 0.01, warmup_steps: 5, ema: 0.9, evaluate_every: 20, log_every: 1,
       bf16: false, save_seconds: 0}}
policy: {{proprio_steps: 1, vision_position: true, bidirectional_actions: true, vision_table_width: 8, vision_merge: 2,
         backbone: {{width: 32, layers: 1, heads: 2, ffn: 32}}}}
""")
    return path
