"""Several processes that train one model: what they have to say to one another, `team()`.

They are started by torchrun, or by accelerate launch, which calls it; both set RANK, WORLD_SIZE and where to meet. Each
process draws its own observations, gradients are averaged, the first process evaluates and writes. Alone, nothing here
does anything. Where the weights lie is said in `sharding.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: The others wait while the first process decodes videos or evaluates.
PATIENCE = datetime.timedelta(hours=24)


class Team:
    """This process (`rank`) among `world`. Every method is to be called by all processes alike."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world

    @property
    def main(self) -> bool:
        """Whether this one evaluates and writes."""
        return self.rank == 0

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The first process goes through the block alone; the others then find what it has made."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by the mean over the processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])  # one message instead of hundreds
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the values of the first one."""
        if self.world == 1:
            return
        for tensor in tensors:
            sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()  # gloo sends no bool
            dist.broadcast(sent, 0)
            tensor.copy_(sent)

    def most(self, *values: float) -> list[float]:
        """The largest of each value among the processes."""
        if self.world == 1:
            return list(values)
        sent = torch.tensor(values, dtype=torch.float64, device=device())
        dist.all_reduce(sent, dist.ReduceOp.MAX)
        return sent.tolist()

    def total(self, values: list[Tensor]) -> list[Tensor]:
        """The sum of each number, a tensor without dimensions, over the processes."""
        if self.world == 1:
            return values
        sent = torch.stack(values)
        dist.all_reduce(sent)
        return list(sent)

    def everyone(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found


def device() -> str:
    """Where this process computes."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def placed(batch: Any, where: str | torch.device) -> Any:
    """A dataclass of tensors with its tensors on a device."""
    tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{k: v.to(where) for k, v in tensors.items() if isinstance(v, Tensor)})


@functools.cache
def team() -> Team:
    """The team this process belongs to, met once."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Team(0, 1)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    return Team(dist.get_rank(), world)
