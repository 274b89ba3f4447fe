"""LWM's pickled VQGAN (a flax parameter tree) as our `VQGAN` module.

Flax names layers by order of use: Encoder Conv_0, DownsamplingBlock_i / ResnetBlock_j / {GroupNorm_0, Conv_0,
GroupNorm_1, Conv_1, Conv_2 = shortcut}, Downsample_0 / Conv_0, MidBlock_0, GroupNorm_0, Conv_1; the decoder likewise
with UpsamplingBlock_i from coarse to fine. Convolution kernels are [height, width, in, out], ours
[out, in, height, width].
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vipra_ros.config import ConfigError
from vipra_ros.learning.arrays_pickle import load
from vipra_ros.model.vq import VQConfig
from vipra_ros.model.vqgan import VQGAN


def _block(ours: str, theirs: str) -> dict[str, str]:
    names = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "norm2": "GroupNorm_1", "conv2": "Conv_1", "shortcut": "Conv_2"}
    return {f"{ours}.{a}": f"{theirs}/{b}" for a, b in names.items()}


def layer_names(config: VQConfig) -> dict[str, str]:
    """Our layer -> flax's, of a VQGAN of this size (shortcuts listed for every block, present in some)."""
    names = {"before": "quant_conv", "after": "post_quant_conv"}
    for half, kind, change, extra in (
        ("encoder", "DownsamplingBlock", "Downsample", 0),
        ("decoder", "UpsamplingBlock", "Upsample", 1),
    ):
        names |= {f"{half}.first": f"{half}/Conv_0", f"{half}.norm": f"{half}/GroupNorm_0"}
        names[f"{half}.last"] = f"{half}/Conv_1"
        blocks = config.blocks if half == "encoder" else config.blocks[::-1]
        for i, count in enumerate(blocks):
            names[f"{half}.levels.{i}.resample"] = f"{half}/{kind}_{i}/{change}_0/Conv_0"
            for j in range(count + extra):
                names |= _block(f"{half}.levels.{i}.blocks.{j}", f"{half}/{kind}_{i}/ResnetBlock_{j}")
        for j in range(2):
            names |= _block(f"{half}.middle.{j}", f"{half}/MidBlock_0/ResnetBlock_{j}")
    return names


def config_of(flat: dict[str, np.ndarray], image_size: int = 256) -> VQConfig:
    """The size, read off the arrays."""
    widths, blocks = [], []
    while f"encoder/DownsamplingBlock_{len(widths)}/ResnetBlock_0/Conv_1/kernel" in flat:
        prefix = f"encoder/DownsamplingBlock_{len(widths)}/ResnetBlock_"
        blocks.append(sum(1 for key in flat if key.startswith(prefix) and key.endswith("/Conv_1/kernel")))
        widths.append(flat[f"{prefix}0/Conv_1/kernel"].shape[-1])
    book = flat.get("quantize/embeddings")
    if not widths or book is None or book.ndim != 2:
        raise ConfigError("VQGAN: no encoder/DownsamplingBlock_0 or no quantize/embeddings; give LWM's pickled VQGAN")
    return VQConfig(
        kind="vqgan",
        image_size=image_size,
        widths=tuple(widths),
        blocks=tuple(blocks),
        codebook_size=book.shape[0],
        code_dim=book.shape[1],
    )


def to_module(flat: dict[str, np.ndarray], config: VQConfig) -> VQGAN:
    """The network with these weights, float32.

    Raises:
        ConfigError: a missing, unknown or wrongly shaped array, named as flax names it.
    """
    with torch.device("meta"):
        model = VQGAN(config)
    names, state, used = layer_names(config), {}, set()
    for ours, value in model.state_dict().items():
        if ours == "codebook":
            theirs, array = "quantize/embeddings", flat["quantize/embeddings"][None]
        else:
            layer, _, kind = ours.rpartition(".")
            norm = "norm" in layer.rpartition(".")[2]
            theirs = f"{names[layer]}/{'bias' if kind == 'bias' else 'scale' if norm else 'kernel'}"
            if theirs not in flat:
                raise ConfigError(f"VQGAN: {theirs} is missing; the pickle is incomplete or of another model")
            array = flat[theirs].transpose(3, 2, 0, 1) if flat[theirs].ndim == 4 else flat[theirs]
        if array.shape != tuple(value.shape):
            raise ConfigError(
                f"VQGAN: {theirs} is {flat[theirs].shape}, which does not become {tuple(value.shape)}: another model"
            )
        if not np.isfinite(array).all():
            raise ConfigError(f"VQGAN: {theirs} has values that are not finite; copy the file again")
        state[ours] = torch.from_numpy(np.array(array, np.float32))
        used.add(theirs)
    if unknown := sorted(set(flat) - used):
        raise ConfigError(f"VQGAN: {unknown[0]} has no place in our network ({len(unknown)} such arrays)")
    model.load_state_dict(state, assign=True)
    return model.eval()


def import_vqgan(path: Path, out: Path, image_size: int = 256) -> VQGAN:
    """Read the pickle, write vq.safetensors and vq.json into `out`."""
    flat = load(path)
    model = to_module(flat, config_of(flat, image_size))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "vq.safetensors")
    (out / "vq.json").write_text(json.dumps({"model": dataclasses.asdict(model.config)}, indent=1) + "\n")
    return model
