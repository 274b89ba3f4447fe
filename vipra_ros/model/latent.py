"""Latent actions: what changed between the frames of a video, as a few discrete codes per transition.

An inverse dynamics encoder that sees the whole clip (non-causal) says what happened between consecutive frames, in
N codes of a codebook of 8; a forward decoder that sees only the past (causal) must predict the next frames from them.
Since the decoder knows everything but the change, the change is what the codes come to carry.
After ViPRA (arXiv 2511.07732, section 3.1 and its public code); `config/learning/paper/latent.yaml` has its sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipra_ros.config import ConfigError, param
from vipra_ros.model.nsvq import NSVQ
from vipra_ros.model.spacetime import Attention, FeedForward, SpaceTime

#: Mean and deviation of ImageNet's pixels: the input normalisation of DINOv2.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LatentConfig:
    """Architecture of encoder, quantiser and decoder; the defaults are the `tiny` preset."""

    image_size: int = param(64, doc="side of the square frames", unit="px", low=16)
    patch: int = param(8, doc="side of a patch", unit="px", low=2)
    image_encoder: str = param(
        "vit", doc="vit: own, from scratch; dinov2: ViT-B/14 with registers of transformers", choices=("vit", "dinov2")
    )
    image_layers: int = param(2, doc="layers of the own image encoder", low=0)
    width: int = param(128, doc="channels of all tokens", low=8)
    heads: int = param(4, doc="attention heads", low=1)
    inverse_blocks: int = param(2, doc="spatio-temporal blocks of the encoder", low=1)
    forward_blocks: int = param(3, doc="spatio-temporal blocks of the decoder", low=1)
    codebook_size: int = param(8, doc="codes; labels keep each in one byte", low=2, high=128)
    code_dim: int = param(32, doc="length of a code vector", low=1)
    predict_change: bool = param(False, doc="the decoder adds to the last frame instead of drawing a new one")

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ConfigError(
                f"latent: image_size = {self.image_size} px is no multiple of patch = {self.patch} px; change one"
            )
        if self.width % (2 * self.heads):
            raise ConfigError(f"latent: width = {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.image_encoder == "dinov2" and (self.patch, self.width) != (14, 768):
            raise ConfigError(
                f"latent: dinov2 has patch 14 and width 768, not {self.patch} and {self.width}; or image_encoder: vit"
            )

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch

    @property
    def code_grid(self) -> int:
        """Codes per side: two convolutions of stride 2."""
        return -(-self.grid // 4)

    @property
    def codes_per_step(self) -> int:
        """N, codes of one transition."""
        return self.code_grid**2


class OwnViT(nn.Module):
    """Patches, learnt places, pre-norm layers: images (m, 3, H, W) -> (m, grid^2, width)."""

    def __init__(self, config: LatentConfig):
        super().__init__()
        c = config
        self.patch = nn.Conv2d(3, c.width, c.patch, stride=c.patch)
        self.place = nn.Parameter(torch.randn(c.grid**2, c.width) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (nn.LayerNorm(c.width), Attention(c.width, c.heads), nn.LayerNorm(c.width), FeedForward(c.width))
            )
            for _ in range(c.image_layers)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2) + self.place
        for norm, attention, other, mlp in self.layers:
            x = x + attention(norm(x))
            x = x + mlp(other(x))
        return x


class DinoV2(nn.Module):
    """DINOv2 ViT-B/14 with registers (Darcet et al. 2024), random until `load_dinov2`; same shapes as `OwnViT`."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        # 518 px is what it was trained at; its places are interpolated to other sizes.
        self.net = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=518, patch_size=14))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(pixel_values=images).last_hidden_state[:, 1 + self.net.config.num_register_tokens :]


class InverseDynamics(nn.Module):
    """Frames (b, L + 1, 3, H, W) in 0..1 -> continuous codes (b, L, N, code_dim); every frame sees every other."""

    def __init__(self, config: LatentConfig):
        super().__init__()
        self.config = c = config
        self.image = DinoV2() if c.image_encoder == "dinov2" else OwnViT(c)
        self.stack = SpaceTime(c.width, c.heads, c.inverse_blocks, causal=False)
        self.narrow = nn.Linear(c.width, c.code_dim)
        self.pool = nn.Sequential(
            nn.Conv2d(c.code_dim, c.code_dim, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(c.code_dim, c.code_dim, 3, stride=2, padding=1),
        )
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def features(self, frames: Tensor) -> Tensor:
        """(..., 3, H, W) -> (..., grid^2, width): what needs only one frame, to be computed once per frame."""
        x = self.image((frames.flatten(0, -4) - self.mean) / self.std)
        return x.reshape(*frames.shape[:-3], *x.shape[1:])

    def forward(self, features: Tensor) -> Tensor:
        """(b, L + 1, grid^2, width) -> (b, L, N, code_dim)."""
        side = self.config.grid
        x = self.narrow(self.stack(features, (side, side))[:, 1:])
        b, steps = x.shape[:2]
        x = self.pool(x.reshape(b * steps, side, side, -1).permute(0, 3, 1, 2))
        return x.flatten(2).transpose(1, 2).reshape(b, steps, -1, self.config.code_dim)


class ForwardDynamics(nn.Module):
    """Frames 0..L-1 and the codes of transitions 0..L-1 -> frames 1..L, causal in time."""

    def __init__(self, config: LatentConfig):
        super().__init__()
        self.config = c = config
        pixels, code = 3 * c.patch**2, c.codes_per_step * c.code_dim
        self.patch = nn.Linear(pixels, c.width)
        self.token = nn.Linear(code, c.width)
        self.condition = nn.Linear(code, c.width)
        self.stack = SpaceTime(c.width, c.heads, c.forward_blocks, causal=True, modulated=True)
        self.pixels = nn.Linear(c.width, pixels)
        if c.predict_change:
            nn.init.zeros_(self.pixels.weight)
            nn.init.zeros_(self.pixels.bias)

    def forward(self, frames: Tensor, vectors: Tensor) -> Tensor:
        """frames (b, L, 3, H, W) in 0..1, vectors (b, L, N, code_dim) -> (b, L, 3, H, W), not clamped."""
        c = self.config
        b, steps = frames.shape[:2]
        x = F.pixel_unshuffle(frames.flatten(0, 1) * 2.0 - 1.0, c.patch).flatten(2).transpose(1, 2)
        x = self.patch(x).reshape(b, steps, c.grid**2, c.width)
        codes = vectors.flatten(2)
        x = torch.cat((x, self.token(codes)[:, :, None]), dim=2)
        x = self.stack(x, (c.grid, c.grid), self.condition(codes))
        x = self.pixels(x[:, :, :-1]).float().flatten(0, 1).transpose(1, 2)
        x = F.pixel_shuffle(x.reshape(b * steps, -1, c.grid, c.grid), c.patch).reshape(frames.shape)
        return frames + x if c.predict_change else (x + 1.0) / 2.0


class Latent(NamedTuple):
    """Prediction (b, L, 3, H, W) of frames 1..L in 0..1, and the codes int64 (b, L, N)."""

    prediction: Tensor
    codes: Tensor


class LatentActions(nn.Module):
    """The three parts together."""

    def __init__(self, config: LatentConfig):
        super().__init__()
        self.config = config
        self.inverse = InverseDynamics(config)
        self.quantiser = NSVQ(config.codebook_size, config.code_dim)
        self.dynamics = ForwardDynamics(config)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Teacher-forced, one pass: clips (b, L + 1, 3, H, W) in 0..1; the noise of training from `generator`."""
        vectors, codes = self.quantiser(self.inverse(self.inverse.features(frames)), generator)
        return Latent(self.dynamics(frames[:, :-1], vectors), codes)

    def encode(self, frames: Tensor) -> Tensor:
        """Clips (b, L + 1, 3, H, W) in 0..1, any L -> codes int64 (b, L, N)."""
        return self.quantiser.nearest(self.inverse(self.inverse.features(frames)))

    def decode(self, frames: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced: frames 0..L-1 (b, L, 3, H, W), codes (b, L, N) -> frames 1..L."""
        return self.dynamics(frames, self.quantiser.codebook(codes))

    def roll_out(self, first: Tensor, codes: Tensor) -> Tensor:
        """Autoregressive: one frame (b, 3, H, W) and codes (b, L, N) -> frames 1..L (b, L, 3, H, W) in 0..1."""
        frames = first[:, None]
        for step in range(codes.shape[1]):
            predicted = self.decode(frames, codes[:, : step + 1])[:, -1:]
            frames = torch.cat((frames, predicted.clamp(0, 1).to(frames.dtype)), dim=1)
        return frames[:, 1:]


def to_frames(images: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) RGB -> float32 (..., 3, H, W) in 0..1."""
    return images.movedim(-1, -3).float() / 255.0


def load_dinov2(model: LatentActions, folder: str | Path) -> None:
    """Weights of DINOv2 with registers from a local folder in the format of transformers.

    Raises:
        ConfigError: the folder is missing or holds another network.
    """
    from transformers import Dinov2WithRegistersModel

    remedy = "give the folder of a DINOv2 ViT-B/14 with registers (config.json and weights)"
    if not (Path(folder) / "config.json").exists():
        raise ConfigError(f"encoder_weights = {str(folder)!r}: no such model; {remedy}, or image_encoder: vit")
    try:
        found, about = Dinov2WithRegistersModel.from_pretrained(str(folder), local_files_only=True,
                                                                output_loading_info=True)
        if missing := sorted(about["missing_keys"]):  # transformers draws them at random, and only warns
            raise RuntimeError(f"{len(missing)} weights are missing, {missing[0]} first")
        model.inverse.image.net.load_state_dict(found.state_dict())
    except (OSError, RuntimeError, AttributeError) as error:
        raise ConfigError(f"encoder_weights = {str(folder)!r}: {str(error).splitlines()[0]}; {remedy}") from None
