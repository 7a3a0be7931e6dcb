"""Sequentially semiseparable matrices: a linear system that varies along the features, run down and up.

The features are cut into N stages, u_k of the input and y_k of the output. One chain of states goes down the stages,
another one up:

    x_{k+1} = A_k x_k + B_k u_k,      z_{k-1} = E_k z_k + F_k u_k,      y_k = D_k u_k + C_k x_k + G_k z_k

so that block (k, j) of W is D_k for k = j, C_k A_{k-1} ... A_{j+1} B_j below the diagonal and
G_k E_{k+1} ... E_{j-1} F_j above it.

Letters: O, I = rows and columns of W; N = stages; s = largest size of a state; R = rows of the input; o, c = largest
number of rows and columns of a stage; P = N*c.
"""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import BudgetError, OptionError
from weft.parametrizations.base import Parametrization, relative_error, smallest_share
from weft.parametrizations.chunks import in_chunks
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register

Sizes = list[tuple[int, int]]  # (rows, columns) of every block of a stack


class Plan(NamedTuple):
    """Sizes of everything: what the stages cut, and what a state can need at every cut between them."""

    rows: list[int]
    columns: list[int]
    lower: list[int]  # states before the stages 2..N
    upper: list[int]  # states after the stages 1..N-1

    def blocks(self) -> dict[str, Sizes]:
        """Sizes of the blocks of every parameter, in the order of the stages.

        Returns:
            name to (rows, columns) per block.
        """
        rows, columns, lower, upper = self
        return {
            "diagonal": list(zip(rows, columns, strict=True)),
            "lower_input": list(zip(lower, columns[:-1], strict=True)),
            "lower_state": list(zip(lower[1:], lower[:-1], strict=True)),
            "lower_output": list(zip(rows[1:], lower, strict=True)),
            "upper_input": list(zip(upper, columns[1:], strict=True)),
            "upper_state": list(itertools.pairwise(upper)),
            "upper_output": list(zip(rows[:-1], upper, strict=True)),
        }

    def numbers(self) -> int:
        """Stored numbers.

        Returns:
            the sum over all blocks.
        """
        return sum(rows * columns for sizes in self.blocks().values() for rows, columns in sizes)


def plan(shape: tuple[int, int], positions: int, stages: int, state: int) -> Plan:
    """Cut the features as evenly as possible, the first stages one larger, and limit states to what a cut can need.

    Args:
        shape: (O, I).
        positions: columns that are never cut apart, divides I.
        stages: N, in 1..min(O, I/positions).
        state: s.

    Returns:
        the sizes. A state at a cut is no larger than the block that it stands for, before times after.
    """
    rows = _split(shape[0], stages)
    columns = [positions * size for size in _split(shape[1] // positions, stages)]
    above, left = (list(itertools.accumulate(sizes))[:-1] for sizes in (rows, columns))
    lower = [min(state, before, shape[0] - over) for before, over in zip(left, above, strict=True)]
    upper = [min(state, shape[1] - before, over) for before, over in zip(left, above, strict=True)]
    return Plan(rows, columns, lower, upper)


def largest_within(
    shape: tuple[int, int], positions: int, budget: int, stages: int | None = None, state: int | None = None
) -> tuple[tuple[int, int] | None, int]:
    """The stages and the state of the largest member that stores no more than some numbers.

    Of all numbers of stages, those are preferred at which the blocks on the diagonal take a third to two thirds of the
    budget: matrices of every kind were fitted best there. Among them even stages are worth 3 % of the numbers, as their
    products need no padding. But a budget that a member meets exactly gives that member.

    Args:
        shape: (O, I).
        positions: columns that are never cut apart.
        budget: stored numbers.
        stages: None to choose it.
        state: None to choose it.

    Returns:
        (stages, state), None if there is no member so small; and the numbers of the smallest, 0 if there is none.
    """
    most = min(shape[0], shape[1] // positions)
    smallest = 1 if state is None else state

    def least_numbers(stages: int) -> int:
        """What ``plan`` counts for the smallest state, unless that is larger than a cut can need."""
        (r, longer), (c, wider) = divmod(shape[0], stages), divmod(shape[1] // positions, stages)
        diagonal = positions * (stages * r * c + r * wider + c * longer + min(longer, wider))
        ends = 2 * r + (longer > 0) + positions * (2 * c + (wider > 0))
        return diagonal + smallest * (2 * sum(shape) - ends) + 2 * max(stages - 2, 0) * smallest**2

    preferred = {round(math.prod(shape) / max(budget, 1) * part / 8) for part in range(12, 25)}
    fewest = min(range(1, most + 1), key=least_numbers)
    candidates = {*range(1, 33), fewest, *preferred} & {*range(1, most + 1)}
    ranked, least = [], 0
    for count in candidates if stages is None else {stages}:
        largest = _largest_state(shape, positions, count)
        states = range(min(smallest, largest), largest + 1) if state is None else range(state, state + 1)
        if states[0] > largest:
            continue
        numbers = functools.partial(_numbers, shape, positions, count)
        least = min(least or numbers(states[0]), numbers(states[0]))
        if fitting := bisect.bisect_right(states, budget, key=numbers):
            found = (count, states[fitting - 1])
            stored = numbers(found[1])
            worth = stored * (
                1.03 if shape[0] % count == shape[1] // positions % count == 0 else 1
            )  # nothing is padded
            ranked.append(((stored == budget, count in preferred, worth, -count), found))
    return max(ranked)[1] if ranked else None, least


def _numbers(shape: tuple[int, int], positions: int, stages: int, state: int) -> int:
    return plan(shape, positions, stages, state).numbers()


def _split(size: int, parts: int) -> list[int]:
    small, larger = divmod(size, parts)
    return [small + 1] * larger + [small] * (parts - larger)


def _runs(sizes: Sequence[int | tuple[int, int]]) -> list[tuple[int, int, Any]]:
    """The (first, past the last, size) of every run of equal sizes."""
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
    for start, end, (r, c) in _runs(sizes):
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
    for start, end, size in _runs(sizes):
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
    parts = [y[start:end, :, :size].transpose(0, 1).flatten(1) for start, end, size in _runs(sizes)]
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


class SequentiallySemiseparable(Parametrization):
    """A matrix whose blocks above and below the diagonal have low rank at every cut: a system with states along it.

    Choose it where features are ordered, as along time or frequency, and distant ones interact through few numbers. Its
    products need about as many multiply-adds as it stores numbers. Not for matrices without order: at the same share
    ``low_rank`` is nearer to them.

    Args:
        shape: (out, in) of the matrix.
        stages: N, into how many stages features are cut, in 1..min(out, in/positions). One is a dense matrix, and few
            large ones are faster than many small ones.
        state: s, size of the states between stages, in 1..the largest rank that a block beside the diagonal can have.
            Give both, or one or none of them and ``share``, through ``make`` or a layer.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        The blocks of all stages, one after the other: diagonal D, lower_input B, lower_output C, upper_input F,
        upper_output G take weight decay; lower_state A and upper_state E do not (they keep the states' size, the scale
        is in C and G). A cut near a corner has a smaller state where the block beyond it is smaller than s.

    Initial law:
        D is uniform with the wanted variance; B and F uniform with variance 1/(3 I), as an nn.Linear; A and E random
        isometries times the factor that keeps the mean square of the state's entries; C and G uniform with
        variance 3 I/s times the wanted one. Every entry of W then has the wanted variance.

    Cost:
        O*I/N + 2*s*(O + I)*(1 - 1/N) + 2*(N - 2)*s^2 numbers where N divides both sides and no state is smaller than s;
        about as many multiply-adds per row and once more 2*(N - 2)*s^2, and about 2*(N - 2)*s^3 per product.

    Raises:
        OptionError: ``stages`` or ``state`` is missing or out of range.

    Source:
        Dewilde and van der Veen 1998, Time-Varying Systems and Computations; Kissel et al. 2022, Backpropagation
        Through States: Training Neural Networks with Sequentially Semiseparable Weight Matrices, EPIA,
        https://doi.org/10.1007/978-3-031-16474-3_39, for its use as a layer. Products without a loop over the stages as
        in state-space duality, Dao and Gu 2024, https://arxiv.org/abs/2405.21060, section 6.

    Example:
        >>> p = SequentiallySemiseparable((8, 12), stages=4, state=1)
        >>> tuple(p.dense().shape), p.num_parameters
        ((8, 12), 58)
    """

    family = "sss"
    diagonal: Tensor
    lower_input: Tensor
    lower_state: Tensor
    lower_output: Tensor
    upper_input: Tensor
    upper_state: Tensor
    upper_output: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        stages: int | None = None,
        state: int | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        most = min(self.shape[0], self.shape[1] // positions)
        if stages is None or (state is None and stages != 1):
            raise OptionError("family 'sss' needs a size: give stages and state, or share in (0, 1]")
        if not 1 <= stages <= most:
            raise OptionError(
                f"stages must be in 1..min(out, in/positions) = 1..{most} for shape {self.shape}, got {stages}"
            )
        largest = _largest_state(self.shape, positions, stages)
        if state is not None and not min(1, largest) <= state <= largest:
            raise OptionError(
                f"state must be in {min(1, largest)}..{largest}, the largest rank beside the diagonal for shape "
                f"{self.shape} and stages={stages}; got {state}"
            )
        self.num_stages, self.state = int(stages), int(state or 0)
        self.plan = plan(self.shape, positions, self.num_stages, self.state)
        self._sizes = self.plan.blocks()
        rows, columns = self.plan.rows[0], self.plan.columns[0]
        padded = {"input": (self.state, columns), "state": (self.state, self.state), "output": (rows, self.state)}
        self._padded = {name: padded.get(name.rpartition("_")[2], (rows, columns)) for name in self._sizes}
        for name, sizes in self._sizes.items():
            numbers = sum(rows * columns for rows, columns in sizes)
            setattr(self, name, nn.Parameter(torch.empty(numbers, device=device, dtype=dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        inputs = self.shape[1]
        for blocks in self._alike("diagonal"):
            _uniform(blocks, self.variance)
        for chain in ("lower", "upper"):
            for blocks in self._alike(f"{chain}_input"):
                _uniform(blocks, 1 / (3 * inputs))
            for blocks in self._alike(f"{chain}_output"):
                _uniform(blocks, self.variance * 3 * inputs / blocks.shape[2])
            for blocks in self._alike(f"{chain}_state"):
                count, rows, columns = blocks.shape
                tall = torch.randn(count, max(rows, columns), min(rows, columns), device=blocks.device)
                isometries = torch.linalg.qr(tall).Q * max(1, rows / columns) ** 0.5
                blocks.copy_(isometries if rows > columns else isometries.mT)

    def _alike(self, name: str) -> list[Tensor]:
        """The blocks of one parameter as views (count, rows, columns), one per run of equal sizes."""
        sizes, values = self._sizes[name], getattr(self, name)
        runs = [(end - start, *size) for start, end, size in _runs(sizes)]
        parts = values.split([math.prod(run) for run in runs]) if runs else ()
        return [part.view(run) for part, run in zip(parts, runs, strict=True)]

    def _parts(self, name: str) -> list[Tensor]:
        """The blocks of one parameter as views, one by one."""
        return [block for blocks in self._alike(name) for block in blocks]

    def _stack(self, name: str) -> Tensor:
        """The blocks of one parameter as one padded tensor."""
        return stack(getattr(self, name), self._sizes[name], *self._padded[name])

    def _inputs(self) -> tuple[Tensor, Tensor]:
        """B of the stages 1..N-1 and F of the stages 2..N, (N-1, s, c)."""
        return self._stack("lower_input"), self._stack("upper_input")

    def _steps(self) -> Tensor:
        """The steps of both chains, as ``propagate`` wants them."""
        lower, upper = self._stack("lower_state"), self._stack("upper_state")
        return torch.cat([lower, lower.new_zeros(1, self.state, self.state), upper.flip(0)]).transpose(1, 2)

    def _outputs(self) -> Tensor:
        """C and G of every stage side by side, (N, o, 2s)."""
        lower, upper = self._stack("lower_output"), self._stack("upper_output")
        return torch.cat([F.pad(lower, (0, 0, 0, 0, 1, 0)), F.pad(upper, (0, 0, 0, 0, 0, 1))], dim=2)

    def _basis(self) -> Tensor:
        """The states of every stage as combinations of the inputs, (N, 2s, P)."""
        count, columns = self.num_stages, self.plan.columns[0]
        lower, upper = (spread(b, count - 1, columns, count, first) for first, b in enumerate(self._inputs()))
        return propagate(self._steps(), lower.transpose(1, 2), upper.transpose(1, 2), count).transpose(1, 2)

    def dense(self) -> Tensor:
        count, columns = self.num_stages, self.plan.columns[0]
        w = spread(self._stack("diagonal"), count, columns, count)  # (N, o, P)
        if count > 1:
            w = torch.baddbmm(w, self._outputs(), self._basis())
        w = join(w.transpose(1, 2), self.plan.rows)  # (P, O)
        return join(w.unflatten(0, (count, columns)).transpose(1, 2), self.plan.columns)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        diagonal, count = self._stack("diagonal").transpose(1, 2), self.num_stages
        if count > 1:
            lower, upper = (matrix.transpose(1, 2) for matrix in self._inputs())
            steps, outputs = self._steps(), self._outputs().transpose(1, 2)

        def product(x: Tensor) -> Tensor:
            u = cut(x, self.plan.columns)
            y = torch.bmm(u, diagonal)
            if count > 1:
                states = propagate(steps, torch.bmm(u[:-1], lower), torch.bmm(u[1:], upper), count)
                y = torch.baddbmm(y, states, outputs)
            y = join(y, self.plan.rows)
            return y if bias is None else y + bias.to(y.dtype)

        shape = x.shape[:-1] + (self.shape[0],)  # noqa: RUF005, torch.fx cannot iterate over a shape
        on_the_way = sum(self.shape) + 4 * count * self.state
        return in_chunks(product, x.reshape(-1, self.shape[1]), on_the_way).reshape(shape)

    @property
    def macs_per_row(self) -> int:
        """Multiply-adds of one row of an input, those with the zeros of the padding too."""
        (rows, columns), s, count = self._padded["diagonal"], self.state, self.num_stages
        chain = sum(length - 1 for length in _lengths(count))
        return count * rows * (columns + 2 * s) + 2 * (count - 1) * s * columns + chain * s**2

    @property
    def macs_of_steps(self) -> int:
        """Multiply-adds of joining pairs of steps, once per product."""
        return sum(length // 2 - 1 for length in _lengths(self.num_stages)) * self.state**3

    def cost(self, rows: int) -> int:
        return rows * self.macs_per_row + self.macs_of_steps

    def build_cost(self) -> int:
        (rows, columns), s, count = self._padded["diagonal"], self.state, self.num_stages
        chain = sum(length - 1 for length in _lengths(count))
        return count * columns * (2 * s * count * rows + chain * s**2) + self.macs_of_steps

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        twin = copy.deepcopy(self).to(target.dtype)  # half precision is rounded once, at the end
        twin._realise(target)
        if relative_error(twin.dense(), target) > 1e3 * torch.finfo(target.dtype).eps:
            steps = min(100, max(5, _MOST_WORK // self.build_cost()))
            refine(twin, target, steps=steps)
            if gram is not None:
                twin._reweigh(target, gram)
                refine(twin, target, gram, steps=steps)
        for mine, fitted in zip(self.parameters(), twin.parameters(), strict=True):
            mine.copy_(fitted)

    def _realise(self, target: Tensor) -> None:
        """Become the realisation of both triangles, as near as the states allow."""
        target = target.double()
        rows, columns, lower, upper = self.plan
        tops, lefts = ([0, *itertools.accumulate(sizes)] for sizes in (rows, columns))
        down = realise(target, rows, columns, lower)
        up = realise(target.flip(0, 1), rows[::-1], columns[::-1], upper[::-1])
        inputs, steps, outputs = (blocks[::-1] for blocks in up)
        found = {
            "diagonal": [
                target[a:b, c:d] for (a, b), (c, d) in zip(*map(itertools.pairwise, (tops, lefts)), strict=True)
            ],
            **dict(zip(("lower_input", "lower_state", "lower_output"), down, strict=True)),
            "upper_input": [block.flip(1) for block in inputs],
            "upper_state": steps,
            "upper_output": [block.flip(0) for block in outputs],
        }
        for name, blocks in found.items():
            for part, block in zip(self._parts(name), blocks, strict=True):
                part.copy_(block)

    def _reweigh(self, target: Tensor, gram: Tensor) -> None:
        """Take the outputs D, C and G that are best for the weighted error and the states as they are."""
        before, error = copy.deepcopy(self.state_dict()), relative_error(self.dense(), target, gram)
        target, gram = target.double(), gram.double()
        basis = self._basis().double().unflatten(2, (self.num_stages, -1)) if self.num_stages > 1 else None
        diagonal, lower, upper = (self._parts(name) for name in ("diagonal", "lower_output", "upper_output"))
        top = left = 0
        for k, block in enumerate(diagonal):
            rows, columns = block.shape
            known = torch.zeros(columns, self.shape[1], dtype=torch.float64, device=target.device)
            known[:, left : left + columns] = torch.eye(columns)
            if basis is not None:
                known = torch.cat([known, join(basis[k].transpose(0, 1), self.plan.columns)])
            weighted = known @ gram
            best = (target[top : top + rows] @ weighted.T) @ torch.linalg.pinv(weighted @ known.T, hermitian=True)
            block.copy_(best[:, :columns])
            if k > 0:
                lower[k - 1].copy_(best[:, columns:][:, : lower[k - 1].shape[1]])
            if k < self.num_stages - 1:
                upper[k].copy_(best[:, columns + self.state :][:, : upper[k].shape[1]])
            top, left = top + rows, left + columns
        if relative_error(self.dense(), target, gram) > error:  # directions that hardly occur, solved badly
            self.load_state_dict(before)

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        stages, state = options.get("stages"), options.get("state")
        if stages is not None and state is not None:
            raise OptionError(
                f"give stages and state or share to 'sss', not all of them; "
                f"got stages={stages}, state={state} beside a share"
            )
        if stages is not None and not 1 <= stages <= min(shape[0], shape[1] // positions):
            return {"state": 1}  # the constructor says what is wrong
        found, least = largest_within(shape, positions, budget, stages, state)
        if found is None:
            share = smallest_share(least, shape) if least else math.inf
            remedy = f"the smallest share that works is {share:.6f}" if share <= 1 else "no share works: use 'dense'"
            raise BudgetError(
                f"share is too small for 'sss' of shape {tuple(shape)}: {remedy}", share if share <= 1 else None
            )
        return dict(zip(("stages", "state"), found, strict=True))

    def extra_repr(self) -> str:
        return f"shape={self.shape}, stages={self.num_stages}, state={self.state}, share={self.share:.3g}"


#: Multiply-adds that all evaluations of ``dense()`` in a refinement may take: with their gradients some ten seconds.
_MOST_WORK = 12_000_000_000


def _lengths(stages: int) -> list[int]:
    """Lengths of the chains that ``scan`` halves, from both chains in one to the last of more than one state."""
    lengths, length = [], 2 * stages - 2
    while length > 1:
        lengths.append(length)
        length //= 2
    return lengths


def _uniform(block: Tensor, variance: float) -> None:
    block.uniform_(-1, 1).mul_((3 * variance) ** 0.5)


def _largest_state(shape: tuple[int, int], positions: int, stages: int) -> int:
    """The largest rank that a block beside the diagonal can have; 0 for one stage."""
    _, _, lower, upper = plan(shape, positions, stages, min(shape))
    return max([*lower, *upper], default=0)


register(
    Family(
        name="sss",
        cls=SequentiallySemiseparable,
        title="Sequentially semiseparable",
        summary="Blocks on the diagonal, and beside it the response of a linear system that runs along the features.",
        advice="For features in an order, where distant ones interact through few numbers; fast from 1024 wide.",
        source="Dewilde and van der Veen 1998, Time-Varying Systems and Computations; Kissel et al. 2022, "
        "https://doi.org/10.1007/978-3-031-16474-3_39",
        options={
            "stages": "number N of stages that features are cut into, 1..min(out, in); or give share",
            "state": "size s of the states between stages, at least 1; or give share",
        },
        parameters="out*in/num_stages + 2*state*(out + in)*(1 - 1/num_stages) + 2*(num_stages - 2)*state^2 "
        "(num_parameters for uneven stages or smaller states)",
        cost="rows*macs_per_row + macs_of_steps",
        weight_decay={
            "diagonal": True,
            "lower_input": True,
            "lower_state": False,
            "lower_output": True,
            "upper_input": True,
            "upper_state": False,
            "upper_output": True,
        },
        lr_multiplier={"lower_state": 0.1, "upper_state": 0.1},  # a step on A acts once per stage that it is passed
        launches=180,  # two thirds of them views and small copies, which cost as much as small kernels
        efficiency=0.25,
    )
)
