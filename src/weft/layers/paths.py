"""Which way a product runs: by the factors, by the stages, or as one dense matrix that is built or cached.

A small model of the machine predicts the seconds of each way from the shapes alone; the answer is worked out once per
layer for four ranges of rows, cut at 8, 128 and 1024. All layers share these cuts: with thresholds of their own,
``torch.compile`` would recompile a model once per layer. Nothing depends on the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from weft.layers.chunks import chunk_rows
from weft.parametrizations import Parametrization, Stage, record_of

FEW_ROWS, MANY_ROWS, MOST_ROWS = 8, 128, 1024
#: Numbers of rows at which a range is judged: its ends (the last range is open).
_RANGES = ((1, FEW_ROWS - 1), (FEW_ROWS, MANY_ROWS - 1), (MANY_ROWS, MOST_ROWS - 1), (MOST_ROWS, 16384))


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
    """The way of the product in each of the four ranges of rows."""

    few: str
    some: str
    many: str
    most: str

    @classmethod
    def always(cls, way: str) -> Plan:
        """The same way for every number of rows.

        Args:
            way: as ``way`` returns it.

        Returns:
            the plan.
        """
        return cls(way, way, way, way)

    def way(self, rows: int) -> str:
        """The choice for a number of rows.

        Args:
            rows: number of rows of the input.

        Returns:
            ``"factored"``, ``"stages"``, ``"dense"`` or ``"cached"``.
        """
        if rows < MANY_ROWS:
            return self.few if rows < FEW_ROWS else self.some
        return self.many if rows < MOST_ROWS else self.most


def seconds(
    parametrization: Parametrization, rows: int, way: str, device: torch.device, itemsize: int, floor_s: float = 0.0
) -> float:
    """Predicted time of one product.

    Args:
        parametrization: what the weight is.
        rows: number of rows of the input.
        way: ``"factored"``, ``"stages"`` (made each time), ``"cached stages"``, ``"dense"`` (built each time) or
            ``"cached"``.
        device: where the weight lives.
        itemsize: bytes of one number.
        floor_s: seconds that every started kernel takes on top (a convolution's set-up).

    Returns:
        seconds; infinity for a way that there is not.
    """
    speed, record = machine(device), record_of(parametrization)
    out_features, in_features = parametrization.shape
    dense = out_features * in_features

    def product(macs: int, numbers: int, launches: int = 1, efficiency: float = 1.0) -> float:
        work_s = max(macs / speed.macs_per_s, numbers * itemsize / speed.bytes_per_s) / efficiency
        return launches * (speed.launch_s + floor_s) + work_s

    activations = rows * (out_features + in_features)
    if way == "factored":
        launches, efficiency = (record.launches, record.efficiency) if record else (1, 1.0)
        numbers, traffic = parametrization.num_parameters + activations, parametrization.traffic
        runs = max(1, rows // chunk_rows(traffic)) if traffic else 1
        traffic_s = 2 * rows * traffic * itemsize / speed.bytes_per_s
        return product(parametrization.cost(rows), numbers, launches * runs, efficiency) + traffic_s
    if way in ("stages", "cached stages"):
        shapes = parametrization.stage_shapes(evaluation=way == "cached stages")
        if shapes is None:
            return math.inf
        time_s, training = 0.0, way == "stages" and parametrization.stage_build_cost() > 0
        positions = kernel = parametrization.positions
        for groups, out, columns, inner in shapes:
            plain, numbers = groups == inner == 1, out + columns
            if inner % positions:  # the stage that sees the kernel; later ones act on output channels
                efficiency = _block_efficiency(math.sqrt(out * columns / kernel), kernel, training, floor_s > 0)
                numbers, positions = out + columns // kernel, 1
            elif inner == 1:
                efficiency = _block_efficiency(math.sqrt(out * columns), 1, training, floor_s > 0)
            else:
                efficiency, inner = 0.85, inner // positions
            if plain:  # thin convolutions are far from full speed
                efficiency = 0.85 * min(1.0, math.sqrt(out * columns / kernel) / 64) if floor_s else 0.85
            work = rows * groups * out * columns * inner / efficiency
            time_s += product(int(work), groups * out * columns, 2 if plain or floor_s else 5)
            passed_on = rows * groups * inner * numbers * itemsize / speed.bytes_per_s
            time_s += passed_on * (1 if plain or inner == kernel == 1 else 2 if training else 1.5)
        building = parametrization.stage_build_cost() if way == "stages" else 0
        return time_s + (product(building, 3 * dense, 2) if building else 0.0)
    time_s = product(rows * dense, dense + activations)
    if way == "dense" and parametrization.build_cost():
        time_s += product(parametrization.build_cost(), 5 * dense, 2)  # written, read, and its gradient taken apart
    return time_s


def _block_efficiency(side: float, kernel: int, training: bool, convolution: bool) -> float:
    """Part of a large product's speed that a batch of small ones reaches, fitted to measurements.

    Args:
        side: of one block, in features or channels.
        kernel: kernel positions.
        training: whether a backward pass through the blocks follows.
        convolution: whether the blocks are the groups of a convolution.

    Returns:
        a number in 0.2..0.92.
    """
    if kernel > 1:
        return min(max(1 - (14 if training else 8) / side, 0.2), 0.92)
    doublings = math.log2(side / 64)
    if convolution:
        return min(max(0.27 + 0.13 * doublings, 0.2), 0.85)
    return min(max(0.15 + 0.2 * doublings, 0.2), 0.7) if training else min(max(0.4 + 0.28 * doublings, 0.2), 0.74)


#: A way by factors must be predicted to take less than this part of the dense one's time: the model is rough, and a
#: layer that is slower than the plain one is worse than one that is as fast.
_MARGIN = 0.9


def plan(
    parametrization: Parametrization, ways: Sequence[str], device: torch.device, itemsize: int, floor_s: float = 0.0
) -> Plan:
    """The fastest way in each range of rows.

    Args:
        parametrization: what the weight is.
        ways: what there is to choose from; the last one is taken where no other wins clearly at both ends of the range.
        device: where the weight lives.
        itemsize: bytes of one number.
        floor_s: as in ``seconds``.

    Returns:
        the choices.
    """

    def best(ends: tuple[int, int]) -> str:
        times = {way: [seconds(parametrization, rows, way, device, itemsize, floor_s) for rows in ends] for way in ways}
        limit = [_MARGIN * time_s for time_s in times[ways[-1]]]
        winners = [way for way in ways[:-1] if all(a <= b for a, b in zip(times[way], limit, strict=True))]
        return min(winners, key=lambda way: sum(times[way]), default=ways[-1])

    return Plan(*(best(ends) for ends in _RANGES))


@dataclass(frozen=True)
class Explanation:
    """What a layer does with an input of a given shape, and why; ``str()`` is a table.

    Args:
        path: ``"factored"``; ``"stages"`` or ``"dense"`` (made in this call); ``"cached stages"`` or ``"cached"``
            (made once).
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
        ratio = f"; ratio {self.macs / self.dense_macs:.3g}" if self.dense_macs else ""
        return (
            f"path          {self.path}: {self.why}\n"
            f"rows          {self.rows}\n"
            f"multiply-adds {self.macs:,} (plain layer {self.dense_macs:,}{ratio})\n"
            f"weight bytes  {self.weight_bytes:,}" + (f"\npredicted     {times}" if times else "")
        )


def explain(
    parametrization: Parametrization,
    path: str,
    why: str,
    rows: int,
    stages: list[Stage] | None,
    stage_macs: int,
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
        stages: what runs where the way is by stages.
        stage_macs: its multiply-adds.
        device: where the weight lives.
        itemsize: bytes of one number.
        floor_s: as in ``seconds``.

    Returns:
        the explanation.
    """
    size = math.prod(parametrization.shape)
    if stages is not None:
        macs = stage_macs + (parametrization.stage_build_cost() if path == "stages" else 0)
        numbers = sum(stage.matrix.numel() for stage in stages)
    elif path == "factored":
        macs, numbers = parametrization.cost(rows), parametrization.num_parameters
    else:
        macs, numbers = rows * size, size
        macs += parametrization.build_cost() if path == "dense" else 0
    ways = ("factored", "stages", "cached stages", "dense", "cached")
    predicted = {way: seconds(parametrization, rows, way, device, itemsize, floor_s) for way in ways}
    predicted = {way: time_s for way, time_s in predicted.items() if time_s < math.inf}
    return Explanation(path, why, rows, macs, rows * size, numbers * itemsize, predicted)
