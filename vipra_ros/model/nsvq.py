"""Vector quantisation by noise substitution (Vali & Backstrom 2022, "NSVQ", IEEE Access 10).

In training the quantisation error is replaced by noise of the same length in a random direction, so gradients reach
the encoder and the codebook without a straight-through estimator and without a commitment loss. Nothing pulls an
unused code towards the data: replacement of rarely used codes is part of the method.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NSVQ(nn.Module):
    """`size` codes of `width` numbers. Buffer `usage` (size,): how often each was chosen since the last `replace`."""

    def __init__(self, size: int, width: int):
        super().__init__()
        # An Embedding, because tables of embeddings do not decay in the training loop.
        self.codebook = nn.Embedding(size, width)
        self.register_buffer("usage", torch.zeros(size))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def nearest(self, x: Tensor) -> Tensor:
        """(..., width) -> int64 (...), the closest code by Euclidean distance."""
        # By differences: a product would run in bfloat16 under autocast, and eight codes are few.
        return (x.float()[..., None, :] - self.codebook.weight.float()).pow(2).sum(-1).argmin(-1)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(..., width) -> vectors (..., width), codes int64 (...).

        Training: x + |x - q| n / |n|, n ~ N(0, I), and usage is counted. Evaluation: q itself.
        """
        x = x.float()
        codes = self.nearest(x.detach())
        q = self.codebook(codes).float()
        if not self.training:
            return q, codes
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        direction = noise / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        # 1e-12 under the root: the norm has no gradient where x sits on its code.
        distance = ((x - q).pow(2).sum(-1, keepdim=True) + 1e-12).sqrt()
        with torch.no_grad():
            self.usage += F.one_hot(codes.flatten(), len(self.usage)).sum(0)
        return x + distance * direction, codes

    @torch.no_grad()
    def start(self, x: Tensor, generator: torch.Generator) -> None:
        """Codebook from data (m, width): the first at random, each next far from those taken (k-means++ seeding)."""
        x = x.float()
        taken = [int(torch.randint(len(x), (1,), generator=generator))]
        distance = torch.full((len(x),), float("inf"), device=x.device)
        while len(taken) < len(self.usage):
            distance = torch.minimum(distance, (x - x[taken[-1]]).pow(2).sum(-1))
            taken.append(int(torch.multinomial(distance.cpu() + 1e-12, 1, generator=generator)))
        self.codebook.weight.copy_(x[taken])
        self.started.fill_(True)

    @torch.no_grad()
    def replace(self, generator: torch.Generator, below: float = 0.015) -> int:
        """Codes chosen in less than `below` of all cases become random used ones, a little moved; their number.

        Moved by a hundredth of a code's length: of two equal codes the second would never be chosen.
        """
        total = self.usage.sum()
        if total == 0:
            return 0
        rare = (self.usage < below * total).nonzero().flatten()
        used = (self.usage >= below * total).nonzero().flatten()
        if len(rare) and len(used):
            pick = used[torch.randint(len(used), (len(rare),), generator=generator).to(used.device)]
            source = self.codebook.weight[pick]
            noise = F.normalize(torch.randn(source.shape, generator=generator), dim=-1).to(source.device)
            self.codebook.weight[rare] = source + 0.01 * source.norm(dim=-1, keepdim=True) * noise
        self.usage.zero_()
        return len(rare)
