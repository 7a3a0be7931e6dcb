"""Ratios that can be trusted: both sides in one process, in turn, many times; median and quartiles.

A machine's speed drifts, so absolute times of two runs cannot be compared. Every pair here is timed back to back,
A B A B ..., with torch.utils.benchmark's timer, and the ratio is taken pair by pair.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """How many times faster ``ours`` is than ``baseline``: median of the pairs, and their quartiles."""

    times_faster: float
    low: float
    high: float
    baseline_s: float
    ours_s: float

    def __str__(self) -> str:
        return f"{self.times_faster:.2f} ({self.low:.2f} to {self.high:.2f})"


def compare(
    baseline: Callable[[], Any], ours: Callable[[], Any], *, pairs: int = 15, block_s: float = 0.01, threads: int = 2
) -> Ratio:
    """Time two callables in turn.

    Args:
        baseline: what a user would write without us.
        ours: what it is compared with.
        pairs: number of back-to-back pairs.
        block_s: least seconds of one timed block; short calls are repeated to fill it.
        threads: intra-operation threads.

    Returns:
        the ratio baseline/ours and the median seconds of one call.
    """
    timers = [Timer("f()", globals={"f": f}, num_threads=threads) for f in (baseline, ours)]
    numbers = []
    for timer in timers:
        timer.timeit(2)  # warm up: caches, thread pools, lazily chosen kernels
        numbers.append(max(1, round(block_s / max(timer.timeit(2).mean, 1e-7))))
    times = [[timer.timeit(n).mean for timer, n in zip(timers, numbers, strict=True)] for _ in range(pairs)]
    low, median, high = statistics.quantiles([a / b for a, b in times], n=4)
    return Ratio(median, low, high, *(statistics.median(column) for column in zip(*times, strict=True)))


def report(
    script: str,
    claim: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    remark: str = "",
    note: str = "Ratios are medians, quartiles in brackets; above 1 is faster.",
) -> None:
    """Write the result as JSON and as a Markdown table, and print the table.

    Args:
        script: ``__file__`` of the benchmark.
        claim: what is measured, in a sentence.
        headers: of the columns.
        rows: cells; a ``Ratio`` is written with its quartiles.
        remark: what a reader should know, such as floors and misses.
        note: what the numbers are.
    """
    name = Path(script).stem
    machine = f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        f"### {claim}",
        "",
        f"`python benchmarks/{name}.py` on {machine}. {note}",
        "",
        "| " + " | ".join(headers) + " |",
        "|" + "---|" * len(headers),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
        *(["", remark] if remark else []),
    ]
    cells = [[asdict(cell) if isinstance(cell, Ratio) else cell for cell in row] for row in rows]
    RESULTS.mkdir(exist_ok=True)
    record = {"claim": claim, "machine": machine, "headers": list(headers), "rows": cells, "remark": remark}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
