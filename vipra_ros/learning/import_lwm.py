"""`vipra import-lwm`: LWM's or ViPRA's published JAX weights as safetensors that our networks load.

In SRC, or named one by one: the parameter stream, the pickled VQGAN and the SentencePiece model. Out comes

    policy.safetensors  trunk, text and vision tables, and the action encoder and head where SRC has them
    heads.safetensors   what acting does not need: text, vision and latent-action heads, latent table, spare vision rows
    vq.safetensors, vq.json  the VQGAN (learning.vq.load_vq reads it)
    tokenizer.json      the text vocabulary      model.json  sizes (PolicyConfig)
    manifest.json       SHA-256 of every file read and written      LICENCE.txt

which `lwm_folder.py` reads.

Names and layouts are facts of the public code (LargeWorldModel/LWM lwm/llama.py, vision_llama.py; sroutray/vipra
policy/dynamics_action_cont_llama.py): kernels are [in, out] and ours [out, in]; layers are stacked on axis 0 under
`scan_decoder`, or numbered; rotary pairs are neighbours (2i, 2i+1) and ours are (i, i + d/2), so the rows of q and k
are permuted head by head, which leaves every q k product as it was. The reference's action encoder reads
[time, action], ours [action, time]: two column blocks change places.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vipra_ros.config import ConfigError
from vipra_ros.learning import jax_stream, sentencepiece_model
from vipra_ros.learning.import_vqgan import import_vqgan
from vipra_ros.learning.jax_stream import Stored
from vipra_ros.learning.lwm_folder import sha256
from vipra_ros.learning.tensor_file import Planned, size_of, write
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.policy import PolicyConfig
from vipra_ros.progress import bar

LICENCE = """The language model behind these weights is Llama 2. Whoever uses or passes them on is bound by the
Llama 2 Community License Agreement and its Acceptable Use Policy (https://ai.meta.com/llama/license): keep this notice,
"Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
and give the agreement along. It is not the Apache-2.0 licence of this package.
"""
#: LWM keeps LLaMA's heads of 128 numbers at every size.
HEAD_DIM = 128
#: Vision ids above the codes: end of frame, end of vision. The published tables hold 254 more, never used.
VISION_ENDS = 2
BLOCK = {
    "attention/wq": "self_attn.q_proj",
    "attention/wk": "self_attn.k_proj",
    "attention/wv": "self_attn.v_proj",
    "attention/wo": "self_attn.o_proj",
    "feed_forward/w1": "mlp.gate_proj",
    "feed_forward/w2": "mlp.down_proj",
    "feed_forward/w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
ROTATED = ("attention/wq", "attention/wk")


def half_layout(weight: Tensor, heads: int) -> Tensor:
    """Rows (out, in) of q or k from neighbouring rotary pairs to pairs half a head apart.

    Row 2i of a head goes to i and row 2i+1 to i + d/2; the angle of pair i is the same in both layouts.
    """
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


class _Plan:
    """Collects what is to be written and which source tensors were used."""

    def __init__(self, tensors: dict[str, Stored], dtype: torch.dtype | None):
        self.tensors, self.dtype = tensors, dtype
        self.used: set[str] = set()

    def get(self, key: str, shape: tuple[int | None, ...]) -> Stored:
        """The tensor `key`, whose shape must be `shape` (None: any size)."""
        if key not in self.tensors:
            raise ConfigError(f"import: {key} is missing; the stream is of another model, or incomplete")
        stored = self.tensors[key]
        if len(stored.shape) != len(shape) or any(w not in (None, h) for h, w in zip(stored.shape, shape)):
            wanted = "x".join("?" if n is None else str(n) for n in shape)
            raise ConfigError(
                f"import: {key} is {'x'.join(map(str, stored.shape))}, expected {wanted}; check --heads, or the stream"
            )
        self.used.add(key)
        return stored

    def put(self, stored: Stored, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Planned:
        """A tensor to be written, made of `stored`."""
        return Planned(shape, self.dtype or stored.dtype, make)

    def kernel(self, key: str, into: int | None, out: int | None) -> Planned:
        """[in, out] -> [out, in]."""
        stored = self.get(key, (into, out))
        return self.put(stored, stored.shape[::-1], lambda: stored.all().T)

    def plain(self, key: str, *shape: int | None) -> Planned:
        """As it is."""
        stored = self.get(key, shape)
        return self.put(stored, stored.shape, stored.all)

    def rows(self, key: str, first: int, last: int) -> Planned:
        """Rows [first, last) of a table."""
        stored = self.get(key, (None, None))
        width = stored.shape[1]
        return self.put(
            stored, (last - first, width), lambda: stored.flat(first * width, last * width).reshape(-1, width)
        )


def plan_model(
    tensors: dict[str, Stored],
    *,
    heads: int = 0,
    rope_theta: float = 5e7,
    codebook_size: int = 8192,
    dtype: torch.dtype | None = None,
) -> tuple[PolicyConfig, dict[str, Planned], dict[str, Planned]]:
    """-> the configuration, and the tensors of policy.safetensors and heads.safetensors; nothing is read yet.

    heads: attention heads, 0: width / 128. dtype: of the result, None: as stored.
    """
    plan = _Plan(tensors, dtype)
    vocabulary, d = plan.get("transformer/wte/embedding", (None, None)).shape
    vision = plan.get("transformer/vte/embedding", (None, d)).shape[0]
    if vision < codebook_size + VISION_ENDS:
        raise ConfigError(
            f"import: transformer/vte/embedding has {vision} rows, fewer than {codebook_size} codes and {VISION_ENDS} "
            "end marks; give --codebook-size"
        )
    heads = heads or d // HEAD_DIM
    if heads < 1 or d % (2 * heads):
        raise ConfigError(f"import: --heads {heads} does not fit the width of {d}; give the number of attention heads")
    policy: dict[str, Planned] = {}
    layers, ffn = _blocks(plan, d, heads, policy)
    policy["trunk.norm.weight"] = plan.plain("transformer/ln_f/kernel", d)
    policy["text.weight"] = plan.plain("transformer/wte/embedding", vocabulary, d)
    policy["vision.weight"] = plan.rows("transformer/vte/embedding", 0, codebook_size + VISION_ENDS)
    others = {"vision_spare.weight": plan.rows("transformer/vte/embedding", codebook_size + VISION_ENDS, vision)}
    for name, key, rows in (("text", "lm_head", vocabulary), ("vision", "vision_head", vision)):
        if f"{key}/kernel" in tensors:
            others[f"{name}_head.weight"] = plan.kernel(f"{key}/kernel", d, rows)
    if "transformer/late/embedding" in tensors:
        latents = plan.plain("transformer/late/embedding", None, d)
        others["latent.weight"] = latents
        if "latent_actions_head/kernel" in tensors:
            others["latent_head.weight"] = plan.kernel("latent_actions_head/kernel", d, latents.shape[0])
    action_dim = _actions(plan, d, policy)
    if unknown := sorted(set(tensors) - plan.used):
        raise ConfigError(
            f"import: {unknown[0]} has no place in our network ({len(unknown)} such tensors); the stream is of another "
            "model or variant"
        )
    config = PolicyConfig(
        backbone=BackboneConfig(
            width=d, layers=layers, heads=heads, ffn=ffn, rope_theta=rope_theta, max_positions=4096, attention="sdpa"
        ),
        text_vocab=vocabulary,
        codebook_size=codebook_size,
        grid=16,
        action_dim=action_dim or 8,
    )
    return config, policy, others


def _blocks(plan: _Plan, d: int, heads: int, out: dict[str, Planned]) -> tuple[int, int]:
    """Plan the decoder layers; -> their number and the feed-forward width."""
    stacked = "transformer/h/scan_decoder/feed_forward/w1/kernel" in plan.tensors
    if stacked:
        layers, _, ffn = plan.get("transformer/h/scan_decoder/feed_forward/w1/kernel", (None, d, None)).shape
    else:
        numbers = {int(m[1]) for key in plan.tensors if (m := re.match(r"transformer/h/(\d+)/", key))}
        layers = len(numbers)
        if numbers != set(range(layers)) or not layers:
            raise ConfigError("import: no transformer/h/scan_decoder and no complete transformer/h/0, 1, ..: no LLaMA")
        ffn = plan.get("transformer/h/0/feed_forward/w1/kernel", (d, None)).shape[1]
    shapes = {"w1": (d, ffn), "w3": (d, ffn), "w2": (ffn, d)}
    for source, target in BLOCK.items():
        shape = (d,) if source.endswith("norm") else shapes.get(source.split("/")[1], (d, d))
        for i in range(layers):
            if stacked:
                stored = plan.get(f"transformer/h/scan_decoder/{source}/kernel", (layers, *shape))
            else:
                stored = plan.get(f"transformer/h/{i}/{source}/kernel", shape)
            turn = heads if source in ROTATED else 0
            out[f"trunk.layers.{i}.{target}.weight"] = plan.put(
                stored, shape[::-1], _layer(stored, i if stacked else None, turn)
            )
    return layers, ffn


def _layer(stored: Stored, index: int | None, heads: int) -> Callable[[], Tensor]:
    def make() -> Tensor:
        weight = stored.all() if index is None else stored.row(index)
        weight = weight.T if weight.ndim == 2 else weight
        return half_layout(weight, heads) if heads else weight

    return make


def _actions(plan: _Plan, d: int, out: dict[str, Planned]) -> int:
    """Plan the continuous action encoder and head where the stream has them; -> action dimensions or 0."""
    if "transformer/action_encoder/linear_1/kernel" not in plan.tensors:
        return 0
    prefix, half = "transformer/action_encoder", d // 2
    dims = plan.get(f"{prefix}/linear_1/kernel", (None, half)).shape[0]
    sizes = (("action_in", 1, dims, half), ("action_mix", 2, d, d), ("action_out", 3, d, d))
    for name, number, into, to in sizes:
        out[f"{name}.weight"] = plan.kernel(f"{prefix}/linear_{number}/kernel", into, to)
        out[f"{name}.bias"] = plan.plain(f"{prefix}/linear_{number}/bias", to)
    mixed = out["action_mix.weight"].make
    out["action_mix.weight"] = dataclasses.replace(
        out["action_mix.weight"], make=lambda: torch.cat(mixed().split(half, dim=1)[::-1], dim=1)
    )
    out["head.weight"] = plan.kernel("action_head/kernel", d, dims)
    out["head.bias"] = plan.plain("action_head/bias", dims)
    return dims


def find(source: Path, patterns: tuple[str, ...]) -> Path | None:
    """The one file of a folder that matches a pattern; None without one."""
    hits = sorted({p for pattern in patterns for p in source.glob(pattern) if p.is_file()})
    if len(hits) > 1:
        raise ConfigError(f"{source} holds {hits[0].name} and {hits[1].name}; name the one to use")
    return hits[0] if hits else None


def main(
    source: str,
    out: str,
    vqgan: str = "",
    tokenizer: str = "",
    heads: int = 0,
    rope_theta: float = 5e7,
    codebook_size: int = 8192,
    dtype: str = "keep",
) -> None:
    """Run the command; prints what was written.

    Raises:
        ConfigError: something missing, truncated, malicious or of the wrong shape, with its name.
    """
    src, dst = Path(source.rpartition("::")[2]), Path(out)
    folder = src if src.is_dir() else src.parent
    if not src.exists():
        raise ConfigError(f"{src}: not there; give the folder of LWM-Chat-1M-Jax or the parameter stream")
    params = find(src, ("*params*", "streaming_*")) if src.is_dir() else src
    if params is None:
        raise ConfigError(f"{src}: no file named *params* or streaming_*; give the parameter stream itself")
    found_vq = Path(vqgan) if vqgan else find(folder, ("*vqgan*",))
    found_text = Path(tokenizer) if tokenizer else find(folder, ("tokenizer.model",))
    if dst.exists() and any(dst.iterdir()):
        raise ConfigError(f"{dst} is not empty; give a new folder")
    # Everything that can be refused is, before the first byte is written.
    kind = None if dtype == "keep" else getattr(torch, dtype)
    config, policy, others = plan_model(
        jax_stream.scan(params), heads=heads, rope_theta=rope_theta, codebook_size=codebook_size, dtype=kind
    )
    words = sentencepiece_model.convert(found_text) if found_text else None
    if words is not None and words.get_vocab_size() > config.text_vocab:
        raise ConfigError(
            f"{found_text} has {words.get_vocab_size()} pieces, the text table {config.text_vocab}; "
            "it is of another model"
        )
    dst.mkdir(parents=True, exist_ok=True)
    if found_vq:
        import_vqgan(found_vq, dst)
    if words is not None:
        words.save(str(dst / "tokenizer.json"))
    (dst / "model.json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")
    (dst / "LICENCE.txt").write_text(LICENCE)
    sources = [p for p in (params, found_vq, found_text) if p]
    # Written, read again and hashed; what was read is hashed too. Little files do not count.
    megabytes = (2 * (size_of(policy) + size_of(others)) + sum(p.stat().st_size for p in sources)) / 1e6
    with bar("importing, MB", round(megabytes)) as advance:

        def count(size: int) -> None:
            advance(size / 1e6)

        write(dst / "policy.safetensors", policy, advance=count)
        write(dst / "heads.safetensors", others, advance=count)
        read = {p.name: sha256(p, count) for p in sources}
        written = {p.name: sha256(p, count) for p in sorted(dst.iterdir())}
    manifest = {
        "read": read,
        "written": written,
        "action_head": "head.weight" in policy,
        "licence": "Llama 2 Community License, see LICENCE.txt",
    }
    (dst / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for name in manifest["written"]:
        print(f"{dst / name}: {(dst / name).stat().st_size / 1e6:.1f} MB")
    missing = [what for what, there in (("VQGAN", found_vq), ("tokenizer", found_text)) if not there]
    if missing:
        print(f"not found beside the stream, not imported: {', '.join(missing)}")
