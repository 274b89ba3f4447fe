"""Perceptual distance between pictures, behind one interface: `make_perceptual(kind, weights)`.

A distance maps two batches of frames (n, 3, H, W) in 0..1 to one number per batch. `lpips`: LPIPS with VGG16 (Zhang et
al. 2018), frozen; its linear layers come with the `lpips` package, VGG16 from a local file. `pyramid`: no weights:
1 - SSIM (Wang et al. 2004) plus the difference of gradients, averaged over scales; it stands in for LPIPS where a
blurred edge must cost more than a shade of grey, and knows nothing of meaning.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError
from vipra_ros.model.box_mean import box_mean
from vipra_ros.model.weights_file import file_hash, fill, read_weights

KINDS = ("none", "pyramid", "lpips")
#: Stabilisers of SSIM for values in 0..1: (0.01)^2 and (0.03)^2, as published.
_C1, _C2 = 1e-4, 9e-4
#: LPIPS' VGG16 is cut behind these layers of torchvision's `features`.
_SLICES = (4, 9, 16, 23, 30)


class PyramidDistance(nn.Module):
    """(1 - SSIM) / 2 and mean absolute gradient difference, equal parts, averaged over `scales` halvings."""

    name = "pyramid"

    def __init__(self, scales: int = 3):
        super().__init__()
        self.scales = scales

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.float(), b.float()
        total, scale = a.new_zeros(()), 0
        while scale < self.scales and min(a.shape[-2:]) >= 7:
            edges = sum((_slope(a, d) - _slope(b, d)).abs().mean() for d in (-1, -2))
            total = total + 0.5 * (1 - ssim(a, b)) + 0.5 * edges
            a, b, scale = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2), scale + 1
        if not scale:
            size = tuple(a.shape[-2:])
            raise ConfigError(f"perceptual = 'pyramid': frames of {size} px are under 7; make them larger")
        return total / scale


def _slope(x: Tensor, dim: int) -> Tensor:
    return x.diff(dim=dim)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of (n, c, H, W) in 0..1, uniform 7 px windows (as in the paper's predecessor)."""
    ma, mb, aa, bb, ab = (box_mean(x, 7) for x in (a, b, a * a, b * b, a * b))
    va, vb, ab = aa - ma * ma, bb - mb * mb, ab - ma * mb
    return ((2 * ma * mb + _C1) * (2 * ab + _C2) / ((ma * ma + mb * mb + _C1) * (va + vb + _C2))).mean()


class LpipsDistance(nn.Module):
    """LPIPS-VGG, frozen.

    Raises:
        ConfigError: `lpips` or torchvision is missing, or the file is missing or of another network.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        try:
            import lpips
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
            raise ConfigError(
                f"perceptual = 'lpips': the package does not load ({str(error).splitlines()[0]}); "
                "pip install lpips and the torchvision made for this torch, or choose perceptual: pyramid"
            ) from None
        what = "torchvision's VGG16"
        state = read_weights(weights, "perceptual_weights", what)
        # pnet_rand: without it the package would download VGG16.
        self.net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        fill(self.net.net, _sliced(state), weights, "perceptual_weights", what)
        self.net.requires_grad_(False).eval()
        self.name = f"lpips:{file_hash(weights)}"

    def train(self, mode: bool = True) -> LpipsDistance:
        """Stays in evaluation mode: its drop-out must not act."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(a.float(), b.float(), normalize=True).mean()


def _sliced(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """VGG16 as torchvision names it -> as LPIPS does: features.5.weight -> slice2.5.weight; classifier left out."""
    named = {}
    for key, value in state.items():
        found = re.fullmatch(r"features\.(\d+)\.(weight|bias)", key)
        if found and int(found[1]) < _SLICES[-1]:
            part = next(i for i, end in enumerate(_SLICES, 1) if int(found[1]) < end)
            named[f"slice{part}.{found[1]}.{found[2]}"] = value
    return named


def make_perceptual(kind: str, weights: str | Path = "") -> nn.Module | None:
    """The distance called `kind`, None for none."""
    if kind not in KINDS:
        raise ConfigError(f"perceptual = {kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    return PyramidDistance() if kind == "pyramid" else LpipsDistance(weights)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of values in 0..1, dB."""
    return float(-10 * torch.log10((a.float() - b.float()).square().mean().clamp_min(1e-10)))
