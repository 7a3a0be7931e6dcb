"""Several members on top of one another: one matrix whose parts belong to different things, such as gates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weft.errors import SizeError
from weft.parametrizations.base import Parametrization


class Stacked(Parametrization):
    """Members stacked by rows: W = [W_1; ...; W_m], with W_i (O_i, I).

    Choose it where one stored matrix is really several: the gates of a recurrent layer, the heads of a projection. A
    family then structures every part by itself; no component of a hypercomplex number spans two gates.

    Args:
        members: at least one, all with the same number of columns and the same ``positions``. They may be of
            different families.

    Shape:
        dense(): (O_1 + ... + O_m, I)          linear(x): (..., I) -> (..., O_1 + ... + O_m)

    Parameters stored:
        members.0, members.1, ...: those of the members, with the rules of their families.

    Cost:
        the sum over the members.

    Raises:
        SizeError: no members, or different numbers of columns or positions.

    Source:
        Every gate of a recurrent network with a weight of its own: Parcollet et al. 2019, Quaternion Recurrent Neural
        Networks, section 3.3, https://arxiv.org/abs/1806.04418.

    Example:
        >>> from weft.parametrizations import Kronecker, LowRank
        >>> p = Stacked([Kronecker((8, 12), n=4), LowRank((5, 12), rank=2)])
        >>> p.shape, p.num_parameters
        ((13, 12), 122)
    """

    def __init__(self, members: Sequence[Parametrization]) -> None:
        if not members or len({(member.shape[1], member.positions) for member in members}) > 1:
            got = [(member.shape, member.positions) for member in members]
            raise SizeError(f"members must be one or more with the same columns and positions; got {got}")
        columns, positions = members[0].shape[1], members[0].positions
        super().__init__((sum(member.shape[0] for member in members), columns), positions=positions)
        self.members = nn.ModuleList(members)

    def parts(self) -> list[Parametrization]:
        """The members, from the top.

        Returns:
            the members.
        """
        return list(self.members)  # type: ignore[arg-type]

    def dense(self) -> Tensor:
        return torch.cat([member.dense() for member in self.parts()])

    def reset_parameters(self) -> None:
        for member in self.parts():
            member.reset_parameters()

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = self.parts()
        sizes = [member.shape[0] for member in parts]
        biases = [None] * len(parts) if bias is None else bias.split(sizes)
        return torch.cat([member.linear(x, b) for member, b in zip(parts, biases, strict=True)], dim=-1)

    def cost(self, rows: int) -> int:
        return sum(member.cost(rows) for member in self.parts())

    def build_cost(self) -> int:
        return sum(member.build_cost() for member in self.parts()) + math.prod(self.shape)  # putting them together

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        parts = self.parts()
        for member, part in zip(parts, target.split([member.shape[0] for member in parts]), strict=True):
            member.fit_(part, gram)
