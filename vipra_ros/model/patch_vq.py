"""A linear frame quantiser: principal components of image patches, k-means over them.

The auto-encoder whose encoder and decoder are one matrix. Fitted in closed form in seconds where the
convolutional one of `vq.py` needs hours of CPU, it encodes a frame in about a millisecond, and a cube keeps
its place to half a pixel. What it cannot do is invent: a decoded frame is as sharp as its patches' components.

Patches are taken in a luma-chroma space whose chroma is stretched by `chroma_weight`: a small coloured
cube then weighs as much as the large grey arm, and the components are spent where the task is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.model.vq import VQ, VQConfig
from vipra_ros.model.vqgan import VQGAN

#: ITU-R BT.601: luma, blue- and red-difference.
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class PatchVQ(nn.Module):
    """Same duties as `VQ`: uint8 (n, H, W, 3) RGB <-> int64 (n, codes_per_frame).

    Buffers: `mean` (3 p p,), `basis` (3 p p, D) orthonormal columns, `colour` (3, 3), `codebook` (1, K, D).
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        pixels = 3 * config.patch**2
        if config.code_dim > pixels:
            raise ValueError(
                f"code_dim = {config.code_dim} is more than the {pixels} numbers of a patch; make it smaller"
            )
        colour = torch.tensor(_YCC)
        colour[1:] *= config.chroma_weight
        self.register_buffer("colour", colour)
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.eye(pixels, config.code_dim))
        self.register_buffer("codebook", torch.zeros(1, config.codebook_size, config.code_dim))

    def patches(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) -> float32 (n * cells, 3 p p) in the weighted colour space, row-major cells."""
        x = torch.einsum("kc,nhwc->nkhw", self.colour, images.float() / 127.5 - 1.0)
        return F.pixel_unshuffle(x, self.config.patch).permute(0, 2, 3, 1).reshape(-1, 3 * self.config.patch**2)

    def latents(self, patches: Tensor) -> Tensor:
        """(m, 3 p p) -> (m, D) principal components."""
        return (patches - self.mean) @ self.basis

    def nearest(self, z: Tensor) -> Tensor:
        """(m, D) -> (m,) index of the closest code, Euclidean."""
        return _nearest(z, self.codebook[0])

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """uint8 (n, H, W, 3) RGB -> int64 (n, codes_per_frame)."""
        images = torch.as_tensor(images)
        size = self.config.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (n, {size}, {size}, 3) RGB"
            )
        return self.nearest(self.latents(self.patches(images))).reshape(len(images), -1)

    @torch.inference_mode()
    def decode(self, codes: Tensor | np.ndarray) -> Tensor:
        """int64 (n, codes_per_frame) -> uint8 (n, H, W, 3) RGB."""
        codes, side = torch.as_tensor(codes).long(), self.config.grid
        if codes.shape[1:] != (self.config.codes_per_frame,):
            raise ValueError(f"codes are {tuple(codes.shape)}; expected (n, {self.config.codes_per_frame})")
        flat = self.codebook[0][codes.reshape(-1)] @ self.basis.T + self.mean
        x = F.pixel_shuffle(flat.reshape(-1, side, side, flat.shape[1]).permute(0, 3, 1, 2), self.config.patch)
        rgb = torch.einsum("ck,nkhw->nhwc", torch.linalg.inv(self.colour), x)
        return ((rgb + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def code_vectors(self) -> Tensor:
        """(1, K, D) codes scaled to a mean length of one, for initialising embedding tables."""
        return self.codebook / self.codebook.norm(dim=-1).mean().clamp_min(1e-9)

    @torch.no_grad()
    def fit(
        self, images: np.ndarray, generator: torch.Generator, *, most_patches: int = 120_000, iterations: int = 12
    ) -> None:
        """Principal components and k-means of frames uint8 (n, H, W, 3).

        Patches that never change (the empty table) are thinned to one in thirty: they would take most codes.
        """
        stack = self.patches(torch.from_numpy(images)).reshape(len(images), -1, len(self.mean))
        change = (stack - stack.median(0).values).abs().mean(-1).reshape(-1)
        stack = stack.reshape(-1, len(self.mean))
        # multinomial takes at most 2^24 categories
        weight = (change > 0.03).float()[: 2**24 - 1] + 0.03
        pick = torch.multinomial(weight, min(most_patches, len(weight)), generator=generator)
        some = stack[pick]
        self.mean.copy_(some.mean(0))
        centred = some - self.mean
        vectors = torch.linalg.eigh(centred.T @ centred / len(some)).eigenvectors
        self.basis.copy_(vectors.flip(1)[:, : self.config.code_dim])
        self.codebook[0] = _kmeans(self.latents(some), self.config.codebook_size, iterations, generator)


def _nearest(z: Tensor, book: Tensor) -> Tensor:
    """Index of the closest row of `book` (K, D) for each row of z (m, D): argmax of z c - c c / 2.

    In blocks whose scores stay in the processor's cache; all at once is five times slower.
    """
    offset = -0.5 * book.pow(2).sum(1)
    return torch.cat([torch.addmm(offset, part, book.T).argmax(1) for part in z.split(512)])


def _kmeans(z: Tensor, k: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from random samples; empty clusters restart at random points."""
    if len(z) < k:
        raise ValueError(f"{len(z)} patches cannot make {k} codes; give more frames or a smaller codebook_size")
    centres = z[torch.randperm(len(z), generator=generator)[:k]].clone()
    for _ in range(iterations):
        nearest = _nearest(z, centres)
        count = torch.bincount(nearest, minlength=k)
        centres = torch.zeros_like(centres).index_add_(0, nearest, z) / count.clamp_min(1)[:, None]
        empty = torch.nonzero(count == 0).flatten()
        centres[empty] = z[torch.randint(len(z), (len(empty),), generator=generator)]
    return centres


def make_quantiser(config: VQConfig) -> VQ | PatchVQ | VQGAN:
    """The frame quantiser a configuration describes."""
    return {"conv": VQ, "patch": PatchVQ, "vqgan": VQGAN}[config.kind](config)
