"""Moves towards sparse factors whose product is near a matrix: proximal gradient steps, and swaps of positions.

    minimise || S_1 S_2 ... S_J - target ||^2   over values and positions of T non-zeros

Everything is done in balanced scales: where the columns of the product to the left of a factor and the rows of that to
its right have length 1, an entry's square is what dropping it alone adds to the error of a minimum, and the square of
an absent entry's slope is what adding it alone removes.

Letters: O, I = rows and columns of the matrix; w = width between the factors; J = number of factors; T = non-zeros of
all factors together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_INERTIA = 0.9  # part of a factor's last change that goes on


def largest(matrix: Tensor, count: int) -> Tensor:
    """The matrix with its entries of largest magnitude only.

    Args:
        matrix: of any shape.
        count: how many are kept.

    Returns:
        the same shape, the other entries 0.
    """
    flat = matrix.flatten()
    kept = flat.abs().topk(count, sorted=False).indices
    return torch.zeros_like(flat).scatter(0, kept, flat[kept]).view_as(matrix)


def _product(factors: list[Tensor]) -> Tensor | None:
    return torch.linalg.multi_dot(factors) if len(factors) > 1 else factors[0] if factors else None


class Sides:
    """The products to the left and to the right of a factor, with columns and rows of length 1 and those lengths.

    Rows are measured by a Gram matrix where one is given.
    """

    def __init__(self, factors: list[Tensor], place: int, gram: Tensor | None = None) -> None:
        left, right = _product(factors[:place]), _product(factors[place + 1 :])
        rows, columns = factors[place].shape
        heights = factors[place].new_ones(rows, 1) if left is None else left.norm(dim=0).unsqueeze(1)
        if gram is None:
            widths = factors[place].new_ones(columns) if right is None else right.norm(dim=1)
        else:
            widths = (gram.diagonal() if right is None else (right @ gram * right).sum(1)).clamp(min=0).sqrt()
        # What meets only zeros has no length; it stays without effect.
        heights, widths = (size.clamp(min=1e-10 * float(size.max()) + 1e-30) for size in (heights, widths))
        self.left = None if left is None else left / heights.T
        self.widths, self.right = widths, None if right is None else right / widths.unsqueeze(1)
        self.lengths = heights * widths

    def around(self, factor: Tensor) -> Tensor:
        """The product of all, from a balanced factor."""
        product = factor if self.left is None else self.left @ factor
        return product if self.right is None else product @ self.right

    def slope(self, residual: Tensor) -> Tensor:
        """Of half the squared residual, by the balanced factor; of the weighted one if the residual is times G."""
        slope = residual if self.left is None else self.left.T @ residual
        return slope / self.widths if self.right is None else slope @ self.right.T

    def steepness(self, vectors: dict[str, Tensor]) -> Tensor:
        """Largest curvature by a few power steps from the vectors of the last time, which are replaced."""
        steepness = self.lengths.new_ones(())
        for name, matrix in (("left", self.left), ("right", self.right)):
            if matrix is not None:
                matrix = matrix.T if name == "left" else matrix
                v = vectors.get(name, matrix.abs().sum(0))
                for _ in range(3):
                    v = matrix.T @ (matrix @ v)
                    v = v / v.norm().clamp(min=1e-30)
                vectors[name], steepness = v, steepness * (matrix @ v).square().sum()
        return steepness


def sweeps(
    target: Tensor,
    factors: list[Tensor],
    counts: list[int],
    number: int,
    *,
    falling: bool = False,
    shared: bool = False,
) -> list[Tensor]:
    """Inertial proximal alternating minimisation: a gradient step of each factor in turn, of which the largest stay.

    Args:
        target: (O, I).
        factors: starts, (O, w), (w, w), ..., (w, I).
        counts: non-zeros of every factor.
        number: of sweeps over all factors.
        falling: whether all entries are there at first, and become as few as the counts over two thirds of the sweeps.
        shared: whether the factors exchange numbers: the largest of all factors stay, in balanced scales.

    Returns:
        the factors after the last sweep.

    Source:
        Le Magoarou and Gribonval 2016, Flexible multi-layer sparse approximations of matrices, figure 4,
        https://arxiv.org/abs/1506.07300; inertia as in Pock and Sabach 2016, Inertial proximal alternating linearized
        minimization (iPALM), https://arxiv.org/abs/1702.02505. Scales are balanced here and the factors not normalised.
    """
    factors, before = list(factors), list(factors)
    vectors: list[dict[str, Tensor]] = [{} for _ in factors]
    full, magnitudes = [factor.numel() for factor in factors], [factor.abs() for factor in factors]
    for sweep in range(1, number + 1):
        done = min(1.0, 1.5 * sweep / number) if falling else 1.0
        now = [round(size ** (1 - done) * min(size, count) ** done) for size, count in zip(full, counts, strict=True)]
        if shared and sweep > 1:
            now = _shared_out(magnitudes, sum(now))
        for place, count in enumerate(now):
            sides = Sides(factors, place)
            moved = (factors[place] + _INERTIA * (factors[place] - before[place])) * sides.lengths
            slope = sides.slope(sides.around(moved) - target)
            moved = moved - slope / (1.02 * sides.steepness(vectors[place])).clamp(min=1e-30)
            before[place], factors[place] = factors[place], largest(moved, count) / sides.lengths
            magnitudes[place] = moved.abs()
    return factors


def _shared_out(magnitudes: list[Tensor], total: int) -> list[int]:
    """How many of the largest numbers of all lie in each tensor, at least one."""
    chosen = torch.cat([magnitude.flatten() for magnitude in magnitudes]).topk(total, sorted=False).indices
    ends = torch.tensor([magnitude.numel() for magnitude in magnitudes], device=chosen.device).cumsum(0)
    counts = torch.bincount(torch.bucketize(chosen, ends, right=True), minlength=len(ends)).clamp(min=1).tolist()
    counts[counts.index(max(counts))] -= sum(counts) - total
    return counts


def swapped(
    target: Tensor, factors: list[Tensor], part: float, gram: Tensor | None = None, *, shared: bool = True
) -> list[Tensor] | None:
    """Exchange the positions that matter least for those that promise most.

    Args:
        target: (O, I).
        factors: dense tensors with zeros; their values should be a minimum.
        part: of the non-zeros, the most that are exchanged.
        gram: (I, I), weighs the error; None weighs alike.
        shared: whether a factor may gain what another loses.

    Returns:
        the factors with as many non-zeros at other positions; None where no exchange promises a gain.
    """
    residual = torch.linalg.multi_dot(factors) - target
    residual = residual if gram is None else residual @ gram
    entries = []
    for place, factor in enumerate(factors):
        sides = Sides(factors, place, gram)
        slope, stored = sides.slope(residual), factor != 0
        lost = torch.where(stored, (factor * sides.lengths).abs(), math.inf)
        gained = torch.where(stored, 0, slope.abs())
        added = -0.3 * slope / sides.lengths  # not the whole way: many at once overshoot
        entries.append([each.flatten() for each in (factor, lost, gained, added)])
    groups = [[torch.cat(parts) for parts in zip(*entries, strict=True)]] if shared else entries
    changed = [_exchanged(values, lost, gained, added, part) for values, lost, gained, added in groups]
    if not any(pairs for _, pairs in changed):
        return None
    flat = torch.cat([values for values, _ in changed]).split([factor.numel() for factor in factors])
    return [values.view_as(factor) for values, factor in zip(flat, factors, strict=True)]


def _exchanged(values: Tensor, lost: Tensor, gained: Tensor, added: Tensor, part: float) -> tuple[Tensor, int]:
    """Values with entries dropped and as many added, as long as the added promise more; and how many."""
    most = min(math.ceil(part * int(lost.isfinite().sum())), int((gained > 0).sum()))
    dropped, taken = lost.topk(most, largest=False), gained.topk(most)
    pairs = int((taken.values > dropped.values).sum())
    values, new = values.clone(), taken.indices[:pairs]
    values[dropped.indices[:pairs]] = 0
    values[new] = added[new]
    return values, pairs
