"""Which way a product runs: by the factors, or as one dense matrix that is built or cached.

A small model of the machine predicts the seconds of each way from the shapes alone; the answer is worked out once per
layer for three ranges of rows, cut at 8 and 128. All layers share these two cuts: with thresholds of their own,
``torch.compile`` would recompile a model once per layer. Nothing depends on the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from weft.parametrizations import Parametrization, record_of

FEW_ROWS, MANY_ROWS = 8, 128
#: Numbers of rows at which a range is judged: its ends (the last range is open).
_RANGES = ((1, FEW_ROWS - 1), (FEW_ROWS, MANY_ROWS - 1), (MANY_ROWS, 4096))


@dataclass(frozen=True)
class Machine:
    """Rough speed of a device type: seconds per started kernel, multiply-adds and bytes per second."""

    launch_s: float
    macs_per_s: float
    bytes_per_s: float


_CPU_THREAD = Machine(launch_s=3e-6, macs_per_s=65e9, bytes_per_s=25e9)
_ACCELERATOR = Machine(launch_s=6e-6, macs_per_s=20e12, bytes_per_s=1.5e12)


def machine(device: torch.device) -> Machine:
    """The speeds that the choice counts with.

    Args:
        device: where the weight lives.

    Returns:
        for the CPU, those of one thread times the number of threads.
    """
    if device.type != "cpu":
        return _ACCELERATOR
    threads = torch.get_num_threads()
    return Machine(_CPU_THREAD.launch_s, _CPU_THREAD.macs_per_s * threads, _CPU_THREAD.bytes_per_s * min(threads, 8))


class Plan(NamedTuple):
    """Whether the factored product wins, in each of the three ranges of rows."""

    few: bool
    some: bool
    many: bool

    def factored(self, rows: int) -> bool:
        """The choice for a number of rows.

        Args:
            rows: number of rows of the input.

        Returns:
            True for the factored product.
        """
        return self.few if rows < FEW_ROWS else self.some if rows < MANY_ROWS else self.many


def seconds(
    parametrization: Parametrization, rows: int, way: str, device: torch.device, itemsize: int, floor_s: float = 0.0
) -> float:
    """Predicted time of one product.

    Args:
        parametrization: what the weight is.
        rows: number of rows of the input.
        way: ``"factored"``, ``"dense"`` (built each time) or ``"cached"``.
        device: where the weight lives.
        itemsize: bytes of one number.
        floor_s: seconds that every started kernel takes on top (a convolution's set-up).

    Returns:
        seconds.
    """
    speed, record = machine(device), record_of(parametrization)
    rows_out, columns = parametrization.shape
    numbers, dense = parametrization.num_parameters, rows_out * columns
    activations = rows * (rows_out + columns)
    launch = speed.launch_s + floor_s

    def product(macs: int, stored: int, launches: int, efficiency: float = 1.0) -> float:
        return launches * launch + max(
            macs / (speed.macs_per_s * efficiency), (stored + activations) * itemsize / speed.bytes_per_s
        )

    if way == "factored":
        launches, efficiency = (record.launches, record.efficiency) if record else (1, 1.0)
        return product(parametrization.cost(rows), numbers, launches, efficiency)
    time_s = product(rows * dense, dense, 1)
    if way == "dense" and parametrization.build_cost():
        # Building writes the dense matrix and reads it again.
        time_s += 2 * launch + max(
            parametrization.build_cost() / speed.macs_per_s, 3 * dense * itemsize / speed.bytes_per_s
        )
    return time_s


#: The factored product must be predicted to take less than this part of the other's time: the model is rough, and a
#: layer that is slower than the plain one is worse than one that is as fast.
_MARGIN = 0.9


def plan(parametrization: Parametrization, way: str, device: torch.device, itemsize: int, floor_s: float = 0.0) -> Plan:
    """Compare the factored product with a dense one, in each range of rows.

    Args:
        parametrization: what the weight is.
        way: what to compare with: ``"dense"`` or ``"cached"``.
        device: where the weight lives.
        itemsize: bytes of one number.
        floor_s: as in ``seconds``.

    Returns:
        True where the factored product is predicted to win clearly at both ends of the range.
    """

    def wins(rows: int) -> bool:
        factored = seconds(parametrization, rows, "factored", device, itemsize, floor_s)
        return factored <= _MARGIN * seconds(parametrization, rows, way, device, itemsize, floor_s)

    return Plan(*(all(wins(rows) for rows in ends) for ends in _RANGES))


@dataclass(frozen=True)
class Explanation:
    """What a layer does with an input of a given shape, and why; ``str()`` is a table.

    Args:
        path: ``"factored"``, ``"dense"`` (built in this call) or ``"cached"`` (built once).
        why: one sentence.
        rows: rows of the matrix product.
        macs: multiply-adds of the chosen way, building included where it is built.
        dense_macs: multiply-adds of a plain layer.
        weight_bytes: bytes of weight that the chosen way reads.
        predicted_s: predicted seconds of each way.
    """

    path: str
    why: str
    rows: int
    macs: int
    dense_macs: int
    weight_bytes: int
    predicted_s: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{way} {s * 1e6:.1f} us" for way, s in self.predicted_s.items())
        return (
            f"path          {self.path}: {self.why}\n"
            f"rows          {self.rows}\n"
            f"multiply-adds {self.macs:,} (plain layer {self.dense_macs:,}; "
            f"ratio {self.macs / max(self.dense_macs, 1):.3g})\n"
            f"weight bytes  {self.weight_bytes:,}\n"
            f"predicted     {times}"
        )


def explain(
    parametrization: Parametrization,
    path: str,
    why: str,
    rows: int,
    device: torch.device,
    itemsize: int,
    floor_s: float,
) -> Explanation:
    """Put the facts about one call together.

    Args:
        parametrization: what the weight is.
        path: the way that runs.
        why: one sentence.
        rows: rows of the matrix product.
        device: where the weight lives.
        itemsize: bytes of one number.
        floor_s: as in ``seconds``.

    Returns:
        the explanation.
    """
    size = math.prod(parametrization.shape)
    built = parametrization.build_cost() if path == "dense" else 0
    macs = parametrization.cost(rows) if path == "factored" else rows * size + built
    numbers = parametrization.num_parameters if path == "factored" else size
    ways = ("factored", "dense", "cached")
    predicted = {way: seconds(parametrization, rows, way, device, itemsize, floor_s) for way in ways}
    return Explanation(path, why, rows, macs, rows * size, numbers * itemsize, predicted)
