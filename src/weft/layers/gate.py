"""Residual blocks that start as their shortcut: a learned factor, 0 at the beginning, on the branch.

    y = shortcut(x) + alpha * branch(x),        alpha = 0 at the start

A deep stack of such blocks starts as a chain of shortcuts, whatever its layers, and learns how much of each branch to
let in. In the first step only alpha moves; the branch follows as soon as alpha is not 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.errors import OptionError


class ResidualGate(nn.Module):
    """``y = shortcut(x) + alpha * branch(x)``, with alpha learned and 0 at the start.

    Choose it where deep hypercomplex networks converge slowly or not at all. Where a block ends in an activation, put
    that into the branch and nothing after the sum, as in ``Source``: only then the block starts as the identity.
    ``weft.parameter_groups`` gives alpha no weight decay.

    Args:
        branch: what is to be learned.
        shortcut: what the block starts as, of the same output shape; None for the identity.
        channels: None for one alpha; or the number of channels of the output, to learn one alpha for each.
        dim: where the channels of the output are: 1 for convolutions, -1 for features. Used with ``channels`` only.
        device: of alpha; None takes that of the branch.
        dtype: of alpha; None takes that of the branch.

    Raises:
        OptionError: ``channels`` is smaller than 1.

    Source:
        Mancanelli, Grassucci, Uncini, Comminiello 2023, PHYDI: Initializing Parameterized Hypercomplex Neural Networks
        as Identity Functions, MLSP, https://arxiv.org/abs/2310.07612, after Bachlechner et al. 2020, ReZero,
        https://arxiv.org/abs/2003.04887. An alpha per channel is ours.

    Example:
        >>> import torch, weft
        >>> block = ResidualGate(torch.nn.Sequential(weft.PHConv2d(8, 8, 3, padding=1), torch.nn.ReLU()))
        >>> x = torch.randn(2, 8, 5, 5)
        >>> torch.equal(block(x), x), block.alpha.item()
        (True, 0.0)
    """

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        *,
        channels: int | None = None,
        dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise OptionError(f"channels must be at least 1, or None for one alpha for all, got {channels}")
        first = next(branch.parameters(), None)
        if first is not None:
            device, dtype = device or first.device, dtype or first.dtype
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.dim = dim
        self.alpha = nn.Parameter(torch.empty(() if channels is None else (channels,), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Close the gate: alpha = 0."""
        nn.init.zeros_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        alpha = self.alpha.to(branch.dtype)  # under autocast the branch may come in half precision
        if alpha.dim():
            view = [1] * branch.dim()
            view[self.dim] = -1
            alpha = alpha.reshape(view)
        return self.shortcut(x) + alpha * branch

    def extra_repr(self) -> str:
        return f"channels={self.alpha.numel()}, dim={self.dim}" if self.alpha.dim() else ""
