"""What a chunk must cost on a machine: FLOP and bytes of the network, counted; the machine's rates, measured.

A chunk is a few passes over the network: frames to codes, the prefix together with the first Euler step, and the
other steps. A pass cannot be faster than its FLOP at the rate of a large matrix product, nor than its bytes at the
bandwidth of a large copy (the roofline: Williams et al. 2009, "Roofline", CACM 52-4); the floor adds up the slower of
the two. Only matrix products and weights are counted, so the floor is a little below what any program can reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vipra_ros.model.patch_vq import make_quantiser
from vipra_ros.model.policy import FlowPolicy, PolicyConfig
from vipra_ros.model.vq import VQConfig

#: Side of the product whose rate counts, and floats of the copy: enough to be at full rate, and on a CPU so short
#: that some tries pass between two slices of other programs' time.
SIDE = {"cpu": 320, "cuda": 8192}
COPY = {"cpu": 6_000_000, "cuda": 500_000_000}
TRIES = {"cpu": 60, "cuda": 12}


@dataclass(frozen=True)
class Pass:
    """One reading of the weights. flop: of its matrix products; bytes: weights and cache; count: passes a chunk."""

    name: str
    flop: int
    bytes: int
    count: int = 1


@dataclass(frozen=True)
class Machine:
    """Rates measured here, now: flop/s of a large product (`routine` was the fastest), byte/s of a large copy."""

    flops: float
    bytes_per_s: float
    routine: str

    def ms(self, work: Pass) -> float:
        """Shortest time of all runs of a pass."""
        return 1e3 * work.count * max(work.flop / self.flops, work.bytes / self.bytes_per_s)


def trunk_weights(policy: PolicyConfig) -> int:
    """Numbers in the matrices of all layers: query, key, value, output; gate, up, down."""
    b = policy.backbone
    return b.layers * (4 * b.width**2 + 3 * b.width * b.ffn)


def passes(policy: PolicyConfig, vq: VQConfig, prefix: int, steps: int, number_bytes: float = 4) -> list[Pass]:
    """The passes of one chunk.

    prefix: tokens before the actions. steps: of Euler; a discrete decoder has none, but a pass for every token.
    number_bytes: of one weight or cached number (4 float32, 2 bfloat16).
    In the last layer the prefix is only asked for keys and values. Causal blocks count the pairs that are looked at.
    """
    b = policy.backbone
    d, layer = b.width, 4 * b.width**2 + 3 * b.width * b.ffn
    before = prefix * prefix if policy.bidirectional_prefix else prefix * (prefix + 1) // 2
    lead = 2 * prefix * ((b.layers - 1) * layer + 2 * d * d) + 4 * d * (b.layers - 1) * before
    frames = policy.frames * policy.cameras
    encode = Pass("encode", frames * encode_flop(vq), 4 * _numbers(make_quantiser, vq, "encoder"))
    if policy.decoder == "discrete":
        return [encode, *_token_passes(policy, prefix, lead, number_bytes)]
    return [encode, *_euler_passes(policy, prefix, lead, steps, number_bytes)]


def _euler_passes(policy: PolicyConfig, prefix: int, lead: int, steps: int, number_bytes: float) -> list[Pass]:
    """lead: FLOP of the prefix, which goes with the first step."""
    b, h, a = policy.backbone, policy.horizon, policy.action_dim
    d, layer = b.width, 4 * b.width**2 + 3 * b.width * b.ffn
    own = h * h if policy.bidirectional_actions else h * (h + 1) // 2
    # Actions in (their half of the mixing layer; the other half is time, known in advance), and out.
    ends = a * d // 2 + d * d // 2 + d * d + d * a
    step = 2 * h * (b.layers * layer + ends) + 4 * d * b.layers * (h * prefix + own)
    weights, cache = (b.layers * layer + ends) * number_bytes, 2 * b.layers * d * prefix * number_bytes
    return [
        Pass("prefix and first step", lead + step, int(weights + cache)),
        Pass("step", step, int(weights + cache), steps - 1),
    ]


def _token_passes(policy: PolicyConfig, prefix: int, lead: int, number_bytes: float) -> list[Pass]:
    """The prefix, whose last token alone goes through the last layer and gives the chunk's first; then one token a
    pass, over half of the chunk on average, and the head's rows that its column may take."""
    b, h, a, bins = policy.backbone, policy.horizon, policy.action_dim, policy.action_bins
    d, trunk, count = b.width, trunk_weights(policy), h * a
    last = 2 * (2 * d * d + 3 * d * b.ffn) + 4 * d * prefix + 2 * d * bins
    rows = (h * ((a - 1) * bins + 2) - bins) / (count - 1)
    seen = prefix + count / 2
    cache = 2 * b.layers * d
    return [
        Pass("prefix", lead + last, int((trunk + d * bins + cache * prefix) * number_bytes)),
        Pass("token", int(2 * trunk + 2 * d * rows + 4 * d * b.layers * seen),
             int((trunk + d * rows + cache * seen) * number_bytes), count - 1),
    ]  # fmt: skip


def encode_flop(vq: VQConfig) -> int:
    """FLOP of one frame's codes; convolutions are counted by torch on the meta device."""
    if vq.kind == "patch":
        return 2 * vq.grid**2 * vq.code_dim * (3 * vq.patch**2 + vq.codebook_size)
    with torch.device("meta"):
        network, frame = make_quantiser(vq), torch.zeros(1, vq.image_size, vq.image_size, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counted:
        network.encode(frame)
    return counted.get_total_flops()


def memory(policy: PolicyConfig, vq: VQConfig, prefix: int, trunk_bytes: float) -> dict[str, float]:
    """GB that one chunk takes on a GPU, counted on the meta device; nothing is allocated.

    trunk_bytes: of one number of the trunk's matrices (2 bfloat16, 1 fp8). Tables, heads, cache and activations are
    bfloat16, the frame quantiser float32. activations: the widest layer of the pass over the prefix (residual,
    gate and up, their product); libraries' work space and the CUDA context (some 0.5 GB) come on top.
    """
    b, tokens = policy.backbone, prefix + policy.horizon
    trunk = trunk_weights(policy)
    sizes = {
        "trunk": trunk * trunk_bytes,
        "tables and heads": (_numbers(FlowPolicy, policy) - trunk) * 2,
        "quantiser": _numbers(make_quantiser, vq) * 4,
        "keys and values": 2 * b.layers * tokens * b.width * 2,
        "activations": tokens * (2 * b.width + 3 * b.ffn) * 2,
    }
    gigabytes = {name: size / 1e9 for name, size in sizes.items()}
    return {**gigabytes, "sum": sum(gigabytes.values())}


def _numbers(make: Callable, config, part: str = "") -> int:
    """Parameters and buffers of a network, or of one part of it where it has such a part."""
    with torch.device("meta"):
        network = make(config)
    network = getattr(network, part, network) if part else network
    return sum(t.numel() for t in [*network.parameters(), *network.buffers()])


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32, threads: int = 0) -> Machine:
    """The rates of this machine, each the best of several tries, which other programs' load disturbs least.

    threads: of onnxruntime; torch has been told already. The faster of torch's and onnxruntime's product counts.
    """
    kind = torch.device(device).type
    side, tries = SIDE[kind], TRIES[kind]
    x, y = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(x)
    spent = {"torch": _best(lambda: torch.mm(x, y, out=out), kind, tries)}
    if kind == "cpu" and dtype == torch.float32:
        other = _onnx_product(x.numpy(), y.numpy(), threads)
        if other:
            spent["onnxruntime"] = _best(other, kind, tries)
    routine = min(spent, key=spent.get)
    source = torch.ones(COPY[kind], device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), kind, tries)
    return Machine(2 * side**3 / spent[routine], 2 * source.nbytes / copy, routine)


def _onnx_product(x: np.ndarray, y: np.ndarray, threads: int) -> Callable[[], object] | None:
    """The same product by onnxruntime, None where it is not installed."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError:
        return None
    left, result = (helper.make_tensor_value_info(n, TensorProto.FLOAT, list(x.shape)) for n in ("x", "z"))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "y"], ["z"])], "product", [left], [result], [numpy_helper.from_array(y, "y")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


@torch.inference_mode()
def _best(work: Callable[[], object], kind: str, tries: int) -> float:
    """Shortest of `tries` runs after one that does not count, s."""
    taken = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
