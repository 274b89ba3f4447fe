"""Vector-quantised auto-encoder of camera frames: one image becomes a grid of code indices.

A frame is cut into 4x4 patches (an exact rearrangement, so full-resolution convolutions, the slow part on
a CPU, never run), a small residual network halves the grid twice, and every cell of the resulting grid is
replaced by the nearest of `codebook_size` unit vectors. Product quantisation (`groups` > 1) splits a cell's
vector and looks each part up in its own codebook: more information per cell for the same sequence length.

Codes are compared by cosine (Yu et al. 2022, "Vector-quantized image modeling with improved VQGAN"), the
codebook follows the data by exponential moving averages (van den Oord et al. 2017, appendix A.1), starts from
real latents, and codes nobody uses move to where latents are badly served.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError, param

PATCH = 4
#: Most resolutions of the network.
MOST_HALVINGS = 8


@dataclass(frozen=True)
class VQConfig:
    """Architecture of the frame quantiser."""

    kind: str = param(
        "conv",
        doc="conv: this module's network; patch: principal components and k-means (patch_vq.py); "
        "vqgan: LWM's network (vqgan.py)",
        choices=("conv", "patch", "vqgan"),
    )
    image_size: int = param(128, doc="side of the square input image", unit="px", low=16, high=8192)
    patch: int = param(8, doc="side of a patch, kind patch only", unit="px", low=2, high=1024)
    chroma_weight: float = param(4.0, doc="how much colour counts against brightness, kind patch only", low=0.1,
                                 high=1e3)
    widths: tuple[int, ...] = param((64, 96, 128), doc="channels after the 4x4 patches and after each halving",
                                    low=1, high=65536)
    blocks: tuple[int, ...] = param((1, 1, 2), doc="residual blocks at each of those resolutions",
                                    low=0, high=64)
    codebook_size: int = param(2048, doc="vectors in each codebook", low=2, high=1 << 15)
    code_dim: int = param(32, doc="length of one code vector, all groups together", low=1, high=65536)
    groups: int = param(1, doc="codebooks per grid cell (product quantisation); 1 is plain VQ", low=1, high=64)

    def __post_init__(self) -> None:
        if not 1 <= len(self.widths) <= MOST_HALVINGS:
            raise ConfigError(f"vq: widths has {len(self.widths)} values; give 1 to {MOST_HALVINGS}")
        if len(self.widths) != len(self.blocks):
            raise ConfigError(f"vq: widths {self.widths} and blocks {self.blocks} differ in length; give one of each")
        if self.image_size % self.stride:
            raise ConfigError(
                f"vq: image_size = {self.image_size} px is no multiple of {self.stride}; resize the images"
            )
        if self.kind != "conv" and self.groups != 1:
            raise ConfigError(f"vq: groups = {self.groups} needs kind conv; {self.kind} has one code per cell")
        if self.code_dim % self.groups:
            raise ConfigError(f"vq: code_dim = {self.code_dim} cannot be split into {self.groups} groups")

    @property
    def stride(self) -> int:
        """Pixels per grid cell side."""
        if self.kind == "patch":
            return self.patch
        return (PATCH if self.kind == "conv" else 1) * 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> int:
        """Grid cells per image side."""
        return self.image_size // self.stride

    @property
    def codes_per_frame(self) -> int:
        """Indices per image: cells x groups, cell-major."""
        return self.grid**2 * self.groups


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); no normalisation, which costs a CPU more than the convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Quantiser(nn.Module):
    """Nearest unit code vector per cell and group, codebook by moving averages.

    Buffers: `codebook` (G, K, D/G) unit vectors, `usage` (G, K) and `total` (G, K, D/G) running sums.
    """

    def __init__(self, groups: int, size: int, dim: int, decay: float = 0.98):
        super().__init__()
        self.groups, self.size, self.dim, self.decay = groups, size, dim // groups, decay
        self.register_buffer("codebook", F.normalize(torch.randn(groups, size, self.dim), dim=-1))
        self.register_buffer("usage", torch.ones(groups, size))
        self.register_buffer("total", self.codebook.clone())

    def split(self, z: Tensor) -> Tensor:
        """(N, D) latents -> (G, N, D/G) unit vectors, float32."""
        return F.normalize(z.float().reshape(len(z), self.groups, self.dim).transpose(0, 1), dim=-1)

    def nearest(self, units: Tensor) -> Tensor:
        """(G, N, D/G) unit vectors -> (G, N) indices of the closest codes."""
        return torch.stack([(u @ c.T).argmax(-1) for u, c in zip(units, self.codebook)])

    def lookup(self, indices: Tensor) -> Tensor:
        """(G, N) indices -> (N, D) code vectors."""
        picked = torch.stack([c[i] for c, i in zip(self.codebook, indices)])
        return picked.transpose(0, 1).reshape(indices.shape[1], -1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) latents -> (straight-through codes (N, D), indices (G, N), commitment loss)."""
        units = self.split(z)
        with torch.no_grad():
            indices = self.nearest(units.detach())
            if self.training:
                self._follow(units.detach(), indices)
        flat = units.transpose(0, 1).reshape(len(z), -1)
        codes = self.lookup(indices)
        commitment = (flat - codes).pow(2).sum(-1).mean() / self.groups
        return flat + (codes - flat).detach(), indices, commitment

    def _follow(self, units: Tensor, indices: Tensor) -> None:
        for g in range(self.groups):
            count = torch.bincount(indices[g], minlength=self.size).float()
            summed = torch.zeros_like(self.total[g]).index_add_(0, indices[g], units[g])
            self.usage[g].mul_(self.decay).add_(count, alpha=1 - self.decay)
            self.total[g].mul_(self.decay).add_(summed, alpha=1 - self.decay)
        self.codebook.copy_(F.normalize(self.total, dim=-1))

    @torch.no_grad()
    def initialise(self, z: Tensor, generator: torch.Generator, iterations: int = 8) -> None:
        """Spherical k-means over latents (N, D), N >= codebook size, from random samples of them."""
        for g, units in enumerate(self.split(z)):
            if len(units) < self.size:
                raise ValueError(f"{len(units)} latents cannot initialise {self.size} codes; give more frames")
            centres = units[torch.randperm(len(units), generator=generator)[: self.size]].clone()
            for _ in range(iterations):
                nearest = (units @ centres.T).argmax(-1)
                summed = torch.zeros_like(centres).index_add_(0, nearest, units)
                empty = torch.bincount(nearest, minlength=self.size) == 0
                again = torch.randint(len(units), (int(empty.sum()),), generator=generator)
                summed[empty] = units[again]
                centres = F.normalize(summed, dim=-1)
            self.codebook[g] = centres
            self.usage[g] = len(units) / self.size
            self.total[g] = centres * self.usage[g][:, None]

    @torch.no_grad()
    def revive(self, z: Tensor, threshold: float, generator: torch.Generator) -> int:
        """Move codes with running usage below `threshold` onto badly served latents of (N, D); how many moved."""
        moved = 0
        for g, units in enumerate(self.split(z)):
            dead = torch.nonzero(self.usage[g] < threshold).flatten()
            if not len(dead):
                continue
            error = 1.0 - (units @ self.codebook[g].T).max(-1).values
            dead = dead[: len(units) // 4]
            chosen = torch.multinomial(error.clamp_min(1e-6), len(dead), generator=generator)
            fresh = max(4 * threshold, 1e-3)
            self.codebook[g, dead] = units[chosen]
            self.usage[g, dead] = fresh
            self.total[g, dead] = units[chosen] * fresh
            moved += len(dead)
        return moved


class VQ(nn.Module):
    """The auto-encoder. Images travel as uint8 (n, H, W, 3) RGB, codes as int64 (n, codes_per_frame)."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        widths, blocks = config.widths, config.blocks
        down: list[nn.Module] = [nn.Conv2d(3 * PATCH**2, widths[0], 3, padding=1)]
        up: list[nn.Module] = []
        for i, (width, count) in enumerate(zip(widths, blocks)):
            if i:
                down.append(nn.Conv2d(widths[i - 1], width, 4, stride=2, padding=1))
            down += [ResidualBlock(width) for _ in range(count)]
        up.append(nn.Conv2d(config.code_dim, widths[-1], 3, padding=1))
        for i in reversed(range(len(widths))):
            up += [ResidualBlock(widths[i]) for _ in range(blocks[i])]
            if i:
                # A 1x1 convolution and a rearrangement: the transposed convolution without its checkerboard cost.
                up += [nn.Conv2d(widths[i], 4 * widths[i - 1], 1), nn.PixelShuffle(2)]
        up += [nn.SiLU(), nn.Conv2d(widths[0], 3 * PATCH**2, 3, padding=1)]
        self.encoder = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(widths[-1], config.code_dim, 1))
        self.decoder = nn.Sequential(*up)
        self.quantiser = Quantiser(config.groups, config.codebook_size, config.code_dim)

    @staticmethod
    def to_input(images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) -> float (n, 3, H, W) in -1..1."""
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def latents(self, x: Tensor) -> Tensor:
        """(n, 3, H, W) in -1..1 -> (n * cells, D), row-major cells, before normalisation."""
        patches = F.pixel_unshuffle(x, PATCH).contiguous(memory_format=torch.channels_last)
        z = self.encoder(patches)
        return z.permute(0, 2, 3, 1).reshape(-1, self.config.code_dim)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """(n * cells, D) code vectors -> (n, 3, H, W), nominally -1..1."""
        side = self.config.grid
        z = codes.reshape(-1, side, side, self.config.code_dim).permute(0, 3, 1, 2)
        # Unit vectors have entries of size D^-0.5; the decoder wants unit variance.
        z = z * (self.config.code_dim / self.config.groups) ** 0.5
        return F.pixel_shuffle(self.decoder(z), PATCH)

    def forward(self, x: Tensor, quantise: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
        """(n, 3, H, W) -> (reconstruction, indices (G, n * cells) or None, commitment loss)."""
        z = self.latents(x)
        if not quantise:
            units = self.quantiser.split(z).transpose(0, 1).reshape(len(z), -1)
            return self.reconstruct(units), None, z.new_zeros(())
        codes, indices, commitment = self.quantiser(z)
        return self.reconstruct(codes), indices, commitment

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """uint8 (n, H, W, 3) RGB -> int64 (n, codes_per_frame); computed in float32, so codes do not depend
        on the batch a frame came in."""
        images = torch.as_tensor(images)
        size = self.config.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (n, {size}, {size}, 3) RGB"
            )
        indices = self.quantiser.nearest(self.quantiser.split(self.latents(self.to_input(images))))
        return indices.T.reshape(len(images), -1)

    @torch.inference_mode()
    def decode(self, codes: Tensor | np.ndarray) -> Tensor:
        """int64 (n, codes_per_frame) -> uint8 (n, H, W, 3) RGB."""
        codes = torch.as_tensor(codes).long()
        if codes.shape[1:] != (self.config.codes_per_frame,):
            raise ValueError(f"codes are {tuple(codes.shape)}; expected (n, {self.config.codes_per_frame})")
        vectors = self.quantiser.lookup(codes.reshape(-1, self.config.groups).T)
        images = self.reconstruct(vectors).permute(0, 2, 3, 1)
        return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def code_vectors(self) -> Tensor:
        """(groups, codebook_size, code_dim / groups) unit vectors, for initialising embedding tables."""
        return self.quantiser.codebook
