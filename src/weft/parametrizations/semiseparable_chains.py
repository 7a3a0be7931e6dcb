"""Arithmetic of the chains of sequentially semiseparable matrices: running all stages at once, and finding a chain.

Letters: O, I = rows and columns of the matrix; N = stages; s = largest size of a state; R = rows of
the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.parametrizations.semiseparable_sizes import Sizes


def runs(sizes: Sequence[int | tuple[int, int]]) -> list[tuple[int, int, Any]]:
    """Runs of equal sizes.

    Args:
        sizes: of consecutive blocks.

    Returns:
        (first, past the last, size) of every run.
    """
    ends = itertools.accumulate(sum(1 for _ in group) for _, group in itertools.groupby(sizes))
    return [(start, end, sizes[start]) for start, end in itertools.pairwise([0, *ends])]


def stack(values: Tensor, sizes: Sizes, rows: int, columns: int) -> Tensor:
    """Blocks that are stored one after the other, as one tensor, padded with zeros to a common size.

    Args:
        values: (numbers of all blocks,).
        sizes: (rows, columns) of every block.
        rows: of a padded block.
        columns: of a padded block.

    Returns:
        (blocks, rows, columns); a view where no block is smaller.
    """
    if all(size == (rows, columns) for size in sizes):
        return values.view(len(sizes), rows, columns)
    parts, place = [], 0
    for start, end, (r, c) in runs(sizes):
        part = values[place : (place := place + (end - start) * r * c)].view(end - start, r, c)
        parts.append(F.pad(part, (0, columns - c, 0, rows - r)))
    return torch.cat(parts)


def cut(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Features cut into stages.

    Args:
        x: (R, features).
        sizes: of the stages, the larger ones first.

    Returns:
        (N, R, largest size), padded with zeros.
    """
    if sizes[0] == sizes[-1]:
        return x.unflatten(-1, (len(sizes), sizes[0])).transpose(0, 1)
    parts, place = [], 0
    for start, end, size in runs(sizes):
        part = x[:, place : (place := place + (end - start) * size)].unflatten(-1, (end - start, size))
        parts.append(F.pad(part, (0, sizes[0] - size)))
    return torch.cat(parts, dim=-2).transpose(0, 1)


def join(y: Tensor, sizes: Sequence[int]) -> Tensor:
    """The inverse of ``cut``.

    Args:
        y: (N, R, largest size).
        sizes: of the stages, the larger ones first.

    Returns:
        (R, features).
    """
    parts = [y[start:end, :, :size].transpose(0, 1).flatten(1) for start, end, size in runs(sizes)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def spread(blocks: Tensor, count: int, columns: int, stages: int, first: int = 0) -> Tensor:
    """Blocks of one stage each, on their places among the columns of all stages.

    Args:
        blocks: (count, r, columns).
        count: number of blocks, one per stage.
        columns: of a block.
        stages: N.
        first: stage of the first block.

    Returns:
        (count, r, N*columns).
    """
    # Rows that are one block too long, read again at their right length, move every block one place on.
    long = F.pad(blocks.transpose(0, 1), (first * columns, (stages - first) * columns)).flatten(1)
    width = stages * columns
    return long[:, : count * width].unflatten(1, (count, width)).transpose(0, 1)


def scan(steps: Tensor, drives: Tensor, length: int) -> Tensor:
    """All states x_0 = v_0, x_i = x_{i-1} T_i + v_i, in about 4 log2(length) products instead of one per state.

    Pairs of steps are joined, which leaves the states of odd number as a chain half as long; those of even number are
    one step further.

    Args:
        steps: T_1, T_2, ..., (length - 1, s, s).
        drives: v_0, v_1, ..., (length, R, s).
        length: number of states, at least 1.

    Returns:
        (length, R, s).

    Source:
        Blelloch 1990, Prefix Sums and Their Applications, section 1.4; the cyclic reduction of banded systems.
    """
    if length == 1:
        return drives
    half, rest = length // 2, (length - 1) // 2
    odd = torch.baddbmm(drives[1::2], drives[: 2 * half : 2], steps[::2])
    odd = scan(torch.bmm(steps[1::2][: half - 1], steps[2::2]), odd, half)
    even = torch.cat([drives[:1], torch.baddbmm(drives[2::2], odd[:rest], steps[1::2])])
    return torch.cat([torch.stack([even[:half], odd], dim=1).flatten(0, 1), even[half:]])


def propagate(steps: Tensor, lower_drive: Tensor, upper_drive: Tensor, stages: int) -> Tensor:
    """The states of both chains at every stage. The chain up follows the chain down, after a step of zeros.

    Args:
        steps: A_2 ... A_{N-1}, 0, E_{N-1} ... E_2, transposed, (2N - 3, s, s).
        lower_drive: B_k u_k of the stages 1..N-1, (N-1, R, s).
        upper_drive: F_k u_k of the stages 2..N, (N-1, R, s).
        stages: N, at least 2.

    Returns:
        x_k and z_k side by side, (N, R, 2s); those at the ends, x_1 and z_N, are 0.
    """
    states = scan(steps, torch.cat([lower_drive, upper_drive.flip(0)]), 2 * stages - 2)
    down, up = states[: stages - 1], states[stages - 1 :].flip(0)
    return torch.cat([F.pad(down, (0, 0, 0, 0, 1, 0)), F.pad(up, (0, 0, 0, 0, 0, 1))], dim=2)


def realise(target: Tensor, rows: Sequence[int], columns: Sequence[int], states: Sequence[int]) -> list[list[Tensor]]:
    """The chain down whose blocks below the diagonal are those of a matrix, as near as its states allow.

    From stage to stage, the singular vectors of what the rows below see of (the state so far, the inputs of this stage)
    are the next state. States are orthonormal combinations of the inputs, [A B][A B]^T = 1, so no system has to be
    solved and C is the best for them; nothing is lost if the blocks below every cut have at most the rank of its state.

    Args:
        target: (O, I); what is on and above the diagonal blocks is not read.
        rows: of the stages.
        columns: of the stages.
        states: at the cuts.

    Returns:
        inputs B, states A and outputs C, one per cut or stage.

    Source:
        Dewilde and van der Veen 1998, Time-Varying Systems and Computations, chapter 5: the realisation from Hankel
        blocks; here the reachable space of one cut is compressed before the next one is looked at, as in Chandrasekaran
        et al. 2005, Some fast algorithms for sequentially semiseparable representations, SIAM J. Matrix Anal. 27, 341.
    """
    inputs: list[Tensor] = []
    steps: list[Tensor] = []
    outputs: list[Tensor] = []
    top, left, seen = 0, 0, target[:, :0]
    for k, size in enumerate(states):
        top += rows[k]
        seen = torch.cat([seen[rows[k] :], target[top:, left : left + columns[k]]], dim=1)
        left += columns[k]
        small = torch.linalg.qr(seen, mode="r").R if seen.shape[0] > seen.shape[1] else seen
        new = torch.linalg.svd(small, full_matrices=False).Vh[:size]  # [A B]
        before = new.shape[1] - columns[k]
        steps.append(new[:, :before])
        inputs.append(new[:, before:])
        seen = seen @ new.T
        outputs.append(seen[: rows[k + 1]])
    return [inputs, steps[1:], outputs]
