"""Where the weights of a job lie among the processes: `place(job, config, us)`.

Whole in every process, or sharded by torch's `fully_shard` (FSDP2; Zhao et al. 2023): of every weight, its gradient and
its moments each process keeps a part; a layer is gathered while it computes. The first process alone evaluates and
writes, on weights gathered for that long, so a sharded run leaves the files that one process would have left.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from vipra_ros.learning import precision
from vipra_ros.learning.parallel import Team

if TYPE_CHECKING:
    from vipra_ros.learning.loop import Job, LoopConfig


def place(job: Job, config: LoopConfig, us: Team) -> Weights:
    """Move the model of a job to its device, and shard it when that is asked for and there is another process."""
    if config.checkpointing:
        for layer in getattr(job, "layers", ()):
            _recompute(layer)
    if config.shard and us.world > 1:
        return Sharded(job, config, us)
    if hasattr(job, "device"):
        job.model.to(job.device)
    return Weights(job, us)


def _recompute(layer: nn.Module) -> None:
    """Keep only the input of a layer for the backward pass, which then computes it again."""
    if getattr(layer, "gradient_checkpointing", False):  # the layer does so already
        return
    compute = layer.forward

    @functools.wraps(compute)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        return checkpoint(compute, *args, use_reentrant=False, **kwargs)

    layer.forward = forward


class Weights:
    """Weights whole in every process."""

    def __init__(self, job: Job, us: Team):
        self.job, self.us, self.loss = job, us, job.loss
        self.parameters = [p for p in job.model.parameters() if p.requires_grad]

    def reduce(self) -> None:
        """Give all processes the mean of their gradients."""
        self.us.average(self.parameters)

    def clip(self, limit: float) -> Tensor:
        """Shorten the gradient to `limit`, 0 for none; its norm before."""
        return nn.utils.clip_grad_norm_(self.parameters, limit or math.inf)

    @contextlib.contextmanager
    def whole(self):
        """The first process finds all weights whole in the model, for the length of a `with`."""
        yield


class _Loss(nn.Module):
    """The loss of a job as the forward pass of a module around its model, which `fully_shard` gathers weights for."""

    def __init__(self, job: Job):
        super().__init__()
        self.model, self.compute = job.model, job.loss

    def forward(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        return self.compute(generator, progress)


class Sharded(Weights):
    """Weights, gradients and moments divided among the processes, except what a job changes by hand.

    `layers` of the job are gathered one at a time, all other weights at the beginning of a pass. With bfloat16 they
    are gathered, and layers take their inputs, in it; gradients are reduced in float32.
    """

    def __init__(self, job: Job, config: LoopConfig, us: Team):
        model, device = job.model, torch.device(getattr(job, "device", next(job.model.parameters()).device))
        names = {id(p): name for name, p in model.named_parameters()}
        by_hand = set(getattr(job, "by_hand", ()))
        for tensor in by_hand:
            tensor.data = tensor.data.to(device)
        low = config.bf16 and precision.has_bf16(device.type)
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low else MixedPrecisionPolicy()
        shard = functools.partial(fully_shard, mesh=init_device_mesh(device.type, (us.world,)), mp_policy=policy,
                                  ignored_params=by_hand)
        self.layers = list(getattr(job, "layers", ()))
        for layer in self.layers:
            shard(layer)
        root = shard(_Loss(job))
        # Every weight is another object now: the job's own lists follow.
        now = dict(model.named_parameters())
        job.hidden_matrices = [now[names[id(p)]] for p in job.hidden_matrices]
        if hasattr(job, "rates"):
            job.rates = {id(now[names[i]]): rate for i, rate in job.rates.items()}
        super().__init__(job, us)
        self.loss = root

    def reduce(self) -> None:
        """Sharded gradients are reduced in every backward pass; the others now."""
        self.us.average([p for p in self.parameters if not isinstance(p, DTensor)])

    def clip(self, limit: float) -> Tensor:
        """As for whole weights; the squares of all parts add up."""
        parts = [(local(p.grad), isinstance(p, DTensor)) for p in self.parameters if p.grad is not None]
        mine = self.us.total([nn.utils.get_total_norm([g for g, sharded in parts if sharded]).double() ** 2])
        shared = nn.utils.get_total_norm([g for g, sharded in parts if not sharded]).double() ** 2
        norm = (mine[0] + shared.to(mine[0].device)).sqrt().float()
        if limit:
            torch._foreach_mul_([g for g, _ in parts], float((limit / (norm + 1e-6)).clamp(max=1.0)))
        return norm

    @contextlib.contextmanager
    def whole(self):
        """Gather the weights for the first process. Its layers then compute by themselves, the others wait."""
        places = [(module, name, p) for module in self.job.model.modules()
                  for name, p in module._parameters.items() if isinstance(p, DTensor)]
        hooks = []
        for module, name, sharded in places:
            full = sharded.detach().full_tensor()
            if self.us.main:
                module._parameters[name] = nn.Parameter(full, requires_grad=sharded.requires_grad)
        if self.us.main:
            for layer in self.layers:  # their hooks would ask the other processes, which wait
                hooks.append((layer, layer._forward_pre_hooks, layer._forward_hooks))
                layer._forward_pre_hooks, layer._forward_hooks = OrderedDict(), OrderedDict()
        try:
            yield
        finally:
            if self.us.main:
                for module, name, sharded in places:
                    module._parameters[name] = sharded
                for layer, before, after in hooks:
                    layer._forward_pre_hooks, layer._forward_hooks = before, after


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process keeps; another tensor is itself. Without gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any, keep: bool) -> Any:
    """Sharded tensors in nested dicts and lists gathered and on the CPU, None without `keep`; all processes call it."""
    if isinstance(value, dict):
        return {key: whole(item, keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item, keep) for item in value)
    if isinstance(value, DTensor):
        full = value.detach().full_tensor()
        return full.cpu() if keep else None
    return value


def divided(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: sharded the same way, or whole."""
    if not isinstance(like, DTensor):
        return full
    # Every process has the whole: nothing is sent.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
