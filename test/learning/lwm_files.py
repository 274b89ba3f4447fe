"""Random LWM files in the published formats, and forward passes in numpy that know nothing of our networks.

Arrays are encoded as flax.serialization does it (extension 1 around shape, dtype name, bytes; chunked maps for large
ones) with the real msgpack; flax itself would bring all of jax.
"""

from __future__ import annotations

import msgpack
import numpy as np
import torch


def array(value: np.ndarray, chunk: int = 0, bf16: bool = False) -> object:
    """What flax's to_bytes hands to msgpack; `chunk` elements per chunk, 0: one piece."""
    if chunk and value.size > chunk:
        parts = [value.reshape(-1)[i : i + chunk] for i in range(0, value.size, chunk)]
        return {
            "__msgpack_chunked_array__": True,
            "shape": {str(i): n for i, n in enumerate(value.shape)},
            "chunks": {str(i): array(part, bf16=bf16) for i, part in enumerate(parts)},
        }
    name, raw = value.dtype.name, value.tobytes("C")
    if bf16:
        name, raw = "bfloat16", torch.from_numpy(np.array(value)).bfloat16().view(torch.int16).numpy().tobytes()
    return msgpack.ExtType(1, msgpack.packb((value.shape, name, raw), use_bin_type=True))


def write_stream(path, flat: dict[str, np.ndarray], form: str = "params", chunk: int = 0, bf16: bool = False) -> None:
    """A streaming checkpoint of `flat`; form "params", "wrapped" (one `params` in front) or "trainstate"."""
    packer = msgpack.Packer()
    front = {"params": (), "wrapped": ("params",), "trainstate": ("params", "params")}[form]
    with open(path, "wb") as file:
        if form == "trainstate":
            step = msgpack.ExtType(3, msgpack.packb(((), "int32", b"\x07\0\0\0")))
            file.write(packer.pack((("step",), msgpack.packb(step))))
        for key, value in flat.items():
            node = msgpack.packb(array(value, chunk, bf16), strict_types=True)
            file.write(packer.pack((front + tuple(key.split("/")), node)))
            if form == "trainstate":
                file.write(packer.pack((("opt_state", "0", "mu", *key.split("/")), node)))


def make_llama(
    seed=0, *, d=16, layers=2, ffn=24, text=48, codes=8, vision=16, stacked=True, actions=0, latents=0
) -> dict[str, np.ndarray]:
    """Random LWM parameters by flax name; with `actions` and `latents` ViPRA's extra tables and heads."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=0.3):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    flat = {
        "transformer/wte/embedding": normal(text, d),
        "transformer/vte/embedding": normal(vision, d),
        "transformer/ln_f/kernel": 1 + normal(d),
        "lm_head/kernel": normal(d, text),
        "vision_head/kernel": normal(d, vision),
    }
    shapes = {f"attention/{w}": (d, d) for w in ("wq", "wk", "wv", "wo")}
    shapes |= {"feed_forward/w1": (d, ffn), "feed_forward/w2": (ffn, d), "feed_forward/w3": (d, ffn)}
    shapes |= {"attention_norm": (d,), "ffn_norm": (d,)}
    for name, shape in shapes.items():
        stack = normal(layers, *shape) + (1 if "norm" in name else 0)
        if stacked:
            flat[f"transformer/h/scan_decoder/{name}/kernel"] = stack
        else:
            flat |= {f"transformer/h/{i}/{name}/kernel": stack[i] for i in range(layers)}
    if latents:
        flat |= {"transformer/late/embedding": normal(latents, d), "latent_actions_head/kernel": normal(d, latents)}
    if actions:
        for i, (into, out) in enumerate(((actions, d // 2), (d, d), (d, d)), 1):
            flat[f"transformer/action_encoder/linear_{i}/kernel"] = normal(into, out)
            flat[f"transformer/action_encoder/linear_{i}/bias"] = normal(out)
        flat |= {"action_head/kernel": normal(d, actions), "action_head/bias": normal(actions)}
    return flat


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def rotate_neighbours(x: np.ndarray, theta: float) -> np.ndarray:
    """LWM's rotary embedding, complex numbers of neighbouring pairs: x (tokens, heads, d)."""
    d = x.shape[-1]
    angle = np.arange(len(x))[:, None] / theta ** (np.arange(0, d, 2) / d)
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def llama(flat: dict[str, np.ndarray], x: np.ndarray, heads: int, theta: float = 5e7) -> np.ndarray:
    """Causal decoder on embeddings (tokens, d) -> normed hidden states (tokens, d), in float64."""

    def weight(layer, name):
        stacked = flat.get(f"transformer/h/scan_decoder/{name}/kernel")
        return stacked[layer] if stacked is not None else flat[f"transformer/h/{layer}/{name}/kernel"]

    x, n = x.astype(np.float64), len(x)
    layers = sum(1 for key in flat if key.endswith("attention/wq/kernel"))
    stack = flat.get("transformer/h/scan_decoder/attention/wq/kernel")
    for i in range(layers if stack is None else len(stack)):
        y = rms(x, weight(i, "attention_norm"))
        q, k, v = ((y @ weight(i, f"attention/{w}")).reshape(n, heads, -1) for w in ("wq", "wk", "wv"))
        q, k = rotate_neighbours(q, theta), rotate_neighbours(k, theta)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(n, -1)
        x = x + mixed @ weight(i, "attention/wo")
        y = rms(x, weight(i, "ffn_norm"))
        gated = silu(y @ weight(i, "feed_forward/w1")) * (y @ weight(i, "feed_forward/w3"))
        x = x + gated @ weight(i, "feed_forward/w2")
    return rms(x, flat["transformer/ln_f/kernel"])


def encode_actions(flat: dict[str, np.ndarray], actions: np.ndarray, t: float) -> np.ndarray:
    """ViPRA's action encoder on (h, a) at time t: [sinusoids of t, linear_1(a)] -> linear_2 -> silu -> linear_3."""

    def linear(x, i):
        name = f"transformer/action_encoder/linear_{i}"
        return x @ flat[f"{name}/kernel"] + flat[f"{name}/bias"]

    half = linear(actions, 1)
    count = half.shape[-1] // 2
    angle = t * np.exp(-np.log(1e4) * np.arange(count) / (count - 1))
    time = np.broadcast_to(np.concatenate([np.sin(angle), np.cos(angle)]), half.shape)
    return linear(silu(linear(np.concatenate([time, half], -1), 2)), 3)


# --- VQGAN --------------------------------------------------------------------------------------------------


def make_vqgan(seed=0, *, widths=(32, 64), blocks=1, codes=24, dim=8) -> dict:
    """Random parameters as flax nests them."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def conv(into, out, size=3):
        return {"kernel": normal(size, size, into, out, scale=1 / np.sqrt(size * size * into)), "bias": normal(out) / 5}

    def norm(width):
        return {"scale": 1 + normal(width) / 5, "bias": normal(width) / 5}

    def block(into, out):
        table = {"GroupNorm_0": norm(into), "Conv_0": conv(into, out)}
        table |= {"GroupNorm_1": norm(out), "Conv_1": conv(out, out)}
        return table | ({"Conv_2": conv(into, out, 1)} if into != out else {})

    def half(order, count, kind, change, first, last):
        start = order[0]
        table = {"Conv_0": conv(first, start), "GroupNorm_0": norm(order[-1]), "Conv_1": conv(order[-1], last)}
        for i, width in enumerate(order):
            rows = {f"ResnetBlock_{j}": block(order[max(i - 1, 0)] if j == 0 else width, width) for j in range(count)}
            if i < len(order) - 1:
                rows[f"{change}_0"] = {"Conv_0": conv(width, width)}
            table[f"{kind}_{i}"] = rows
        wide = max(order)
        table["MidBlock_0"] = {f"ResnetBlock_{j}": block(wide, wide) for j in range(2)}
        return table

    return {
        "encoder": half(widths, blocks, "DownsamplingBlock", "Downsample", 3, dim),
        "decoder": half(widths[::-1], blocks + 1, "UpsamplingBlock", "Upsample", dim, 3),
        "quantize": {"embeddings": normal(codes, dim)},
        "quant_conv": conv(dim, dim, 1),
        "post_quant_conv": conv(dim, dim, 1),
    }


def _conv(x, p, stride=1, pad=((1, 1), (1, 1))):
    size = p["kernel"].shape[0]
    if size == 1:
        pad = ((0, 0), (0, 0))
    x = np.pad(x, (*pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]
    return np.einsum("hwcij,ijco->hwo", windows, p["kernel"], optimize=True) + p["bias"]


def _norm(x, p):
    groups = x.reshape(*x.shape[:2], 32, -1)
    mean, var = groups.mean((0, 1, 3), keepdims=True), groups.var((0, 1, 3), keepdims=True)
    return ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def _block(x, p):
    y = _conv(silu(_norm(x, p["GroupNorm_0"])), p["Conv_0"])
    y = _conv(silu(_norm(y, p["GroupNorm_1"])), p["Conv_1"])
    return y + (_conv(x, p["Conv_2"]) if "Conv_2" in p else x)


def _levels(x, p, kind):
    for i in range(sum(1 for key in p if key.startswith(kind))):
        level = p[f"{kind}_{i}"]
        for j in range(sum(1 for key in level if key.startswith("ResnetBlock"))):
            x = _block(x, level[f"ResnetBlock_{j}"])
        if "Downsample_0" in level:
            x = _conv(x, level["Downsample_0"]["Conv_0"], stride=2, pad=((0, 1), (0, 1)))
        if "Upsample_0" in level:
            x = _conv(x.repeat(2, 0).repeat(2, 1), level["Upsample_0"]["Conv_0"])
    return x


def _middle(x, p):
    return _block(_block(x, p["MidBlock_0"]["ResnetBlock_0"]), p["MidBlock_0"]["ResnetBlock_1"])


def vqgan_encode(tree: dict, image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> codes (grid, grid)."""
    p = tree["encoder"]
    x = _middle(_levels(_conv(image / 127.5 - 1.0, p["Conv_0"]), p, "DownsamplingBlock"), p)
    z = _conv(_conv(silu(_norm(x, p["GroupNorm_0"])), p["Conv_1"]), tree["quant_conv"])
    return ((z[:, :, None] - tree["quantize"]["embeddings"]) ** 2).sum(-1).argmin(-1)


def vqgan_decode(tree: dict, codes: np.ndarray) -> np.ndarray:
    """Codes (grid, grid) -> pixels (H, W, 3), clipped to [-1, 1]."""
    p = tree["decoder"]
    x = _middle(_conv(_conv(tree["quantize"]["embeddings"][codes], tree["post_quant_conv"]), p["Conv_0"]), p)
    x = _levels(x, p, "UpsamplingBlock")
    return np.clip(_conv(silu(_norm(x, p["GroupNorm_0"])), p["Conv_1"]), -1, 1)
