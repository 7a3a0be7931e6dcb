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

import copy
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization, relative_error, too_small
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register
from weft.parametrizations.semiseparable_chains import cut, join, propagate, realise, runs, spread, stack
from weft.parametrizations.semiseparable_sizes import largest_state, largest_within, plan


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
    fit_copies = 45.0
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
        largest = largest_state(self.shape, positions, stages)
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
        shapes = [(end - start, *size) for start, end, size in runs(sizes)]
        parts = values.split([math.prod(shape) for shape in shapes]) if shapes else ()
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

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
        count, shape = self.num_stages, x.shape[:-1] + (self.shape[0],)  # noqa: RUF005, torch.fx cannot iterate over a shape
        u = cut(x.reshape(-1, self.shape[1]), self.plan.columns)
        y = torch.bmm(u, self._stack("diagonal").transpose(1, 2))
        if count > 1:
            lower, upper = (matrix.transpose(1, 2) for matrix in self._inputs())
            states = propagate(self._steps(), torch.bmm(u[:-1], lower), torch.bmm(u[1:], upper), count)
            y = torch.baddbmm(y, states, self._outputs().transpose(1, 2))
        y = join(y, self.plan.rows).reshape(shape)
        return y if bias is None else y + bias.to(y.dtype)

    @property
    def traffic(self) -> int:
        return sum(self.shape) + 10 * self.num_stages * self.state  # states are written once for every pass

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
            raise too_small("sss", shape, least or None)
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
        lr_multiplier={  # a step on A or E acts once per stage that a state passes
            "diagonal": "max(1, num_stages/4)",
            "lower_input": "0.25*num_stages^0.5/gain",
            "lower_state": "0.75*in/(max(state, 1)*num_stages)/gain",
            "lower_output": "0.4*in/max(state, 1)",
            "upper_input": "0.25*num_stages^0.5/gain",
            "upper_state": "0.75*in/(max(state, 1)*num_stages)/gain",
            "upper_output": "0.4*in/max(state, 1)",
        },
        sgd_multiplier={
            "diagonal": "max(1, num_stages/12)",
            "lower_input": "0.03/gain^2",
            "lower_state": "0.3/max(state, 1)/gain^2",
            "lower_output": "0.3*in/max(state, 1)",
            "upper_input": "0.03/gain^2",
            "upper_state": "0.3/max(state, 1)/gain^2",
            "upper_output": "0.3*in/max(state, 1)",
        },
        launches=110,  # two thirds of them views and small copies, which cost as much as small kernels
        efficiency=0.4,
    )
)
