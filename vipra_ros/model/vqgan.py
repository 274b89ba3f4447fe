"""The VQGAN of the Large World Model: 256 px frames <-> 16 x 16 codes of 8192.

A convolutional auto-encoder without attention. Facts from the public LargeWorldModel/LWM repository, lwm/vqgan.py:
base 128 channels times (1, 2, 2, 4, 6), two residual blocks per level (three on the way up), codebook 8192 x 64.
Three details of its JAX layers decide whether imported weights give the same codes:

* GroupNorm has 32 groups and epsilon 1e-6 (torch's default is 1e-5);
* a halving pads one pixel on the right and below only, then convolves without padding;
* the nearest code is Euclidean on raw vectors; nothing is normalised.

`VQConfig(kind="vqgan")` describes it: `widths` are the channels of the levels, `blocks` the residual blocks of each.
Training (adversarial and perceptual losses) is not here; weights come from `vipra import-lwm`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError
from vipra_ros.model.vq import VQConfig

#: Of the flax layers the weights were trained with.
GROUPS, EPSILON = 32, 1e-6

#: LWM's own size.
LWM = VQConfig(
    kind="vqgan",
    image_size=256,
    widths=(128, 256, 256, 512, 768),
    blocks=(2, 2, 2, 2, 2),
    codebook_size=8192,
    code_dim=64,
)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPSILON)


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on x where the width changes."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(before), _conv(before, after)
        self.norm2, self.conv2 = _norm(after), _conv(after, after)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, H, W) -> (n, after, H, W)."""
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of resolution: "down", "up" or "" for none."""

    def __init__(self, before: int, after: int, blocks: int, change: str):
        super().__init__()
        self.blocks = nn.ModuleList([ResBlock(before if i == 0 else after, after) for i in range(blocks)])
        self.change = change
        if change:
            down = change == "down"
            self.resample = nn.Conv2d(after, after, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, H, W) -> (n, after, H', W')."""
        for block in self.blocks:
            x = block(x)
        if self.change == "down":
            return self.resample(F.pad(x, (0, 1, 0, 1)))
        if self.change == "up":
            return self.resample(F.interpolate(x, scale_factor=2, mode="nearest"))
        return x


class Encoder(nn.Module):
    """Pixels (n, 3, H, W) in [-1, 1] -> features (n, code_dim, grid, grid)."""

    def __init__(self, config: VQConfig):
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.first = _conv(3, widths[0])
        self.levels = nn.ModuleList(
            [
                Level(widths[max(i - 1, 0)], widths[i], config.blocks[i], "down" if i < last else "")
                for i in range(last + 1)
            ]
        )
        self.middle = nn.Sequential(*[ResBlock(widths[-1], widths[-1]) for _ in range(2)])
        self.norm, self.last = _norm(widths[-1]), _conv(widths[-1], config.code_dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.first(x)
        for level in self.levels:
            x = level(x)
        return self.last(F.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """Code vectors (n, code_dim, grid, grid) -> pixels (n, 3, H, W), about [-1, 1]. `levels` run coarse to fine."""

    def __init__(self, config: VQConfig):
        super().__init__()
        coarse = config.widths[::-1]
        self.first = _conv(config.code_dim, coarse[0])
        self.middle = nn.Sequential(*[ResBlock(coarse[0], coarse[0]) for _ in range(2)])
        self.levels = nn.ModuleList(
            [
                Level(coarse[max(i - 1, 0)], width, config.blocks[-1 - i] + 1, "up" if i < len(coarse) - 1 else "")
                for i, width in enumerate(coarse)
            ]
        )
        self.norm, self.last = _norm(coarse[-1]), _conv(coarse[-1], 3)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        x = self.middle(self.first(z))
        for level in self.levels:
            x = level(x)
        return self.last(F.silu(self.norm(x)))


class VQGAN(nn.Module):
    """Same duties as `VQ`: uint8 (n, H, W, 3) RGB <-> int64 (n, codes_per_frame), row-major cells."""

    def __init__(self, config: VQConfig):
        super().__init__()
        if any(width % GROUPS for width in config.widths):
            raise ConfigError(f"vq: widths {config.widths} of kind vqgan must be multiples of {GROUPS}")
        self.config = config
        d = config.code_dim
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.before, self.after = nn.Conv2d(d, d, 1), nn.Conv2d(d, d, 1)
        self.codebook = nn.Parameter(torch.empty(1, config.codebook_size, d).uniform_(-1, 1) / config.codebook_size)

    def latents(self, x: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) in [-1, 1] -> vectors (n, grid, grid, D) before quantisation."""
        return self.before(self.encoder(x)).permute(0, 2, 3, 1)

    def nearest(self, z: Tensor) -> Tensor:
        """(m, D) -> (m,) index of the closest code: the smallest |c|^2 / 2 - z c."""
        book = self.codebook[0]
        return torch.addmm(0.5 * book.pow(2).sum(1), z, book.T, alpha=-1).argmin(1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """int64 (n, codes_per_frame) -> pixels (n, 3, H, W), clipped to [-1, 1]."""
        side = self.config.grid
        z = self.codebook[0][codes].reshape(len(codes), side, side, -1).permute(0, 3, 1, 2)
        return self.decoder(self.after(z)).clamp(-1, 1)

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """uint8 (n, H, W, 3) RGB -> int64 (n, codes_per_frame)."""
        images, size = torch.as_tensor(images), self.config.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (n, {size}, {size}, 3) RGB"
            )
        dtype = self.codebook.dtype
        z = self.latents((images.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(dtype))
        return self.nearest(z.reshape(-1, z.shape[-1])).reshape(len(images), -1)

    @torch.inference_mode()
    def decode(self, codes: Tensor | np.ndarray) -> Tensor:
        """int64 (n, codes_per_frame) -> uint8 (n, H, W, 3) RGB."""
        codes = torch.as_tensor(codes).long()
        if codes.shape[1:] != (self.config.codes_per_frame,):
            raise ValueError(f"codes are {tuple(codes.shape)}; expected (n, {self.config.codes_per_frame})")
        pixels = self.reconstruct(codes).float().permute(0, 2, 3, 1)
        return ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def code_vectors(self) -> Tensor:
        """(1, K, D) codes scaled to a mean length of one, for initialising embedding tables."""
        book = self.codebook.detach()
        return book / book.norm(dim=-1).mean().clamp_min(1e-9)
