"""How many operations of torch an engine starts for a chunk: each is a kernel or two on a GPU, microseconds even where
it has nothing to do. A CUDA graph replays them without Python, and still one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class _Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # A view only changes how memory is looked at; an operation in place returns what it writes.
        returns = func._schema.returns
        if all(r.alias_info is None or r.alias_info.is_write for r in returns):
            self.found[str(func.overloadpacket).removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))


def count_operations(work: Callable[[], object]) -> Counter[str]:
    """Operations that `work` starts, views excluded, by name; 0 of an engine that does not compute with torch."""
    with _Counted() as counted:
        work()
    return counted.found
