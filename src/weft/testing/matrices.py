"""Matrices to try approximations on: each has a structure that some family should find, from a seed.

All are (rows, columns), in float64, with entries of mean square 1, so that relative errors compare.

Letters: m, n = rows and columns; i, j run over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Draw = Callable[[int, int, torch.Generator], Tensor]


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator)


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(rows, columns, dtype=torch.float64, generator=generator) - 1


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    side = max(rows, columns)
    return torch.linalg.qr(_normal(side, side, generator))[0][:rows, :columns]


def _of_rank(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    rank = max(1, min(rows, columns) // 3)
    return _normal(rows, rank, generator) @ _normal(rank, columns, generator)


def _decaying(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random singular vectors, singular values from 1 evenly down to 0.1."""
    rank = min(rows, columns)
    left, right = (torch.linalg.qr(_normal(side, rank, generator))[0] for side in (rows, columns))
    return left * torch.linspace(1, 0.1, rank, dtype=torch.float64) @ right.T


def _semiseparable(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Sequentially semiseparable, up to 30 stages, states of dimension up to 5: u_i A ... A v_j off the diagonal."""
    stages = max(1, min(30, rows // 2, columns // 2))
    state = max(1, min(5, rows // stages, columns // stages))
    row_stage = torch.arange(rows) * stages // rows
    column_stage = torch.arange(columns) * stages // columns
    matrix = torch.zeros(rows, columns, dtype=torch.float64)
    for below in (True, False):
        outputs, inputs = _normal(rows, state, generator), _normal(columns, state, generator)
        steps = [torch.linalg.qr(_normal(state, state, generator))[0] * 0.9 for _ in range(stages)]
        for k in range(stages):
            carried = inputs[column_stage == k]
            for other in range(k + 1, stages) if below else range(k - 1, -1, -1):
                block = outputs[row_stage == other] @ carried.T
                matrix[(row_stage == other)[:, None] & (column_stage == k)] = block.flatten()
                carried = carried @ steps[other].T
    diagonal = row_stage[:, None] == column_stage
    return torch.where(diagonal, _normal(rows, columns, generator), matrix)


def _sparse_product(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Three factors, a tenth of the entries of each not zero."""
    side = max(rows, columns)
    factors = []
    for shape in ((rows, side), (side, side), (side, columns)):
        kept = torch.rand(shape, dtype=torch.float64, generator=generator) < max(0.1, 2 / side)
        factors.append(_normal(*shape, generator) * kept)
    return factors[0] @ factors[1] @ factors[2]


def _hierarchical(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Rank one in every off-diagonal block of a partition halved until blocks are small, dense on the diagonal."""
    if min(rows, columns) < 16:
        return _normal(rows, columns, generator)
    top, left = rows // 2, columns // 2
    corners = [
        _hierarchical(top, left, generator),
        _normal(top, 1, generator) @ _normal(1, columns - left, generator),
        _normal(rows - top, 1, generator) @ _normal(1, left, generator),
        _hierarchical(rows - top, columns - left, generator),
    ]
    return torch.cat([torch.cat(corners[:2], 1), torch.cat(corners[2:], 1)])


def _toeplitz(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """The same number along every diagonal."""
    diagonals = _normal(1, rows + columns - 1, generator)[0]
    return diagonals[torch.arange(rows)[:, None] - torch.arange(columns) + columns - 1]


def _hankel(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """The same number along every antidiagonal."""
    return _toeplitz(rows, columns, generator).flip(0)


def _cauchy(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """1 / (x_i - y_j) with x in (1, 2) and y in (-2, -1): the nodes stay apart, so no entry dominates."""
    x = 1 + torch.rand(rows, dtype=torch.float64, generator=generator).sort().values
    y = -1 - torch.rand(columns, dtype=torch.float64, generator=generator).sort().values
    return 1 / (x[:, None] - y)


_DRAWS: dict[str, Draw] = {
    "orthogonal": _orthogonal,
    "uniform": _uniform,
    "low rank": _of_rank,
    "decaying spectrum": _decaying,
    "sequentially semiseparable": _semiseparable,
    "product of sparse": _sparse_product,
    "hierarchical": _hierarchical,
    "Toeplitz": _toeplitz,
    "Hankel": _hankel,
    "Cauchy": _cauchy,
}


def matrices(rows: int = 300, columns: int = 300, seed: int = 0) -> Mapping[str, Tensor]:
    """One matrix of every kind.

    Args:
        rows: m, at least 1.
        columns: n, at least 1.
        seed: each kind has a generator of its own, so that adding one changes no other.

    Returns:
        kind to (rows, columns) in float64, mean square 1: orthogonal rows or columns; uniform; rank a third of the
        smaller side; singular values from 1 evenly to 0.1; sequentially semiseparable with states of 5; product of
        three factors with a tenth of their entries; hierarchical with blocks of rank 1; Toeplitz; Hankel; Cauchy with
        separated nodes.

    Source:
        The collection of the code of Kissel and Diepold 2023, Structured Matrices and Their Application in Neural
        Networks: A Survey, https://doi.org/10.1007/s00354-023-00226-1; there the Hankel matrices were Toeplitz ones
        and the nodes of the Cauchy matrices were not apart.

    Example:
        >>> {name: torch.linalg.matrix_rank(matrix).item() for name, matrix in matrices(30, 30).items()}["low rank"]
        10
    """
    drawn = {}
    for number, (name, draw) in enumerate(_DRAWS.items()):
        matrix = draw(rows, columns, torch.Generator().manual_seed(1000 * seed + number))
        drawn[name] = matrix / matrix.square().mean().sqrt()
    return MappingProxyType(drawn)
