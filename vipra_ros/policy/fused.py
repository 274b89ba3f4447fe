"""The policy on a CPU through onnxruntime, with few and large operations.

    first   prefix and the first Euler step in one pass -> actions, keys and values of the prefix
    step    every further Euler step

Where a sequence is 14 tokens long, an exported graph spends as long between the matrix products as in them: a layer
is 56 operations. Here it is thirteen, written by hand with onnxruntime's own operators (residual with norm,
rotary positions and attention are one each). These run on its CPU provider only; graphs to take elsewhere are those
of `export.py`. Made in memory at the start, in a second, so there is no file and no cache.

The patch quantiser becomes one graph as well: colour space, mean and components are one matrix on raw bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from vipra_ros.model.patch_vq import PatchVQ
from vipra_ros.model.policy import FlowPolicy, Prefix
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.device import plain
from vipra_ros.policy.lean import LeanSampler
from vipra_ros.policy.torch_engine import TorchEngine

#: Domain of onnxruntime's own operators.
OWN = "com.microsoft"
TO_END = 2**31


class _Graph:
    """Nodes and weights as they are added; `build` makes a session of them."""

    def __init__(self) -> None:
        self._nodes, self._weights = [], {}

    def weight(self, name: str, value: Tensor | np.ndarray) -> str:
        """A constant, float32 unless its numbers are whole."""
        array = np.ascontiguousarray(value.numpy() if isinstance(value, Tensor) else value)
        if array.dtype != np.int64:
            array = array.astype(np.float32)
        self._weights.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: object):
        """Add a node; the names of its outputs, or the name where there is one."""
        names = [f"{kind}{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def rows(self, x: str, first: int, last: int, axis: int = 1) -> str:
        """x[:, first:last]."""
        ends = [self.weight(f"int{v}", np.array([v])) for v in (first, last, axis)]
        return self.op("Slice", x, *ends)

    def build(self, inputs: dict[str, tuple], outputs: dict[str, str], options) -> onnxruntime.InferenceSession:
        """inputs: name -> (type, shape). outputs: name -> the node output it is."""
        for name, source in outputs.items():
            self._nodes.append(helper.make_node("Identity", [source], [name]))
        graph = helper.make_graph(
            self._nodes,
            "policy",
            [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            list(self._weights.values()),
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(OWN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def session_options(threads: int, spinning: bool = False) -> onnxruntime.SessionOptions:
    """threads: 0 is as many as processors. Threads that wait by spinning are faster where nobody else needs the
    processor; on a robot's computer the executor and the cameras do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return options


class FusedSampler:
    """Called like `LeanSampler`, for one observation without padding."""

    def __init__(self, policy: FlowPolicy, steps: int, threads: int = 0, spinning: bool = False):
        if policy.head.weight.device.type != "cpu":
            raise CheckpointError("engine = 'fused' is for the CPU; load the checkpoint there, or take static")
        self.policy = policy = plain(policy)
        self.steps = steps
        self._lean = lean = LeanSampler(policy, steps)
        c, options = policy.config, session_options(threads, spinning)
        self._d, self._head_size = c.backbone.width, c.backbone.width // lean.heads
        # action_in and its half of action_mix are one matrix: nothing stands between them.
        self._into = (lean.mix_action @ policy.action_in.weight).T
        self._times = (lean.mix_time + lean.mix_action @ policy.action_in.bias).numpy().astype(np.float32)
        angle = torch.arange(c.backbone.max_positions)[:, None] * policy.trunk.rotary_emb.inv_freq
        self._cosine, self._sine = angle.cos(), angle.sin()
        self._first, self._step = self._first_pass(options), self._later_pass(options)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._time_values = [self._value(t) for t in self._times]
        self._masks: dict[int, tuple] = {}

    def __call__(self, prefix: Prefix, noise: Tensor, mark: Callable[[str], None] = lambda name: None) -> Tensor:
        """Normalised actions (1, h, a) from noise (1, h, a)."""
        if len(noise) != 1 or not bool(prefix.before_mask.all()):
            raise ValueError("the graphs take one observation without padding")
        with torch.inference_mode():
            embedded, present = self.policy.embed_prefix(prefix)
        p = embedded.shape[1]
        if p not in self._masks:
            self._masks[p] = self._mask_of(present)
        first_mask, later_mask, offset = self._masks[p]
        binding = self._first.io_binding()
        for name, value in {
            "prefix": self._value(embedded.float().numpy()),
            "actions": self._value(np.ascontiguousarray(noise.numpy(), np.float32)),
            "time": self._time_values[0],
            "mask": first_mask,
        }.items():
            binding.bind_ortvalue_input(name, value)
        for output in self._first.get_outputs():
            binding.bind_output(output.name)
        self._first.run_with_iobinding(binding)
        x, *cache = binding.get_outputs()
        mark("prefill")
        other = self._value(np.empty(tuple(noise.shape), np.float32))
        binding = self._step.io_binding()
        for name, value in zip(self._cache_names(), cache):
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_input("offset", offset)
        if later_mask is not None:
            binding.bind_ortvalue_input("mask", later_mask)
        for time in self._time_values[1:]:
            binding.bind_ortvalue_input("actions", x)
            binding.bind_ortvalue_input("time", time)
            binding.bind_ortvalue_output("later", other)
            self._step.run_with_iobinding(binding)
            x, other = other, x
            mark("denoise")
        return torch.from_numpy(x.numpy().copy())

    def _mask_of(self, present: Tensor) -> tuple:
        """Additive masks of both passes (the second None where every look is allowed) and the chunk's position."""
        allowed, p = self.policy.joint_mask(present, 1)[:, None], present.shape[1]
        added = np.where(allowed.numpy(), 0.0, np.finfo(np.float32).min).astype(np.float32)
        later = None if self.policy.config.bidirectional_actions else self._value(np.ascontiguousarray(added[:, :, p:]))
        return self._value(added), later, self._value(np.array([p]))

    def _cache_names(self) -> list[str]:
        return [f"{name}{i}" for i in range(len(self._lean.layers)) for name in ("key", "value")]

    # --- the graphs -----------------------------------------------------------------------------------------

    def _first_pass(self, options) -> onnxruntime.InferenceSession:
        c, g, d = self.policy.config, _Graph(), self._d
        x = g.op("Concat", "prefix", self._tokens(g), axis=1)
        offset = g.weight("start", np.array([0]))
        normed, outputs = self._norm(g, x), {}
        shape = g.weight("by_head", np.array([1, -1, self._lean.heads, self._head_size]))
        for i in range(len(self._lean.layers)):
            query, key, value = self._qkv(g, normed, i, offset)
            for name, rows in (("key", key), ("value", value)):
                by_head = g.op("Reshape", g.rows(rows, 0, -c.horizon), shape)
                outputs[f"{name}{i}"] = g.op("Transpose", by_head, perm=[0, 2, 1, 3])
            mask = "mask"
            if i + 1 == len(self._lean.layers):  # nobody reads what the prefix would become here
                query, x = (g.rows(t, -c.horizon, TO_END) for t in (query, x))
                mask = g.rows(mask, -c.horizon, TO_END, axis=2)
            looked = (query, key, value, "", "", mask)
            attended = g.op("MultiHeadAttention", *looked, domain=OWN, num_heads=self._lean.heads)
            normed, x = self._rest(g, x, attended, i)
        later = self._after(g, normed)
        inputs = {
            "prefix": (TensorProto.FLOAT, [1, "p", d]),
            "actions": (TensorProto.FLOAT, [1, c.horizon, c.action_dim]),
            "time": (TensorProto.FLOAT, [1, 1, d]),
            "mask": (TensorProto.FLOAT, [1, 1, "n", "n"]),
        }
        return g.build(inputs, {"later": later, **{name: outputs[name] for name in self._cache_names()}}, options)

    def _later_pass(self, options) -> onnxruntime.InferenceSession:
        c, g, heads = self.policy.config, _Graph(), self._lean.heads
        x = self._tokens(g)
        normed, mask = self._norm(g, x), "" if c.bidirectional_actions else "mask"
        for i in range(len(self._lean.layers)):
            query, key, value = self._qkv(g, normed, i, "offset")
            # The further outputs are the lengthened keys and values; asked for, or the old ones are not looked at.
            attended, _, _ = g.op(
                "MultiHeadAttention", query, key, value, "", "", mask, f"key{i}", f"value{i}",
                outputs=3, domain=OWN, num_heads=heads,
            )  # fmt: skip
            normed, x = self._rest(g, x, attended, i)
        inputs = {
            "actions": (TensorProto.FLOAT, [1, c.horizon, c.action_dim]),
            "time": (TensorProto.FLOAT, [1, 1, self._d]),
            "offset": (TensorProto.INT64, [1]),
        }
        inputs |= {n: (TensorProto.FLOAT, [1, heads, "p", self._head_size]) for n in self._cache_names()}
        if mask:
            inputs["mask"] = (TensorProto.FLOAT, [1, 1, c.horizon, "n"])
        return g.build(inputs, {"later": self._after(g, normed)}, options)

    def _tokens(self, g: _Graph) -> str:
        """Noisy actions -> tokens (1, h, d)."""
        mixed = g.op("Add", g.op("MatMul", "actions", g.weight("into", self._into)), "time")
        out = self.policy.action_out
        tokens = g.op("MatMul", g.op("QuickGelu", mixed, domain=OWN, alpha=1.0), g.weight("out", out.weight.T))
        return g.op("Add", tokens, g.weight("out_bias", out.bias))

    def _after(self, g: _Graph, normed: str) -> str:
        """The last norm -> the actions one Euler step later."""
        head, bias = self._lean.head_weight.T / self.steps, self.policy.head.bias / self.steps
        move = g.op("Add", g.op("MatMul", normed, g.weight("head", head)), g.weight("head_bias", bias))
        return g.op("Add", "actions", move)

    def _norm(self, g: _Graph, x: str) -> str:
        """RMS norm; its scale is in the matrix that follows."""
        return g.op("SimplifiedLayerNormalization", x, self._ones(g), axis=-1, epsilon=self._lean.eps)

    def _ones(self, g: _Graph) -> str:
        return g.weight("ones", np.ones(self._d, np.float32))

    def _qkv(self, g: _Graph, normed: str, i: int, offset: str) -> tuple[str, str, str]:
        products = g.op("MatMul", normed, g.weight(f"qkv{i}", self._lean.layers[i][0].T))
        both, value = g.op("Split", products, g.weight("qk_v", np.array([2 * self._d, self._d])), outputs=2, axis=-1)
        # Heads of queries and keys side by side: they turn by the same angles.
        tables = g.weight("cosine", self._cosine), g.weight("sine", self._sine)
        turned = g.op("RotaryEmbedding", both, offset, *tables, domain=OWN)
        query, key = g.op("Split", turned, g.weight("q_k", np.array([self._d, self._d])), outputs=2, axis=-1)
        return query, key, value

    def _rest(self, g: _Graph, x: str, attended: str, i: int) -> tuple[str, str]:
        """-> (normed input of the next layer, residual)."""
        _, out, gate_up, down = self._lean.layers[i]
        x, normed = self._add_norm(g, x, g.op("MatMul", attended, g.weight(f"out{i}", out.T)))
        products, half = g.op("MatMul", normed, g.weight(f"gate_up{i}", gate_up.T)), down.shape[1]
        gate, up = g.op("Split", products, g.weight("gate_up", np.array([half, half])), outputs=2, axis=-1)
        gated = g.op("Mul", g.op("QuickGelu", gate, domain=OWN, alpha=1.0), up)
        x, normed = self._add_norm(g, x, g.op("MatMul", gated, g.weight(f"down{i}", down.T)))
        return normed, x

    def _add_norm(self, g: _Graph, x: str, change: str) -> tuple[str, str]:
        """-> (x + change, its norm), in one operation."""
        normed, _, _, total = g.op(
            "SkipSimplifiedLayerNormalization", x, change, self._ones(g), outputs=4, domain=OWN, epsilon=self._lean.eps
        )
        return total, normed


class PatchCodes:
    """`PatchVQ.encode` as one matrix on raw bytes, the nearest code by torch (whose argmax is the faster one)."""

    def __init__(self, vq: PatchVQ, options):
        c, p = vq.config, vq.config.patch
        basis = vq.basis.double().reshape(3, p, p, -1)  # (colour, row, column, component)
        into = torch.einsum("kc,kyxd->yxcd", vq.colour.double() / 127.5, basis).reshape(3 * p * p, -1)
        black = -vq.colour.double().sum(1)[:, None, None].expand(3, p, p).reshape(-1)
        shift = (black - vq.mean.double()) @ vq.basis.double()
        g, side, numbers = _Graph(), c.grid, 3 * p * p
        cells = g.op("Reshape", "images", g.weight("cut", np.array([-1, side, p, side, 3 * p])))
        cells = g.op("Transpose", cells, perm=[0, 1, 3, 2, 4])
        cells = g.op("Reshape", cells, g.weight("flat", np.array([-1, numbers])))
        cells = g.op("Cast", cells, to=TensorProto.FLOAT)
        # Nearest: the largest of z c - c c / 2. A component that is always 1 carries the second term along.
        book = torch.cat([vq.codebook[0].T, -0.5 * vq.codebook[0].pow(2).sum(1)[None]])
        into, shift = torch.cat([into, 0 * into[:, :1]], dim=1), torch.cat([shift, shift.new_ones(1)])
        z = g.op("Add", g.op("MatMul", cells, g.weight("into", into)), g.weight("shift", shift))
        scores = g.op("MatMul", z, g.weight("book", book))
        size = c.image_size
        self._codes = c.codes_per_frame
        self._session = g.build({"images": (TensorProto.UINT8, ["n", size, size, 3])}, {"scores": scores}, options)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, side, side, 3) -> int64 (n, codes per frame)."""
        (scores,) = self._session.run(None, {"images": images.numpy()})
        return torch.from_numpy(scores).argmax(1).reshape(len(images), self._codes)


class FusedEngine(TorchEngine):
    """As `TorchEngine`, with these graphs computing codes of a patch quantiser, prefix and steps."""

    def __init__(self, checkpoint: Checkpoint, threads: int = 0, euler_steps: int = 0):
        super().__init__(
            checkpoint, threads, euler_steps, lambda policy, steps: FusedSampler(policy, steps, threads)
        )
        self._dtype = torch.float32
        if isinstance(checkpoint.vq, PatchVQ):
            self._codes_of = PatchCodes(checkpoint.vq, session_options(threads))
