"""Sizes of sequentially semiseparable matrices: what the stages cut, what the states need, what a budget buys.

Letters: O, I = rows and columns of the matrix; N = stages; s = largest size of a state.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from typing import NamedTuple

from weft.parametrizations.parts import part_sizes

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
    rows = part_sizes(shape[0], stages)
    columns = [positions * size for size in part_sizes(shape[1] // positions, stages)]
    above, left = (list(itertools.accumulate(sizes))[:-1] for sizes in (rows, columns))
    lower = [min(state, before, shape[0] - over) for before, over in zip(left, above, strict=True)]
    upper = [min(state, shape[1] - before, over) for before, over in zip(left, above, strict=True)]
    return Plan(rows, columns, lower, upper)


def largest_within(
    shape: tuple[int, int], positions: int, budget: int, stages: int | None = None, state: int | None = None
) -> tuple[tuple[int, int] | None, int]:
    """The stages and the state of the largest member that stores no more than some numbers.

    Of all numbers of stages, those are preferred at which the blocks on the diagonal take a third to two thirds of the
    budget: matrices of every kind were fitted best there. Among them even stages are worth a tenth of the numbers, as
    their products need no padding, which copies the weights in every call. But a budget that a member meets exactly
    gives that member.

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

    few = math.prod(shape) / max(budget, 1)  # stages at which the diagonal alone takes the budget
    preferred = {round(few * part / 8) for part in range(12, 25)}
    both = math.gcd(shape[0], shape[1] // positions)
    preferred |= {count for count in range(math.ceil(1.5 * few), min(int(3 * few), both) + 1) if both % count == 0}
    fewest = min(range(1, most + 1), key=least_numbers)
    candidates = {*range(1, 33), fewest, *preferred} & {*range(1, most + 1)}
    ranked, least = [], 0
    for count in candidates if stages is None else {stages}:
        largest = largest_state(shape, positions, count)
        states = range(min(smallest, largest), largest + 1) if state is None else range(state, state + 1)
        if states[0] > largest:
            continue
        numbers = functools.partial(_numbers, shape, positions, count)
        least = min(least or numbers(states[0]), numbers(states[0]))
        if fitting := bisect.bisect_right(states, budget, key=numbers):
            found = (count, states[fitting - 1])
            stored = numbers(found[1])
            even = shape[0] % count == shape[1] // positions % count == 0
            worth = 1.1 * stored if even else stored
            ranked.append(((stored == budget, count in preferred, worth, -count), found))
    return max(ranked)[1] if ranked else None, least


def _numbers(shape: tuple[int, int], positions: int, stages: int, state: int) -> int:
    return plan(shape, positions, stages, state).numbers()


def largest_state(shape: tuple[int, int], positions: int, stages: int) -> int:
    """The largest rank that a block beside the diagonal can have.

    Args:
        shape: (O, I).
        positions: columns that are never cut apart.
        stages: N.

    Returns:
        the rank; 0 for one stage.
    """
    _, _, lower, upper = plan(shape, positions, stages, min(shape))
    return max([*lower, *upper], default=0)
