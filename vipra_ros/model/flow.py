"""Flow matching between noise (t = 0) and an action chunk (t = 1).

The straight path is x_t = (1 - (1 - s) t) eps + t a with s = 1e-3, and its velocity, the regression target, is
dx/dt = a - (1 - s) eps (Lipman et al. 2023, "Flow matching for generative modeling", eq. 20-23: sigma_min = s).

The formulas printed in the ViPRA paper, u_s = s u0 + (1 - s) a with target a - u0 and Euler integration from
0 to 1, cannot hold together: with them s = 0 is the action and s = 1 the noise, so integrating from 0 to 1 would
start at the data and add the reversed velocity. The public code integrates from noise at 0 to action at 1, which
is what stands here; t = 0.999 (1 - b), b ~ Beta(1.5, 1), puts the mass of training at the noisy end of THIS axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Standard deviation left at t = 1 (s above).
NOISE_FLOOR = 1e-3
#: Largest training time; t = 1 itself is never asked for by the sampler.
TIME_LIMIT = 0.999
#: Time of rows that are given: the action itself.
CLEAN = 1.0


def sample_time(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """t = 0.999 (1 - b), b ~ Beta(1.5, 1). The CDF of b is b^1.5, so b = u^(2/3) for uniform u."""
    b = torch.rand(shape, generator=generator).pow(1.0 / 1.5)
    return TIME_LIMIT * (1.0 - b)


def interpolate(noise: Tensor, actions: Tensor, t: Tensor) -> Tensor:
    """Point x_t of the straight path; `t` broadcasts against (..., H, A)."""
    return (1.0 - (1.0 - NOISE_FLOOR) * t) * noise + t * actions


def velocity_target(noise: Tensor, actions: Tensor) -> Tensor:
    """dx_t/dt, the same at every t."""
    return actions - (1.0 - NOISE_FLOOR) * noise


def euler(field: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int = 10) -> Tensor:
    """Integrate dx/dt = field(x, t) from noise at t = 0 to t = 1 with `steps` forward Euler steps."""
    x = noise
    for k in range(steps):
        x = x + field(x, k / steps) / steps
    return x


def time_features(t: Tensor, width: int, band: str = "paper") -> Tensor:
    """Sinusoids of t, (...,) -> (..., width), `width` even.

    `paper`: the transformer's frequencies 1 .. 1e-4 rad per unit of t, of which only the first few move at all
    on [0, 1]. `wide`: periods from 4e-3 to 4, log-spaced, which resolve every Euler step.
    """
    half = torch.arange(width // 2, dtype=torch.float32, device=t.device) / max(width // 2 - 1, 1)
    if band == "paper":
        frequency = torch.exp(-math.log(1e4) * half)
    else:
        frequency = 2 * math.pi / (4e-3 * 1e3**half)
    angle = t.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
