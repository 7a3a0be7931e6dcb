"""Activations with a slope per network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import SizeError


class SlotSwish(nn.Module):
    """Swish with a learned slope for every slot along a dimension.

        y = x sigmoid(x softplus(beta)) / 1.1

    The slope belongs to a slot of the features and never to a position in the batch, so that equal inputs have equal
    outputs wherever they stand. In the target of a hypernetwork, beta is generated per row, or shared, as its name
    pattern says.

    Args:
        num_slots: slopes, 1 for all entries alike or the size of dimension ``dim``.
        dim: which dimension the slots are: -1 for features, 1 for the channels of a batch of images.
        init: of beta, before the softplus.
        device: as in torch.
        dtype: as in torch.

    Shape:
        any, the same comes out.

    Raises:
        SizeError: fewer than one slot, or an input of another size along ``dim``.

    Source:
        Ramachandran, Zoph and Le 2017, Searching for Activation Functions, https://arxiv.org/abs/1710.05941; the
        division keeps the slope at most 1: Chen, Behrmann, Duvenaud and Jacobsen 2019, Residual Flows,
        https://arxiv.org/abs/1906.02735, section 3.3 (LipSwish).

    Example:
        >>> import torch, weft
        >>> tuple(weft.hypernet.SlotSwish(6)(torch.randn(3, 6)).shape)
        (3, 6)
    """

    def __init__(
        self,
        num_slots: int = 1,
        dim: int = -1,
        init: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_slots < 1:
            raise SizeError(f"num_slots must be at least 1, got {num_slots}")
        self.num_slots, self.dim, self.init = num_slots, dim, init
        self.beta = nn.Parameter(torch.empty(num_slots, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every slope to its initial value."""
        nn.init.constant_(self.beta, self.init)

    def forward(self, x: Tensor) -> Tensor:
        slope = F.softplus(self.beta)
        if self.num_slots > 1:
            if x.shape[self.dim] != self.num_slots:
                raise SizeError(
                    f"dimension {self.dim} of the input must have {self.num_slots} slots, got {x.shape[self.dim]}"
                )
            shape = [1] * x.dim()
            shape[self.dim] = self.num_slots
            slope = slope.reshape(shape)
        return x * torch.sigmoid(x * slope) / 1.1

    def extra_repr(self) -> str:
        return f"{self.num_slots}, dim={self.dim}"
