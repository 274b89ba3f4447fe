"""Are the latent actions alive? Figures, an alarm and pictures on held-out clips.

Codebooks of this family collapse in practice: everything is coded alike while the reconstruction still looks
well, because most of a video stands still. Hence, beside PSNR: usage per code and place, the shuffle test (the codes
of another clip must make the prediction worse), the share of the change that is explained, and how well a linear
map finds the true motion in the codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vipra_ros.learning.footage import Footage
from vipra_ros.model.latent import LatentActions, to_frames
from vipra_ros.model.optical_flow import PyramidFlow, flow_loss
from vipra_ros.model.perceptual import psnr, ssim

#: A code used in fewer of all cases than this is dead.
DEAD = 0.005
#: 0..1; a pixel that changes more from frame to frame moves.
MOVES = 0.04
#: Codes of another clip must cost at least this much more, or the codes say nothing.
SHUFFLE_MARGIN = 1.02
_RIDGE = 1.0


@dataclass
class Health:
    """`figures`: numbers for the log. `usage`: (N, |C|) shares per place. `alarms`: one line each, empty when well."""

    figures: dict[str, float]
    usage: np.ndarray
    alarms: list[str]


def usage_of(codes: np.ndarray, size: int) -> np.ndarray:
    """codes (..., N) -> share of each code at each place (N, size)."""
    flat = codes.reshape(-1, codes.shape[-1])
    return np.stack([np.bincount(column, minlength=size) for column in flat.T]) / max(1, len(flat))


def perplexity(share: np.ndarray) -> float:
    """exp of the entropy of shares (size,): 1 is collapse, `size` is even use."""
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def linear_probe(codes: np.ndarray, target: np.ndarray, size: int, fit: np.ndarray) -> float:
    """R^2 of a ridge regression from one-hot codes, on the rows not fitted on.

    Args:
        codes: int (m, N). target: (m, a), any units; dimensions are standardised and count alike.
        fit: bool (m,), rows to fit on.

    Returns:
        1 - squared error / variance about the fitted rows' mean; NaN without rows or motion.
    """
    if fit.sum() < 2 or (~fit).sum() < 2:
        return float("nan")
    one_hot = np.eye(size)[codes].reshape(len(codes), -1)
    mean, std = target[fit].mean(0), target[fit].std(0)
    moving = std > 1e-6
    if not moving.any():
        return float("nan")
    y = ((target - mean) / np.maximum(std, 1e-9))[:, moving]
    x = one_hot - one_hot[fit].mean(0)
    a = x[fit]
    w = np.linalg.solve(a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ y[fit])
    return float(1 - ((x[~fit] @ w - y[~fit]) ** 2).sum() / (y[~fit] ** 2).sum())


@torch.no_grad()
def examine(
    model: LatentActions, footage: Footage, frames: int, stride: int, clips: int, batch: int = 16, seed: int = 0
) -> Health:
    """Health on up to `clips` held-out clips; the probe is fitted on as many clips of the training videos. Where no
    held-out video is long enough, on training clips, with an alarm and without the probe."""
    span, size = (frames - 1) * stride + 1, model.config.codebook_size
    train, held = footage.starts(False, span), footage.starts(True, span)
    unseen = len(held) > 0
    if not unseen:
        held = train
    train, held = (s[np.linspace(0, len(s) - 1, min(clips, len(s))).round().astype(int)] for s in (train, held))
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    flow, rows, sums = PyramidFlow(), [], {}
    for part in (held[i : i + batch] for i in range(0, len(held), batch)):
        x = to_frames(footage.clips(part, frames, stride)).to(device)
        codes = model.encode(x)
        rows.append(codes.cpu().numpy())
        for name, value in _prediction(model, x, codes, flow, generator).items():
            sums[name] = sums.get(name, 0.0) + value * len(part)
    figures = {name: value / len(held) for name, value in sums.items()}
    codes = np.concatenate(rows)
    usage = usage_of(codes, size)
    total = usage.mean(0)
    moving = max(figures.pop("copy_moving"), 1e-9)
    figures["change_explained"] = 1 - figures.pop("moving") / moving
    figures["shuffle_ratio"] = figures.pop("shuffled_moving_ratio")
    figures["perplexity"] = perplexity(total)
    figures["perplexity_place"] = float(np.mean([perplexity(u) for u in usage]))
    figures["dead_codes"] = float((total < DEAD).sum())
    said = alarms(figures, usage)
    if unseen:
        figures |= _probes(model, footage, train, held, codes, frames, stride, batch, flow)
    else:
        said.insert(0, f"no held-out video has {span} frames; these are training clips: add videos, or lower frames or "
                       "stride")
    return Health(figures, usage, said)


def alarms(figures: dict[str, float], usage: np.ndarray) -> list[str]:
    """What is wrong, with the remedy; empty when nothing is."""
    said = []
    dead = np.flatnonzero(usage.mean(0) < DEAD)
    if len(dead):
        said.append(f"dead codes {', '.join(map(str, dead))}: train longer or raise replace_until")
    if figures["perplexity_place"] < 1.5:
        said.append(f"perplexity per place {figures['perplexity_place']:.2f}: each place says one thing; raise stride")
    if figures["shuffle_ratio"] < SHUFFLE_MARGIN:
        said.append(f"shuffled codes cost only x{figures['shuffle_ratio']:.3f}: the decoder does without the codes")
    return said


def _prediction(model, x: Tensor, codes: Tensor, flow, generator) -> dict[str, float]:
    truth, before = x[:, 1:], x[:, :-1]
    y = model.decode(before, codes).clamp(0, 1)
    order = torch.randperm(codes.shape[0] * codes.shape[1], generator=generator).to(codes.device)
    shuffled = codes.flatten(0, 1)[order].reshape(codes.shape)
    z = model.decode(before, shuffled).clamp(0, 1)
    mask = ((truth - before).abs().amax(2, keepdim=True) > MOVES).float().expand_as(truth)
    pixels = mask.sum().clamp_min(1)

    def off(p: Tensor) -> float:
        return float(((p - truth).abs() * mask).sum() / pixels)

    return {
        "l1": float((y - truth).abs().mean()),
        "psnr": psnr(y, truth),
        "psnr_copy": psnr(before, truth),
        "ssim": float(ssim(y.flatten(0, 1), truth.flatten(0, 1))),
        "moving": off(y),
        "copy_moving": off(before),
        "shuffled_moving_ratio": off(z) / max(off(y), 1e-9),
        "flow_error": float(flow_loss(flow, torch.cat((x[:, :1], y), 1), x)),
    }


def _probes(model, footage, train, held, held_codes, frames, stride, batch, flow) -> dict[str, float]:
    """R^2 from codes to joint differences and to mean pixel motion of the four quarters of the picture."""
    device, size = next(model.parameters()).device, model.config.codebook_size
    codes, motion = [], []
    starts = np.concatenate([train, held])
    for part in (starts[i : i + batch] for i in range(0, len(starts), batch)):
        x = to_frames(footage.clips(part, frames, stride)).to(device)
        codes.append(model.encode(x).cpu().numpy())
        field = flow(x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1))
        motion.append(torch.nn.functional.adaptive_avg_pool2d(field, 2).flatten(1).cpu().numpy())
    codes = np.concatenate(codes).reshape(-1, held_codes.shape[-1])
    fit = np.arange(len(codes)) < len(train) * (frames - 1)
    figures = {"probe_pixels_r2": linear_probe(codes, np.concatenate(motion), size, fit)}
    if footage.joints is not None:
        at = starts[:, None] + np.arange(frames) * stride
        delta = np.diff(footage.joints[at], axis=1).reshape(len(codes), -1)
        figures["probe_joints_r2"] = linear_probe(codes, delta[:, :7], size, fit)
    return figures


@torch.no_grad()
def sheet(model: LatentActions, a: Tensor, b: Tensor, path: Path) -> None:
    """A picture in five rows: clip a, a teacher-forced, a rolled out; clip b, b's first frame under a's codes.

    Args:
        a, b: uint8 (L + 1, H, W, 3).
    """
    import matplotlib.image

    clips = to_frames(torch.stack([a, b])).to(next(model.parameters()).device)
    codes = model.encode(clips)
    rows = [
        clips[0],
        torch.cat((clips[0, :1], model.decode(clips[:1, :-1], codes[:1])[0])),
        torch.cat((clips[0, :1], model.roll_out(clips[:1, 0], codes[:1])[0])),
        clips[1],
        torch.cat((clips[1, :1], model.roll_out(clips[1:, 0], codes[:1])[0])),
    ]
    picture = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    matplotlib.image.imsave(path, picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy())


def plot_usage(usage: np.ndarray, path: Path) -> None:
    """Share of each code at each place, as an image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 0.4 * len(usage) + 1.6))
    image = axis.imshow(usage, vmin=0, aspect="auto")
    axis.set(xlabel="code", ylabel="place", title="use of the codebook")
    figure.colorbar(image)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
