"""Optical flow between frames, differentiable, behind one interface: `make_flow(kind, weights)`.

An estimator maps two batches of frames (n, 3, H, W) in 0..1 to flow (n, 2, H, W), px, (right, down): a point at p in
the first is at p + flow(p) in the second. `raft`: RAFT-large of torchvision (Teed & Deng 2020), frozen, weights from a
local file. `pyramid`: no weights at all, the iterative least squares of Lucas & Kanade (1981) on a Gaussian pyramid,
coarse to fine with warping (Bouguet 2001), every pixel, every step differentiable.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError
from vipra_ros.model.box_mean import box_mean
from vipra_ros.model.weights_file import file_hash, fill, read_weights

KINDS = ("none", "pyramid", "raft")
#: RAFT pools its correlation volume of 1/8 size four times.
_RAFT_SMALLEST = 128
_LUMA = (0.299, 0.587, 0.114)


class PyramidFlow(nn.Module):
    """Coarse-to-fine least squares. Follows shifts up to about 2^levels px in textured areas; elsewhere flow fades.

    Args:
        levels: of the pyramid, each half the size of the one before.
        iterations: of least squares and warping per level.
        radius: px, of the box, applied twice, in which motion is assumed constant.
        damping: added to the window's matrix (squared grey values per px^2): what has no texture does not move.
    """

    name = "pyramid"

    def __init__(self, levels: int = 4, iterations: int = 3, radius: int = 2, damping: float = 1e-4):
        super().__init__()
        self.levels, self.iterations, self.radius, self.damping = levels, iterations, radius, damping

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = (self._pyramid(x.float()) for x in (first, second))
        flow = torch.zeros_like(first[-1]).repeat(1, 2, 1, 1)
        for a, b in zip(reversed(first), reversed(second)):
            if flow.shape[-2:] != a.shape[-2:]:
                scale = a.shape[-1] / flow.shape[-1]
                flow = F.interpolate(flow, a.shape[-2:], mode="bilinear", align_corners=False) * scale
            flow = self._refine(a, b, flow)
        return flow

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        grey = (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
        levels = [_blur(grey)]
        while len(levels) < self.levels and min(levels[-1].shape[-2:]) >= 16:
            levels.append(F.avg_pool2d(_blur(levels[-1]), 2))
        return levels

    def _refine(self, a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
        for _ in range(self.iterations):
            warped = warp(b, flow)
            # Gradients of both, averaged: the error is then of third order in the motion left.
            (ax, ay), (bx, by) = _gradient(a), _gradient(warped)
            gx, gy, gt = (ax + bx) / 2, (ay + by) / 2, warped - a
            products = torch.cat((gx * gx, gx * gy, gy * gy, gx * gt, gy * gt), dim=1)
            xx, xy, yy, xt, yt = self._window(products).chunk(5, dim=1)
            xx, yy = xx + self.damping, yy + self.damping
            determinant = xx * yy - xy * xy
            u, v = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
            # A linearised step of more than a pixel is not to be believed.
            flow = flow + torch.cat((u, v), dim=1) / (1 + u * u + v * v).sqrt()
        return self._window(flow)

    def _window(self, x: Tensor) -> Tensor:
        for _ in range(2):  # two boxes are nearly a Gaussian
            x = box_mean(F.pad(x, [self.radius] * 4, mode="replicate"), 2 * self.radius + 1)
        return x


def _blur(x: Tensor) -> Tensor:
    """Binomial filter 1 4 6 4 1 both ways, each channel by itself."""
    kernel = x.new_tensor((1.0, 4.0, 6.0, 4.0, 1.0)) / 16.0
    channels = x.shape[1]
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(x, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences, per px: (right, down)."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) / 2, (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) / 2


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """x (n, c, H, W) read at p + flow(p), bilinear, its border repeated."""
    height, width = x.shape[-2:]
    row = torch.arange(height, device=x.device, dtype=flow.dtype)
    column = torch.arange(width, device=x.device, dtype=flow.dtype)
    u = (column + flow[:, 0]) * 2 / max(width - 1, 1) - 1
    v = (row[:, None] + flow[:, 1]) * 2 / max(height - 1, 1) - 1
    return F.grid_sample(x, torch.stack((u, v), dim=-1), padding_mode="border", align_corners=True)


def check_raft_size(height: int, width: int) -> None:
    """Refuse frames (px) that RAFT does not take.

    Raises:
        ConfigError: they are too small, or no multiple of 8.
    """
    if min(height, width) < _RAFT_SMALLEST or height % 8 or width % 8:
        raise ConfigError(
            f"flow = 'raft': frames are {width} x {height} px; it takes multiples of 8 from {_RAFT_SMALLEST} on: "
            "change image_size, or choose flow: pyramid"
        )


class RaftFlow(nn.Module):
    """RAFT-large of torchvision, frozen, last of 12 refinements (its own default).

    Raises:
        ConfigError: torchvision is missing, the file is missing or of another network, or frames are too small.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        try:
            from torchvision.models.optical_flow import raft_large
        except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
            raise ConfigError(
                f"flow = 'raft': torchvision does not load ({str(error).splitlines()[0]}); "
                "install the torchvision made for this torch, or choose flow: pyramid"
            ) from None
        state = read_weights(weights, "flow_weights", "torchvision's RAFT-large")
        self.net = raft_large(weights=None, progress=False)
        fill(self.net, state, weights, "flow_weights", "torchvision's RAFT-large")
        self.net.requires_grad_(False).eval()
        self.name = f"raft:{file_hash(weights)}"

    def train(self, mode: bool = True) -> RaftFlow:
        """Stays in evaluation mode: its batch statistics are frozen."""
        return super().train(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        check_raft_size(*first.shape[-2:])
        return self.net(first.float() * 2 - 1, second.float() * 2 - 1)[-1]


def make_flow(kind: str, weights: str | Path = "") -> nn.Module | None:
    """The estimator called `kind`, None for none."""
    if kind not in KINDS:
        raise ConfigError(f"flow = {kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    return PyramidFlow() if kind == "pyramid" else RaftFlow(weights)


def flow_loss(estimator: nn.Module, predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference, px, of flow between consecutive frames, forward and backward.

    Args:
        predicted, truth: (b, t, 3, H, W) in 0..1; gradients go into `predicted`.
    """
    def both(clip: Tensor) -> Tensor:
        a, b = clip[:, :-1].flatten(0, 1), clip[:, 1:].flatten(0, 1)
        return estimator(torch.cat((a, b)), torch.cat((b, a)))

    # bfloat16 has eight bits for a grey value: slow motion is less than that.
    with torch.autocast(truth.device.type, enabled=False):
        with torch.no_grad():
            wanted = both(truth.float())
        return (both(predicted.float()) - wanted).abs().mean()
