"""What the demo measures, and the table made of it: one row per variant, written the same way everywhere."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trained variant.

    Args:
        label: the family in words.
        color: of its point and curves, as ``#rrggbb``.
        parameters: numbers the trained model stores, biases and norms included.
        share: parameters over those of the plain network.
        accuracy: of the folded model on the test set, 0 to 1.
        step_ms: median training step, in milliseconds.
        latency_ms: median forward pass of the folded model, in milliseconds.
        difference: largest |folded - unfolded| over all test outputs.
        losses: mean training loss of every epoch.
        accuracies: accuracy on the validation samples after every epoch, 0 to 1.
    """

    label: str
    color: str
    parameters: int
    share: float
    accuracy: float
    step_ms: float
    latency_ms: float
    difference: float
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def columns(batch: int) -> list[str]:
    """Headings of the table.

    Args:
        batch: samples per forward pass of the latency.

    Returns:
        one heading per column.
    """
    return [
        "family", "parameters", "share", "test accuracy", "ms/step", f"folded latency, ms (batch {batch})",
        "max |folded - unfolded|",
    ]  # fmt: skip


def cells(result: Result) -> list[str]:
    """One row of the table, rounded as it is shown in every place.

    Args:
        result: of one variant.

    Returns:
        one text per column.

    Example:
        >>> cells(Result(label="Plain", color="#000000", parameters=1234, share=1.0, accuracy=0.98765,
        ...              step_ms=1.23456, latency_ms=0.5, difference=1.5e-6))
        ['Plain', '1234', '1.000', '0.9877', '1.23', '0.500', '1.5e-06']
    """
    return [
        result.label, str(result.parameters), f"{result.share:.3f}", f"{result.accuracy:.4f}", f"{result.step_ms:.2f}",
        f"{result.latency_ms:.3f}", f"{result.difference:.1e}",
    ]  # fmt: skip


def as_csv(results: list[Result], batch: int) -> str:
    """The table as CSV.

    Args:
        results: one per variant.
        batch: samples per forward pass of the latency.

    Returns:
        text with a heading row.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns(batch), *map(cells, results)])
    return text.getvalue()


def as_markdown(results: list[Result], batch: int) -> str:
    """The table as Markdown.

    Args:
        results: one per variant.
        batch: samples per forward pass of the latency.

    Returns:
        text; numbers are set to the right.
    """
    rows = [columns(batch), ["---"] + ["---:"] * (len(columns(batch)) - 1), *map(cells, results)]
    # a bar inside a cell would end it
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"
