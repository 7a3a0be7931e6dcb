"""Families that Weft does not ship, to show that layers know none."""

import torch
from torch import nn

from weft.parametrizations import Parametrization, Stage


class CanonicalKronecker(Parametrization):
    """W = sum_r outer(out_mix[:, r], in_mix[r]) (x) blocks[r]: mix, then R groups, then mix. Never registered."""

    def __init__(self, shape, *, n=2, rank=3, positions=1, variance=None, device=None, dtype=None):
        super().__init__(shape, positions=positions, variance=variance)
        rows, columns = self.shape
        self.in_mix = nn.Parameter(torch.empty(rank, n, device=device, dtype=dtype))
        self.blocks = nn.Parameter(torch.empty(rank, rows // n, columns // n, device=device, dtype=dtype))
        self.out_mix = nn.Parameter(torch.empty(n, rank, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def dense(self):
        n, (_, rows, columns) = self.in_mix.shape[1], self.blocks.shape
        blocks = torch.einsum("pr,roc,rq->poqc", self.out_mix, self.blocks, self.in_mix)
        return blocks.reshape(n * rows, n * columns)

    def stages(self):
        _, rows, columns = self.blocks.shape
        return [Stage(self.in_mix[None], columns), Stage(self.blocks), Stage(self.out_mix[None], rows)]


class Nested(Parametrization):
    """A multiple of another parametrization, with a buffer of its own."""

    def __init__(self, inner):
        super().__init__(inner.shape, positions=inner.positions, variance=inner.variance)
        self.inner = inner
        self.register_buffer("scale", torch.full((), 1.5, dtype=torch.float64))

    def reset_parameters(self):
        self.inner.reset_parameters()

    def dense(self):
        return self.scale * self.inner.dense()
