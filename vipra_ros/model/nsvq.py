"""Vector quantisation by noise substitution (Vali & Backstrom 2022, "NSVQ", IEEE Access 10).

In training the quantisation error is replaced by noise of the same length in a random direction, so gradients reach
the encoder and the codebook without a straight-through estimator and without a commitment loss. Nothing pulls an
unused code towards the data: replacement of rarely used codes is part of the method.

Two ways beyond it help short trainings, where codes that say nothing are drowned in noise as long as themselves:
`continuous` leaves the vectors as they are until they say something, and `follow` moves each code to the mean of what
it stands for (van den Oord et al. 2017, appendix A.1) instead of leaving that to the noise's gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NSVQ(nn.Module):
    """`size` codes of `width` numbers. Buffer `usage` (size,): how often each was chosen since the last `replace`.

    `continuous`: training passes vectors through as they are. `follow`: decay of the codes' running means; 0 leaves the
    codebook to its gradient.
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        self.continuous, self.follow = False, 0.0
        # An Embedding, because tables of embeddings do not decay in the training loop.
        self.codebook = nn.Embedding(size, width)
        self.register_buffer("usage", torch.zeros(size))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, width))

    def nearest(self, x: Tensor) -> Tensor:
        """(..., width) -> int64 (...), the closest code by Euclidean distance."""
        # By differences: a product would run in bfloat16 under autocast, and eight codes are few.
        return (x.float()[..., None, :] - self.codebook.weight.float()).pow(2).sum(-1).argmin(-1)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(..., width) -> vectors (..., width), codes int64 (...).

        Training: x + |x - q| n / |n|, n ~ N(0, I), and usage is counted; x while `continuous`. Evaluation: q itself.
        """
        x = x.float()
        codes = self.nearest(x.detach())
        q = self.codebook(codes).float()
        if not self.training:
            return q, codes
        if self.continuous:
            return x, codes
        if self.follow:
            q = q.detach()
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        direction = noise / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        # 1e-12 under the root: the norm has no gradient where x sits on its code.
        distance = ((x - q).pow(2).sum(-1, keepdim=True) + 1e-12).sqrt()
        with torch.no_grad():
            self.usage += F.one_hot(codes.flatten(), len(self.usage)).sum(0)
        if self.follow:
            self._follow(x.detach().flatten(0, -2), self.follow)
        return x + distance * direction, codes

    @torch.no_grad()
    def _follow(self, x: Tensor, decay: float) -> None:
        """Codes move to the running means of the vectors (m, width) they are nearest to."""
        chosen = F.one_hot(self.nearest(x), len(self.usage)).float()
        self.counts.mul_(decay).add_(chosen.sum(0), alpha=1 - decay)
        self.sums.mul_(decay).add_(chosen.T @ x, alpha=1 - decay)
        known = self.counts > 1e-6
        self.codebook.weight[known] = self.sums[known] / self.counts[known, None]

    @torch.no_grad()
    def start(self, x: Tensor, generator: torch.Generator) -> None:
        """Codebook from data (m, width): k-means++ seeding, the first at random, then ten rounds of k-means."""
        x = x.float()
        taken = [int(torch.randint(len(x), (1,), generator=generator))]
        distance = torch.full((len(x),), float("inf"), device=x.device)
        while len(taken) < len(self.usage):
            distance = torch.minimum(distance, (x - x[taken[-1]]).pow(2).sum(-1))
            taken.append(int(torch.multinomial(distance.cpu() + 1e-12, 1, generator=generator)))
        self.codebook.weight.copy_(x[taken])
        for _ in range(10):
            self._follow(x, 0.0)
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
            # Their means begin there, with as much behind them as an average code.
            self.counts.fill_(self.counts.mean())
            self.sums.copy_(self.codebook.weight * self.counts[:, None])
        self.usage.zero_()
        return len(rare)
