"""bfloat16 only where the processor has it."""

import pytest
import torch
from torch.optim import _muon

from vipra_ros.learning import precision


@pytest.mark.parametrize("has", (False, True))
def test_autocast_follows_the_processor(has, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: has)
    a = torch.ones(4, 4)
    with precision.autocast("cpu", True):
        assert (a @ a).dtype is (torch.bfloat16 if has else torch.float32)
    with precision.autocast("cpu", False):
        assert (a @ a).dtype is torch.float32


def test_muon_in_float32_goes_where_torchs_goes(monkeypatch):
    torchs = _muon._zeropower_via_newtonschulz
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", getattr(torchs, "original", torchs))
    weight, gradient = torch.randn(48, 32, generator=torch.manual_seed(0)), torch.randn(48, 32)

    def step(has):
        monkeypatch.setattr(precision, "has_bf16", lambda device: has)
        moved = torch.nn.Parameter(weight.clone())
        optimiser = precision.muon([moved], lr=0.1, weight_decay=0.0)
        moved.grad = gradient.clone()
        optimiser.step()
        return moved.detach() - weight

    as_torch, exact = step(True), step(False)
    assert as_torch.dtype is exact.dtype is torch.float32
    assert 0 < float((as_torch - exact).norm() / exact.norm()) < 0.02, "bfloat16 is rounded, float32 is not"
    singular = torch.linalg.svdvals(exact.double() / exact.abs().max())
    assert float(singular.max() / singular.min()) < 2.0, "orthogonal, roughly"
