"""What the author of a family gives to the shipped tests: how to make a member, and what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft.errors import UnknownNameError
from weft.parametrizations import Family, Parametrization, record_of


@dataclass(frozen=True)
class Case:
    """One family with one choice of options, and an independent answer.

    Args:
        name: of the case, for the names of the tests.
        make: called as ``make(shape, **common)``, where ``common`` are any of ``positions``, ``variance``, ``device``
            and ``dtype``; returns a member with drawn parameters.
        dense: called with a member; returns its (out, in) matrix from the definition (slow loops, ``torch.kron``,
            numpy), not by the methods of the member. ``weft.testing.oracles`` has some.
        shapes: (out, in) pairs that the family can take, not all square; of a convolution, out and in channels.
        expected_failures: check to the reason why these options cannot pass it, beside those of the family's record.

    Example:
        >>> from weft.parametrizations import LowRank
        >>> case = Case(
        ...     "rank 3", lambda shape, **common: LowRank(shape, rank=3, **common), lambda p: p.left @ p.right
        ... )
        >>> case.member().shape, case.record.name
        ((8, 12), 'low_rank')
    """

    name: str
    make: Callable[..., Parametrization]
    dense: Callable[[Parametrization], Tensor]
    shapes: tuple[tuple[int, int], ...] = ((8, 12), (12, 8), (8, 8))
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def member(
        self,
        shape: tuple[int, int] | None = None,
        *,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Parametrization:
        """A fresh member, in double precision unless asked otherwise.

        Args:
            shape: (out, in); None for the first of ``shapes``.
            positions: as in ``Parametrization``.
            variance: as in ``Parametrization``.
            device: as in torch.
            dtype: as in torch.

        Returns:
            the member.
        """
        shape = self.shapes[0] if shape is None else shape
        return self.make(shape, positions=positions, variance=variance, device=device, dtype=dtype)

    @property
    def record(self) -> Family:
        """The record of the case's family.

        Raises:
            UnknownNameError: the family was not registered.
        """
        member = self.member(device="meta")
        record = record_of(member)
        if record is None:
            raise UnknownNameError(
                f"{type(member).__name__} must be registered before it can be tested: "
                f"weft.parametrizations.register(Family(...))"
            )
        return record

    @property
    def reasons(self) -> Mapping[str, str]:
        """Checks that the family, or these options, cannot pass, and why."""
        return {**self.record.expected_failures, **self.expected_failures}

    def __repr__(self) -> str:
        return self.name


def assert_same(got: Tensor, want: Tensor, tolerance: float = 1e-10, what: str = "the result") -> None:
    """Fail unless two tensors agree in shape and to a tolerance relative to the largest expected value.

    Args:
        got: what was computed.
        want: what is right.
        tolerance: largest allowed max|got - want| / max|want|.
        what: the name of ``got`` in the message.

    Raises:
        AssertionError: they differ.
    """
    assert got.shape == want.shape, f"{what} has shape {tuple(got.shape)}, must have {tuple(want.shape)}"
    if want.numel() == 0:
        return
    error = float((got.detach().double() - want.detach().double()).abs().max())
    scale = float(want.detach().double().abs().max())
    assert math.isfinite(error), f"{what} is not finite"
    assert error <= tolerance * scale, f"{what} is off by {error:.3g} where the largest value is {scale:.3g}"
