"""Optical flow and perceptual distance: what they measure, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F

from vipra_ros.config import ConfigError
from vipra_ros.model.box_mean import box_mean
from vipra_ros.model.optical_flow import PyramidFlow, flow_loss, make_flow, warp
from vipra_ros.model.perceptual import make_perceptual, psnr, ssim


def texture(size=64, seed=0):
    """Smooth noise (1, 3, size, size) in 0..1."""
    torch.set_num_threads(1)
    x = torch.randn(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False)
    return (0.5 + 0.2 * x).clamp(0, 1)


def moved(x, right, down):
    """`x` shifted by whole or broken px."""
    flow = torch.tensor([-right, -down]).view(1, 2, 1, 1).expand(1, 2, *x.shape[-2:])
    return warp(x, flow)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, -0.25), (2.0, 0.0), (-3.5, 1.5), (0.0, 6.0)])
def test_end_point_error_of_shifts(shift):
    x = texture()
    flow = PyramidFlow()(x, moved(x, *shift))
    inner = flow[..., 10:-10, 10:-10]
    error = (inner - torch.tensor(shift).view(1, 2, 1, 1)).norm(dim=1)
    assert error.mean() < 0.15, f"{error.mean():.3f} px"


@pytest.mark.parametrize("size", [2, 5, 7])
def test_the_mean_of_a_window_is_that_of_average_pooling_and_so_is_its_gradient(size):
    x = torch.randn(2, 3, 12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(size), requires_grad=True)
    before = x.detach().clone()
    mine, wanted = box_mean(x, size), F.avg_pool2d(x, size, 1)
    assert torch.allclose(mine, wanted) and torch.equal(x, before)
    weight = torch.randn(mine.shape, dtype=mine.dtype, generator=torch.Generator().manual_seed(0))
    (gradient,), (right,) = (torch.autograd.grad((y * weight).sum(), x) for y in (mine, wanted))
    assert torch.allclose(gradient, right)


def test_a_moving_square_moves_alone():
    x = texture()
    y, patch = x.clone(), texture(16, seed=3)
    x[..., 20:36, 20:36], y[..., 20:36, 23:39] = patch, patch
    flow = PyramidFlow()(x, y)
    assert abs(flow[0, 0, 26:30, 26:30].mean() - 3) < 0.5
    assert flow[..., 50:, :].abs().mean() < 0.1


def test_no_texture_no_motion_and_no_nan():
    grey = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    flow = PyramidFlow()(grey, torch.full((1, 3, 64, 64), 0.5))
    assert flow.abs().max() < 1e-3
    flow.sum().backward()
    assert torch.isfinite(grey.grad).all()


def test_flow_loss_wants_the_same_motion():
    x = texture()
    truth = torch.stack([x, moved(x, 2.0, 0.0), moved(x, 4.0, 0.0)], 1)
    still = torch.stack([x, x, x], 1).requires_grad_()
    estimator = make_flow("pyramid")
    loss = flow_loss(estimator, still, truth)
    assert abs(loss.item() - 1.0) < 0.2, "2 px right, 0 px down: one on average"
    loss.backward()
    assert still.grad.abs().sum() > 0
    brighter = (truth * 0.9 + 0.05).requires_grad_()
    assert flow_loss(estimator, brighter, truth) < 0.3 * loss.item()


def test_flow_is_float32_under_autocast_too():
    x = texture()
    clips = torch.stack([x, x], 1), torch.stack([x, moved(x, 0.3, 0.0)], 1)
    wanted = flow_loss(PyramidFlow(), *clips)
    with torch.autocast("cpu", torch.bfloat16):
        assert flow_loss(PyramidFlow(), *clips) == wanted


def test_pyramid_distance_dislikes_blur_more_than_shade():
    x, distance = texture(), make_perceptual("pyramid")
    assert distance(x, x).abs() < 1e-6
    blurred = F.interpolate(F.avg_pool2d(x, 8), x.shape[-2:], mode="bilinear")
    shade = x + (blurred - x).abs().mean()
    assert distance(blurred, x) > 2 * distance(shade, x)
    assert ssim(x, x) > 0.999 > ssim(x, blurred)
    assert psnr(x, x + 0.1) == pytest.approx(20.0, abs=0.01)


def test_missing_files_and_kinds_are_told(tmp_path):
    with pytest.raises(ConfigError, match="choose one of none, pyramid, raft"):
        make_flow("farneback")
    with pytest.raises(ConfigError, match="choose one of none, pyramid, lpips"):
        make_perceptual("vgg")
    assert make_flow("none") is None and make_perceptual("none") is None
    (tmp_path / "wrong.pth").write_bytes(b"not weights")
    for path in (tmp_path / "none.pth", tmp_path / "wrong.pth"):
        with pytest.raises(ConfigError, match="torchvision"):
            make_flow("raft", path)
        with pytest.raises(ConfigError, match="torchvision|lpips"):
            make_perceptual("lpips", path)


def torchvision():
    why = "no torchvision made for this torch"
    return pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError), reason=why)


def test_raft_from_a_file(tmp_path):
    torchvision()
    from torchvision.models.optical_flow import raft_large

    torch.save(raft_large(weights=None).state_dict(), tmp_path / "raft.pth")
    raft = make_flow("raft", tmp_path / "raft.pth").train()
    assert not raft.net.training and raft.name.startswith("raft:")
    x = texture(128)
    assert raft(x, x).shape == (1, 2, 128, 128)
    with pytest.raises(ConfigError, match="multiples of 8 from 128"):
        raft(texture(64), texture(64))
    predicted = torch.stack([x, 1 - x], 1).requires_grad_()
    flow_loss(raft, predicted, torch.stack([x, x], 1)).backward()
    assert torch.isfinite(predicted.grad).all() and predicted.grad.abs().sum() > 0
    assert all(p.grad is None for p in raft.parameters()), "frozen"
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="belongs to another network"):
        make_flow("raft", tmp_path / "other.pth")


def test_lpips_from_a_file(tmp_path):
    torchvision()
    pytest.importorskip("lpips")
    from torchvision.models import vgg16

    torch.manual_seed(0)
    state = {k: v for k, v in vgg16(weights=None).state_dict().items() if k.startswith("features")}
    torch.save(state, tmp_path / "vgg.pth")
    distance = make_perceptual("lpips", tmp_path / "vgg.pth")
    assert torch.equal(distance.net.net.state_dict()["slice3.10.weight"], state["features.10.weight"])
    x = texture()
    assert distance(x, x).abs() < 1e-6 < distance(x, 1 - x)
    drawn = (1 - x).requires_grad_()
    distance(drawn, x).backward()
    assert drawn.grad.abs().sum() > 0 and all(p.grad is None for p in distance.parameters())
    torch.save({k: v for k, v in state.items() if "28" not in k}, tmp_path / "cut.pth")
    with pytest.raises(ConfigError, match="belongs to another network"):
        make_perceptual("lpips", tmp_path / "cut.pth")
