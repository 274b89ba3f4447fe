"""Matrices kept in 8 bits with a scale per output channel, and the product with them; plain PyTorch.

W (n, k) is kept as q (n, k) and s (n,), W ~ s q, where s is the row's largest |W| over the type's largest number: 127
of int8, 448 of float8 e4m3. The scale stands outside the sum, x W^T = s (x q^T), so nothing of W's size is multiplied.
What is lost is at most s / 2 of a number in int8, and 1/16 of it (or s / 1024, if that is more) in fp8.

- int8, fp8: q is turned into the activations' type for each product. Less memory; on a GPU more traffic, not less.
- int8_dynamic, fp8_dynamic: x, too, is rounded to the type, with a scale per token found in the pass, and the
  hardware's own product is taken: int8 with int32 sums (`torch._int_mm`), fp8 with float32 sums (`torch._scaled_mm`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vipra_ros.policy.checkpoint import CheckpointError

#: Type and its largest number.
TYPES = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
#: Both sides of a matrix are multiples of this where the hardware's own products take it.
BLOCK = 16
#: cuBLAS takes int8 products of more than 16 rows; a chunk has 14. Rows of zeros are added up to a multiple of this.
ROWS = 32
_LEAST = torch.finfo(torch.float32).tiny


def keep(weight: Tensor, weights: str) -> Tensor | Quantised:
    """A matrix (n, k) as `weights.WEIGHTS` says."""
    return weight if weights == "full" else Quantised(weight, weights)


def linear(x: Tensor, weight: Tensor | Quantised) -> Tensor:
    """`F.linear` without bias for both: x (..., k) -> (..., n)."""
    return weight(x) if isinstance(weight, Quantised) else F.linear(x, weight)


class Quantised:
    """A matrix (n, k) in 8 bits.

    Raises:
        CheckpointError: a dynamic product with a matrix whose sides are not multiples of 16.
    """

    def __init__(self, weight: Tensor, weights: str):
        name, _, self.dynamic = weights.partition("_")
        self.dtype, self.largest = TYPES[name]
        if self.dynamic and any(side % BLOCK for side in weight.shape):
            raise CheckpointError(f"weights = {weights!r}: a matrix of {tuple(weight.shape)}, both sides must be "
                                  f"multiples of {BLOCK}; choose weights {name!r}")
        exact = weight.float()
        # The scale as it will be multiplied by: rounded to bfloat16 afterwards it would be off for the whole row.
        scale = (exact.abs().amax(1, keepdim=True) / self.largest).clamp_min(_LEAST).to(weight.dtype)
        self.q = self._round((exact / scale.float()).clamp_(-self.largest, self.largest))
        self.scale = scale.view(1, -1).float() if self.dynamic else scale.view(1, -1)

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and scales."""
        return self.q.nbytes + self.scale.nbytes

    def dequantised(self) -> Tensor:
        """float32 (n, k), what the products see."""
        return self.q.float() * self.scale.float().t()

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., k) -> (..., n) in the type of x."""
        if not self.dynamic:
            return F.linear(x, self.q.to(x.dtype)) * self.scale.view(-1)
        rows = x.reshape(-1, x.shape[-1]).float()
        # What is not a number stays so in the scale, and the answer is none either.
        scale = (torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True) / self.largest).clamp_min_(_LEAST)
        rows = self._round(rows / scale)
        found = self._int8(rows, scale) if self.dtype == torch.int8 else self._fp8(rows, scale)
        return found.to(x.dtype).view(*x.shape[:-1], -1)

    def _int8(self, rows: Tensor, scale: Tensor) -> Tensor:
        count = len(rows)
        if rows.device.type == "cuda":
            rows = F.pad(rows, (0, 0, 0, -count % ROWS))
        return (torch._int_mm(rows, self.q.t()).narrow(0, 0, count) * scale).mul_(self.scale)

    def _fp8(self, rows: Tensor, scale: Tensor) -> Tensor:
        # A GPU's product with a scale per row answers in bfloat16 only. use_fast_accum stays off: sums of 14 bits would
        # be an error that no processor shows.
        out = torch.bfloat16 if rows.device.type == "cuda" else torch.float32
        return torch._scaled_mm(rows, self.q.t(), scale, self.scale, out_dtype=out)

    def _round(self, x: Tensor) -> Tensor:
        return (x.round_() if self.dtype == torch.int8 else x).to(self.dtype)
